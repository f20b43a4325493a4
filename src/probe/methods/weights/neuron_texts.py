"""Where in some prompts neurons are most active."""

from collections.abc import Sequence
from typing import Annotated, Literal

import pandas as pd
import torch
from pydantic import BaseModel, Field
from torch import Tensor

from probe.core.errors import ModelError, OptionError
from probe.core.model import Model
from probe.core.registry import method
from probe.core.result import View
from probe.core.site import Site, check_layer
from probe.core.task import Encoded
from probe.core.trace import Trace

Reading = Literal["post", "pre", "solu"]

_COLUMNS = {
    "layer": "block of the MLP",
    "neuron": "number in the MLP",
    "place": "0 for the strongest place, 1 for the next",
    "prompt": "prompt of that place, counted from 0",
    "position": "token position",
    "token": "token at that position",
    "context": "the tokens around it, the token itself between ⟦ and ⟧",
    "value": "the neuron there, by the reading asked for; in the model's units",
    "pre": "the neuron before the activation function (of a gated MLP: its gate)",
    "post": "the neuron as the output matrix reads it",
    "share": "places of the prompts at which the reading is above zero",
}


def _view(options: BaseModel) -> View:
    return View(kind="table", x="place", facet="neuron", title="Where neurons are most active")


@method(needs="prompts", view=_view, columns=_COLUMNS)
def neuron_texts(
    model: Model,
    encoded: Encoded,
    *,
    layer: Annotated[int, Field(description="Block of the MLP", ge=0)] = 0,
    neurons: Annotated[
        Sequence[int], Field(description="Numbers in the MLP", min_length=1, max_length=1000)
    ] = (0,),
    reading: Annotated[
        Reading,
        Field(
            description="post: as the output matrix reads it; pre: before the activation function; "
            "solu: x · softmax(x) of what is before, without a norm that follows"
        ),
    ] = "post",
    top: Annotated[
        int, Field(description="Places for each neuron, all prompts together", ge=1)
    ] = 10,
    window: Annotated[int, Field(description="Tokens shown on either side", ge=0)] = 6,
) -> pd.DataFrame:
    """In what text is a neuron most active?

    Value: ``post`` is what the output matrix multiplies: of a gated MLP the product of both
    branches, which may be large and negative; of a SoLU model what the norm after the activation
    made of it, which can bring small activations back. ``solu`` is before that norm, for models
    whose activation it is. A list of strongest places is a poor guide to what a neuron does
    elsewhere: look at ``share``, too.

    Raises:
        OptionError: A neuron that is not there.
        SiteError: A layer that is not there; a model whose neurons are not recorded.
        ModelError: ``solu`` asked of a gated MLP.

    Cost: one forward pass over the prompts, stopped at the layer.

    Source: Elhage et al. (2022), "Softmax Linear Units", sections 4 and 6.4, for the two readings.

    >>> from probe.models.load import load_model
    >>> from probe.core.task import Task
    >>> model = load_model("toy")
    >>> prompts = Task.from_prompts(["When Mary and John went", "Tom gave"]).encode(model)
    >>> frame = neuron_texts(model, prompts, neurons=[3], top=2)
    >>> len(frame), bool(frame.value.is_monotonic_decreasing)
    (2, True)
    """
    check_layer(Site("mlp_post", layer), model.dims.n_layers)
    for neuron in neurons:
        if not 0 <= neuron < model.dims.d_mlp:
            raise OptionError(
                f"neuron {neuron}", expected=f"0 to {model.dims.d_mlp - 1}, the neurons of an MLP"
            )
    trace = model.trace(encoded, [("mlp_pre", layer), ("mlp_post", layer)])
    pre, post = trace["mlp_pre", layer].float().cpu(), trace["mlp_post", layer].float().cpu()
    values = {"post": post, "pre": pre}.get(reading)
    if values is None:
        values = _solu(model, layer, pre)
    real = torch.arange(pre.shape[1]) < trace.lengths[:, None]
    frames = [
        _places(
            trace, real, values[..., neuron], pre[..., neuron], post[..., neuron], top, window
        ).assign(layer=layer, neuron=neuron)
        for neuron in dict.fromkeys(neurons)
    ]
    return pd.concat(frames, ignore_index=True)[list(_COLUMNS)]


def _solu(model: Model, layer: int, pre: Tensor) -> Tensor:
    if model.weights.W_gate(layer) is not None:
        raise ModelError(
            f"layer {layer} of {model.name} is gated, and SoLU is not",
            expected="an MLP of one branch",
            remedy='reading="post"',
        )
    return pre * pre.softmax(-1)


def _places(
    trace: Trace, real: Tensor, values: Tensor, pre: Tensor, post: Tensor, top: int, window: int
) -> pd.DataFrame:
    """The strongest places of one neuron, all prompts together."""
    number = min(top, int(real.sum()))
    best = values.masked_fill(~real, -torch.inf).flatten().topk(number).indices
    rows, places = (best // values.shape[1]).tolist(), (best % values.shape[1]).tolist()
    return pd.DataFrame(
        {
            "place": range(number),
            "prompt": rows,
            "position": places,
            "token": [trace.str_tokens[r][p] for r, p in zip(rows, places, strict=True)],
            "context": [
                _context(trace.str_tokens[r], p, window) for r, p in zip(rows, places, strict=True)
            ],
            "value": values[rows, places].double().numpy(),
            "pre": pre[rows, places].double().numpy(),
            "post": post[rows, places].double().numpy(),
            "share": float((values[real] > 0).float().mean()),
        }
    )


def _context(tokens: Sequence[str], at: int, window: int) -> str:
    before, after = tokens[max(0, at - window) : at], tokens[at + 1 : at + 1 + window]
    return f"{''.join(before)}⟦{tokens[at]}⟧{''.join(after)}"
