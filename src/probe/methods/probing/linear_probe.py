"""Linear probes by layer and position, judged on groups they have not seen."""

from typing import Annotated

import numpy as np
import pandas as pd
from pydantic import BaseModel, Field

from probe.core.model import Model
from probe.core.progress import progress_bar
from probe.core.registry import method
from probe.core.result import View
from probe.core.task import Encoded
from probe.methods.labelled import (
    GROUPS_ABOUT,
    LABEL_ABOUT,
    SIDE,
    Examples,
    Labels,
    Numbers,
    examples,
    places,
    record,
    sites,
)
from probe.methods.probes import (
    Fold,
    Split,
    control_labels,
    fit,
    folds,
    interruptible,
    majority,
    units,
)

_COLUMNS = {
    "batch": "prompt",
    "side": "clean or corrupted prompt",
    "layer": "layer read",
    "at": "position read, from the prompt's start, or from its end where negative",
    "label": "class of the prompt",
    "predicted": "class the probe gave it",
    "value": "1 where the prediction is right, 0 elsewhere: its mean is the accuracy",
    "control": "the same of a probe for labels that were dealt anew",
    "selectivity": "value less control",
    "chance": "1 where the commonest class of the training prompts is right, 0 elsewhere",
    "fold": "held-out part the prompt is in",
}


def _view(options: BaseModel) -> View:
    at = getattr(options, "at", None)
    if isinstance(at, list) and len(at) > 1:
        return View(kind="heatmap", x="at", y="layer", color="value", scale="share")
    return View(kind="line", x="layer", y="value", color="at", scale="share")


@method(needs="prompts", view=_view, columns=_COLUMNS)
def linear_probe(
    model: Model,
    encoded: Encoded,
    *,
    label: Annotated[str, Field(description=LABEL_ABOUT)] = SIDE,
    groups: Annotated[str | None, Field(description=GROUPS_ABOUT)] = None,
    kind: Annotated[
        str, Field(description="Site kind: resid_post, attn_out, mlp_out, mlp_post, z, ...")
    ] = "resid_post",
    at: Annotated[
        list[int] | str,
        Field(description="Positions, negative from the end; or a text or {tag}: its last token"),
    ] = [-1],  # noqa: B006  (options are copied by their model)
    layers: Annotated[list[int] | None, Field(description="Only these layers")] = None,
    n_folds: Annotated[int, Field(ge=2, description="Parts that are held out in turn")] = 5,
    split: Annotated[
        Split,
        Field(
            description="groups: no group is on both sides; prompts: groups may leak, which shows "
            "how much can be learnt by heart"
        ),
    ] = "groups",
    seed: Annotated[int, Field(description="Random seed of folds and control labels")] = 0,
) -> pd.DataFrame:
    """Where can a property of the prompt be read off linearly?

    A logistic regression for each layer and position, on standardised activations. Groups are
    divided into folds; each prompt is judged once, by a probe that was trained, and whose
    regularisation was chosen, without its group. ``value`` averages to the accuracy on prompts of
    unseen groups; compare it with ``chance`` and with ``control``, the same on labels dealt anew
    to the groups. With ``split="prompts"`` the control is Hewitt and Liang's: what lies above
    chance there was learnt by heart, and ``selectivity`` is what remains.

    That something can be read does not say that the model reads it: see ``erasure`` and ``das``.

    Raises:
        TaskError: A tag that is missing, one class or group only, a class within one group.
        OptionError: A site or layer that is not there, or a label that names no tag.

    Cost: one forward pass (two for ``side``), and up to 19 small regressions for each fold, twice,
    for each layer and position.

    Source: Alain and Bengio 2016; Hewitt and Liang 2019, arXiv 1909.03368 (selectivity).

    >>> from probe.api import run
    >>> probed = run("linear_probe", model="toy", task="ioi", label="side", layers=[0])
    >>> sorted(probed.frame["label"].unique())
    ['clean', 'corrupted']
    """
    data = examples(encoded, label, groups)
    where = places(encoded, at)
    which = sites(model, kind, layers)
    parts = folds(data, n_folds, split, seed)
    control = control_labels(data, seed)
    traces = record(model, encoded, which, data)
    cells = [(site, name) for site in which for name in where]
    frames: list[pd.DataFrame] = []
    with interruptible(frames, len(cells), "places"), progress_bar("linear probes") as report:
        for done, (site, name) in enumerate(cells, 1):
            x = data.at(traces, site, where[name])
            frame = _judged(data, x, parts, control, split, seed)
            frame.insert(2, "layer", site.layer)
            frame.insert(3, "at", name)
            frames.append(frame)
            if report(done, len(cells), "places") is False:
                break
    whole = pd.concat(frames, ignore_index=True)
    return whole if label == SIDE else whole.drop(columns="side")


def _judged(
    data: Examples, x: Numbers, parts: list[Fold], control: Labels, split: Split, seed: int
) -> pd.DataFrame:
    """What held-out examples were taken for, and how that compares."""
    kept = units(data, split)
    predicted, mistaken, guess = (np.empty(len(data), dtype=int) for _ in range(3))
    fold = np.empty(len(data), dtype=int)
    for number, (train, test) in enumerate(parts):
        predicted[test] = fit(x[train], data.labels[train], kept[train], seed).predict(x[test])
        mistaken[test] = fit(x[train], control[train], kept[train], seed).predict(x[test])
        guess[test] = majority(data.labels[train])
        fold[test] = number
    value = (predicted == data.labels).astype(float)
    controlled = (mistaken == control).astype(float)
    return pd.DataFrame(
        {
            "batch": data.rows,
            "side": data.sides,
            "label": [data.classes[one] for one in data.labels],
            "predicted": [data.classes[one] for one in predicted],
            "value": value,
            "control": controlled,
            "selectivity": value - controlled,
            "chance": (guess == data.labels).astype(float),
            "fold": fold,
        }
    )
