"""Which edited runs there are, where each departs from the unedited one, and which go together."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from probe.core.edit import Edit, by_site
from probe.core.errors import EditError
from probe.core.model import site_shape
from probe.core.site import Site
from probe.core.trace import Trace
from probe.models.recorded import Run

if TYPE_CHECKING:
    from probe.models.bridge import BridgeModel

CHUNK_OVERHEAD = 192
"""What starting one more wavefront costs, in tokens: used to merge rows of near positions."""
_PREFIX_PER_TOKEN = 5
"""Positions of a recorded prefix that weigh as much as one token that moves."""


States = Callable[[list[Site]], Trace]
"""Records the run that rows depart from at some sites."""


@dataclass(frozen=True, eq=False)
class Row:
    """One edited run of one prompt: where in the result it goes, and where it departs."""

    cell: int
    example: int
    layer: int
    start: int
    edits: tuple[Edit, ...] = field(repr=False)


def check_edit(model: "BridgeModel", edit: Edit, tokens: Tensor, lengths: Tensor) -> None:
    """Refuse an edit that cannot be made before anything is run."""
    shape = site_shape(model.editable(edit.site), model.dims, *tokens.shape)
    given = tuple(edit.value.shape) if isinstance(edit.value, Tensor) else ()
    if edit.rule != "project_out" and (
        len(given) > len(shape)
        or any(n not in (1, size) for n, size in zip(given[::-1], shape[::-1], strict=False))
    ):
        raise EditError(
            f"the value for {edit.site} has shape {given}",
            expected=f"{dict(zip(edit.site.axes, shape, strict=True))}, or a shape that "
            "broadcasts to it",
            remedy=f'record it from as many prompts, as long: model.trace(task, ["{edit.site}"])',
        )
    edit.positions(lengths)
    edit.apply(torch.zeros(1, *shape[1:]), lengths, torch.tensor([0]))


def settled(model: "BridgeModel", edits: Sequence[Edit], resumed: bool) -> list[Edit]:
    """Edits in the order they are met; after one block is before the next."""
    n_layers = model.dims.n_layers
    ordered = [edit for group in by_site(edits).values() for edit in group]
    if not resumed:
        return ordered
    return [
        replace(edit, site=Site("resid_pre", edit.site.layer + 1))
        if edit.site.kind == "resid_post"
        and edit.site.layer is not None
        and edit.site.layer + 1 < n_layers
        else edit
        for edit in ordered
    ]


def plan(run: Run, states: States, sets: Sequence[Sequence[Edit]], n_layers: int) -> list[Row]:
    """A row for every set and prompt that changes anything, with where it departs."""
    changes = _Changes(run, states, [edit for edits in sets for edit in edits])
    rows = []
    for cell, edits in enumerate(sets):
        firsts = [changes.first(edit) for edit in edits]
        named = [edit.positions(run.lengths) for edit in edits]
        for example, length in enumerate(run.lengths.tolist()):
            at = [int(first[example]) for first in firsts]
            begin = next((i for i, first in enumerate(at) if first < length), None)
            if begin is None:
                continue
            kept, start = _kept(edits[begin:], at[begin:], named[begin:], example, length)
            layer = n_layers
            if kept[0].site.kind != "resid_post":
                layer = kept[0].site.layer or 0
            rows.append(Row(cell, example, layer, start, tuple(kept)))
    return rows


def _kept(
    edits: Sequence[Edit],
    firsts: Sequence[int],
    named: Sequence[Tensor | None],
    example: int,
    length: int,
) -> tuple[list[Edit], int]:
    """Of edits from the first that changes something on: which are made, and from which position.

    One that only puts back what the unedited run has there counts too, once another has been
    made before it; but not where it names only positions that nothing has reached.
    """
    start, kept = min(firsts), []
    for edit, first, positions in zip(edits, firsts, named, strict=True):
        if first >= length and positions is not None:
            if int(positions[example].max()) < start:
                continue
            start = min(start, int(positions[example].min()))
        kept.append(edit)
    return kept, start


def all_rows(sets: Sequence[Sequence[Edit]], run: Run) -> list[Row]:
    """Every set and prompt, run from its first token: what is done where nothing can be resumed."""
    examples = range(len(run.tokens))
    return [
        Row(c, i, 0, 0, (*run.edits, *edits))
        for c, edits in enumerate(sets)
        if edits
        for i in examples
    ]


class _Changes:
    """At which position an edit first differs from the unedited run."""

    def __init__(self, run: Run, states: States, edits: Sequence[Edit]) -> None:
        self.run = run
        # A value that covers every position is compared with what is there.
        sites = {edit.site for edit in edits if _spans_positions(edit, run)}
        self.trace = states(list(sites)) if sites else None
        self._known: dict[tuple[Site, int], Bool[Tensor, "batch pos"]] = {}

    def first(self, edit: Edit) -> Int[Tensor, " batch"]:
        """The first changed position of each prompt; the padded length where there is none."""
        width = self.run.tokens.shape[1]
        named = edit.positions(self.run.lengths)
        if not _spans_positions(edit, self.run):
            return (
                torch.zeros(len(self.run.tokens)).long() if named is None else named.min(1).values
            )
        differs = self._differs(edit)
        if named is None:
            return torch.where(differs.any(1), differs.long().argmax(1), width)
        return torch.where(differs.gather(1, named).any(1), named.min(1).values, width)

    def _differs(self, edit: Edit) -> Bool[Tensor, "batch pos"]:
        key = (edit.site, id(edit.value))
        if key not in self._known:
            assert self.trace is not None and isinstance(edit.value, Tensor)
            here = self.trace[edit.site]
            axis = edit.site.axes.index("query" if "query" in edit.site.axes else "pos")
            others = tuple(i for i in range(here.ndim) if i not in (0, axis))
            self._known[key] = (here != edit.value.to(here)).any(dim=others).cpu()
        return self._known[key]


def _spans_positions(edit: Edit, run: Run) -> bool:
    if edit.rule != "set" or not isinstance(edit.value, Tensor):
        return False
    axes = edit.site.axes
    axis = "query" if "query" in axes else "pos"
    if edit.value.ndim != len(axes) or axis not in axes:
        return False
    return edit.value.shape[axes.index(axis)] == run.tokens.shape[1]


def chunks(rows: Sequence[Row], width: int, budget: int) -> Iterator[tuple[int, list[Row]]]:
    """Rows that walk together: near in position, then in the order of their layers.

    >>> rows = [Row(i, 0, 0, 3 + i % 2, ()) for i in range(4)]
    >>> [(start, len(chunk)) for start, chunk in chunks(rows, width=6, budget=4)]
    [(3, 1), (3, 1), (3, 1), (3, 1)]
    """
    for start, group in by_start(rows, width):
        group.sort(key=lambda row: (row.layer, row.cell, row.example))
        # A row also holds its prefix's keys and values, which are narrower than what moves.
        size = max(1, budget // max(width - start, width // _PREFIX_PER_TOKEN))
        for first in range(0, len(group), size):
            yield start, group[first : first + size]


def by_start(rows: Sequence[Row], width: int) -> list[tuple[int, list[Row]]]:
    """Group rows by first position; groups share a wavefront where that is cheaper."""
    at: dict[int, list[Row]] = {}
    for row in rows:
        at.setdefault(row.start, []).append(row)
    starts = sorted(at)
    # best[i]: cheapest way to run the rows that start at starts[i:], and where its group ends
    best: list[tuple[float, int]] = [(0.0, 0)] * (len(starts) + 1)
    for i in reversed(range(len(starts))):
        options, count = [], 0
        for j in range(i, len(starts)):
            count += len(at[starts[j]])
            cost = CHUNK_OVERHEAD + count * (width - starts[i])
            options.append((cost + best[j + 1][0], j + 1))
        best[i] = min(options)
    groups, i = [], 0
    while i < len(starts):
        end = best[i][1]
        groups.append((starts[i], [row for s in starts[i:end] for row in at[s]]))
        i = end
    return groups
