"""Which activations the behaviour needs: take each away, in three ways side by side."""

from collections.abc import Sequence
from typing import Annotated, Literal

import pandas as pd
import torch
from jaxtyping import Float, Int
from pydantic import BaseModel, Field
from torch import Tensor

from probe.core.errors import OptionError, TaskError
from probe.core.metric import get_metric
from probe.core.model import Model
from probe.core.progress import progress_bar
from probe.core.registry import method
from probe.core.result import View
from probe.core.site import KINDS
from probe.core.task import Encoded
from probe.core.trace import Trace
from probe.methods.patching import By as AnyBy
from probe.methods.patching import Cell, cells, default_by, patches, site_of, table, view_of_cells

Ablation = Literal["zero", "mean", "resample"]
By = Literal["layer", "position", "head", "neuron"]

_COLUMNS = {
    "batch": "prompt",
    "layer": "layer ablated",
    "head": "head ablated (key/value head for k and v)",
    "pos": "position ablated (attended from, for patterns)",
    "neuron": "dimension ablated, of the site's last axis",
    "token": "clean token at that position",
    "ablation": "what stands there instead: zero; mean of the other prompts at that position; "
    "resample, one other prompt's",
    "drawn_from": "prompts it was drawn from; the prompt itself is left out",
    "value": "change of the metric: ablated less clean",
    "raw": "metric of the ablated run",
    "clean": "metric of the clean run",
    "share": "raw by the mean clean metric over prompts: 1 where nothing was lost",
}


def _view(options: BaseModel) -> View:
    plain = view_of_cells(getattr(options, "kind", "z"), getattr(options, "by", None))
    group = "color" if plain.kind == "line" else "facet"
    return plain.model_copy(update={group: "ablation"})


@method(needs="answers", view=_view, columns=_COLUMNS)
def ablation(
    model: Model,
    encoded: Encoded,
    *,
    kind: Annotated[
        str, Field(description="Site kind: z, attn_out, mlp_out, mlp_post, pattern, resid_pre, ...")
    ] = "z",
    by: Annotated[
        By | None,
        Field(
            description="What a cell is; by default heads where the site has them, else positions"
        ),
    ] = None,
    ablations: Annotated[
        Sequence[Ablation], Field(description="What activations are replaced by", min_length=1)
    ] = ("zero", "mean", "resample"),
    metric: Annotated[str, Field(description="What is read at the last token")] = "logit_diff",
    seed: Annotated[int, Field(description="Chooses the resampled prompts")] = 0,
    layers: Annotated[list[int] | None, Field(description="Only these layers")] = None,
    heads: Annotated[list[int] | None, Field(description="Only these heads")] = None,
    positions: Annotated[list[int] | None, Field(description="Only these positions")] = None,
    neurons: Annotated[list[int] | None, Field(description="Only these dimensions")] = None,
) -> pd.DataFrame:
    """Which activations does the answer need: what is lost when each is taken away?

    Zero is a value the model may never see; the mean keeps what all prompts share; a resampled
    activation is one the model does see, but of another prompt. They can disagree, so all three
    are shown. Mean and resample never draw from the prompt itself. Prompts of other lengths are
    compared position by position: the mean is over those that have the position (over all tokens
    of the others where none has), a shorter one gives its last.

    ``value``: in the metric's unit; negative where a metric that is high for right answers needs
    the activation. The prompts themselves are what is drawn from: few or narrow prompts keep more
    of what they share.

    Raises:
        TaskError: Mean or resample with a single prompt.
        OptionError: A cell that is not there.

    Cost: one recorded run, and for each cell and kind the part of a forward pass after its layer
    and position.

    Source: Wang et al. 2022, "Interpretability in the Wild" (mean ablation); Chan et al. 2022,
    "Causal Scrubbing" (resampling).

    >>> from probe.api import run
    >>> lost = run("ablation", model="toy", task="ioi", by="layer", ablations=["zero", "mean"])
    >>> lost.summary().shape
    (4, 6)
    """
    each: AnyBy = by or default_by(kind)
    chosen = get_metric(metric)
    chosen.check(encoded)
    _check(encoded, ablations)
    listed = cells(
        model, encoded, kind, each, layers=layers, heads=heads, positions=positions, neurons=neurons
    )
    if not listed:
        raise OptionError("no cell is left to ablate", remedy="name at least one layer")
    depths = sorted({cell.layer for cell in listed})
    there = model.trace(encoded, [(kind, n) if KINDS[kind].per_layer else kind for n in depths])
    clean = model.sweep(encoded, [[]], chosen, base="clean")[0].cpu()
    with progress_bar("ablation") as report:
        sets = [
            edits
            for how in ablations
            for edits in patches(
                listed, kind, there, encoded, _replaced(there, kind, depths, encoded, how, seed)
            )
        ]
        raw = model.sweep(encoded, sets, chosen, base="clean", report=report).cpu()
    return _frame(listed, encoded, each, ablations, raw.split(len(listed)), clean)


