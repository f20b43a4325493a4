"""What a one-layer head knows: earlier token, present token, next token."""

from typing import Annotated

import pandas as pd
import torch
from jaxtyping import Float, Int
from pydantic import BaseModel, Field
from torch import Tensor

from probe.core.model import Model
from probe.core.progress import Report, progress_bar
from probe.core.registry import method
from probe.core.result import View
from probe.methods.head_circuits import (
    need_decoder,
    need_head,
    ov_tokens,
    qk_tokens,
    token_ids,
)
from probe.methods.token_pairs import ROWS

_COLUMNS = {
    "earlier": "earlier token, attended to",
    "earlier_id": "its number in the vocabulary",
    "present": "present token, which attends",
    "present_id": "its number in the vocabulary",
    "next": "token that is promoted",
    "next_id": "its number in the vocabulary",
    "place": "0 for the strongest",
    "value": "product of score and promoted logit: how strongly the head says so",
    "score": "attention score of the pair in nats, above the query's mean over all keys",
    "promoted": "logit of the next token at attention 1, in units of the final norm's denominator, "
    "above the mean over the vocabulary",
}


def _view(options: BaseModel) -> View:
    return View(kind="table", x="place", title="Skip-trigrams")


@method(needs="nothing", view=_view, columns=_COLUMNS)
def skip_trigrams(
    model: Model,
    *,
    layer: Annotated[int, Field(description="Block of the head", ge=0)] = 0,
    head: Annotated[int, Field(description="Query head", ge=0)] = 0,
    earlier: Annotated[
        list[str] | None,
        Field(description="Earlier tokens; none for the strongest of all", min_length=1),
    ] = None,
    each: Annotated[
        int, Field(description="Queries, and next tokens, tried for each earlier token", ge=1)
    ] = 3,
    distance: Annotated[
        int, Field(description="Tokens from key to query, where the layer rotates", ge=0)
    ] = 0,
    top: Annotated[int, Field(description="How many trigrams", ge=1, le=100_000)] = 20,
) -> pd.DataFrame:
    """Which skip-trigrams "earlier … present → next" does a head hold?

    The earlier token decides both who attends to it (QK) and what is promoted (OV), independently:
    where two true trigrams share it, the crossed ones, which may be false, are promoted as well.
    They are in the table, and with ``earlier`` given they are easy to see.

    Value: attention score (nats, above the query's mean over keys) × promoted logit (above the
    vocabulary's mean, in units of the final norm's denominator); only where both are positive.

    Raises:
        OptionError: A head that is not there; a distance where a layer does not rotate.
        TaskError: A text that is not one token.
        ModelError: An encoder, or scores of an unknown form.

    Cost: one forward pass of 16 tokens; products [d_vocab, d_head] by [d_head, d_vocab] in blocks.

    Source: Elhage et al. (2021), "A Mathematical Framework for Transformer Circuits", skip-trigrams
    and their bugs.

    >>> from probe.models.load import load_model
    >>> frame = skip_trigrams(load_model("toy"), top=3)
    >>> len(frame), bool((frame.value > 0).all()), bool(frame.value.is_monotonic_decreasing)
    (3, True, True)
    """
    need_decoder(model)
    need_head(model, layer, head)
    sources, every = token_ids(model, earlier), token_ids(model, None)
    qk = qk_tokens(model, layer, head, every, every, distance)
    seen = qk.right - qk.right.mean(1, keepdim=True)
    position = torch.isin(every, sources) if earlier is not None else torch.ones(len(every)).bool()
    sources = every[position]
    ov = ov_tokens(model, layer, head, sources)
    with progress_bar(f"skip-trigrams of head {layer}.{head}") as report:
        best = _best(qk.left, seen[:, position], ov.left, ov.right[:, every], each, top, report)
    numbers, places = best
    made: dict[str, object] = {}
    for name, ids in zip(
        ("earlier", "present", "next"),
        (sources[places[:, 0]], every[places[:, 1]], every[places[:, 2]]),
        strict=True,
    ):
        made[name] = model.tokenizer.strings(ids.tolist())
        made[f"{name}_id"] = ids.tolist()
    value, score, promoted = numbers.double().T.numpy()
    made |= {"place": range(len(value)), "value": value, "score": score, "promoted": promoted}
    return pd.DataFrame(made)


def _best(
    queries: Float[Tensor, "query d_head"],
    keys: Float[Tensor, "d_head key"],
    values: Float[Tensor, "key d_head"],
    logits: Float[Tensor, "d_head next"],
    each: int,
    top: int,
    report: Report,
) -> tuple[Float[Tensor, "trigram 3"], Int[Tensor, "trigram 3"]]:
    """Value, score and promoted logit of the strongest, and their key, query and next token."""
    numbers, places = torch.empty(0, 3), torch.empty(0, 3, dtype=torch.long)
    for start in range(0, keys.shape[1], ROWS):
        part = slice(start, start + ROWS)
        score, query = (queries @ keys[:, part]).T.topk(min(each, len(queries)), dim=1)
        promoted, following = (values[part] @ logits).topk(min(each, logits.shape[1]), dim=1)
        product = score.clamp(min=0)[:, :, None] * promoted.clamp(min=0)[:, None]
        block = torch.stack(torch.broadcast_tensors(
            product, score[:, :, None], promoted[:, None]
        ), dim=-1)  # fmt: skip
        row = torch.arange(start, start + len(score))[:, None, None]
        at = torch.stack(torch.broadcast_tensors(
            row, query.cpu()[:, :, None], following.cpu()[:, None]
        ), dim=-1)  # fmt: skip
        numbers = torch.cat([numbers, block.flatten(0, 2).cpu()])
        places = torch.cat([places, at.flatten(0, 2)])
        order = numbers[:, 0].argsort(descending=True, stable=True)[:top]
        order = order[numbers[order, 0] > 0]
        numbers, places = numbers[order], places[order]
        if report(min(start + ROWS, keys.shape[1]), keys.shape[1], "keys") is False:
            break
    return numbers, places
