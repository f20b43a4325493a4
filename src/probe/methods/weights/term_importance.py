"""How much of a model's success is due to paths of each length."""

import math
from typing import Annotated

import pandas as pd
import torch
from jaxtyping import Float
from pydantic import BaseModel, Field
from torch import Tensor

from probe.core.errors import OptionError
from probe.core.model import Model
from probe.core.registry import method
from probe.core.result import View
from probe.core.task import Encoded
from probe.methods.frozen import Frozen

_COLUMNS = {
    "batch": "prompt, counted from 0",
    "kept": "what is left of the model: paths through at most so many heads (order n); the direct "
    "path and one layer's heads (0 + layer); order 1 without one layer's heads (1 - layer)",
    "order": "heads in the longest path that is kept",
    "layer": "the layer added or left out; missing where whole orders are kept",
    "value": "loss, in nats a token, mean over the prompt's next tokens",
    "gain": "nats of loss taken away: by this order after the one before (order 0: after a uniform "
    "guess), by the layer added, or by the layer left out, on top of the others",
}


def _view(options: BaseModel) -> View:
    return View(kind="bar", x="kept", y="value", title="Loss by the paths kept")


@method(needs="prompts", view=_view, columns=_COLUMNS)
def term_importance(
    model: Model,
    encoded: Encoded,
    *,
    order: Annotated[
        int | None, Field(description="Longest paths, in heads; none for all there are", ge=0)
    ] = None,
    by_layer: Annotated[
        bool, Field(description="Also the single heads of each layer, added and left out")
    ] = True,
) -> pd.DataFrame:
    """How much of the loss do direct paths, single heads and heads in series take away?

    The model is run once and its attention patterns stored. Then it is run with these patterns and
    every head's output stored but replaced by zero: only the direct path is left (order 0). Run
    again with the outputs stored on the pass before in place, it has paths through one head (order
    1), and so on; order n is the sum of all paths of up to n heads in series through values. Norms
    keep the denominators of the first run. What MLPs wrote in it stays in place: of a model with
    MLPs, these are the orders of its attention alone.

    Value: cross entropy in nats a token, given all tokens of the prompt before it. The last order
    is the model itself.

    Raises:
        ModelError: An encoder, or logits that are capped.
        OptionError: A prompt of one token.

    Cost: one forward pass, then one of attention values alone for each order.

    Source: Elhage et al. (2021), "A Mathematical Framework for Transformer Circuits", term
    importance analysis.

    >>> from probe.models.load import load_model
    >>> from probe.core.task import Task
    >>> model = load_model("toy")
    >>> prompts = Task.from_prompts("When Mary and John went").encode(model)
    >>> term_importance(model, prompts, by_layer=False).kept.tolist()
    ['order 0', 'order 1', 'order 2']
    """
    if (encoded.lengths < 2).any():
        raise OptionError("a prompt of one token", expected="two: a loss needs a next token")
    run, n_layers = Frozen(model, encoded), model.dims.n_layers
    sources = run.sources()
    base = [
        torch.stack([s.vectors for s in sources if s.after <= layer]).sum(0)
        for layer in range(n_layers + 1)
    ]
    uniform = torch.full((len(encoded),), math.log(model.dims.d_vocab))
    before, rows = uniform, []
    none = torch.zeros_like(base[0])
    written, single = [none] * n_layers, [none] * n_layers
    for n in range(min(n_layers if order is None else order, n_layers) + 1):
        loss = _loss(run, base[-1] + sum(written, none))
        rows.append(_row(f"order {n}", n, None, loss, before - loss))
        before = loss
        if n == 1:
            single = written
        written = [
            run.heads(layer, base[layer] + sum(written[:layer], none)).sum(0)
            for layer in range(n_layers)
        ]
    if by_layer and len(rows) > 1:
        rows += _each_layer(run, base[-1], single, rows[0]["value"], rows[1]["value"])
    return pd.concat([pd.DataFrame(row) for row in rows], ignore_index=True)


def _each_layer(
    run: Frozen, base: Tensor, single: list[Tensor], direct: Tensor, all_single: Tensor
) -> list[dict]:
    whole = torch.stack(single).sum(0)
    rows = []
    for layer, written in enumerate(single):
        added, without = _loss(run, base + written), _loss(run, base + whole - written)
        rows.append(_row(f"0 + layer {layer}", 1, layer, added, direct - added))
        rows.append(_row(f"1 - layer {layer}", 1, layer, without, without - all_single))
    return rows


def _row(kept: str, order: int, layer: int | None, loss: Tensor, gain: Tensor) -> dict:
    n = len(loss)
    return {
        "batch": range(n),
        "kept": kept,
        "order": order,
        "layer": pd.array([layer] * n, dtype="Int64"),
        "value": loss,
        "gain": gain,
    }


def _loss(run: Frozen, stream: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, " batch"]:
    """Mean cross entropy of each prompt's next tokens."""
    tokens, lengths = run.encoded.clean, run.encoded.lengths
    log_probs = run.logits(stream)[:, :-1].float().log_softmax(-1).cpu()
    right = log_probs.gather(-1, tokens[:, 1:, None])[..., 0]
    real = torch.arange(right.shape[1]) < lengths[:, None] - 1
    return -(right * real).sum(1) / real.sum(1)
