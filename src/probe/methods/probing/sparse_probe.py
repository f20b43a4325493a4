"""Probes that may look at a few neurons, or at a few features of a dictionary."""

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from pydantic import Field

from probe.core.dictionary import Dictionary, Shelf
from probe.core.errors import OptionError
from probe.core.model import Model
from probe.core.progress import progress_bar
from probe.core.registry import method
from probe.core.result import View
from probe.core.site import Site, check_layer
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
from probe.methods.probes import Fold, fit, folds, interruptible, lasso, majority

By = Literal["difference", "l1"]

_COLUMNS = {
    "batch": "prompt",
    "side": "clean or corrupted prompt",
    "layer": "layer read",
    "k": "units the probe may look at",
    "label": "class of the prompt",
    "value": "1 where the prediction is right, 0 elsewhere: its mean is the accuracy",
    "control": "the same of a probe on as many units chosen at random",
    "chance": "1 where the commonest class of the training prompts is right, 0 elsewhere",
    "units": "the units chosen, best first, at most eight named",
    "fold": "held-out part the prompt is in",
}


@method(
    needs="prompts",
    view=View(kind="line", x="k", y="value", color="layer", scale="share"),
    columns=_COLUMNS,
)
def sparse_probe(
    model: Model,
    encoded: Encoded,
    *,
    label: Annotated[str, Field(description=LABEL_ABOUT)] = SIDE,
    groups: Annotated[str | None, Field(description=GROUPS_ABOUT)] = None,
    kind: Annotated[str, Field(description="Site kind whose units are read")] = "mlp_post",
    dictionary: Annotated[
        str | None,
        Field(description="Read the features of this dictionary instead: its name or folder"),
    ] = None,
    at: Annotated[
        int | str,
        Field(description="Position, negative from the end; or a text or {tag}: its last token"),
    ] = -1,
    layers: Annotated[list[int] | None, Field(description="Only these layers")] = None,
    k: Annotated[list[int], Field(description="How many units, several in turn")] = [1, 4, 16],  # noqa: B006
    by: Annotated[
        By,
        Field(
            description="How units are chosen: difference of class means in standard deviations, "
            "or the weights of a regression with an L1 penalty"
        ),
    ] = "difference",
    n_folds: Annotated[int, Field(ge=2, description="Parts that are held out in turn")] = 5,
    seed: Annotated[int, Field(description="Random seed of folds and random units")] = 0,
) -> pd.DataFrame:
    """How few neurons or features suffice to read a property of the prompt?

    Units are ranked on the training groups alone, then a logistic regression sees the best ``k``
    of them; ``value`` averages to its accuracy on prompts of groups it has not seen. ``control``
    is a probe on ``k`` units drawn at random: what an arbitrary part of the layer gives.

    Raises:
        TaskError: A tag that is missing, one class or group only, a class within one group.
        OptionError: More units than there are, a site or layer that is not there.
        DictionaryError: A dictionary that is not there.

    Cost: one forward pass (two for ``side``), and up to 38 small regressions for each fold, layer
    and ``k``.

    Source: Gurnee et al. 2023, "Finding Neurons in a Haystack", arXiv 2305.01610.

    >>> from probe.api import run
    >>> probed = run("sparse_probe", model="toy", task="ioi", layers=[1], k=[1, 2])
    >>> sorted(probed.frame["k"].unique().tolist())
    [1, 2]
    """
    data = examples(encoded, label, groups)
    where = next(iter(places(encoded, at if isinstance(at, str) else [at]).values()))
    opened = None if dictionary is None else Shelf.open(dictionary)
    which = sites(model, kind, layers) if opened is None else [_read_by(opened, model)]
    parts = folds(data, n_folds, "groups", seed)
    traces = record(model, encoded, which, data)
    frames: list[pd.DataFrame] = []
    with interruptible(frames, len(which), "layers"), progress_bar("sparse probes") as report:
        for done, site in enumerate(which, 1):
            x = data.at(traces, site, where)
            x = x if opened is None else _features(opened, x)
            if bad := [one for one in k if not 1 <= one <= x.shape[1]]:
                raise OptionError(f"k={bad[0]} of {x.shape[1]} units", expected="1 to all of them")
            frames.append(_judged(data, x, parts, list(dict.fromkeys(k)), by, seed))
            frames[-1].insert(2, "layer", site.layer)
            if report(done, len(which), "layers") is False:
                break
    whole = pd.concat(frames, ignore_index=True)
    return whole if label == SIDE else whole.drop(columns="side")


def _read_by(dictionary: Dictionary, model: Model) -> Site:
    if len(dictionary.reads) != 1:
        raise OptionError(
            f"{dictionary.name} reads {len(dictionary.reads)} sites", expected="a dictionary of one"
        )
    check_layer(dictionary.reads[0], model.dims.n_layers)
    return dictionary.reads[0]


def _features(dictionary: Dictionary, x: Numbers) -> Float[np.ndarray, "example feature"]:
    made = dictionary.encode(torch.as_tensor(x, dtype=dictionary.dtype, device=dictionary.device))
    return made.detach().double().cpu().numpy()


def _judged(
    data: Examples, x: Numbers, parts: Sequence[Fold], sizes: Sequence[int], by: By, seed: int
) -> pd.DataFrame:
    """One row for each example and number of units."""
    frames = []
    for number, (train, test) in enumerate(parts):
        labels = data.labels[train]
        ranked = np.argsort(-_worth(x[train], labels, by), kind="stable")
        drawn = np.random.default_rng(seed + number).permutation(x.shape[1])
        for k in sizes:
            right = []
            for unit in (ranked[:k], drawn[:k]):
                probe = fit(x[train][:, unit], labels, data.groups[train], seed)
                right.append(probe.predict(x[test][:, unit]) == data.labels[test])
            frame = pd.DataFrame({"batch": data.rows[test]})
            frames.append(
                frame.assign(
                    side=[data.sides[row] for row in test],
                    k=k,
                    label=[data.classes[data.labels[row]] for row in test],
                    value=right[0].astype(float),
                    control=right[1].astype(float),
                    chance=(data.labels[test] == majority(labels)).astype(float),
                    units=" ".join(str(one) for one in ranked[: min(k, 8)]),
                    fold=number,
                )
            )
    return pd.concat(frames, ignore_index=True)


def _worth(x: Numbers, labels: Labels, by: By) -> Float[np.ndarray, " unit"]:
    """How much each unit tells about the classes; for several classes, about the best one."""
    scale = x.std(0)
    standard = (x - x.mean(0)) / np.where(scale > 1e-10, scale, 1.0)
    if by == "l1" and len(set(labels.tolist())) > 1:
        return lasso(standard, labels)
    gaps = [
        np.abs(standard[labels == one].mean(0) - standard[labels != one].mean(0))
        for one in np.unique(labels)
        if (labels != one).any()
    ]
    return np.max(gaps, axis=0) if gaps else np.zeros(x.shape[1])
