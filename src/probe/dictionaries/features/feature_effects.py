"""What the model does without a feature, or with more of it."""

from collections.abc import Sequence
from typing import Annotated, Literal

import pandas as pd
import torch
from pydantic import Field

from probe.core.edit import Edit
from probe.core.errors import OptionError
from probe.core.metric import get_metric
from probe.core.model import Model
from probe.core.progress import progress_bar
from probe.core.registry import method
from probe.core.result import View
from probe.core.task import Encoded
from probe.dictionaries.feature_edits import Encoding, check_features, encode
from probe.dictionaries.named import DictionaryName, named

_COLUMNS = {
    "batch": "prompt",
    "feature": "feature changed",
    "measure": "what is read at the last token",
    "activation": "the feature's largest activation in the prompt, unchanged",
    "value": "change of the measure: changed less unchanged run",
    "raw": "measure of the changed run",
    "unchanged": "measure of the unchanged run",
}


@method(
    needs="answers",
    view=View(kind="bar", x="feature", color="measure"),
    columns=_COLUMNS,
)
def feature_effects(
    model: Model,
    encoded: Encoded,
    *,
    dictionary: DictionaryName,
    features: Annotated[
        list[int] | None,
        Field(description="Which; by default those most active at the prompts' last tokens"),
    ] = None,
    top: Annotated[int, Field(description="How many by default", ge=1)] = 5,
    how: Annotated[
        Literal["ablate", "steer"],
        Field(description="ablate: set to 0 everywhere; steer: add strength at every position"),
    ] = "ablate",
    strength: Annotated[
        float, Field(description="Steer: what is added to the activation; may be negative")
    ] = 10.0,
    measures: Annotated[
        Sequence[Literal["logit_diff", "loss", "kl"]] | None,
        Field(description="What is read; by default all that the task allows"),
    ] = None,
) -> pd.DataFrame:
    """What changes in the prediction when a feature is taken away, or added?

    Everything but the feature stays: the other features, and what the dictionary does not explain.
    ``value`` is in nats: a negative change of the logit difference, or a positive one of the loss,
    says that the answer needs the feature. KL is from the unchanged run.

    Raises:
        DictionaryError: No such dictionary, or one of another model.
        OptionError: A feature that is not there, or no measure.

    Cost: one recorded run; for each feature and measure the part of a forward pass after the
    dictionary's layer.

    Source: Bricken et al. 2023, "Towards Monosemanticity" (ablation); Templeton et al. 2024,
    "Scaling Monosemanticity" (steering).

    >>> from probe.api import run
    >>> effects = run("feature_effects", model="toy", task="ioi", dictionary="toy", features=[3])
    >>> sorted(effects.frame.measure.unique())
    ['kl', 'logit_diff', 'loss']
    """
    sae = named(dictionary, model)
    found = encode(model, encoded, sae)
    chosen = features if features is not None else _most_active(found, encoded, top)
    check_features(sae, chosen)
    read = list(measures) if measures is not None else _allowed(encoded)
    if not read:
        raise OptionError("measures=[]", expected="at least one of logit_diff, loss, kl")
    sets = [[_edit(found, feature, how, strength)] for feature in chosen]
    parts = []
    with progress_bar("feature effects") as report:
        for measure in read:
            metric = get_metric(measure)
            metric.check(encoded)
            values = model.sweep(encoded, [[], *sets], metric, base="clean", report=report).cpu()
            parts.append(_rows(found, chosen, measure, values))
    return pd.concat(parts, ignore_index=True)


def _edit(found: Encoding, feature: int, how: str, strength: float) -> Edit:
    if how == "ablate":
        return found.change(feature, 0.0)
    return found.change(feature, found.features[..., feature] + strength)


def _most_active(found: Encoding, encoded: Encoded, top: int) -> list[int]:
    """By the mean over prompts at the last token."""
    rows = torch.arange(len(encoded))
    last = found.features[rows, encoded.last].mean(0)
    return [int(i) for i in torch.argsort(last, descending=True, stable=True)[:top]]


def _allowed(encoded: Encoded) -> list[str]:
    return (["logit_diff"] if encoded.wrong_answers is not None else []) + ["loss", "kl"]


def _rows(
    found: Encoding, chosen: Sequence[int], measure: str, values: torch.Tensor
) -> pd.DataFrame:
    largest = found.features.amax(1).cpu()
    rows = [
        (
            row, feature, measure, float(largest[row, feature]),
            float(values[place, row] - values[0, row]), float(values[place, row]),
            float(values[0, row]),
        )
        for place, feature in enumerate(chosen, 1)
        for row in range(values.shape[1])
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=list(_COLUMNS))
