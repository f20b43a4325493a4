"""Activation patching of every cell at once, estimated from one gradient."""

from typing import Annotated

import pandas as pd
from pydantic import BaseModel, Field

from probe.core.errors import OptionError
from probe.core.metric import get_metric
from probe.core.model import Model
from probe.core.registry import method
from probe.core.result import View
from probe.core.task import Encoded
from probe.methods.estimates import linear_effects, record
from probe.methods.patching import (
    By,
    Direction,
    cells,
    check_gap,
    default_by,
    normalised,
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
    "value": "estimated metric after patching: 0 at the corrupted run, 1 at the clean run",
    "raw": "estimated metric after patching, in its own unit",
    "clean": "metric of the clean run",
    "corrupted": "metric of the corrupted run",
}


def _view(options: BaseModel) -> View:
    return view_of_cells(getattr(options, "kind", "resid_pre"), getattr(options, "by", None))


@method(needs="pairs", view=_view, columns=_COLUMNS)
def attribution_patching(
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
        Field(
            description="denoise: clean into corrupted, gradient at the corrupted run; "
            "noise: corrupted into clean, gradient at the clean run"
        ),
    ] = "denoise",
    metric: Annotated[str, Field(description="What is read at the last token")] = "logit_diff",
    layers: Annotated[list[int] | None, Field(description="Only these layers")] = None,
    heads: Annotated[list[int] | None, Field(description="Only these heads")] = None,
    positions: Annotated[list[int] | None, Field(description="Only these positions")] = None,
    neurons: Annotated[list[int] | None, Field(description="Only these dimensions")] = None,
) -> pd.DataFrame:
    """Patch one run's activation into the other, to first order: how much of the answer moves?

    For each cell, metric of the base run + (source - base) · ∂metric/∂activation at the base run.
    ``direction`` says which run is the base, and so where the gradient is taken: published scores
    differ in it (Nanda 2023: corrupted; Kramár et al. 2024 and edge attribution patching: clean)
    and are not comparable across. Numbers are on the scale of ``activation_patching``: cell by
    cell they are its first-order estimate, in sign and in unit.

    The estimate is linear, so the cells of a layer add up to the estimate of patching it whole. It
    is wrong where the model is curved between the runs, most of all for residual streams of early
    layers and for saturated attention: see ``estimate_vs_exact`` and ``atp_star``.

    Raises:
        EditError: A site that this model computes but does not read back.
        OptionError: A cell that is not there.
        TaskError: Prompts between which the metric does not differ.

    Cost: two forward passes and one backward pass for all cells; memory of the site's activations
    and gradients in the layers asked for. For ``kl`` one forward pass more.

    Source: Nanda 2023, "Attribution patching"; Syed et al. 2023.

    >>> from probe.api import run
    >>> heads = run("attribution_patching", model="toy", task="ioi", kind="z", layers=[0, 1])
    >>> len(heads.summary())
    8
    """
    by = by or default_by(kind)
    chosen = get_metric(metric)
    chosen.check(encoded)
    listed = cells(
        model, encoded, kind, by, layers=layers, heads=heads, positions=positions, neurons=neurons
    )
    if not listed:
        raise OptionError("no cell is left to estimate", remedy="name at least one layer")
    depths = sorted({cell.layer for cell in listed})
    pair = record(model, encoded, kind, depths, chosen, direction)
    check_gap(metric, pair.clean, pair.corrupted)
    raw = pair.start + linear_effects(pair, pair.gradient, kind, by, listed)
    numbers = {
        "value": normalised(raw, pair.clean, pair.corrupted),
        "raw": raw,
        "clean": pair.clean,
        "corrupted": pair.corrupted,
    }
    return table(listed, encoded, by, numbers)
