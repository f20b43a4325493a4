"""The path from embedding to unembedding that no layer touches."""

from typing import Annotated

import pandas as pd
import torch
from pydantic import BaseModel, Field

from probe.core.model import Model
from probe.core.progress import progress_bar
from probe.core.registry import method
from probe.core.result import View
from probe.methods import token_pairs
from probe.methods.head_circuits import logit_matrix, need_decoder, read_tokens, token_ids
from probe.methods.lowrank import LowRank

_COLUMNS = {
    "token": "token that is read",
    "token_id": "its number in the vocabulary",
    "next": "token that follows",
    "next_id": "its number in the vocabulary",
    "place": "0 for the token's strongest follower (or the strongest pair of all), 1 for the next",
    "value": "logit of the follower on the direct path, above the mean over the vocabulary",
}


def _view(options: BaseModel) -> View:
    return View(kind="table", x="token_id", color="next_id", title="Bigrams of the direct path")


@method(needs="nothing", view=_view, columns=_COLUMNS)
def top_bigrams(
    model: Model,
    *,
    tokens: Annotated[
        list[str] | None,
        Field(
            description="Tokens to begin with; none for the strongest pairs of all", min_length=1
        ),
    ] = None,
    top: Annotated[
        int, Field(description="How many for each token, or of all", ge=1, le=10_000)
    ] = 10,
) -> pd.DataFrame:
    """Which token would follow which, if no layer did anything?

    The logits of ``unembed(W_E[token])``: the final norm acts on the embedding alone, with its own
    denominator. Of a model without layers these are its logits; of others, one term among many.

    Value: logit minus its mean over the vocabulary, in nats. Positive: promoted.

    Raises:
        TaskError: A text that is not one token.
        ModelError: An encoder.

    Cost: no forward pass; for all tokens, a product [d_vocab, d_model] by [d_model, d_vocab] in
    blocks that are not kept.

    Source: Elhage et al. (2021), "A Mathematical Framework for Transformer Circuits", zero-layer
    transformers.

    >>> from probe.models.load import load_model
    >>> frame = top_bigrams(load_model("toy"), tokens=[" the"], top=2)
    >>> frame.token.tolist(), bool(frame.value.is_monotonic_decreasing)
    ([' the', ' the'], True)
    """
    need_decoder(model)
    rows, columns = token_ids(model, tokens), token_ids(model, None)
    bias = model.weights.b_U[columns].float()
    read = read_tokens(model, None, rows, "final")
    table = LowRank(
        torch.cat([read, read.new_ones(len(read), 1)], dim=1),
        torch.cat([logit_matrix(model)[:, columns], (bias - bias.mean())[None]]),
    )
    with progress_bar("bigrams") as report:
        found = token_pairs.largest(table, top, each_row=tokens is not None, report=report)
    frame = token_pairs.frame(model.tokenizer, found, rows, columns, ("token", "next"))
    order = range(len(frame)) if tokens is None else frame.groupby("token_id").cumcount()
    return frame.assign(place=order)
