"""The logits as a sum over paths through heads."""

from collections.abc import Iterator
from math import comb
from typing import Annotated

import pandas as pd
import torch
from jaxtyping import Float
from pydantic import BaseModel, Field
from torch import Tensor

from probe.core.errors import SizeError
from probe.core.model import Dims, Model
from probe.core.registry import method
from probe.core.result import View
from probe.core.task import Encoded
from probe.methods.frozen import Frozen, Source

_MOST_PATHS = 200_000

_Heads = tuple[tuple[int, int], ...]
_Row = tuple[str, _Heads, Float[Tensor, " batch"]]

_COLUMNS = {
    "batch": "prompt, counted from 0",
    "order": "heads the path runs through: 0 direct, 1 a head, 2 or more a virtual head",
    "source": "where the path begins: embed; mlp.layer; bias.layer, what biases wrote; earlier: "
    "what all heads before a path of the highest order wrote; constant, which no path brings",
    "heads": "the heads in series, layer.head, first to last; empty for the direct path",
    "value": "what the path adds to the logit difference, in nats; without a wrong answer, to the "
    "answer's logit above the mean over the vocabulary",
}


def _view(options: BaseModel) -> View:
    return View(kind="table", x="heads", color="source", title="Paths to the answer")


@method(needs="answers", view=_view, columns=_COLUMNS)
def path_expansion(
    model: Model,
    encoded: Encoded,
    *,
    order: Annotated[
        int, Field(description="Longest path, in heads; longer ones are one term each", ge=0, le=8)
    ] = 2,
) -> pd.DataFrame:
    """Through which heads, one after another, does the answer come about?

    With attention patterns and the denominators of norms held fixed, the logits are linear in the
    embedding: a sum over paths, each from the embedding through some heads, by their values, to
    the logits. Of a model without MLPs that is all. An MLP is not linear: what it wrote is a
    source of its own, at which paths begin and through which none passes.

    Value: nats of logit difference at the last token. All rows of a prompt sum to the logit
    difference of the model exactly. Which pattern a head has, and so composition through queries
    and keys, is taken as given.

    Raises:
        ModelError: An encoder, or logits that are capped.
        SizeError: More paths than a table holds.

    Cost: one forward pass; then a product of [pos, d_model] with a head's values for each path.

    Source: Elhage et al. (2021), "A Mathematical Framework for Transformer Circuits", path
    expansion.

    >>> from probe.models.load import load_model
    >>> from probe.tasks import load_task
    >>> model = load_model("toy")
    >>> task = load_task("ioi", n=1).encode(model)
    >>> total = path_expansion(model, task, order=1).value.sum()
    >>> from probe.core.metric import get_metric
    >>> logits = model.forward(task.clean, last_only=True)
    >>> truth = logits[0, task.answers[0]] - logits[0, task.wrong_answers[0]]
    >>> f"{abs(total - float(truth)):.4f}"
    '0.0000'
    """
    run = Frozen(model, encoded)
    sources = run.sources()
    _check_size(model.dims, len(sources), order)
    direction, constant = run.directions()
    rows: list[_Row] = [("constant", (), constant)]
    for source in sources:
        for heads, vectors in _paths(run, source.vectors, source.after, order):
            rows.append((source.name, heads, run.answer(vectors, direction)))
    for heads, vectors in _continued(run, sources, order):
        rows.append(("earlier", heads, run.answer(vectors, direction)))
    frames = [
        pd.DataFrame(
            {
                "batch": range(len(encoded)),
                "order": len(heads),
                "source": source,
                "heads": " ".join(f"{layer}.{head}" for layer, head in heads),
                "value": value.double().cpu().numpy(),
            }
        )
        for source, heads, value in rows
    ]
    return pd.concat(frames, ignore_index=True)


def _paths(
    run: Frozen, vectors: Tensor, layer: int, left: int, heads: _Heads = ()
) -> Iterator[tuple[_Heads, Float[Tensor, "batch pos d_model"]]]:
    """What is left of vectors at the end, by each series of up to so many heads from a layer on."""
    yield heads, vectors
    for reader in range(layer, run.model.dims.n_layers) if left else ():
        for head, written in enumerate(run.heads(reader, vectors)):
            yield from _paths(run, written, reader + 1, left - 1, (*heads, (reader, head)))


def _continued(
    run: Frozen, sources: list[Source], order: int
) -> Iterator[tuple[_Heads, Float[Tensor, "batch pos d_model"]]]:
    """The longest paths again, from what earlier heads wrote: all that is longer still."""
    n_layers = run.model.dims.n_layers
    for first in range(1, n_layers) if order else (n_layers,):
        known = torch.stack([source.vectors for source in sources if source.after <= first]).sum(0)
        earlier = run.entering(first) - known
        if not order:
            yield (), earlier
            continue
        for head, written in enumerate(run.heads(first, earlier)):
            paths = _paths(run, written, first + 1, order - 1, ((first, head),))
            yield from (path for path in paths if len(path[0]) == order)


def _check_size(dims: Dims, n_sources: int, order: int) -> None:
    paths = sum(comb(dims.n_layers, n) * dims.n_heads**n for n in range(order + 1)) * n_sources
    if paths > _MOST_PATHS:
        raise SizeError(
            f"{paths:,} paths of up to {order} heads from {n_sources} sources",
            expected=f"at most {_MOST_PATHS:,}",
            remedy=f"order={order - 1}, or a smaller model",
        )
