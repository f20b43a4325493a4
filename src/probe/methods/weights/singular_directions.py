"""The singular directions of a head's circuits, read in tokens."""

from typing import Annotated, Literal

import pandas as pd
from jaxtyping import Float
from pydantic import BaseModel, Field
from torch import Tensor

from probe.core.model import Model
from probe.core.registry import method
from probe.core.result import View
from probe.methods.head_circuits import Circuits, logit_matrix, need_head, unembedding

_COLUMNS = {
    "direction": "0 for the strongest singular direction, 1 for the next",
    "singular": "its singular value, in units of the folded matrix",
    "share": "its square over the sum of all squares of the circuit",
    "end": "ov: reads, writes; qk: query, key",
    "side": "of the direction's two ends: + or -; the same side of both ends belongs together",
    "place": "0 for the token furthest to that side, 1 for the next",
    "token": "token",
    "token_id": "its number in the vocabulary",
    "value": "product of the unit direction with the token: its embedding where the direction is "
    "read (reads, query, key), its unembedding where it is written; mean over the vocabulary out",
}


def _view(options: BaseModel) -> View:
    return View(
        kind="table", x="token_id", color="end", facet="direction", title="Singular directions"
    )


@method(needs="nothing", view=_view, columns=_COLUMNS)
def singular_directions(
    model: Model,
    *,
    layer: Annotated[int, Field(description="Block of the head", ge=0)] = 0,
    head: Annotated[int, Field(description="Query head", ge=0)] = 0,
    circuit: Annotated[
        Literal["ov", "qk"], Field(description="ov: what is moved; qk: what is compared")
    ] = "ov",
    directions: Annotated[int, Field(description="How many, strongest first", ge=1)] = 3,
    top: Annotated[int, Field(description="Tokens at each side of each end", ge=1)] = 5,
    distance: Annotated[
        int, Field(description="qk: tokens from key to query, where the layer rotates", ge=0)
    ] = 0,
    fold: Annotated[bool, Field(description="Gains of norms as part of the matrices")] = True,
) -> pd.DataFrame:
    """What are the main things a head moves, or compares, in words?

    The circuit is ``Σ σ_i u_i v_iᵀ``: it reads ``u_i`` and writes ``v_i`` (OV), or compares ``u_i``
    of the query with ``v_i`` of the key (QK). A direction has two sides, of which either may be
    called positive; side + of one end goes with side + of the other.

    Value: product of the unit direction with each token's vector, its mean over the vocabulary
    taken out. Directions of one singular value are only fixed together.

    Raises:
        OptionError: A head that is not there; a distance where the layer does not rotate.
        ModelError: An encoder, or scores of an unknown form.

    Cost: no forward pass but one of 16 tokens for qk; for each direction, a product of the
    vocabulary with a vector.

    Source: Millidge and Black (2022), "The Singular Value Decompositions of Transformer Weight
    Matrices are Highly Interpretable".

    >>> from probe.models.load import load_model
    >>> frame = singular_directions(load_model("toy"), directions=1, top=2)
    >>> len(frame), sorted(set(frame.end))
    (8, ['reads', 'writes'])
    """
    need_head(model, layer, head)
    circuits = Circuits(model, fold)
    product = circuits.ov(layer) if circuit == "ov" else circuits.qk(layer, distance)
    left, values, right = product[head].svd
    known = min(model.dims.d_vocab, model.tokenizer.n_vocab)
    read = model.weights.W_E[:known].double()
    read = (read - read.mean(0)).mT
    written = read
    if circuit == "ov":
        written = (unembedding(model) if fold else logit_matrix(model)).double()
    names = ("reads", "writes") if circuit == "ov" else ("query", "key")
    share = values.square() / values.square().sum().clamp(min=1e-300)
    frames = []
    for i in range(min(directions, len(values))):
        for end, vector, tokens in (
            (names[0], left[:, i], read), (names[1], right[i], written)
        ):  # fmt: skip
            part = _sides(model, vector @ tokens, top)
            frames.append(
                part.assign(direction=i, singular=float(values[i]), share=float(share[i]), end=end)
            )
    return pd.concat(frames, ignore_index=True)[list(_COLUMNS)]


def _sides(model: Model, values: Float[Tensor, " token"], top: int) -> pd.DataFrame:
    """The tokens furthest to either side."""
    frames = []
    for side, sign in (("+", 1.0), ("-", -1.0)):
        best, ids = (sign * values).topk(min(top, len(values)))
        frames.append(
            pd.DataFrame(
                {
                    "side": side,
                    "place": range(len(ids)),
                    "token": model.tokenizer.strings(ids.tolist()),
                    "token_id": ids.tolist(),
                    "value": (sign * best).cpu().numpy(),
                }
            )
        )
    return pd.concat(frames, ignore_index=True)
