"""Attribution patching with its two known blind spots mended."""

from typing import Annotated

import pandas as pd
from pydantic import BaseModel, Field

from probe.core.errors import OptionError
from probe.core.metric import get_metric
from probe.core.model import Model
from probe.core.registry import method
from probe.core.result import View
from probe.core.task import Encoded
from probe.methods.estimates import record_for_sizes, sizes
from probe.methods.patching import (
    By,
    Direction,
    cells,
    check_gap,
    default_by,
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
    "value": "estimated size of the effect of patching, at least 0: 1 is the size of the mean gap "
    "between the clean and the corrupted metric",
    "raw": "estimated size of the effect of patching, at least 0, in the metric's unit",
    "signed": "estimated metric after patching less before, in its unit, no gradient dropped",
    "clean": "metric of the clean run",
    "corrupted": "metric of the corrupted run",
}


def _view(options: BaseModel) -> View:
    return view_of_cells(
        getattr(options, "kind", "z"), getattr(options, "by", None), scale="activation"
    )


@method(needs="pairs", view=_view, columns=_COLUMNS)
def atp_star(
    model: Model,
    encoded: Encoded,
    *,
    kind: Annotated[
        str, Field(description="Site kind: q, k, v, z, attn_out, mlp_out, mlp_post, resid_pre, ...")
    ] = "z",
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
            "noise: corrupted into clean, gradient at the clean run, as in the paper"
        ),
    ] = "denoise",
    metric: Annotated[str, Field(description="What is read at the last token")] = "logit_diff",
    qk_fix: Annotated[
        bool, Field(description="For q and k: compute the patched attention exactly")
    ] = True,
    grad_drop: Annotated[
        bool, Field(description="Mean size over gradients that each leave one block out")
    ] = True,
    layers: Annotated[list[int] | None, Field(description="Only these layers")] = None,
    heads: Annotated[list[int] | None, Field(description="Only these heads")] = None,
    positions: Annotated[list[int] | None, Field(description="Only these positions")] = None,
    neurons: Annotated[list[int] | None, Field(description="Only these dimensions")] = None,
) -> pd.DataFrame:
    """Which activations matter, by gradients, without missing saturated or cancelling ones?

    Two corrections of ``attribution_patching``, each an option:

    - *QK fix*. Where attention is saturated, its gradient by queries and keys is zero though
      patching them would move it. For ``q`` and ``k`` the attention after patching is computed
      exactly, and only what follows it is linear: Σ Δattention · ∂metric/∂attention. A cell of
      one position patches one query (one row of attention) or one key (a column, summed over
      the queries that see it, and over the query heads that share it); other cells patch all
      positions at once.
    - *GradDrop*. A direct effect and one through a later block can cancel in the gradient but
      not in the model. The gradient is taken once for each block with nothing flowing back
      through what that block writes, and the sizes are averaged: (1/(L-1)) Σ |estimate|, L for
      the L blocks; for residual streams, which have a path left whichever block is dropped, 1/L.

    Both off, ``value`` is the plain estimate's size: |source - base · gradient| of each example.

    Value: at least 0, of each example; means over examples do not cancel. ``signed`` has the sign.

    Raises:
        EditError: A site that this model computes but does not read back.
        ModelError: Single keys in a model whose attention is not the softmax of its scores.
        OptionError: A cell that is not there, or one dimension of a query under the QK fix.
        TaskError: Prompts between which the metric does not differ.

    Cost: two forward passes and one backward pass; one forward pass more for the QK fix; one
    forward and one backward pass more for each layer from the first one asked for for GradDrop.

    Source: Kramár et al. 2024, "AtP*", sections 3.1 (QK fix) and 3.2 (GradDrop). The sum over
    single keys is done in closed form instead of the paper's algorithm 4, with the same result.

    >>> from probe.api import run
    >>> queries = run("atp_star", model="toy", task="ioi", kind="q", layers=[1])
    >>> bool((queries.frame["value"] >= 0).all())
    True
    """
    by = by or default_by(kind)
    chosen = get_metric(metric)
    chosen.check(encoded)
    if by == "neuron" and kind in ("q", "k") and qk_fix:
        raise OptionError(
            f"the QK fix of single dimensions of {kind}",
            expected="cells of whole queries or keys",
            remedy='by="head_position", or qk_fix=False',
        )
    listed = cells(
        model, encoded, kind, by, layers=layers, heads=heads, positions=positions, neurons=neurons
    )
    if not listed:
        raise OptionError("no cell is left to estimate", remedy="name at least one layer")
    depths = sorted({cell.layer for cell in listed})
    pair = record_for_sizes(model, encoded, kind, by, depths, chosen, direction, qk_fix=qk_fix)
    check_gap(metric, pair.clean, pair.corrupted)
    size, signed = sizes(
        model, encoded, pair, kind, by, listed, chosen, qk_fix=qk_fix, grad_drop=grad_drop
    )
    gap = (pair.clean - pair.corrupted).mean().abs()
    numbers = {
        "value": size / gap,
        "raw": size,
        "signed": signed,
        "clean": pair.clean,
        "corrupted": pair.corrupted,
    }
    return table(listed, encoded, by, numbers)
