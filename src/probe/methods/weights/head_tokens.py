"""A head's two circuits between tokens."""

from typing import Annotated, Literal

import pandas as pd
from pydantic import BaseModel, Field

from probe.core.model import Model
from probe.core.progress import progress_bar
from probe.core.registry import method
from probe.core.result import View
from probe.methods import token_pairs
from probe.methods.head_circuits import (
    need_decoder,
    need_head,
    ov_tokens,
    qk_tokens,
    token_ids,
)
from probe.methods.lowrank import LowRank

_COLUMNS = {
    "token": "ov: token attended to; qk: token that attends",
    "token_id": "its number in the vocabulary",
    "other": "ov: token whose logit is raised; qk: token attended to",
    "other_id": "its number in the vocabulary",
    "place": "0 for the token's strongest partner (or the strongest pair of all), 1 for the next",
    "value": "ov: logit for full attention, in units of the final norm's denominator, above the "
    "mean over the vocabulary; qk: attention score in nats, above the query's mean over all keys",
}


def _view(options: BaseModel) -> View:
    return View(kind="table", x="token_id", color="other_id", title="A head's circuit in tokens")


@method(needs="nothing", view=_view, columns=_COLUMNS)
def head_tokens(
    model: Model,
    *,
    layer: Annotated[int, Field(description="Block of the head", ge=0)] = 0,
    head: Annotated[int, Field(description="Query head", ge=0)] = 0,
    circuit: Annotated[
        Literal["ov", "qk"],
        Field(description="ov: what attending to a token promotes; qk: what a token attends to"),
    ] = "ov",
    tokens: Annotated[
        list[str] | None,
        Field(
            description="Tokens to begin with; none for the strongest pairs of all", min_length=1
        ),
    ] = None,
    distance: Annotated[
        int, Field(description="qk: tokens from key to query, where the layer rotates", ge=0)
    ] = 0,
    top: Annotated[
        int, Field(description="How many for each token, or of all", ge=1, le=10_000)
    ] = 10,
) -> pd.DataFrame:
    """Which tokens does a head turn into which, and which does it match with which?

    Tokens stand for their embeddings, normalised as the layer does; what other layers have written
    is not in it. So the table is exact for layer 0 of models without learned positions, and the
    direct path of later layers. ``ov`` ends at the logits. Biases are part of both.

    Value: ``ov``: logit above the mean over the vocabulary at attention 1, before the final norm's
    denominator, which the rest of the stream decides: comparable within a table. ``qk``: attention
    score in nats above the query's mean over all keys, which the softmax does not see.

    Raises:
        OptionError: A head that is not there; a distance where a layer does not rotate.
        TaskError: A text that is not one token.
        ModelError: An encoder, or scores of an unknown form.

    Cost: no forward pass but one of 16 tokens for qk; for all tokens, a product [d_vocab, d_head]
    by [d_head, d_vocab] in blocks that are not kept.

    Source: Elhage et al. (2021), "A Mathematical Framework for Transformer Circuits", one-layer
    transformers: W_E W_OV W_U and W_E W_QK W_Eᵀ.

    >>> from probe.models.handbuilt import induction_model
    >>> from probe.models.load import load_model
    >>> built = induction_model("grouped-query", size=32)
    >>> model = load_model(built.hf, tokenizer=built.tokenizer)
    >>> layer, head = built.heads["induction"]
    >>> head_tokens(model, layer=layer, head=head, tokens=["w7"], top=1).other.tolist()
    ['w7']
    """
    need_decoder(model)
    need_head(model, layer, head)
    rows, columns = token_ids(model, tokens), token_ids(model, None)
    if circuit == "ov":
        table = ov_tokens(model, layer, head, rows)
        table = LowRank(table.left, table.right[:, columns])
    else:
        table = qk_tokens(model, layer, head, rows, columns, distance)
        table = LowRank(table.left, table.right - table.right.mean(1, keepdim=True))
    with progress_bar(f"{circuit} of head {layer}.{head}") as report:
        found = token_pairs.largest(table, top, each_row=tokens is not None, report=report)
    frame = token_pairs.frame(model.tokenizer, found, rows, columns, ("token", "other"))
    order = range(len(frame)) if tokens is None else frame.groupby("token_id").cumcount()
    return frame.assign(place=order)
