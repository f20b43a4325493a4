"""Whether heads look for the token they stand on, by the eigenvalues of their QK circuits."""

from typing import Annotated

import pandas as pd
from pydantic import BaseModel, Field

from probe.core.errors import OptionError
from probe.core.model import Model
from probe.core.registry import method
from probe.core.result import View
from probe.methods import eigenscores
from probe.methods.head_circuits import Circuits, need_head
from probe.methods.lowrank import LowRank, product


def _view(options: BaseModel) -> View:
    return View(kind="heatmap", x="head", y="layer", color="value", title="Matching by eigenvalues")


@method(needs="nothing", view=_view, columns=eigenscores.COLUMNS)
def matching_score(
    model: Model,
    *,
    via: Annotated[
        tuple[int, int] | None,
        Field(
            description="Layer and head of an earlier head whose output is the key, like a "
            "previous-token head; none for the token itself"
        ),
    ] = None,
    distance: Annotated[
        int, Field(description="Tokens from key to query, where layers rotate", ge=0)
    ] = 0,
    fold: Annotated[bool, Field(description="Gains of norms as part of the matrices")] = True,
    draws: Annotated[
        int, Field(description="Random heads for the baseline, in each layer", ge=2)
    ] = 50,
    seed: Annotated[int, Field(description="Seed of the random heads", ge=0)] = 0,
) -> pd.DataFrame:
    """Which heads attend to the very token they stand on, or to what an earlier head says of it?

    The eigenvalues λ of W_E QK W_Eᵀ, with ``via`` of W_E QK (OV of the earlier head)ᵀ W_Eᵀ. An
    induction head has positive ones via its previous-token head: its query is the present token,
    its key what stood before. The mean over keys, which the softmax does not see, is taken out.

    Value: ``Σ Re λ / Σ |λ|``: 1 looks for equal tokens, -1 avoids them. With ``via``, layers up to
    that of the earlier head have no rows. The baseline puts random matrices in place of W_Q, W_K.

    Raises:
        OptionError: A head that is not there, or one in the last layer; a distance where a layer
            does not rotate.
        ModelError: An encoder, or scores of an unknown form.

    Cost: one forward pass of 16 tokens; one product [d_model, d_vocab] by [d_vocab, d_model].

    Source: Elhage et al. (2021), "A Mathematical Framework for Transformer Circuits", the
    eigenvalue plane of induction heads.

    >>> from probe.models.handbuilt import induction_model
    >>> from probe.models.load import load_model
    >>> built = induction_model("grouped-query", size=32)
    >>> model = load_model(built.hf, tokenizer=built.tokenizer)
    >>> frame = matching_score(model, via=built.heads["previous"]).set_index(["layer", "head"])
    >>> f"{frame.value[built.heads['induction']]:.2f}"
    '1.00'
    """
    circuits, known = Circuits(model, fold), min(model.dims.d_vocab, model.tokenizer.n_vocab)
    embedding = model.weights.W_E[:known].double()
    ends = product((embedding - embedding.mean(0)).mT, embedding)
    first, random = 0, circuits.random_qk
    if via is not None:
        need_head(model, *via)
        first = via[0] + 1
        if first == model.dims.n_layers:
            raise OptionError(
                f"via={via}: no layer comes after layer {via[0]}",
                expected=f"a head of layers 0 to {model.dims.n_layers - 2}",
            )
        earlier = circuits.ov(via[0])[via[1]].mT
        ends = product(earlier.left, product(earlier.right, ends))

    def of_layer(layer: int) -> LowRank:
        return circuits.qk(layer, distance)

    return eigenscores.frame(model, of_layer, random, ends, draws=draws, seed=seed, first=first)
