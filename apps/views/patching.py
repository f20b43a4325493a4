"""A map of patched cells: which cells there are, what colours mean, and what a tooltip says."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from apps.components.colours import Limits, limits, number
from apps.components.glyphs import numbered
from apps.components.matrix import Axis, Cell, matrix_view
from apps.context import Context
from apps.views.grids import grid

KINDS = {
    "resid_pre": "residual stream before a block",
    "resid_mid": "residual stream inside a block",
    "resid_post": "residual stream after a block",
    "attn_out": "attention output",
    "mlp_out": "MLP output",
    "z": "head outputs (z)",
    "q": "queries",
    "k": "keys",
    "v": "values",
    "pattern": "attention patterns",
    "mlp_pre": "MLP neurons before the activation",
    "mlp_post": "MLP neurons",
}
"""Site kind → what the reader chooses."""

_HEADS, _KV_HEADS = frozenset({"z", "q", "pattern"}), frozenset({"k", "v"})

METRICS = {
    "logit_diff": "logit difference",
    "log_prob": "log-probability",
    "prob": "probability",
    "loss": "loss",
    "rank": "rank",
    "kl": "KL from the clean run",
}
_NEED_DISTRACTOR = frozenset({"logit_diff"})

DIRECTIONS = {"denoise": "denoise: clean into corrupted", "noise": "noise: corrupted into clean"}

CELLS = {"head": "layer and head", "position": "layer and position", "layer": "layer"}
"""What a cell is → what the reader chooses."""


ESTIMATE = "first-order estimate of value, from one gradient"


@dataclass(frozen=True)
class Sweep:
    """What is patched, cell by cell, and what is measured.

    Attributes:
        kind: The activation.
        by: What a cell is.
        direction: Which run is patched into which.
        metric: What is measured.
    """

    kind: str
    by: str
    direction: str
    metric: str

    @classmethod
    def read(cls, here: Context) -> "Sweep":
        """The choice in the state; what this model or question does not offer is the default."""
        state = here.state
        kind = _among(state.kind, offered_kinds(here))
        return cls(
            kind,
            _among(state.cells, offered_cells(kind)),
            _among(state.direction, DIRECTIONS),
            _among(state.metric, offered_metrics(here)),
        )

    def options(self, here: Context) -> dict[str, Any]:
        """What the methods are asked."""
        asked: dict[str, Any] = {
            "kind": self.kind,
            "by": self.by,
            "direction": self.direction,
            "metric": self.metric,
        }
        if self.by == "position" and here.first:
            asked["positions"] = list(range(here.first, len(here.tokens)))
        return asked

    @property
    def neutral(self) -> float:
        """The value of a cell that changes nothing."""
        return 0.0 if self.direction == "denoise" else 1.0

    def axes(self, here: Context) -> dict[str, Sequence[int]]:
        """Steps of both axes in rising order: rows, columns."""
        layers = range(here.model.dims.n_layers)
        if self.by == "position":
            return {"layer": layers, "pos": range(here.first, len(here.tokens))}
        if self.by == "head":
            return {"head": range(n_heads(here, self.kind)), "layer": layers}
        return {"layer": layers}

    def cell(self, here: Context, picked: Cell) -> dict[str, int]:
        """What a click selects: layer and position, or layer and head."""
        if self.by == "position":
            return {"layer": here.model.dims.n_layers - 1 - picked.row, "pos": picked.column}
        if self.by == "head":
            return {"layer": picked.column, "head": picked.row * queries_each(here, self.kind)}
        return {"layer": picked.column}

    def place(self, here: Context) -> dict[str, int]:
        """The selected cell, as the table names it."""
        selected = {"layer": here.state.layer}
        if self.by == "position":
            selected["pos"] = here.position
        if self.by == "head":
            selected["head"] = here.state.head // queries_each(here, self.kind)
        return selected


def _among(value: str, offered: Mapping[str, str]) -> str:
    return value if value in offered else next(iter(offered))


def offered_kinds(here: Context) -> dict[str, str]:
    """The activations this model has."""
    return {name: title for name, title in KINDS.items() if name in here.model.sites}


def offered_cells(kind: str) -> dict[str, str]:
    """Heads only where the activation has them."""
    has_heads = kind in _HEADS | _KV_HEADS
    return {name: title for name, title in CELLS.items() if has_heads or name != "head"}


def offered_metrics(here: Context) -> dict[str, str]:
    """Those for which the answers are given."""
    with_distractor = bool(here.state.distractor)
    return {n: t for n, t in METRICS.items() if with_distractor or n not in _NEED_DISTRACTOR}


def n_heads(here: Context, kind: str) -> int:
    """Heads of the activation: keys and values may be shared by several."""
    dims = here.model.dims
    return dims.n_kv_heads if kind in _KV_HEADS else dims.n_heads


def queries_each(here: Context, kind: str) -> int:
    """Attention heads that share one head of the activation."""
    return here.model.dims.n_heads // n_heads(here, kind)


def name_of(sweep: Sweep, cell: Mapping[str, int], tokens: Sequence[str]) -> str:
    """One cell in words.

    >>> name_of(Sweep("k", "head", "noise", "kl"), {"layer": 3, "head": 1}, [])
    'layer 3, key/value head 1'
    """
    layer = f"layer {cell['layer']}"
    if "pos" in cell:
        return f"{layer}, position {numbered(list(tokens))[cell['pos']]}"
    if "head" in cell:
        return f"{layer}, {'key/value ' if sweep.kind in _KV_HEADS else ''}head {cell['head']}"
    return layer


@dataclass(frozen=True)
class Numbers:
    """A map's cells, ``[row, column]`` or ``[layer]``; NaN where there is none."""

    estimate: NDArray[np.floating]
    exact: NDArray[np.floating]

    @property
    def best(self) -> NDArray[np.floating]:
        """Patched where it was, else estimated."""
        return np.where(np.isnan(self.exact), self.estimate, self.exact)

    @property
    def n_exact(self) -> int:
        """Cells that were patched."""
        return int(np.isfinite(self.exact).sum())


