"""Cells of a patching sweep: which parts of which sites, and the edits that patch them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from probe.core.edit import Edit, patch
from probe.core.errors import OptionError, TaskError, nearest
from probe.core.metric import Metric
from probe.core.model import Model
from probe.core.result import Scale, View
from probe.core.site import KINDS, Site, check_layer
from probe.core.task import Encoded
from probe.core.trace import Trace

By = Literal["layer", "position", "head", "head_position", "neuron"]
Direction = Literal["denoise", "noise"]

AXES_OF: dict[str, tuple[str, ...]] = {
    "layer": (),
    "position": ("pos",),
    "head": ("head",),
    "head_position": ("head", "pos"),
    "neuron": ("neuron",),
}
"""What a cell is → the axes that tell cells of one layer apart."""


@dataclass(frozen=True)
class Cell:
    """One part of one layer's activation."""

    layer: int
    head: int | None = None
    pos: int | None = None
    neuron: int | None = None


def cells(
    model: Model,
    encoded: Encoded,
    kind: str,
    by: By,
    *,
    layers: Sequence[int] | None,
    heads: Sequence[int] | None,
    positions: Sequence[int] | None,
    neurons: Sequence[int] | None,
) -> list[Cell]:
    """Every cell of a sweep, in layer order; each list narrows its axis. ``embed`` is layer 0."""
    site = site_of(kind, 0)
    axes = AXES_OF[by]
    if "head" in axes and site.head_axis is None:
        raise OptionError(f"{kind} has no heads to sweep", remedy='by="position"')
    if "neuron" in axes and site.axes[-1] not in ("d_mlp", "d_model"):
        raise OptionError(f"{kind} has no neurons", expected="mlp_post, mlp_pre or a residual site")
    n_heads = model.dims.size(site.head_axis or "head", batch=1, pos=1)
    width = int(encoded.lengths.max())
    n_layers = model.dims.n_layers if site.layer is not None else 1
    along = {
        "head": _chosen("head", heads, n_heads) if "head" in axes else [None],
        "pos": _chosen("pos", positions, width) if "pos" in axes else [None],
        "neuron": _chosen("neuron", neurons, _units(model, site)) if "neuron" in axes else [None],
    }
    return [
        Cell(layer, head, pos, neuron)
        for layer in _chosen("layer", layers, n_layers)
        for head in along["head"]
        for pos in along["pos"]
        for neuron in along["neuron"]
    ]


def site_of(kind: str, layer: int) -> Site:
    """The site of a kind in a layer; what lies outside the blocks, like ``embed``, has one site."""
    if kind not in KINDS:
        raise OptionError(f'there is no site kind "{kind}"', remedy=nearest(kind, KINDS))
    return Site(kind, layer) if KINDS[kind].per_layer else Site(kind)


def default_by(kind: str) -> By:
    """Heads where the site has them, else positions."""
    return "head" if site_of(kind, 0).head_axis else "position"


def view_of_cells(kind: str, by: By | None, scale: Scale = "signed") -> View:
    """How a table of cells is drawn: layer × what a cell is."""
    by = by or default_by(kind)
    if by == "layer":
        return View(kind="line", x="layer", y="value")
    if by == "head_position":
        return View(kind="heatmap", x="pos", y="layer", color="value", facet="head", scale=scale)
    x = {"position": "pos", "head": "head", "neuron": "neuron"}[by]
    text = "token" if x == "pos" else None
    return View(kind="heatmap", x=x, y="layer", color="value", text=text, scale=scale)


def patches(
    cell_list: Sequence[Cell],
    kind: str,
    source: Trace,
    encoded: Encoded,
    replacement: dict[int, Tensor] | None = None,
) -> list[list[Edit]]:
    """The edits that patch each cell with the source run's activation.

    ``replacement`` gives another tensor to patch in, by layer.
    """
    made = []
    for cell in cell_list:
        site = site_of(kind, cell.layer)
        value = source[site] if replacement is None else replacement[cell.layer]
        where: dict[str, int | Tensor] = {}
        if cell.pos is not None:
            # A shorter prompt has no such position: its own last one stands in and is masked out.
            axis = "query" if "query" in site.axes else "pos"
            where[axis] = torch.minimum(torch.full_like(encoded.lengths, cell.pos), encoded.last)
        if cell.head is not None:
            where[site.head_axis or "head"] = cell.head
        if cell.neuron is not None:
            where[site.axes[-1]] = cell.neuron
        made.append([patch(site, value, **where)])
    return made


def table(
    cell_list: Sequence[Cell],
    encoded: Encoded,
    by: By,
    numbers: dict[str, Float[Tensor, "cells batch"]],
) -> pd.DataFrame:
    """One row for each cell and prompt; cells never reached, or past a prompt's end, left out."""
    n_cells, n = len(cell_list), len(encoded)
    frame = pd.DataFrame(
        {
            "batch": list(range(n)) * n_cells,
            "layer": [cell.layer for cell in cell_list for _ in range(n)],
        }
    )
    for axis in AXES_OF[by]:
        frame[axis] = [getattr(cell, axis) for cell in cell_list for _ in range(n)]
    if "pos" in AXES_OF[by]:
        strings = [encoded.str_tokens(row) for row in range(n)]
        frame["token"] = [
            strings[b][p] if p < len(strings[b]) else None
            for b, p in zip(frame["batch"], frame["pos"], strict=True)
        ]
    for name, values in numbers.items():
        frame[name] = values.expand(n_cells, n).flatten().tolist()
    reached = frame[next(iter(numbers))].notna()
    if "token" in frame:
        reached &= frame["token"].notna()
    return frame[reached].reset_index(drop=True)


def baselines(
    model: Model, encoded: Encoded, metric: Metric
) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
    """The metric of the clean and of the corrupted run, unedited. Two forward passes."""
    clean = model.sweep(encoded, [[]], metric, base="clean")[0]
    corrupted = model.sweep(encoded, [[]], metric, base="corrupted")[0]
    return clean.cpu(), corrupted.cpu()


def normalised(
    raw: Float[Tensor, "cells batch"],
    clean: Float[Tensor, " batch"],
    corrupted: Float[Tensor, " batch"],
) -> Float[Tensor, "cells batch"]:
    """0 at the corrupted run, 1 at the clean run.

    Each example's own corrupted value is subtracted; the denominator is the mean over examples,
    so that a mean of these numbers is a ratio of means and no single example can explode.
    """
    gap = (clean - corrupted).mean()
    return (raw - corrupted) / gap


def check_gap(
    metric: str, clean: Float[Tensor, " batch"], corrupted: Float[Tensor, " batch"]
) -> None:
    """Refuse prompts between which the metric does not differ: nothing to normalise by."""
    if torch.isclose(clean.mean(), corrupted.mean(), atol=1e-6):
        raise TaskError(
            f"{metric} is {float(clean.mean()):.3g} on the clean and on the corrupted prompts",
            expected="prompts between which the metric differs, so that it can be normalised",
            remedy="task.check(model) shows the metric example by example",
        )


def _chosen(axis: str, asked: Sequence[int] | None, size: int) -> list[int]:
    if asked is None:
        return list(range(size))
    for one in asked:
        if axis == "layer":
            check_layer(Site("resid_pre", one), size)
        elif not -size <= one < size:
            raise OptionError(f"{axis} {one} is out of range", expected=f"0 to {size - 1}")
    return [one % size for one in asked]


def _units(model: Model, site: Site) -> int:
    return model.dims.size(site.axes[-1], batch=1, pos=1)
