"""Attention weighted by what it moves."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import pandas as pd
import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from probe.core.errors import ModelError, OptionError
from probe.core.model import Model
from probe.core.registry import method
from probe.core.result import Scale, View
from probe.core.task import Encoded
from probe.core.trace import Trace
from probe.methods.squares import COLUMNS, Squares

Measure = Literal["norm", "share", "logit_diff"]


def _view(options: Any) -> View:
    single = all(
        chosen is not None and len(chosen) == 1 for chosen in (options.layers, options.heads)
    )
    scales: dict[str, Scale] = {"norm": "activation", "share": "share", "logit_diff": "signed"}
    return View(
        kind="heatmap" if single else "wall",
        x="key",
        y="query",
        color="value",
        scale=scales[options.measure],
        title="Value-weighted attention",
    )


@method(
    needs="prompts",
    view=_view,
    columns=COLUMNS
    | {
        "value": "what the head moves from key to query, by the measure asked for: a norm in units "
        "of the residual stream, its share of the query's row, or nats of logit difference",
        "raw": "the norm, where value is its share",
    },
)
def attention_contribution(
    model: Model,
    encoded: Encoded,
    *,
    measure: Annotated[
        Measure,
        Field(
            description="norm: of the vector moved. share: that norm over its sum along the row. "
            "logit_diff: of the vector, what the unembedding reads along answer minus wrong "
            "answer, at the last token"
        ),
    ] = "norm",
    layers: Annotated[
        list[int] | None, Field(description="Blocks; none for all", min_length=1)
    ] = None,
    heads: Annotated[
        list[int] | None, Field(description="Query heads; none for all", min_length=1)
    ] = None,
    queries: Annotated[
        list[int] | None,
        Field(description="Positions attended from, -1 being the last; none for all", min_length=1),
    ] = None,
) -> pd.DataFrame:
    """What does each head move from where to where?

    The vector moved from key k to query q by head h is ``pattern[q, k] · v_k W_O^h``; over keys
    these sum to the head's output. A head may attend strongly to a position whose value is next to
    nothing (often the first token), which patterns alone do not show. In grouped-query models head
    h reads the values of key/value head ``h // heads_per_kv``.

    Value: ``norm``: length of that vector before any norm that follows, in units of the residual
    stream. ``share``: that length over the sum of lengths in the query's row, 0 to 1, with the
    length in ``raw``. ``logit_diff``: its direct contribution to logit(answer) - logit(wrong
    answer), in nats, positive for the answer, with the final norm's denominator as it was; only
    the last token's row exists, since the answer is read there. Where the model caps its logits,
    it is the contribution before the cap.

    Raises:
        OptionError: A layer, head or position that is not there.
        TaskError: ``logit_diff`` of prompts without answer or wrong answer.
        ModelError: ``logit_diff`` of an encoder.
        SizeError: A table of more than two million rows; nothing is run.

    Cost: one forward pass, and batch × pos × head × d_model numbers for one layer at a time.

    Source: Kobayashi et al. 2020, "Attention is not only a weight", equation 5 (norm).

    >>> from probe.core.task import Task
    >>> from probe.models.load import load_model
    >>> model = load_model("toy")
    >>> task = Task.from_prompts("Mary gave John a book").encode(model)
    >>> frame = attention_contribution(model, task, measure="share", layers=[1], queries=[-1])
    >>> frame.groupby("head").value.sum().round(4).tolist()
    [1.0, 1.0, 1.0, 1.0]
    """
    if measure == "logit_diff":
        _check_read_out(model, queries)
        queries = [-1]
    squares = Squares.choose(model.dims, layers, heads, queries)
    squares.check_fits(encoded)
    kinds = ["pattern", "v"]
    sites: list = [(kind, layer) for layer in squares.layers for kind in kinds]
    if measure == "logit_diff":
        direction = _direction(model, encoded)
        trace = model.trace(encoded, [*sites, "ln_final_scale"])
        values = [_read_out(model, trace, layer, direction) for layer in squares.layers]
    else:
        trace = model.trace(encoded, sites)
        values = [_norms(model, trace, layer, squares.queries) for layer in squares.layers]
    raw = torch.stack([value[:, list(squares.heads)] for value in values])
    if measure != "share":
        return squares.frame(raw, encoded)
    # A head that moves nothing at all from anywhere has no shares; it gets zeros.
    total = raw.sum(-1, keepdim=True)
    share = torch.where(total > 0, raw / total, 0.0)
    return squares.frame(share, encoded).assign(raw=squares.frame(raw, encoded)["value"])


def _moved_vectors(
    model: Model, layer: int, v: Float[Tensor, "batch key kv_head d_head"]
) -> Float[Tensor, "batch key head d_model"]:
    """What each query head writes for each unit of attention to a key: ``v_k W_O^h``."""
    each = v.repeat_interleave(model.dims.heads_per_kv, dim=-2)
    return model.head_outputs(layer, each.float() if each.dtype.itemsize < 4 else each)


def _norms(
    model: Model, trace: Trace, layer: int, queries: Sequence[int] | None
) -> Float[Tensor, "batch head query key"]:
    pattern = (
        trace["pattern", layer]
        if queries is None
        else trace.sel(("pattern", layer), query=list(queries))
    )
    norms = _moved_vectors(model, layer, trace["v", layer]).norm(dim=-1)
    return pattern * norms.transpose(1, 2)[:, :, None]


def _read_out(
    model: Model, trace: Trace, layer: int, direction: Float[Tensor, "batch d_model"]
) -> Float[Tensor, "batch head 1 key"]:
    pattern = trace.sel(("pattern", layer), query=-1)
    scale = trace.sel("ln_final_scale", pos=-1)
    moved = _moved_vectors(model, layer, trace["v", layer])
    moved = moved * pattern.transpose(1, 2)[..., None]
    total = moved.sum((1, 2)) + model.out_bias(layer, "attn_out")
    written = model.write_out(layer, "attn_out", moved, total[:, None, None].expand_as(moved))
    read = model.read_out(written, scale[:, None, None].expand(*written.shape[:-1], 1))
    return torch.einsum("bkhd,bd->bhk", read, direction.to(read))[:, :, None]


def _direction(model: Model, encoded: Encoded) -> Float[Tensor, "batch d_model"]:
    """Unembedding of the answer minus that of the wrong answer."""
    answers = encoded.need_answers().to(model.device)
    wrong = encoded.need_wrong_answers().to(model.device)
    return (model.weights.W_U[:, answers] - model.weights.W_U[:, wrong]).T


def _check_read_out(model: Model, queries: Sequence[int] | None) -> None:
    if not model.dims.causal:
        raise ModelError(
            f"the logits of {model.name} are not a norm and a matrix applied to its residual",
            expected="a causal model",
            remedy='measure="norm"',
        )
    if queries is not None and list(queries) != [-1]:
        raise OptionError(
            f"measure='logit_diff' was asked for queries {list(queries)}",
            expected="[-1] or none: the answer is read at the last token",
            remedy='measure="norm" for other positions',
        )
