"""Distributed alignment search: the subspace that, swapped between runs, swaps the answer."""

from typing import Annotated

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int
from pydantic import Field
from torch import Tensor

from probe.core.errors import OptionError
from probe.core.metric import get_metric
from probe.core.model import Model
from probe.core.progress import progress_bar
from probe.core.registry import method
from probe.core.result import View
from probe.core.site import Site
from probe.core.task import Encoded
from probe.methods.alignment import (
    Subspace,
    at_position,
    learn_subspace,
    random_subspace,
    swap,
    swapped,
)
from probe.methods.labelled import (
    GROUPS_ABOUT,
    SIDE,
    examples,
    places,
    sites,
    undivided,
)
from probe.methods.probes import folds, interruptible

_COLUMNS = {
    "batch": "prompt pair, none of whose group was learnt from",
    "side": "the run that was changed, clean or corrupted",
    "layer": "layer",
    "subspace": "what was swapped: learnt, random (as many dimensions), or the whole activation",
    "value": "1 where the run then prefers the other run's answer, 0 elsewhere: its mean is the "
    "interchange accuracy",
    "raw": "logit of the other run's answer less that of its own, after the swap, nats",
    "k": "dimensions swapped",
}


@method(
    needs="pairs",
    view=View(kind="line", x="layer", y="value", color="subspace", scale="share"),
    columns=_COLUMNS,
)
def das(
    model: Model,
    encoded: Encoded,
    *,
    k: Annotated[int, Field(ge=1, description="Dimensions of the subspace")] = 1,
    kind: Annotated[
        str, Field(description="Site kind: resid_post, attn_out, mlp_out, mlp_post, ...")
    ] = "resid_post",
    at: Annotated[
        int | str,
        Field(description="Position, negative from the end; or a text or {tag}: its last token"),
    ] = -1,
    layers: Annotated[list[int] | None, Field(description="Only these layers")] = None,
    groups: Annotated[str | None, Field(description=GROUPS_ABOUT)] = None,
    steps: Annotated[int, Field(ge=1, description="Optimisation steps for each layer")] = 100,
    lr: Annotated[float, Field(gt=0, description="Learning rate of Adam")] = 0.02,
    batch_size: Annotated[int, Field(ge=1, description="Pairs for each step")] = 16,
    seed: Annotated[int, Field(description="Random seed of split, start and batches")] = 0,
) -> pd.DataFrame:
    """Is there a k-dimensional part of an activation that carries what the answer depends on?

    For each layer an orthonormal basis R is learnt on half of the groups: in a run with activation
    b, whose twin's is s, b + R Rᵀ (s - b) should make it give its twin's answer. ``value`` is how
    often that happens on the other half, clean runs taking from corrupted ones and the reverse.
    ``random`` swaps as many random dimensions, ``whole`` all of them: what patching can do at all.

    A subspace that is found need not be one the model uses: gradient descent may find directions
    that act only when set off the model's own distribution. Hence the control, small ``k``, and
    pairs held out.

    Raises:
        TaskError: Fewer than two groups of pairs.
        OptionError: A site with heads, more dimensions than there are, a layer not there.

    Cost: for each layer, two forward and two backward passes of ``batch_size`` pairs a step; six
    edited runs of the held-out pairs.

    Source: Geiger et al. 2023, arXiv 2303.02536; on the caveat, Makelov et al. 2023,
    arXiv 2311.17030.

    >>> from probe.api import run
    >>> found = run("das", model="toy", task="ioi", layers=[1], steps=2)
    >>> sorted(found.frame["subspace"].unique())
    ['learnt', 'random', 'whole']
    """
    get_metric("logit_diff").check(encoded)
    which = [undivided(site) for site in sites(model, kind, layers)]
    dim = model.dims.size(which[0].axes[-1], batch=1, pos=1)
    if k > dim:
        raise OptionError(f"k={k} dimensions of {kind}", expected=f"1 to {dim}")
    where = torch.tensor(next(iter(places(encoded, at if isinstance(at, str) else [at]).values())))
    data = examples(encoded, SIDE, groups)
    learnt, judged = (np.unique(data.rows[part]) for part in folds(data, 2, "groups", seed)[0])
    training, test = encoded.rows(learnt.tolist()), encoded.rows(judged.tolist())
    frames: list[pd.DataFrame] = []
    heard: list[bool | None] = []
    with interruptible(frames, len(which), "layers"), progress_bar("subspaces") as report:
        for done, site in enumerate(which):

            def step(now: int, n: int, unit: str, before: int = done * steps) -> bool | None:
                heard.append(report(before + now, len(which) * n, unit))
                return heard[-1]

            basis = learn_subspace(
                model, training, site, where[learnt], k, steps=steps, lr=lr,
                batch_size=batch_size, seed=seed, report=step,
            )  # fmt: skip
            subspaces = {
                "learnt": basis,
                "random": random_subspace(dim, k, seed + 1).to(basis),
                "whole": torch.eye(dim).to(basis),
            }
            frames.append(_judged(model, test, judged, site, where[judged], subspaces))
            if heard[-1] is False:
                break
    return pd.concat(frames, ignore_index=True)


def _judged(
    model: Model,
    test: Encoded,
    batch: np.ndarray,
    site: Site,
    at: Int[Tensor, " batch"],
    subspaces: dict[str, Subspace],
) -> pd.DataFrame:
    """Held-out runs with each subspace swapped, in both directions."""
    clean, corrupted = at_position(model, test, site, at)
    frames = []
    for side, base, source, sign in (
        ("clean", clean, corrupted, -1.0),
        ("corrupted", corrupted, clean, 1.0),
    ):
        sets = [
            [swap(site, swapped(base, source, basis).to(model.dtype), at)]
            for basis in subspaces.values()
        ]
        raw = sign * model.sweep(test, sets, "logit_diff", base=side).cpu()
        for (name, basis), row in zip(subspaces.items(), raw, strict=True):
            frame = pd.DataFrame({"batch": batch, "side": side, "layer": site.layer})
            frames.append(
                frame.assign(
                    subspace=name,
                    value=(row > 0).double().numpy(),
                    raw=row.double().numpy(),
                    k=basis.shape[1],
                )
            )
    return pd.concat(frames, ignore_index=True)
