"""How a head's attention scores change with the distance from key to query."""

from collections.abc import Callable, Sequence
from typing import Annotated

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from pydantic import BaseModel, Field
from torch import Tensor

from probe.core.errors import OptionError, SizeError
from probe.core.model import Model
from probe.core.registry import method
from probe.core.result import View
from probe.core.task import Encoded
from probe.core.trace import Trace
from probe.methods import frequencies
from probe.methods.squares import MOST_ROWS, Squares

_COLUMNS = {
    "batch": "prompt, counted from 0",
    "layer": "block, counted from 0",
    "head": "query head",
    "distance": "tokens from key to query",
    "value": "attention score of the query and key if they were so far apart, in nats; where means "
    "are taken, of the mean query and the mean key",
    "recorded": "the model's own score of this pair, at the distance it has; missing elsewhere",
}


def _view(options: BaseModel) -> View:
    return View(kind="line", x="distance", color="head", facet="layer", title="QK at distance")


@method(needs="prompts", view=_view, columns=_COLUMNS)
def qk_at_distance(
    model: Model,
    encoded: Encoded,
    *,
    query: Annotated[
        int | None, Field(description="Query position; none for the mean over the prompt")
    ] = None,
    key: Annotated[
        int | None, Field(description="Key position; none for the mean over the prompt")
    ] = None,
    distances: Annotated[
        list[int] | None,
        Field(description="Tokens from key to query; none for 0 to 63", min_length=1),
    ] = None,
    layers: Annotated[
        list[int] | None, Field(description="Blocks; none for all", min_length=1)
    ] = None,
    heads: Annotated[
        list[int] | None, Field(description="Query heads; none for all", min_length=1)
    ] = None,
) -> pd.DataFrame:
    """How would a head's attention score change if key and query were further apart?

    A query and a key are recorded before the layer turns them, and turned as the layer would at
    other distances. With ``query`` and ``key`` given, the score at their own distance is the
    model's own. With neither, the curve is that of the mean query and mean key: what the head asks
    of position whatever the tokens (the mean over all pairs, but for a soft cap).

    Value: attention score in nats, scaled and capped as the layer does, before mask and softmax.

    Raises:
        ModelError: A layer without rotation, or scores of an unknown form.
        OptionError: A layer or head that is not there; a negative distance; a key after its query.
        SiteError: A position outside a prompt.
        SizeError: A table of too many rows.

    Cost: one forward pass over the prompts, and one of 16 tokens.

    Source: Su et al. (2021), "RoFormer", for the rotation.

    >>> from probe.models.load import load_model
    >>> from probe.core.task import Task
    >>> model = load_model("toy")
    >>> one = Task.from_prompts("When Mary and John went").encode(model)
    >>> frame = qk_at_distance(model, one, query=4, key=1, distances=[3], layers=[1])
    >>> bool((frame.value - frame.recorded).abs().max() < 1e-5)
    True
    """
    squares = Squares.choose(model.dims, layers, heads)
    apart = list(range(64)) if distances is None else list(dict.fromkeys(distances))
    _check(squares, apart, len(encoded))
    for layer in squares.layers:
        frequencies.turning(model, layer)
    sites = [(kind, layer) for layer in squares.layers for kind in ("q", "k", "attn_scores")]
    trace = model.trace(encoded, sites)
    pairs = _pairs(encoded, query, key)
    frames = []
    for layer in squares.layers:
        scoring = model.scoring(layer)
        q = _taken(trace, ("q", layer), query, scoring.queries)
        k = _taken(trace, ("k", layer), key, scoring.keys)
        k = k.repeat_interleave(model.dims.heads_per_kv, dim=1)
        places = torch.tensor(apart, device=q.device)[:, None, None]
        values = scoring.score(q, k, places).movedim(0, -1)[:, list(squares.heads)]
        recorded = torch.full_like(values, torch.nan)
        for row, (at, to) in enumerate(pairs):
            if at - to in apart:
                score = trace["attn_scores", layer][row, list(squares.heads), at, to]
                recorded[row, :, apart.index(at - to)] = score
        frames.append(_rows(layer, squares.heads, apart, values, recorded))
    return pd.concat(frames, ignore_index=True)


def _check(squares: Squares, apart: list[int], n_prompts: int) -> None:
    if min(apart) < 0:
        raise OptionError(f"distance {min(apart)}", expected="0 or more: keys precede queries")
    rows = len(squares.layers) * len(squares.heads) * len(apart) * n_prompts
    if rows > MOST_ROWS:
        raise SizeError(
            f"the table would have {rows:,} rows", expected=f"at most {MOST_ROWS:,}",
            remedy="layers=[...], heads=[...], fewer distances or prompts",
        )  # fmt: skip


def _pairs(encoded: Encoded, query: int | None, key: int | None) -> list[tuple[int, int]]:
    """Query and key position of each prompt, where both are given."""
    if query is None or key is None:
        return []
    pairs = [(query % n, key % n) for n in encoded.lengths.tolist()]
    for row, (at, to) in enumerate(pairs):
        if to > at:
            raise OptionError(
                f"key {key} comes after query {query} in prompt {row}",
                expected="a key the query can see",
            )
    return pairs


def _taken(
    trace: Trace,
    site: tuple[str, int],
    pos: int | None,
    prepare: Callable[[Tensor], Tensor],
) -> Float[Tensor, "batch heads d_head"]:
    """Prepared vectors of one position, or their mean over each prompt."""
    if pos is not None:
        return prepare(trace.sel(site, pos=pos)).float()
    vectors = prepare(trace[site]).float()
    real = torch.arange(vectors.shape[1]) < trace.lengths[:, None].cpu()
    weight = real[:, :, None, None].to(vectors)
    return (vectors * weight).sum(1) / weight.sum(1)


def _rows(
    layer: int,
    heads: Sequence[int],
    apart: list[int],
    values: Float[Tensor, "batch head distance"],
    recorded: Float[Tensor, "batch head distance"],
) -> pd.DataFrame:
    batch, head, place = (axis.ravel() for axis in np.indices(values.shape))
    return pd.DataFrame(
        {
            "batch": batch,
            "layer": layer,
            "head": np.array(heads)[head],
            "distance": np.array(apart)[place],
            "value": values.double().flatten().cpu().numpy(),
            "recorded": recorded.double().flatten().cpu().numpy(),
        }
    )
