"""What a neuron reads and writes, in tokens."""

from typing import Annotated

import pandas as pd
from jaxtyping import Float
from pydantic import BaseModel, Field
from torch import Tensor

from probe.core.errors import OptionError
from probe.core.model import Model
from probe.core.registry import method
from probe.core.result import View
from probe.core.site import Site, check_layer
from probe.methods.head_circuits import need_decoder, read_tokens, token_ids, unembedding

_COLUMNS = {
    "end": "reads: the direction the neuron reads (the linear branch where there is a gate); "
    "gate: the direction its gate reads; writes: the direction it adds to the stream",
    "side": "most: tokens that raise it or that it promotes; least: that lower it or it suppresses",
    "place": "0 for the token furthest to that side, 1 for the next",
    "token": "token",
    "token_id": "its number in the vocabulary",
    "value": "reads, gate: what the token's embedding alone gives before the activation function, "
    "biases left out; writes: logit for an activation of 1, in units of the final norm's "
    "denominator; both above the mean over the vocabulary",
}


def _view(options: BaseModel) -> View:
    return View(kind="table", x="place", color="end", facet="side", title="A neuron in tokens")


@method(needs="nothing", view=_view, columns=_COLUMNS)
def neuron_tokens(
    model: Model,
    *,
    layer: Annotated[int, Field(description="Block of the MLP", ge=0)] = 0,
    neuron: Annotated[int, Field(description="Its number in the MLP", ge=0)] = 0,
    top: Annotated[int, Field(description="Tokens at each side of each direction", ge=1)] = 10,
) -> pd.DataFrame:
    """Which tokens does a neuron read, and which does it promote?

    Directions are those of the weights, behind the norms: what other layers wrote, which most
    neurons of late layers read, is not in it. A gated neuron reads twice, ``activation(gate) ·
    reads``: tokens that raise both make it positive, tokens that raise the gate and lower the other
    make it negative. SoLU and other activations that mix neurons change which neuron wins, not
    what each reads.

    Value: for ``reads`` and ``gate``, the product with the token's embedding as the layer's norm
    gives it; for ``writes``, with the token's unembedding. The vocabulary's mean is taken out.

    Raises:
        OptionError: A neuron that is not there.
        SiteError: A layer that is not there.
        ModelError: An encoder, or a mixture of experts.

    Cost: no forward pass; three products of the vocabulary with a vector.

    Source: Geva et al. (2022), "Transformer Feed-Forward Layers Build Predictions by Promoting
    Concepts in the Vocabulary Space", for the output.

    >>> from probe.models.load import load_model
    >>> frame = neuron_tokens(load_model("toy"), layer=1, neuron=5, top=2)
    >>> sorted(set(frame.end)), len(frame)
    (['gate', 'reads', 'writes'], 12)
    """
    need_decoder(model)
    check_layer(Site("mlp_post", layer), model.dims.n_layers)
    if not neuron < model.dims.d_mlp:
        raise OptionError(
            f"neuron {neuron}", expected=f"0 to {model.dims.d_mlp - 1}, the neurons of an MLP"
        )
    weights, ids = model.weights, token_ids(model, None)
    read = read_tokens(model, layer, ids, "mlp_in")
    gate, after = weights.W_gate(layer), model.norm("mlp_out", layer)
    written = weights.W_out(layer)[neuron].float()
    if after is not None:
        written = after.apply(written, written.new_ones(1)).float()
    ends = {"reads": read @ weights.W_in(layer)[:, neuron].float()}
    if gate is not None:
        ends["gate"] = read @ gate[:, neuron].float()
    ends["writes"] = (written @ unembedding(model))[ids]
    frames = [_sides(model, ids, values, top).assign(end=end) for end, values in ends.items()]
    return pd.concat(frames, ignore_index=True)[list(_COLUMNS)]


def _sides(model: Model, ids: Tensor, values: Float[Tensor, " token"], top: int) -> pd.DataFrame:
    """The tokens furthest to either side."""
    values, frames = values - values.mean(), []
    for side, sign in (("most", 1.0), ("least", -1.0)):
        best, places = (sign * values).topk(min(top, len(values)))
        tokens = ids[places.cpu()].tolist()
        frames.append(
            pd.DataFrame(
                {
                    "side": side,
                    "place": range(len(tokens)),
                    "token": model.tokenizer.strings(tokens),
                    "token_id": tokens,
                    "value": (sign * best).double().cpu().numpy(),
                }
            )
        )
    return pd.concat(frames, ignore_index=True)
