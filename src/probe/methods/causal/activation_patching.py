"""Which activations carry the behaviour: patch one run's into the other, cell by cell, exactly."""

from typing import Annotated

import pandas as pd
import torch
from pydantic import BaseModel, Field
from torch import Tensor

from probe.core.errors import OptionError
from probe.core.metric import get_metric
from probe.core.model import Model
from probe.core.progress import progress_bar
from probe.core.registry import method
from probe.core.result import View
from probe.core.task import Encoded
from probe.core.trace import Trace
from probe.methods.patching import (
    By,
    Direction,
    baselines,
    cells,
    check_gap,
    default_by,
    normalised,
    patches,
    site_of,
    table,
    view_of_cells,
)

_COLUMNS = {
    "batch": "prompt pair",
    "layer": "layer patched",
    "head": "head patched (key/value head for k and v)",
    "pos": "position patched (attended from, for patterns)",
    "neuron": "dimension patched, of the site's last axis",
    "token": "clean token at that position",
    "value": "metric after patching: 0 at the corrupted run, 1 at the clean run",
    "raw": "metric after patching, in its own unit",
    "clean": "metric of the clean run",
    "corrupted": "metric of the corrupted run",
}


def _view(options: BaseModel) -> View:
    return view_of_cells(getattr(options, "kind", "resid_pre"), getattr(options, "by", None))


@method(needs="pairs", view=_view, columns=_COLUMNS)
def activation_patching(
    model: Model,
    encoded: Encoded,
    *,
    kind: Annotated[
        str, Field(description="Site kind: resid_pre, attn_out, mlp_out, z, q, k, v, pattern, ...")
    ] = "resid_pre",
    by: Annotated[
        By | None,
        Field(
            description="What a cell is; by default heads where the site has them, else positions"
        ),
    ] = None,
    direction: Annotated[
        Direction,
        Field(description="denoise: clean into corrupted; noise: corrupted into clean"),
    ] = "denoise",
    metric: Annotated[str, Field(description="What is read at the last token")] = "logit_diff",
    layers: Annotated[list[int] | None, Field(description="Only these layers")] = None,
    heads: Annotated[list[int] | None, Field(description="Only these heads")] = None,
    positions: Annotated[list[int] | None, Field(description="Only these positions")] = None,
    neurons: Annotated[list[int] | None, Field(description="Only these dimensions")] = None,
    along: Annotated[
        list[float] | None,
        Field(description="Patch only the component along this direction of the site's last axis"),
    ] = None,
) -> pd.DataFrame:
    """Patch one run's activation into the other: how much of the answer moves with it?

    Denoising asks which activation is enough to bring the clean answer back, noising which one it
    needs. ``value`` is 0 at the corrupted and 1 at the clean metric in both directions: each
    example's own corrupted metric is subtracted, and divided by the mean gap over examples.

    Exact: equal to one forward pass for each cell. Cost: two recorded runs, and for each cell the
    part of a forward pass after its layer and position.

    Source: Meng et al. 2022 (restoring), Wang et al. 2022; the two directions as in Heimersheim
    and Nanda 2024.

    >>> from probe.api import run
    >>> whole = run("activation_patching", model="toy", task="ioi", by="layer", layers=[0])
    >>> [round(x, 3) for x in whole.summary(by=["layer"])["value"]]
    [1.0]
    """
    by = by or default_by(kind)
    chosen = get_metric(metric)
    chosen.check(encoded)
    listed = cells(
        model, encoded, kind, by, layers=layers, heads=heads, positions=positions, neurons=neurons
    )
    if not listed:
        raise OptionError("no cell is left to patch", remedy="name at least one layer")
    base = "corrupted" if direction == "denoise" else "clean"
    sites = [site_of(kind, layer) for layer in sorted({cell.layer for cell in listed})]
    source = model.trace(encoded, sites, corrupted=base == "clean")
    replacement = None
    if along is not None:
        replacement = _along(model, encoded, source, along, corrupted=base == "corrupted")
    with progress_bar("activation patching") as report:
        raw = model.sweep(
            encoded, patches(listed, kind, source, encoded, replacement), chosen, base=base,
            report=report,
        ).cpu()  # fmt: skip
    clean, corrupted = baselines(model, encoded, chosen)
    check_gap(metric, clean, corrupted)
    numbers = {
        "value": normalised(raw, clean, corrupted),
        "raw": raw,
        "clean": clean,
        "corrupted": corrupted,
    }
    return table(listed, encoded, by, numbers)


def _along(
    model: Model, encoded: Encoded, source: Trace, direction: list[float], *, corrupted: bool
) -> dict[int, Tensor]:
    """The base run's activations with their component along a direction from the source run."""
    replaced = {}
    base = model.trace(encoded, list(source), corrupted=corrupted)
    for site, value in source.items():
        unit = torch.tensor(direction).to(value)
        if unit.shape != value.shape[-1:] or not unit.norm() > 0:
            raise OptionError(
                f"the direction has {len(direction)} entries and norm {float(unit.norm()):.3g}",
                expected=f"{value.shape[-1]} entries for {site.kind}, not all zero",
            )
        unit = unit / unit.norm()
        here = base[site]
        replaced[site.layer or 0] = here + ((value - here) @ unit)[..., None] * unit
    return replaced
