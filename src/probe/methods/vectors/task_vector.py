"""A task as one residual state, put in the place of another."""

import torch

from probe.core.model import Model
from probe.core.pairs import Labels, PairTask
from probe.core.provenance import Stopwatch, of_call
from probe.core.site import Site, check_layer
from probe.core.vector import VectorResult
from probe.methods.shots import by_layer, need_skill, told


def task_vector(
    model: Model,
    task: PairTask,
    *,
    shots: int = 10,
    n: int = 8,
    layer: int | None = None,
    labels: Labels = "true",
    least: float = 0.1,
    seed: int = 0,
) -> VectorResult:
    """Which residual state at the last token stands for the task that demonstrations show?

    The mean state after a layer at the end of ``n`` prompts, each of other train pairs and with a
    train pair as dummy query. Set at the last token of a prompt without demonstrations, it makes
    the model do the task.

    Args:
        model: A causal model.
        task: The pairs.
        shots: Demonstrations a prompt.
        n: Prompts averaged over, so that no one query or context is left in the vector.
        layer: Where it is taken and set; by default the layer of the most right answers on dev
            pairs without demonstrations, kept as ``curve``.
        labels: ``shuffled`` makes the control that shows the format but not the task.
        least: The share of those prompts the model must get right; not asked of shuffled
            ones, nor where it is 0.
        seed: Chooses prompts.

    Returns:
        A vector that is ``set`` at ``resid_post`` of the layer, at the last token.

    Raises:
        TaskError: A task the model cannot do.
        SiteError: A layer that is not there.
        OptionError: Counts out of range.

    Cost: n forward passes with demonstrations, or 2n where skill is checked; to choose the layer,
    two passes from each layer on over one token of each dev prompt.

    Source: Hendel, Geva and Globerson 2023, "In-Context Learning Creates Task Vectors".

    >>> from probe.api import icl_task, load_model
    >>> vector = task_vector(load_model("toy"), icl_task("plural"), shots=2, layer=1, least=0.0)
    >>> vector.rule, str(vector.site)
    ('set', 'resid_post.1')
    """
    watch = Stopwatch()
    if layer is not None:
        check_layer(Site("resid_post", layer), model.dims.n_layers)
    shown = task.prompts("train", shots=shots, n=n, labels=labels, seed=seed).encode(model)
    asked = labels == "true" and least > 0
    skill = need_skill(model, shown, task.name, least) if asked else None
    layers = range(model.dims.n_layers) if layer is None else [layer]
    sites = [Site("resid_post", at) for at in layers]
    trace = model.trace(shown, sites, positions=[-1])
    record = of_call(
        model, "task_vector", watch, task=told(task, skill=skill), seed=seed, shots=shots, n=n,
        layer=layer, labels=labels, least=least,
    )  # fmt: skip
    vectors = [
        VectorResult(
            name=f"{task.name} task vector",
            vector=trace[site][:, 0].to(torch.float32).mean(0),
            site=site,
            rule="set",
            where="last",
            provenance=record,
        )
        for site in sites
    ]
    if layer is not None:
        return vectors[0]
    dev = task.prompts("dev").encode(model)
    best, curve = by_layer(model, dev, vectors)
    return vectors[best].with_curve(curve)