def numbers(
    here: Context, sweep: Sweep, estimate: pd.DataFrame | None, exact: pd.DataFrame | None
) -> Numbers:
    """Both tables on the axes of the map."""
    axes = sweep.axes(here)
    empty = np.full([len(steps) for steps in axes.values()], np.nan, dtype=np.float32)
    drawn = [empty if frame is None else grid(frame, axes) for frame in (estimate, exact)]
    return Numbers(*drawn)


def ends_about(values: NDArray[np.floating], neutral: float) -> Limits:
    """Ends of the colours with no effect in the middle.

    >>> ends_about(np.array([0.25]), 1.0)
    Limits(low=0.25, high=1.75, cut=False)
    """
    ends = limits(values - neutral, "signed")
    return Limits(neutral + ends.low, neutral + ends.high, ends.cut)


def matrix_of(
    here: Context, sweep: Sweep, found: Numbers, tokens: Sequence[str]
) -> tuple[dict[str, Any], bytes]:
    """Small squares are estimates, full ones were patched.

    Positions stand under their layers as in the lens; heads beside each other as in attribution.
    """
    shown = found
    if sweep.by == "position":
        shown = Numbers(found.estimate[::-1], found.exact[::-1])
    elif sweep.by == "layer":
        shown = Numbers(found.estimate[None], found.exact[None])
    values = shown.best
    n_layers = here.model.dims.n_layers
    layers = [str(layer) for layer in range(n_layers)]
    rows, columns = Axis("", ["all"]), Axis("layer", layers)
    if sweep.by == "position":
        rows, columns = Axis("layer", layers[::-1]), Axis("position", here.labels)
    elif sweep.by == "head":
        rows = Axis("head", [str(head) for head in range(values.shape[0])])
    ends = ends_about(values, sweep.neutral)
    tips = [
        _tip(here, sweep, Cell(*divmod(i, values.shape[1])), shown, tokens)
        for i in range(values.size)
    ]
    return matrix_view(
        values,
        rows,
        columns,
        tips,
        scale="signed",
        ends=ends,
        small=np.isnan(shown.exact).ravel().tolist(),
        selected=_selected(here, sweep),
        legend=legend(sweep, ends),
        alt=f"Effect of patching: {KINDS[sweep.kind]}, {CELLS[sweep.by]}",
        cell_height=26 if sweep.by != "position" else 20,
        cell_width=(12, 96 if sweep.by == "position" else 44),
    )


def legend(sweep: Sweep, ends: Limits) -> str:
    """What the colours mean."""
    what = f"{METRICS[sweep.metric]} after patching, 0 at B, 1 at A; {ends.words()}"
    if sweep.direction == "denoise":
        return f"{what}; blue brings A's answer back, background does nothing"
    return f"{what}; orange loses A's answer, background (1) does nothing"


def _selected(here: Context, sweep: Sweep) -> Cell | None:
    cell = at(here, sweep, sweep.place(here))
    return cell if cell.column >= 0 else None


def at(here: Context, sweep: Sweep, place: Mapping[str, int]) -> Cell:
    """Where the map shows a cell that the table names."""
    if "pos" in place:
        return Cell(here.model.dims.n_layers - 1 - place["layer"], place["pos"] - here.first)
    return Cell(place.get("head", 0), place["layer"])


def _tip(here: Context, sweep: Sweep, at: Cell, shown: Numbers, tokens: Sequence[str]) -> list[str]:
    place = sweep.cell(here, at)
    if "head" in place:
        place["head"] = at.row
    if "pos" in place:
        place["pos"] += here.first
    exact, estimate = (float(a[at.row, at.column]) for a in (shown.exact, shown.estimate))
    return [
        name_of(sweep, place, tokens),
        f"patched: {number(exact, 3, sign=True)}",
        f"estimated: {number(estimate, 3, sign=True)}",
    ]


def table(sweep: Sweep, estimate: pd.DataFrame | None, exact: pd.DataFrame | None) -> pd.DataFrame:
    """A row a cell: ``value`` where it was patched, ``estimate`` where there is one."""
    at = ["layer", *{"position": ["pos", "token"], "head": ["head"], "layer": []}[sweep.by]]
    parts = []
    if exact is not None:
        parts.append(exact[[*at, "value", "raw", "clean", "corrupted"]])
    if estimate is not None:
        parts.append(estimate[[*at, "value"]].rename(columns={"value": "estimate"}))
    if len(parts) == 1:
        return parts[0].reset_index(drop=True)
    return parts[0].merge(parts[1], on=at, how="outer")
