"""What comes next, and how surprising the prompt itself was."""

from typing import Annotated, Literal

import pandas as pd
import torch
from jaxtyping import Float
from pydantic import BaseModel, Field
from torch import Tensor

from probe.core.errors import ModelError
from probe.core.model import Model
from probe.core.registry import method
from probe.core.result import View
from probe.core.task import Encoded

_ELEMENTS = 2**24
"""Logits held at once, where one prompt has no more (64 MiB in float32)."""

_COLUMNS = {
    "batch": "prompt",
    "place": "0 for the likeliest token, 1 for the next, and so on",
    "pos": "token position",
    "token": "show=top: a token that may come next; show=prompt: the prompt's own token here",
    "token_id": "its number in the vocabulary",
    "value": "show=top: its probability; show=prompt: its loss, minus the log-probability the "
    "model gave it, in nats (missing at the first token, which nothing predicts)",
    "log_prob": "its log-probability in nats",
    "behind": "logit of the likeliest token minus its logit, in nats; 0 for the likeliest",
    "entropy": "entropy of the prediction for this position in nats",
    "rank": "how many tokens were thought likelier",
}


def _view(options: BaseModel) -> View:
    if options.model_dump()["show"] == "prompt":
        return View(kind="tokens", x="pos", text="token", scale="activation", title="loss in nats")
    return View(kind="bar", x="token", scale="share", title="probability of the next token")


@method(needs="prompts", view=_view, columns=_COLUMNS)
def next_token(
    model: Model,
    encoded: Encoded,
    *,
    show: Annotated[
        Literal["top", "prompt"],
        Field(
            description="top: the likeliest next tokens; prompt: loss and entropy of every token "
            "of the prompt"
        ),
    ] = "top",
    top: Annotated[int, Field(description="How many tokens under show=top", ge=1)] = 10,
) -> pd.DataFrame:
    """What does the model expect next?

    Under ``top`` the likeliest tokens after the prompt: ``value`` is a probability. Under
    ``prompt`` how well the model expected each token of the prompt given those before it:
    ``value`` is a loss in nats, ``-log p(token | tokens before)``.

    Raises:
        ModelError: An encoder, which predicts no next token.

    Cost: one forward pass. Under ``prompt`` the logits of at least one whole prompt are held.

    >>> from probe.core.task import Task
    >>> from probe.models.load import load_model
    >>> model = load_model("toy")
    >>> frame = next_token(model, Task.from_prompts("When Mary went").encode(model), top=2)
    >>> [round(behind, 3) for behind in frame.behind][0], bool(frame.behind[1] > 0)
    (0.0, True)
    """
    if not model.dims.causal:
        raise ModelError(
            f"{model.name} is an encoder and predicts no next token", expected="a causal model"
        )
    return _prompt(model, encoded) if show == "prompt" else _top(model, encoded, top)


def _top(model: Model, encoded: Encoded, number: int) -> pd.DataFrame:
    number = min(number, model.dims.d_vocab)
    found: list[tuple[Tensor, Tensor]] = []
    width = encoded.clean.shape[1]
    size = max(1, _ELEMENTS // max(model.dims.d_vocab, width * model.dims.d_model))
    for start in range(0, len(encoded), size):
        rows = slice(start, start + size)
        logits = model.forward(encoded.clean[rows], lengths=encoded.lengths[rows], last_only=True)
        found.append(tuple(_log_probs(logits).topk(number)))  # type: ignore[arg-type]
    log_p = torch.cat([values for values, _ in found]).cpu()
    ids = torch.cat([tokens for _, tokens in found]).reshape(-1).tolist()
    return pd.DataFrame(
        {
            "batch": torch.arange(len(log_p)).repeat_interleave(number).numpy(),
            "place": torch.arange(number).repeat(len(log_p)).numpy(),
            "token": encoded.tokenizer.strings(ids),
            "token_id": ids,
            "value": log_p.exp().reshape(-1).double().numpy(),
            "log_prob": log_p.reshape(-1).double().numpy(),
            "behind": (log_p[:, :1] - log_p).reshape(-1).double().numpy(),
        }
    )


def _prompt(model: Model, encoded: Encoded) -> pd.DataFrame:
    frames = []
    width = encoded.clean.shape[1]
    size = max(1, _ELEMENTS // (model.dims.d_vocab * width))
    for start in range(0, len(encoded), size):
        rows = slice(start, start + size)
        tokens, lengths = encoded.clean[rows], encoded.lengths[rows]
        logits = model.forward(tokens, lengths=lengths)
        for row, (ids, length) in enumerate(zip(tokens, lengths.tolist(), strict=True)):
            read = _surprise(logits[row, : length - 1], ids[1:length].to(logits.device))
            first = read.new_full((1, 3), torch.nan)  # nothing predicts the first token
            numbers = torch.cat([first, read]).double().cpu().numpy()
            frame = pd.DataFrame(numbers, columns=["value", "entropy", "rank"])
            frames.append(_labelled(frame, start + row, ids[:length].tolist(), encoded))
    return pd.concat(frames, ignore_index=True)


def _surprise(logits: Float[Tensor, "pos d_vocab"], ids: Tensor) -> Float[Tensor, "pos 3"]:
    """Loss, entropy and rank of each token, a few positions at a time."""
    size = max(1, _ELEMENTS // logits.shape[-1])
    found = []
    for some, own in zip(logits.split(size), ids.split(size), strict=True):
        log_p = _log_probs(some)
        chosen = log_p.gather(1, own[:, None])
        entropy = torch.special.entr(log_p.exp()).sum(-1)
        rank = (log_p > chosen).sum(-1)
        found.append(torch.stack([-chosen[:, 0], entropy, rank.to(entropy)], dim=1))
    return torch.cat(found)


def _labelled(frame: pd.DataFrame, row: int, ids: list[int], encoded: Encoded) -> pd.DataFrame:
    frame.insert(0, "batch", row)
    frame.insert(1, "pos", range(len(ids)))
    frame.insert(2, "token", encoded.tokenizer.strings(ids))
    frame.insert(3, "token_id", ids)
    return frame


def _log_probs(logits: Float[Tensor, "row d_vocab"]) -> Float[Tensor, "row d_vocab"]:
    return (logits.float() if logits.dtype.itemsize < 4 else logits).log_softmax(-1)
