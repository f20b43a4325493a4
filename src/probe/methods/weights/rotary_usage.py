"""Which rotary frequencies heads use."""

from typing import Annotated, Any

import numpy as np
import pandas as pd
from pydantic import Field

from probe.core.model import Model
from probe.core.registry import method
from probe.core.result import View
from probe.core.task import Encoded
from probe.methods import frequencies
from probe.methods.frequencies import PARTS, Usage
from probe.methods.squares import Squares

_COLUMNS = {
    "batch": "prompt, counted from 0",
    "layer": "block, counted from 0",
    "part": "q: queries; k: keys; v: values, which are not rotated: the control",
    "head": "query head; missing for keys and values",
    "kv_head": "key/value head; of a query head, the one it reads",
    "pair": "rotary pair of dimensions, 0 the fastest",
    "wavelength": "tokens after which the pair is back where it was",
    "value": "mean length of the vector within the pair, over the prompt's tokens",
    "share": "the same over the sum of all pairs",
}


def _view(options: Any) -> View:
    return View(
        kind="heatmap", x="pair", y="layer", color="share", facet="part", scale="share",
        title="Use of rotary frequencies",
    )  # fmt: skip


@method(needs="prompts", view=_view, columns=_COLUMNS)
def rotary_usage(
    model: Model,
    encoded: Encoded,
    *,
    layers: Annotated[
        list[int] | None, Field(description="Blocks; none for all", min_length=1)
    ] = None,
    skip_first: Annotated[
        int,
        Field(description="Positions at the beginning to leave out: attention rests there", ge=0),
    ] = 0,
) -> pd.DataFrame:
    """Which rotary frequencies do heads' queries and keys use?

    A rotation turns pairs of dimensions, each at its own speed. The length of query and key within
    a pair bounds what the pair can add to a score (Cauchy-Schwarz). Fast pairs tell positions
    apart; slow ones hardly turn, and carry what does not depend on position. The pairing and the
    speeds are the model's own, checked against its scores; queries and keys are taken after norms
    of their own, where there are any. Dimensions that are not rotated are left out.

    Value: mean 2-norm within the pair, over the prompt's tokens, in the model's units. ``share`` is
    of the head's sum over pairs: 1 / number of pairs if all are used alike.

    Raises:
        ModelError: A layer without rotation, or scores of an unknown form.
        OptionError: A layer that is not there; prompts not longer than ``skip_first``.

    Cost: one forward pass over the prompts, and one of 16 tokens.

    Source: Barbero et al. (2024), "Round and Round We Go! What makes Rotary Positional Encodings
    useful?", section 4.

    >>> from probe.models.load import load_model
    >>> from probe.core.task import Task
    >>> model = load_model("toy")
    >>> frame = rotary_usage(model, Task.from_prompts("When Mary and John went").encode(model))
    >>> frame[frame.part == "q"].groupby(["layer", "head"]).share.sum().round(6).unique().tolist()
    [1.0]
    """
    chosen = Squares.choose(model.dims, layers, None).layers
    trace = model.trace(encoded, frequencies.sites(chosen))
    counted = frequencies.counted(trace, skip_first)
    return pd.concat(
        [
            _rows(model, layer, part, frequencies.usage(model, trace, layer, counted))
            for layer in chosen
            for part in PARTS
        ],
        ignore_index=True,
    )


def _rows(model: Model, layer: int, part: str, usage: Usage) -> pd.DataFrame:
    lengths = usage.of[part].double().cpu().numpy()
    batch, head, pair = (axis.ravel() for axis in np.indices(lengths.shape))
    group = model.dims.heads_per_kv if part == "q" else 1
    own = pd.Series(head if part == "q" else pd.NA, index=range(len(head)), dtype="Int64")
    return pd.DataFrame(
        {
            "batch": batch,
            "layer": layer,
            "part": part,
            "head": own,
            "kv_head": head // group,
            "pair": pair,
            "wavelength": usage.rotary.wavelength.cpu().numpy()[pair],
            "value": lengths.ravel(),
            "share": (lengths / lengths.sum(-1, keepdims=True)).ravel(),
        }
    )
