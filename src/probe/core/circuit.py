"""A circuit: the edges of a model's graph that are said to do the work, and what each scored."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from probe.core.errors import OptionError
from probe.core.graph import Graph

if TYPE_CHECKING:
    import networkx as nx
    import pandas as pd

By = Literal["size", "signed"]
Select = Literal["top", "signed", "greedy"]


@dataclass(frozen=True, eq=False)
class Circuit:
    """Edges kept of a graph. A value: every change gives another circuit.

    Attributes:
        graph: The model's graph.
        kept: Which edges are in the circuit.
        scores: What each edge scored; 0 where none was given.
    """

    graph: Graph
    kept: Bool[Tensor, "sender receiver"] = field(repr=False)
    scores: Float[Tensor, "sender receiver"] = field(repr=False)

    # --- made from -------------------------------------------------------------------------------

    @classmethod
    def scored(cls, graph: Graph, scores: Float[Tensor, "sender receiver"]) -> "Circuit":
        """No edge kept yet, but all scored; ``top``, ``above`` and ``greedy`` choose."""
        wide = torch.where(graph.edges, scores.double().cpu(), 0.0)
        return cls(graph, torch.zeros_like(graph.edges), wide)

    @classmethod
    def of_edges(cls, graph: Graph, names: Iterable[str]) -> "Circuit":
        """These edges and no other; unscored."""
        kept = torch.zeros_like(graph.edges)
        for name in names:
            kept[graph.edge(name)] = True
        return cls(graph, kept, torch.zeros(kept.shape, dtype=torch.float64))

    @classmethod
    def full(cls, graph: Graph) -> "Circuit":
        """Every edge: the model itself."""
        return replace(cls.of_edges(graph, ()), kept=graph.edges.clone())

    @classmethod
    def from_frame(cls, model: Any, frame: "pd.DataFrame") -> "Circuit":
        """All edges scored as in a discovery method's table; those its ``kept`` names are kept."""
        graph = Graph.of(model.dims)
        if not {"sender", "receiver", "value"} <= set(frame.columns):
            raise OptionError(
                f"a table of {', '.join(map(str, frame.columns))}",
                expected="columns sender, receiver and value, as eap gives",
            )
        made = cls.of_edges(graph, ())
        names = frame["sender"] + "->" + frame["receiver"]
        at = torch.tensor([graph.edge(name) for name in names]).T
        made.scores[at[0], at[1]] = torch.tensor(frame["value"].to_numpy(dtype=float))
        if "kept" in frame:
            made.kept[at[0], at[1]] = torch.tensor(frame["kept"].to_numpy(dtype=bool))
        return made

    # --- chosen ----------------------------------------------------------------------------------

    def top(self, n: int | float, *, by: By = "size") -> "Circuit":
        """The n highest edges, then pruned. A fraction is of all edges, rounded down.

        Args:
            n: Number of edges, or a float up to 1: share of the graph's edges.
            by: ``size``: of the score whatever its sign, as MIB ranks; ``signed``: the most
                positive, of which only positive ones are kept.
        """
        count = self._count(n)
        if count == self.graph.n_edges and by == "size":
            return replace(self, kept=self.graph.edges.clone())
        rank = self.scores.abs() if by == "size" else self.scores
        rank = torch.where(self.graph.edges, rank, -torch.inf).flatten()
        best = rank.argsort(descending=True, stable=True)[:count]
        kept = torch.zeros_like(rank, dtype=torch.bool)
        kept[best] = True
        if by == "signed":
            kept &= rank > 0
        return replace(self, kept=kept.view_as(self.kept)).pruned()

    def above(self, threshold: float, *, by: By = "size") -> "Circuit":
        """Edges that score more than a threshold, then pruned."""
        rank = self.scores.abs() if by == "size" else self.scores
        return replace(self, kept=self.graph.edges & (rank > threshold)).pruned()

    def greedy(self, n: int | float) -> "Circuit":
        """Grown back from the logits, n times the strongest edge into what is in it; then pruned.

        Every edge chosen has its way to the logits; ``top`` may choose edges that lead nowhere and
        loses them to pruning.
        """
        kept = torch.zeros_like(self.kept)
        waiting: list[tuple[float, int, int]] = []
        read: set[int] = set()

        def let_in(receivers: Iterable[int]) -> None:
            for receiver in set(receivers) - read:
                read.add(receiver)
                for sender in self.graph.edges[:, receiver].nonzero()[:, 0].tolist():
                    heappush(
                        waiting, (-abs(float(self.scores[sender, receiver])), sender, receiver)
                    )

        let_in([len(self.graph.receivers) - 1])
        for _ in range(self._count(n)):
            if not waiting:
                break
            _, sender, receiver = heappop(waiting)
            kept[sender, receiver] = True
            let_in(self.graph.feeds[:, sender].nonzero()[:, 0].tolist())
        return replace(self, kept=kept).pruned()

    def select(self, n: int | float, how: Select) -> "Circuit":
        """``top``, ``top`` of the signed scores, or ``greedy``, by name."""
        if how == "greedy":
            return self.greedy(n)
        return self.top(n, by="size" if how == "top" else "signed")

    def pruned(self) -> "Circuit":
        """Without edges that lie on no path from the input to the logits."""
        graph, kept = self.graph, self.kept & self.graph.edges
        feeds = graph.feeds
        reached = torch.zeros(len(graph.senders), dtype=torch.bool)
        reached[0] = True
        for sender in range(1, len(reached)):
            into = kept[:, feeds[:, sender]]
            reached[sender] = bool((into & reached[:, None]).any())
        useful = torch.zeros(len(graph.receivers), dtype=torch.bool)
        useful[-1] = True
        for sender in reversed(range(len(reached))):
            if bool((kept[sender] & useful).any()):
                useful |= feeds[:, sender]
        return replace(self, kept=kept & reached[:, None] & useful)

    def without(self, *nodes: str) -> "Circuit":
        """Without all edges from and into these nodes.

        A key or value that other heads share stays while one of them does.
        """
        kept, feeds = self.kept.clone(), self.graph.feeds
        out = [self.graph.sender(node) for node in nodes]
        kept[out] = False
        gone = torch.zeros(len(self.graph.senders), dtype=torch.bool)
        gone[[*out, *(i for i, name in enumerate(self.graph.senders) if self._idle(name))]] = True
        fed = feeds[:, out].any(1) & ~(feeds & ~gone).any(1)
        kept[:, fed] = False
        return replace(self, kept=kept)

    def adding(self, *nodes: str) -> "Circuit":
        """With all edges between these nodes and the nodes of the circuit, input and logits."""
        kept = self.kept.clone()
        inside = {*self.nodes, *nodes, "input", "logits"}
        writes = torch.tensor([name in inside for name in self.graph.senders])
        reads = torch.tensor([not inside.isdisjoint(r.feeds) for r in self.graph.receivers])
        for node in nodes:
            place = self.graph.sender(node)
            kept[place] |= reads & self.graph.edges[place]
            own = self.graph.feeds[:, place]
            kept[:, own] |= writes[:, None] & self.graph.edges[:, own]
        return replace(self, kept=kept)

    def _idle(self, node: str) -> bool:
        return node not in self._writers

    @property
    def _writers(self) -> set[str]:
        on = self.kept.any(1)
        return {name for name, used in zip(self.graph.senders, on.tolist(), strict=True) if used}

    def _count(self, n: int | float) -> int:
        count = int(n * self.graph.n_edges) if isinstance(n, float) else n
        if not 0 <= count <= self.graph.n_edges:
            raise OptionError(
                f"{n} of {self.graph.n_edges} edges",
                expected=f"a whole number from 0 to {self.graph.n_edges}, or a share from 0.0 to "
                "1.0",
            )
        return count

    # --- read ------------------------------------------------------------------------------------

    @property
    def n_edges(self) -> int:
        """Number of edges kept."""
        return int(self.kept.sum())

    @property
    def edges(self) -> list[str]:
        """Names of the edges kept, in the model's order."""
        return [self.graph.edge_name(s, r) for s, r in self.kept.nonzero().tolist()]

    @property
    def nodes(self) -> list[str]:
        """Nodes that an edge leaves or enters, in the model's order.

        A key or value shared by a group brings in those of its heads that write to something; all
        of them where none does.
        """
        writers, inside = self._writers, set(self._writers)
        for place in self.kept.any(0).nonzero()[:, 0].tolist():
            feeds = set(self.graph.receivers[place].feeds)
            inside |= feeds & writers or feeds
        return [name for name in (*self.graph.senders, "logits") if name in inside]

    def network(self) -> "nx.DiGraph":
        """Nodes joined by the edges kept; a node's several inputs are one.

        Each edge has ``score``, the one of largest size among those it stands for, and ``inputs``.
        """
        import networkx as nx

        net, inside = nx.DiGraph(), set(self.nodes)
        for sender, place in self.kept.nonzero().tolist():
            receiver, score = self.graph.receivers[place], float(self.scores[sender, place])
            for node in receiver.feeds:
                ends = self.graph.senders[sender], node
                if node not in inside:
                    continue
                known = net.get_edge_data(*ends, default={"score": 0.0, "inputs": []})
                larger = max(known["score"], score, key=abs)
                net.add_edge(*ends, score=larger, inputs=[*known["inputs"], receiver.name])
        return net

    def jaccard(self, other: "Circuit") -> float:
        """Edges in both, by edges in either; 1 for two empty circuits."""
        either = int((self.kept | other.kept).sum())
        return int((self.kept & other.kept).sum()) / either if either else 1.0

    def auroc(self, known: "Circuit", *, by: By = "size") -> float:
        """Chance that an edge of the known circuit outscores one that is not in it.

        1 where all of them do, 0.5 where scores say nothing. Ties count half.
        """
        from sklearn.metrics import roc_auc_score

        truth = known.kept[self.graph.edges]
        if bool(truth.all()) or not bool(truth.any()):
            raise OptionError(
                f"the known circuit has {int(truth.sum())} of {len(truth)} edges",
                expected="some edges in it and some outside",
            )
        scores = self.scores[self.graph.edges]
        return float(roc_auc_score(truth.numpy(), (scores.abs() if by == "size" else scores)))

    def __repr__(self) -> str:
        return (
            f"Circuit({self.n_edges} of {self.graph.n_edges} edges, {len(self.nodes)} of "
            f"{len(self.graph.senders) + 1} nodes)"
        )

    # --- files -----------------------------------------------------------------------------------

    def to_json(self, path: str | Path) -> Path:
        """Write the MIB benchmark's graph format; see ``core.circuit_file``."""
        from probe.core.circuit_file import write

        return write(self, Path(path))

    @classmethod
    def from_json(cls, path: str | Path) -> "Circuit":
        """Read the MIB benchmark's graph format; see ``core.circuit_file``."""
        from probe.core.circuit_file import read

        return read(Path(path))


def mean_jaccard(circuits: Sequence[Circuit]) -> float:
    """Mean overlap over all pairs."""
    pairs = [one.jaccard(other) for i, one in enumerate(circuits) for other in circuits[i + 1 :]]
    return sum(pairs) / len(pairs) if pairs else 1.0
