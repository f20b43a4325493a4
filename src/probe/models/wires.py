"""What every sender wrote and every receiver misses, for rows that move through blocks together."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probe.core.decompose import written_by_heads
from probe.core.graph import Graph
from probe.core.site import Site
from probe.core.trace import Trace
from probe.models.recorded import Run

if TYPE_CHECKING:
    from probe.models.bridge import BridgeModel


@dataclass(frozen=True)
class Row:
    """One set of edges and one prompt, and the first block that loses one."""

    cell: int
    example: int
    layer: int


@dataclass(eq=False)
class Runs:
    """The run that is changed and the one that fills in.

    Attributes:
        base: The run that is changed: residual streams and cache.
        wrote: What its senders wrote.
        other: What they wrote in the run that fills in; None where nothing does.
        start: First position at which the two differ.
    """

    base: Run
    wrote: Trace
    other: Trace | None
    start: int


@dataclass(eq=False)
class Wires:
    """What every sender wrote, for the rows of one chunk, and what each receiver misses of it."""

    model: "BridgeModel"
    graph: Graph
    runs: Runs
    rows: Sequence[Row]
    cut: Bool[Tensor, "sets sender receiver"]
    examples: Int[Tensor, " rows"] = field(init=False)
    apart: Float[Tensor, "rows sender pos d_model"] = field(init=False)
    """What each sender wrote in the other run, less what it writes now."""

    def __post_init__(self) -> None:
        self.examples = torch.tensor([row.example for row in self.rows])
        like = self.runs.base.resid[0]
        width = like.shape[1] - self.runs.start
        self.apart = like.new_zeros((len(self.rows), len(self.graph.senders), width, like.shape[2]))
        self.lost = self.cut[[row.cell for row in self.rows]].to(like.device)

    def join(self, rows: slice, layer: int) -> None:
        """Rows that begin at a block: before it everything is as in the base run."""
        first = Site("resid_pre", 0)
        self._note(rows, slice(0, 1), first, self._wrote(self.runs.wrote, first, rows)[:, None])
        for earlier in range(layer):
            for kind in ("z", "mlp_out"):
                site = Site(kind, earlier)
                self.note(rows, site, self._wrote(self.runs.wrote, site, rows))

    def hooks(self, layer: int, n: int) -> Iterator[tuple[Site, Any]]:
        """Hooks on one block for its first n rows."""
        stream: list[Tensor] = []
        rows = slice(0, n)

        def keep(value: Tensor) -> None:
            stream[:] = [value]

        yield Site("resid_pre", layer), keep
        for kind in ("q", "k", "v"):
            if self._lost(layer, kind, n).any():
                yield Site(kind, layer), self._read_hook(layer, kind, n, stream)
        yield Site("z", layer), lambda value: self.note(rows, Site("z", layer), value)
        if self._lost(layer, "mlp_resid", n).any():
            yield (
                Site("mlp_resid", layer),
                lambda value: value + self._missing(layer, "mlp_resid", n)[:, :, 0],
            )
        yield Site("mlp_out", layer), lambda value: self.note(rows, Site("mlp_out", layer), value)

    def _read_hook(self, layer: int, kind: str, n: int, stream: list[Tensor]) -> Any:
        def hook(value: Tensor) -> Tensor:
            mixed = stream[0][:, :, None] + self._missing(layer, kind, n)
            read = self.model.read_in(layer, kind, mixed)
            changed = self._lost(layer, kind, n).any(1)
            return torch.where(changed[:, None, :, None], read, value)

        return hook

    def at_logits(self, resid: Tensor) -> Float[Tensor, "rows pos d_model"]:
        """The last residual stream as the logits read it."""
        missing = self._missing(self.graph.n_layers, "logits", len(resid))
        return resid + missing[:, :, 0]

    def note(self, rows: slice, site: Site, now: Tensor) -> None:
        """Keep how far what a block writes now is from what it wrote in the other run."""
        first = self.graph.first_sender(site.layer or 0)
        if site.kind == "z":
            places = slice(first, first + self.graph.n_heads)
            heads = written_by_heads(self.model, site.layer or 0, now)
            self._note(rows, places, site, heads.movedim(2, 1))
        else:
            place = first + self.graph.n_heads
            self._note(rows, slice(place, place + 1), site, now[:, None])

    def _note(self, rows: slice, places: slice, site: Site, now: Tensor) -> None:
        if self.runs.other is None:
            self.apart[rows, places] = -now
            return
        other = self._wrote(self.runs.other, site, rows)
        if site.kind == "z":
            heads = written_by_heads(self.model, site.layer or 0, other).movedim(2, 1)
            self.apart[rows, places] = heads - now
        else:
            self.apart[rows, places] = other[:, None] - now

    def _wrote(self, trace: Trace, site: Site, rows: slice) -> Tensor:
        value = trace[site]
        return value[self.examples[rows].to(value.device), self.runs.start :].to(self.apart)

    def _lost(self, layer: int, kind: str, n: int) -> Bool[Tensor, "rows sender receiver"]:
        return self.lost[:n, :, self.graph.inputs(layer, kind)]

    def _missing(self, layer: int, kind: str, n: int) -> Float[Tensor, "rows pos receiver d_model"]:
        """What each receiver of a kind reads more, and less, than the stream as it is."""
        read = self.graph.read_by(self.graph.receivers[self.graph.inputs(layer, kind)][0])
        lost = self._lost(layer, kind, n)[:, :read].to(self.apart).transpose(1, 2)
        return (
            (lost @ self.apart[:n, :read].flatten(2))
            .unflatten(2, self.apart.shape[2:])
            .movedim(1, 2)
        )
