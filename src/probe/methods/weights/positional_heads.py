"""Heads that go by position, and the frequencies they do it with."""

from typing import Annotated

import numpy as np
import pandas as pd
from pydantic import BaseModel, Field

from probe.core.errors import OptionError
from probe.core.model import Model
from probe.core.registry import method
from probe.core.result import View
from probe.core.task import Encoded
from probe.methods import frequencies
from probe.methods.heads import Rows, measure

_COLUMNS = {
    "batch": "prompt, counted from 0",
    "layer": "block, counted from 0",
    "head": "query head",
    "value": "share of the lengths of its queries and keys that the fastest pairs hold; their "
    "share of the pairs if all are used alike",
    "slow": "the same of as many slowest pairs",
    "previous": "attention to the position before, mean over the prompt's positions but the first",
    "current": "attention to the position itself, likewise",
    "positional": "the larger of the two: 1 for a head that goes by position alone",
}


def _view(options: BaseModel) -> View:
    return View(kind="scatter", x="value", y="positional", color="layer", title="Positional heads")


@method(needs="prompts", view=_view, columns=_COLUMNS)
def positional_heads(
    model: Model,
    encoded: Encoded,
    *,
    pairs: Annotated[
        int | None,
        Field(description="How many pairs are the fastest; none for a quarter of them", ge=1),
    ] = None,
    skip_first: Annotated[
        int, Field(description="Positions left out of the frequencies, not of attention", ge=0)
    ] = 0,
) -> pd.DataFrame:
    """Do the heads that go by position use the fast frequencies?

    Positional: attention to the previous position or to the position itself, as it falls on the
    prompts. Semantic heads have little of either and use slow pairs. Lengths of a head's queries
    and of the keys it reads are added, pair by pair.

    Value: share of these lengths in the fastest pairs, 0 to 1.

    Raises:
        ModelError: A layer without rotation, or scores of an unknown form.
        OptionError: More pairs than half; prompts not longer than ``skip_first`` or of one token.

    Cost: one forward pass over the prompts, and one of 16 tokens.

    Source: Barbero et al. (2024), "Round and Round We Go! What makes Rotary Positional Encodings
    useful?", section 5.

    >>> from probe.models.load import load_model
    >>> from probe.core.task import Task
    >>> model = load_model("toy")
    >>> frame = positional_heads(model, Task.from_prompts("When Mary and John went").encode(model))
    >>> len(frame), bool(frame.value.between(0, 1).all())
    (8, True)
    """
    dims = model.dims
    if (encoded.lengths < 2).any():
        raise OptionError("a prompt of one token", expected="two: the first sees only itself")
    layers = range(dims.n_layers)
    number = [_number(model, layer, pairs) for layer in layers]
    wanted = [*frequencies.sites(layers), *(("pattern", layer) for layer in layers)]
    trace = model.trace(encoded, wanted)
    counted = frequencies.counted(trace, skip_first)
    rows = Rows.of(trace.tokens.cpu(), trace.lengths, model.tokenizer, causal=dims.causal)
    frames = []
    for layer in layers:
        lengths = frequencies.usage(model, trace, layer, counted).of
        used = lengths["q"] + lengths["k"].repeat_interleave(dims.heads_per_kv, dim=1)
        whole = used.sum(-1)
        pattern = trace["pattern", layer].float().cpu()
        scores = [measure(pattern, name, rows, sink=True) for name in ("previous", "current")]
        columns = {
            "value": used[..., : number[layer]].sum(-1) / whole,
            "slow": used[..., -number[layer] :].sum(-1) / whole,
            "previous": scores[0],
            "current": scores[1],
            "positional": scores[0].maximum(scores[1]),
        }
        batch, head = (x.ravel() for x in np.indices(whole.shape))
        flat = {name: x.double().flatten().cpu().numpy() for name, x in columns.items()}
        frames.append(pd.DataFrame({"batch": batch, "layer": layer, "head": head, **flat}))
    return pd.concat(frames, ignore_index=True)


def _number(model: Model, layer: int, asked: int | None) -> int:
    there = len(frequencies.turning(model, layer).frequency)
    if asked is None:
        return max(1, there // 4)
    if 2 * asked > there:
        raise OptionError(
            f"pairs={asked}", expected=f"at most {there // 2}: a head has {there} rotary pairs"
        )
    return asked
