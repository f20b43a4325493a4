"""Whether an estimate of patching can be trusted here: the same cells, estimated and run."""

from typing import Annotated, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from probe.core.errors import OptionError
from probe.core.metric import Metric, get_metric
from probe.core.model import Model
from probe.core.progress import progress_bar
from probe.core.registry import method
from probe.core.result import View
from probe.core.task import Encoded
from probe.methods.estimates import Pair, linear_effects, record, record_for_sizes, sizes
from probe.methods.patching import (
    AXES_OF,
    By,
    Cell,
    Direction,
    cells,
    check_gap,
    default_by,
    patches,
    table,
)

Estimator = Literal["attribution", "atp_star"]

_COLUMNS = {
    "layer": "layer patched",
    "head": "head patched (key/value head for k and v)",
    "pos": "position patched (attended from, for patterns)",
    "neuron": "dimension patched, of the site's last axis",
    "estimate": "estimated effect of patching, mean over prompts: 1 is the mean gap between the "
    "clean and the corrupted metric; for atp_star the mean size",
    "value": "effect of patching, run: same mean, same unit, for atp_star the mean size",
    "rank_estimate": "place by size of the estimate, 1 the largest",
    "rank_exact": "place by size of the effect, 1 the largest",
    "missed": "among the top cells by effect, but not among as many by estimate",
    "spearman": "rank correlation of estimate and value over all cells (the same in every row; "
    "missing where one of them is constant)",
    "pearson": "linear correlation of estimate and value over all cells (the same in every row; "
    "missing where one of them is constant)",
}


@method(
    needs="pairs",
    view=View(kind="scatter", x="estimate", y="value", color="missed"),
    columns=_COLUMNS,
)
def estimate_vs_exact(
    model: Model,
    encoded: Encoded,
    *,
    estimator: Annotated[
        Estimator,
        Field(description="attribution: one gradient; atp_star: with QK fix and GradDrop"),
    ] = "attribution",
    kind: Annotated[
        str, Field(description="Site kind: resid_pre, attn_out, mlp_out, z, q, k, v, ...")
    ] = "z",
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
    top: Annotated[
        int, Field(description="How many of the largest effects the estimate should find", ge=1)
    ] = 10,
    layers: Annotated[list[int] | None, Field(description="Only these layers")] = None,
    heads: Annotated[list[int] | None, Field(description="Only these heads")] = None,
    positions: Annotated[list[int] | None, Field(description="Only these positions")] = None,
    neurons: Annotated[list[int] | None, Field(description="Only these dimensions")] = None,
) -> pd.DataFrame:
    """Does the estimate rank these cells as patching them does, and which does it miss?

    One row for each cell, largest effect first. Both numbers are the metric after patching less
    before, over the mean gap between clean and corrupted metric, so 1 moves the answer all the way
    in ``denoise`` and -1 in ``noise``; the mean is over prompts. For ``atp_star``, whose estimates
    have no sign, both are means of sizes. ``missed`` rows are the ones to run exactly.

    Raises:
        EditError: A site that this model computes but does not read back.
        OptionError: A cell that is not there.
        TaskError: Prompts between which the metric does not differ.

    Cost: that of ``activation_patching`` of the cells, and of the estimate.

    Source: Kramár et al. 2024, "AtP*", section 4 (estimates judged against exact patching).

    >>> from probe.api import run
    >>> frame = run("estimate_vs_exact", model="toy", task="ioi", kind="z", top=2).frame
    >>> frame["rank_exact"].tolist()
    [1, 2, 3, 4, 5, 6, 7, 8]
    """
    by = by or default_by(kind)
    chosen = get_metric(metric)
    chosen.check(encoded)
    listed = cells(
        model, encoded, kind, by, layers=layers, heads=heads, positions=positions, neurons=neurons
    )
    if not listed:
        raise OptionError("no cell is left to compare", remedy="name at least one layer")
    depths = sorted({cell.layer for cell in listed})
    if estimator == "attribution":
        pair = record(model, encoded, kind, depths, chosen, direction)
        check_gap(metric, pair.clean, pair.corrupted)
        estimate = linear_effects(pair, pair.gradient, kind, by, listed)
    else:
        qk_fix = by != "neuron"
        pair = record_for_sizes(model, encoded, kind, by, depths, chosen, direction, qk_fix=qk_fix)
        check_gap(metric, pair.clean, pair.corrupted)
        estimate, _ = sizes(
            model, encoded, pair, kind, by, listed, chosen, qk_fix=qk_fix, grad_drop=True
        )
    exact = _exact(model, encoded, pair, kind, listed, chosen)
    if estimator == "atp_star":
        exact = exact.abs()
    gap = (pair.clean - pair.corrupted).mean()
    gap = gap.abs() if estimator == "atp_star" else gap
    numbers = {"value": exact / gap, "estimate": estimate / gap}
    return _ranked(table(listed, encoded, by, numbers), ["layer", *AXES_OF[by]], top)


def _exact(
    model: Model, encoded: Encoded, pair: Pair, kind: str, listed: list[Cell], metric: Metric
) -> Float[Tensor, "cells batch"]:
    base = "corrupted" if pair.corrupted_base else "clean"
    with progress_bar("activation patching") as report:
        edits = patches(listed, kind, pair.source, encoded)
        raw = model.sweep(encoded, edits, metric, base=base, report=report).cpu()
    return raw - pair.start


def _ranked(rows: pd.DataFrame, axes: list[str], top: int) -> pd.DataFrame:
    """Means over prompts, ranks of their sizes, and how the two agree."""
    means = rows.groupby(axes, sort=False)[["estimate", "value"]].mean().reset_index()
    for name, number in (("rank_estimate", "estimate"), ("rank_exact", "value")):
        # "first" keeps ranks whole where sizes are equal: cells in the order of the model.
        means[name] = means[number].abs().rank(ascending=False, method="first").astype(int)
    means["missed"] = (means["rank_exact"] <= top) & (means["rank_estimate"] > top)
    ranks = means[["estimate", "value"]].rank()
    means["spearman"] = _correlation(ranks["estimate"], ranks["value"])
    means["pearson"] = _correlation(means["estimate"], means["value"])
    return means.sort_values("rank_exact").reset_index(drop=True)


def _correlation(one: pd.Series, other: pd.Series) -> float:
    varies = len(one) > 1 and one.std() > 0 and other.std() > 0
    return float(np.corrcoef(one, other)[0, 1]) if varies else np.nan
