"""What residual streams predict: the tables of the logit lens and of its trained relatives.

Logits are made for a few cells at a time, so memory does not grow with layers times positions
times vocabulary.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import pandas as pd
import torch
from jaxtyping import Float, Int
from pydantic import BaseModel
from torch import Tensor

from probe.core.errors import OptionError
from probe.core.model import Model
from probe.core.result import Scale, View
from probe.core.site import Site, check_layer
from probe.core.task import Encoded
from probe.core.trace import Trace

Show = Literal["probability", "entropy", "kl", "rank", "log_prob", "top"]
Translate = Callable[[int, Tensor], Tensor]

MEANINGS: Mapping[str, str] = {
    "probability": "probability of the likeliest token",
    "entropy": "entropy of the prediction in nats",
    "kl": "KL(model's output || lens) in nats; 0 at the last layer",
    "rank": "how many tokens the lens puts above the target; 0: the target is the prediction",
    "log_prob": "log-probability of the target in nats",
    "top": "probability of the token in the column prediction",
}
"""What ``value`` is under each ``show``."""

COLUMNS: Mapping[str, str] = {
    "batch": "prompt",
    "layer": "block after which the residual stream is read, counted from 0",
    "pos": "token position, as asked: negative ones count from the prompt's end",
    "token": "the prompt's token at this position",
    "prediction": "the token predicted to come next: the likeliest, or under show=top the one of "
    "this place",
    "place": "0 for the likeliest token, 1 for the next, and so on",
    "target": "the token followed",
    "value": "by show: " + "; ".join(f"{name}: {about}" for name, about in MEANINGS.items()),
}

_SCALES: dict[str, Scale] = {"probability": "share", "top": "share", "log_prob": "signed"}
_ELEMENTS = 2**24
"""Logits held at once (64 MiB in float32, a few times over)."""


def view(options: BaseModel) -> View:
    """Layers by positions; lines over layers where several tokens are followed."""
    chosen = options.model_dump()
    show, target = chosen["show"], chosen["target"]
    if show == "top":
        return View(kind="table", x="prediction", scale="share", title=MEANINGS[show])
    if show in ("rank", "log_prob") and target and len(target) > 1:
        return View(kind="line", x="layer", color="target", facet="pos", title=MEANINGS[show])
    scale = _SCALES.get(show, "activation")
    return View(
        kind="heatmap", x="pos", y="layer", color="value", text="prediction", scale=scale,
        title=MEANINGS[show],
    )  # fmt: skip


@dataclass(frozen=True)
class Question:
    """What is asked of each residual stream."""

    show: Show
    layers: tuple[int, ...]
    top: int
    targets: Int[Tensor, "batch target"] | None


def predictions(
    model: Model,
    encoded: Encoded,
    translate: Translate,
    *,
    show: Show,
    positions: Sequence[int] | None,
    layers: Sequence[int] | None,
    top: int,
    target: Sequence[str] | None,
) -> pd.DataFrame:
    """One row for each prompt, layer and position (and token, where several are shown).

    ``translate(layer, resid)`` is applied before the final norm and the unembedding. One forward
    pass, and one unembedding for each layer and position.
    """
    last = model.dims.n_layers - 1
    wanted = tuple(range(last + 1)) if layers is None else tuple(dict.fromkeys(layers))
    for layer in wanted:
        check_layer(Site("resid_post", layer), model.dims.n_layers)
    asked = Question(show, wanted, min(top, model.dims.d_vocab), _targets(encoded, show, target))
    sites = [Site("resid_post", layer) for layer in sorted({*wanted, last})]
    trace = model.trace(encoded, sites, positions=positions)
    cells = _cells(trace)
    found = _read(model, trace, cells, asked, translate)
    return _frame(encoded, trace, cells, asked, found)


def _targets(
    encoded: Encoded, show: Show, target: Sequence[str] | None
) -> Int[Tensor, "batch target"] | None:
    if show not in ("rank", "log_prob"):
        return None
    if target:
        ids = [encoded.tokenizer.need_single(text) for text in target]
        return torch.tensor(ids).expand(len(encoded), -1)
    if encoded.answers is None:
        raise OptionError(
            f"show={show} follows a token, and the prompts have no answers",
            remedy='target=[" Paris"], or prompts with an answer',
        )
    return encoded.answers[:, None]


def _cells(trace: Trace) -> Int[Tensor, "cell 2"]:
    """Row and place on the recorded position axis of every real token asked for."""
    if trace.positions is not None:
        rows, slots = len(trace.tokens), len(trace.positions)
        return torch.cartesian_prod(torch.arange(rows), torch.arange(slots)).view(-1, 2)
    return (torch.arange(trace.tokens.shape[1]) < trace.lengths[:, None]).nonzero()


def _read(
    model: Model, trace: Trace, cells: Tensor, asked: Question, translate: Translate
) -> dict[str, Tensor]:
    """Value and prediction, each [layer, cell, number]."""
    last = model.dims.n_layers - 1
    chunks: list[list[dict[str, Tensor]]] = []
    for some in cells.split(max(1, _ELEMENTS // model.dims.d_vocab)):
        rows, slots = some.to(model.device).unbind(1)
        targets = None if asked.targets is None else asked.targets[some[:, 0]].to(model.device)
        final = log_probs(model, trace["resid_post", last][rows, slots])
        read = []
        for layer in asked.layers:
            resid = trace["resid_post", layer][rows, slots]
            lens = final if layer == last else log_probs(model, translate(layer, resid))
            read.append(_measure(lens, final, targets, asked))
        chunks.append(read)
    return {
        name: torch.cat([torch.stack([one[name] for one in read]) for read in chunks], dim=1)
        for name in chunks[0][0]
    }


def log_probs(model: Model, resid: Float[Tensor, "cell d_model"]) -> Float[Tensor, "cell d_vocab"]:
    """Next-token log-probabilities of a residual stream, in float32 or wider."""
    logits = model.unembed(resid)
    return (logits.float() if logits.dtype.itemsize < 4 else logits).log_softmax(-1)


def entropy(log_p: Float[Tensor, "*any d_vocab"]) -> Float[Tensor, "*any"]:
    """Of a distribution, in nats."""
    return torch.special.entr(log_p.exp()).sum(-1)


def kl(
    log_p: Float[Tensor, "*any d_vocab"], log_q: Float[Tensor, "*any d_vocab"]
) -> Float[Tensor, "*any"]:
    """KL(p || q) in nats; never below zero, as rounding would sometimes have it."""
    return (log_p.exp() * (log_p - log_q)).sum(-1).clamp(min=0)


def _measure(
    lens: Tensor, final: Tensor, targets: Tensor | None, asked: Question
) -> dict[str, Tensor]:
    """Value and prediction, both [cell, number]: one number, or one for each token shown."""
    best, token = lens.topk(asked.top if asked.show == "top" else 1, dim=-1)
    if targets is not None:
        value = lens.gather(1, targets)
        if asked.show == "rank":
            above = [(lens > one[:, None]).sum(-1) for one in value.unbind(1)]
            value = torch.stack(above, dim=1).to(lens.dtype)
        token = token.expand_as(value)
    elif asked.show == "entropy":
        value = entropy(lens)[:, None]
    elif asked.show == "kl":
        value = kl(final, lens)[:, None]
    else:
        value = best.exp()
    return {"value": value.cpu(), "prediction": token.cpu()}


def _frame(
    encoded: Encoded, trace: Trace, cells: Tensor, asked: Question, found: Mapping[str, Tensor]
) -> pd.DataFrame:
    """Tensors of [layer, cell, number] as rows sorted by prompt and layer."""
    value, prediction = found["value"], found["prediction"]
    _, n_cells, number = value.shape
    layer, cell, place = (
        index.reshape(-1)
        for index in torch.meshgrid(
            torch.tensor(asked.layers), torch.arange(n_cells), torch.arange(number), indexing="ij"
        )
    )
    rows, slots = cells[cell].unbind(1)
    asked_at = slots if trace.positions is None else torch.tensor(trace.positions)[slots]
    absolute = torch.where(asked_at < 0, asked_at + trace.lengths[rows], asked_at)
    strings = encoded.tokenizer.strings
    columns: dict[str, object] = {
        "batch": rows.numpy(),
        "layer": layer.numpy(),
        "pos": asked_at.numpy(),
        "token": strings(encoded.clean[rows, absolute].tolist()),
        "prediction": strings(prediction.reshape(-1).tolist()),
    }
    if asked.show == "top":
        columns["place"] = place.numpy()
    if asked.targets is not None:
        columns["target"] = strings(asked.targets[rows, place].tolist())
    columns["value"] = value.reshape(-1).double().numpy()
    return pd.DataFrame(columns).sort_values(["batch", "layer"], kind="stable", ignore_index=True)
