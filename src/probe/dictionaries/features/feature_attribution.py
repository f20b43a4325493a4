"""Which features carry the answer: estimated for all of them, measured for some."""

import math
from typing import Annotated, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from probe.core.edit import Edit
from probe.core.metric import get_metric
from probe.core.model import Model
from probe.core.progress import progress_bar
from probe.core.registry import method
from probe.core.result import View
from probe.core.task import Encoded
from probe.dictionaries.feature_edits import Encoding, encode
from probe.dictionaries.named import DictionaryName, named

_COLUMNS = {
    "batch": "prompt",
    "node": "feature, or error: what the dictionary leaves out",
    "feature": "feature of the dictionary; missing for the error",
    "chosen": "why it was measured: strongest estimate, drawn at random, or the error",
    "activation": "largest activation in the prompt; for the error its largest norm",
    "estimate": "first-order change of the metric, from the gradient of the clean run; of no use "
    "for the error, which is no small change",
    "value": "measured change of the metric: changed less clean run",
    "correlation": "Pearson's r of estimate and value over this prompt's features, the same in "
    "each row; missing with fewer than three features or no spread",
}


@method(
    needs="answers",
    view=View(kind="scatter", x="estimate", y="value", color="chosen", text="feature"),
    columns=_COLUMNS,
)
def feature_attribution(
    model: Model,
    encoded: Encoded,
    *,
    dictionary: DictionaryName,
    to: Annotated[
        Literal["zero", "corrupted"],
        Field(description="What a feature is set to: 0, or what it is in the corrupted prompt"),
    ] = "zero",
    metric: Annotated[str, Field(description="What is read at the last token")] = "logit_diff",
    top: Annotated[int, Field(description="Strongest features measured", ge=1)] = 10,
    random: Annotated[
        int, Field(description="Other active features measured, drawn at random", ge=0)
    ] = 5,
    seed: Annotated[int, Field(description="Draws the random features")] = 0,
) -> pd.DataFrame:
    """Which features does the answer go through: what is lost when each is taken away?

    A feature is changed at all positions; the other features and the error stay, so with nothing
    changed the run is the model's own. The estimate is (f' − f)·(W_dec·∂metric/∂activation) summed
    over positions, at the clean run; it costs one gradient for all features. The strongest by
    estimate are then measured, and some at random, so that ``correlation`` says how far the
    estimate can be trusted here. ``value``: in the metric's unit; for the logit difference,
    negative where the answer needs the feature.

    Do not use the estimate of the error: taking away all that the dictionary leaves out is no small
    change, least of all in a residual stream, and the gradient at the clean run says little about
    it. Its ``value`` is measured like the others.

    Raises:
        DictionaryError: No such dictionary, or one of another model.
        TaskError: Corrupted prompts asked for and not there.

    Cost: two forward passes and one backward pass; for each feature measured the part of a
    forward pass after the dictionary's layer.

    Source: Marks et al. 2024, "Sparse feature circuits" (attribution patching of features; their
    integrated gradients are not used here).

    >>> from probe.api import run
    >>> found = run("feature_attribution", model="toy", task="ioi", dictionary="toy", top=3)
    >>> sorted(set(found.frame.node))
    ['error', 'feature']
    """
    sae = named(dictionary, model)
    chosen_metric = get_metric(metric)
    here = encode(model, encoded, sae)
    there = encode(model, encoded, sae, corrupted=True) if to == "corrupted" else None
    gradient = model.gradients(encoded, sae.writes[0], chosen_metric)[1][sae.writes[0]].flatten(2)
    target = torch.zeros_like(here.features) if there is None else there.features
    slope = gradient @ sae.W_dec.to(gradient).T
    estimate = ((target - here.features) * slope).sum(1)
    error = (torch.zeros_like(here.error) if there is None else there.error) - here.error
    error_estimate = (error * gradient).sum((1, 2))
    frame = _picked(here, target, estimate, top, random, seed)
    features = sorted(frame["feature"].unique().tolist())
    sets = [[here.change(f, target[..., f])] for f in features]
    sets.append([Edit(sae.writes[0], "add", error, {}, "error of the dictionary")])
    with progress_bar("feature attribution") as report:
        values = model.sweep(encoded, [[], *sets], chosen_metric, base="clean", report=report)
    change = (values[1:] - values[:1]).cpu()
    place = {feature: i for i, feature in enumerate(features)}
    frame["value"] = [
        float(change[place[f], b]) for b, f in zip(frame.batch, frame.feature, strict=True)
    ]
    return _with_errors(frame, here, error_estimate.cpu(), change[-1])


def _picked(
    here: Encoding,
    target: Float[Tensor, "batch pos feature"],
    estimate: Float[Tensor, "batch feature"],
    top: int,
    random: int,
    seed: int,
) -> pd.DataFrame:
    """The features of each prompt that are measured."""
    rows = []
    for row in range(len(estimate)):
        moves = ((target[row] != here.features[row]).any(0)).nonzero()[:, 0].tolist()
        order = sorted(moves, key=lambda f: -abs(float(estimate[row, f])))
        rest = np.array(order[top:], dtype=int)
        rng = np.random.default_rng(seed)
        drawn = rng.permutation(rest)[:random].tolist()
        chosen = [(f, "strongest") for f in order[:top]] + [(f, "random") for f in drawn]
        for feature, why in chosen:
            largest = float(here.features[row, :, feature].max())
            rows.append((row, "feature", feature, why, largest, float(estimate[row, feature])))
    names = ["batch", "node", "feature", "chosen", "activation", "estimate"]
    return pd.DataFrame(rows, columns=names)


def _with_errors(
    frame: pd.DataFrame,
    here: Encoding,
    estimate: Float[Tensor, " batch"],
    value: Float[Tensor, " batch"],
) -> pd.DataFrame:
    """A row a prompt for the error, and the correlation over its features."""
    r = [_correlation(frame[frame["batch"] == row]) for row in range(len(estimate))]
    norms = here.error.norm(dim=-1).amax(1).tolist()
    errors = [
        (row, "error", None, "error", norms[row], float(estimate[row]), float(value[row]))
        for row in range(len(estimate))
    ]
    whole = [*frame.itertuples(index=False, name=None), *errors]
    made = pd.DataFrame(whole, columns=frame.columns).sort_values("batch", kind="stable")
    made["feature"] = made["feature"].astype("Int64")
    return made.assign(correlation=[r[row] for row in made["batch"]])


def _correlation(part: pd.DataFrame) -> float:
    if len(part) < 3 or part["estimate"].std() == 0 or part["value"].std() == 0:
        return math.nan
    return float(np.corrcoef(part["estimate"], part["value"])[0, 1])