def _check(encoded: Encoded, ablations: Sequence[str]) -> None:
    drawing = [how for how in ablations if how != "zero"]
    if drawing and len(encoded) < 2:
        raise TaskError(
            f"{' and '.join(drawing)} ablation of a single prompt",
            expected="at least 2 prompts, because a prompt is left out of its own draw",
            remedy='ablations=["zero"]',
        )


def _frame(
    listed: Sequence[Cell],
    encoded: Encoded,
    by: AnyBy,
    ablations: Sequence[str],
    raw: Sequence[Float[Tensor, "cells batch"]],
    clean: Float[Tensor, " batch"],
) -> pd.DataFrame:
    mean = float(clean.mean())
    parts = []
    for how, values in zip(ablations, raw, strict=True):
        numbers = {
            "value": values - clean,
            "raw": values,
            "clean": clean,
            "share": values / mean if mean else torch.full_like(values, torch.nan),
        }
        part = table(listed, encoded, by, numbers)
        at = list(part.columns).index("value")
        part.insert(at, "ablation", how)
        drawn = {"zero": 0, "mean": len(encoded) - 1, "resample": 1}[how]
        part.insert(at + 1, "drawn_from", drawn)
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def _replaced(
    there: Trace, kind: str, depths: Sequence[int], encoded: Encoded, how: str, seed: int
) -> dict[int, Tensor]:
    """What stands in for each layer's activation."""
    made = {}
    for layer in depths:
        site = site_of(kind, layer)
        value = there[site]
        if how == "zero":
            made[layer] = value.new_zeros(())
            continue
        place = site.axes.index("query" if "query" in site.axes else "pos")
        moved = value.movedim(place, 1)
        drawn = (
            _mean_of_others(moved, encoded.lengths)
            if how == "mean"
            else _one_other(moved, encoded.lengths, seed)
        )
        made[layer] = drawn.movedim(1, place)
    return made


def _mean_of_others(
    value: Float[Tensor, "batch pos *rest"], lengths: Int[Tensor, " batch"]
) -> Float[Tensor, "batch pos *rest"]:
    """At each position the mean over the other prompts that have it."""
    n, width = value.shape[:2]
    real = (torch.arange(width) < lengths[:, None]).to(value)
    weight = real.view(n, width, *[1] * (value.ndim - 2))
    value = value.masked_fill(weight == 0, 0.0)  # what stands at padding means nothing
    count = weight.sum(0, keepdim=True) - weight
    total = value.sum(0, keepdim=True) - value
    anywhere = total.sum(1, keepdim=True) / count.sum(1, keepdim=True)
    return torch.where(count > 0, total / count.clamp(min=1), anywhere)


def _one_other(
    value: Float[Tensor, "batch pos *rest"], lengths: Int[Tensor, " batch"], seed: int
) -> Float[Tensor, "batch pos *rest"]:
    """Another prompt's activation, the same one at every layer."""
    n, width = value.shape[:2]
    generator = torch.Generator().manual_seed(seed)
    other = (torch.arange(n) + torch.randint(1, n, (n,), generator=generator)) % n
    pos = torch.minimum(torch.arange(width).expand(n, width), lengths[other, None] - 1)
    return value[other[:, None], pos]
