"""A transformer as a graph: what writes to the residual stream, and what reads from it.

Senders are the input (embeddings), each head and each MLP. Receivers are each head's query, key
and value, each MLP, and the logits. Whatever reads the stream reads the sum of all senders before
it, so there is an edge from each of those.

Under grouped-query attention several heads share one key and one value. A key that is read is read
by all of them, so ``k`` and ``v`` receivers belong to key/value heads, and an edge to one is one
edge. (Edge lists that repeat it for each query head of the group are understood and made by
``core.circuit``.)
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool
from torch import Tensor

from probe.core.errors import OptionError, nearest
from probe.core.model import Dims


@dataclass(frozen=True)
class Receiver:
    """One input: of a head (``q``, ``k``, ``v``), of an MLP, or of the logits.

    Attributes:
        name: ``a1.h3<q>``, ``a1.kv0<k>`` (``a1.h0<k>`` where each head has its own), ``m1``,
            ``logits``.
        kind: ``q``, ``k``, ``v``, ``mlp_resid`` or ``logits``.
        layer: The block; for the logits the number of blocks.
        head: Head for ``q``, key/value head for ``k`` and ``v``.
        feeds: The nodes it is an input of.
    """

    name: str
    kind: str
    layer: int
    head: int | None
    feeds: tuple[str, ...]


@dataclass(frozen=True)
class Graph:
    """Which senders and receivers a model of these sizes has.

    >>> graph = Graph(n_layers=1, n_heads=2, n_kv_heads=1, d_model=8)
    >>> graph.senders
    ('input', 'a0.h0', 'a0.h1', 'm0')
    >>> [receiver.name for receiver in graph.receivers]
    ['a0.h0<q>', 'a0.h1<q>', 'a0.kv0<k>', 'a0.kv0<v>', 'm0', 'logits']
    >>> graph.n_edges
    11
    """

    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_model: int
    parallel: bool = False

    @classmethod
    def of(cls, dims: Dims) -> "Graph":
        """The graph of a model."""
        return cls(dims.n_layers, dims.n_heads, dims.n_kv_heads, dims.d_model, dims.parallel)

    @cached_property
    def senders(self) -> tuple[str, ...]:
        """Names, in the order in which the model writes."""
        blocks = range(self.n_layers)
        heads = [[f"a{layer}.h{head}" for head in range(self.n_heads)] for layer in blocks]
        return ("input", *(name for layer in blocks for name in (*heads[layer], f"m{layer}")))

    @cached_property
    def receivers(self) -> tuple[Receiver, ...]:
        """In the order in which the model reads: of each block queries, keys, values, MLP."""
        made = []
        for layer in range(self.n_layers):
            made += [
                Receiver(f"a{layer}.h{h}<q>", "q", layer, h, (f"a{layer}.h{h}",))
                for h in range(self.n_heads)
            ]
            made += [self._shared(kind, layer, h) for kind in "kv" for h in range(self.n_kv_heads)]
            made.append(Receiver(f"m{layer}", "mlp_resid", layer, None, (f"m{layer}",)))
        return (*made, Receiver("logits", "logits", self.n_layers, None, ("logits",)))

    def _shared(self, kind: str, layer: int, head: int) -> Receiver:
        size = self.n_heads // self.n_kv_heads
        feeds = tuple(f"a{layer}.h{h}" for h in range(head * size, (head + 1) * size))
        name = feeds[0] if size == 1 else f"a{layer}.kv{head}"
        return Receiver(f"{name}<{kind}>", kind, layer, head, feeds)

    @property
    def per_layer(self) -> int:
        """Receivers of one block."""
        return self.n_heads + 2 * self.n_kv_heads + 1

    def first_sender(self, layer: int) -> int:
        """Number of senders before a block; its heads come next, then its MLP."""
        return 1 + layer * (self.n_heads + 1)

    def read_by(self, receiver: Receiver) -> int:
        """How many senders, from the first on, this receiver reads."""
        before = self.first_sender(receiver.layer)
        sequential = receiver.kind == "mlp_resid" and not self.parallel
        return before + (self.n_heads if sequential else 0)

    def inputs(self, layer: int, kind: str) -> slice:
        """Where a block's receivers of a kind stand among all receivers."""
        sizes = {"q": self.n_heads, "k": self.n_kv_heads, "v": self.n_kv_heads, "mlp_resid": 1}
        start = layer * self.per_layer
        for name, size in sizes.items():
            if name == kind:
                return slice(start, start + size)
            start += size
        return slice(len(self.receivers) - 1, len(self.receivers))

    def block(self, layer: int) -> tuple[slice, int]:
        """Where a block's receivers stand, and how many senders any of them reads.

        After the last block, of the logits.
        """
        start = layer * self.per_layer
        place = slice(start, min(start + self.per_layer, len(self.receivers)))
        return place, max(map(self.read_by, self.receivers[place]))

    @cached_property
    def edges(self) -> Bool[Tensor, "sender receiver"]:
        """Which pairs are joined."""
        counts = torch.tensor([self.read_by(receiver) for receiver in self.receivers])
        return torch.arange(len(self.senders))[:, None] < counts

    @property
    def n_edges(self) -> int:
        """How many pairs are joined."""
        return int(self.edges.sum())

    @cached_property
    def feeds(self) -> Bool[Tensor, "receiver sender"]:
        """Which receivers are inputs of which senders."""
        joined = torch.zeros(len(self.receivers), len(self.senders), dtype=torch.bool)
        for row, receiver in enumerate(self.receivers[:-1]):
            for name in receiver.feeds:
                joined[row, self._sender_index[name]] = True
        return joined

    def sender(self, name: str) -> int:
        """The place of a sender."""
        if name not in self._sender_index:
            raise OptionError(
                f'there is no node "{name}" that writes', remedy=nearest(name, self.senders[:12])
            )
        return self._sender_index[name]

    def edge(self, name: str) -> tuple[int, int]:
        """The places of an edge's ends, from ``sender->receiver``.

        >>> Graph(1, 2, 1, 8).edge("a0.h1->logits")
        (2, 5)
        """
        sender, _, receiver = name.partition("->")
        if receiver not in self._receiver_index or sender not in self._sender_index:
            raise OptionError(
                f'there is no edge "{name}"',
                expected="sender->receiver, like a0.h1->a1.h0<q>, input->m0 or m0->logits",
                remedy=nearest(receiver, [r.name for r in self.receivers][-12:]),
            )
        ends = self._sender_index[sender], self._receiver_index[receiver]
        if not self.edges[ends]:
            raise OptionError(f"{name} runs backwards", expected="a sender before its receiver")
        return ends

    def edge_name(self, sender: int, receiver: int) -> str:
        """``sender->receiver``."""
        return f"{self.senders[sender]}->{self.receivers[receiver].name}"

    @cached_property
    def _sender_index(self) -> dict[str, int]:
        return {name: place for place, name in enumerate(self.senders)}

    @cached_property
    def _receiver_index(self) -> dict[str, int]:
        return {receiver.name: place for place, receiver in enumerate(self.receivers)}
