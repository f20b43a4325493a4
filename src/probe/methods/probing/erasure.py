"""A probe's directions, tested by taking them out of the model."""

from typing import Annotated

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from pydantic import Field

from probe.core.edit import Edit, project_out
from probe.core.metric import get_metric
from probe.core.model import Model
from probe.core.progress import progress_bar
from probe.core.registry import method
from probe.core.result import View
from probe.core.site import Site
from probe.core.task import Encoded
from probe.methods.labelled import (
    GROUPS_ABOUT,
    LABEL_ABOUT,
    SIDE,
    Examples,
    Numbers,
    examples,
    places,
    record,
    sites,
    undivided,
)
from probe.methods.probes import Fold, fit, folds

Directions = Float[np.ndarray, "direction dim"]

_COLUMNS = {
    "batch": "prompt, none of whose group was learnt from",
    "side": "clean or corrupted prompt",
    "layer": "layer",
    "directions": "what was taken out: the probe's directions, or as many random ones",
    "removed": "number of directions taken out",
    "measure": "accuracy of a probe trained anew on what is left, or the metric of the edited run",
    "value": "accuracy: 1 where the prediction is right, 0 elsewhere; else the metric, in its unit",
}


@method(
    needs="answers",
    view=View(kind="line", x="removed", y="value", color="directions", facet="measure"),
    columns=_COLUMNS,
)
def erasure(
    model: Model,
    encoded: Encoded,
    *,
    label: Annotated[str, Field(description=LABEL_ABOUT)] = SIDE,
    groups: Annotated[str | None, Field(description=GROUPS_ABOUT)] = None,
    kind: Annotated[
        str, Field(description="Site kind: resid_post, attn_out, mlp_out, ...")
    ] = "resid_post",
    layer: Annotated[
        int | None, Field(ge=0, description="Layer; by default the one in the middle")
    ] = None,
    at: Annotated[
        int | str,
        Field(description="Position, negative from the end; or a text or {tag}: its last token"),
    ] = -1,
    rounds: Annotated[
        int, Field(ge=1, description="Times that a probe is trained and its directions removed")
    ] = 3,
    metric: Annotated[str, Field(description="Behaviour, read at the last token")] = "logit_diff",
    seed: Annotated[int, Field(description="Random seed of the split and random directions")] = 0,
) -> pd.DataFrame:
    """Does the model use what a probe reads: what is lost when its directions are taken out?

    On half of the groups a probe is trained, its directions are projected out, another is trained
    on what is left, and so on. On the other half: the accuracy of a probe trained anew after each
    round, and the metric of the clean run with the same directions projected out of the site at the
    position read. Random directions, as many, are the control.

    Accuracy that falls to chance says the property is no longer linearly there; a metric that
    falls with it, and not with random directions, says that the model read it from there. A metric
    that stays says only that this position and layer were not needed.

    Raises:
        TaskError: A tag that is missing, one class or group only, a class within one group.
        OptionError: A site or layer that is not there.

    Cost: one forward pass (two for ``side``), up to 19 small regressions a round, twice, and an
    edited run of the held-out prompts for each round, twice.

    Source: Ravfogel et al. 2020, "Null It Out", arXiv 2004.07667; Elazar et al. 2021, "Amnesic
    Probing", arXiv 2006.00995.

    >>> from probe.api import run
    >>> erased = run("erasure", model="toy", task="ioi", rounds=1)
    >>> sorted(erased.frame["removed"].unique().tolist())
    [0, 1]
    """
    chosen = get_metric(metric)
    chosen.check(encoded)
    data = examples(encoded, label, groups)
    where = next(iter(places(encoded, at if isinstance(at, str) else [at]).values()))
    (site,) = sites(model, kind, [model.dims.n_layers // 2 if layer is None else layer])
    undivided(site)
    part = folds(data, 2, "groups", seed)[0]
    x = data.at(record(model, encoded, [site], data), site, where)
    found, counts = _nullspace(data, x, part, rounds, seed)
    rng = np.random.default_rng(seed)
    drawn = np.linalg.qr(rng.standard_normal((x.shape[1], len(found))))[0].T
    judged = np.unique(data.rows[part.test])
    test = encoded.rows(judged.tolist())
    at_test = torch.tensor([where[row] for row in judged])
    frames = []
    with progress_bar("erasure") as report:
        for name, directions in (("probe", found), ("random", drawn)):
            for removed in counts:
                gone = directions[:removed]
                right = _right(data, x - (x @ gone.T) @ gone, part, seed)
                frames.append(_accuracy(data, part, right).assign(directions=name, removed=removed))
            sets = [_edits(model, site, directions[:count], at_test) for count in counts]
            swept = model.sweep(test, sets, chosen, base="clean", report=report).cpu()
            for removed, row in zip(counts, swept.double().numpy(), strict=True):
                frame = pd.DataFrame({"batch": judged, "side": "clean", "value": row})
                frames.append(
                    frame.assign(measure=metric, directions=name, removed=removed).dropna()
                )
    whole = pd.concat(frames, ignore_index=True).assign(layer=site.layer)
    columns = [name for name in _COLUMNS if name != "side" or label == SIDE]
    return whole[columns]


def _nullspace(
    data: Examples, x: Numbers, part: Fold, rounds: int, seed: int
) -> tuple[Directions, list[int]]:
    """Orthonormal directions in the order found, and how many there are before each round."""
    found: Directions = np.zeros((0, x.shape[1]))
    counts = [0]
    train = part.train
    for _ in range(rounds):
        left = x[train] - (x[train] @ found.T) @ found
        fresh = fit(left, data.labels[train], data.groups[train], seed).directions()
        fresh = fresh - (fresh @ found.T) @ found
        fresh = np.linalg.qr(fresh.T)[0].T[: x.shape[1] - len(found)]
        if not len(fresh):
            break  # the probe found nothing to go by
        found = np.concatenate([found, fresh])
        counts.append(len(found))
    return found, counts


def _right(data: Examples, x: Numbers, part: Fold, seed: int) -> np.ndarray:
    train, test = part
    probe = fit(x[train], data.labels[train], data.groups[train], seed)
    return probe.predict(x[test]) == data.labels[test]


def _accuracy(data: Examples, part: Fold, right: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "batch": data.rows[part.test],
            "side": [data.sides[row] for row in part.test],
            "measure": "accuracy",
            "value": right.astype(float),
        }
    )


def _edits(model: Model, site: Site, directions: Directions, at: torch.Tensor) -> list[Edit]:
    """One after another they take out the whole span, being orthonormal."""
    return [
        project_out(site, torch.as_tensor(one, dtype=model.dtype), pos=at) for one in directions
    ]
