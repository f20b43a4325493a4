"""A task as the sum of what a few heads write."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from probe.core.edit import patch
from probe.core.errors import OptionError
from probe.core.model import Model
from probe.core.pairs import Labels, PairTask
from probe.core.progress import progress_bar
from probe.core.provenance import Stopwatch, of_call
from probe.core.site import Site, check_layer
from probe.core.task import Encoded
from probe.core.vector import VectorResult
from probe.methods.shots import by_layer, mean_heads, need_skill, told

Head = tuple[int, int]


def function_vector(
    model: Model,
    task: PairTask,
    *,
    shots: int = 10,
    n: int = 25,
    n_heads: int = 10,
    heads: Sequence[Head] | None = None,
    layer: int | None = None,
    labels: Labels = "true",
    least: float = 0.1,
    seed: int = 0,
) -> VectorResult:
    """Which direction do the heads that carry the task write at the last token?

    Every head's mean output over ``n`` prompts of train pairs; the heads whose mean, set in the
    same prompts with shuffled demonstrations, raises the answer's probability most (the average
    indirect effect); the sum of what they write. Added at the last token of a prompt without
    demonstrations, it makes the model do the task.

    Args:
        model: A causal model.
        task: The pairs.
        shots: Demonstrations a prompt.
        n: Prompts, for the means and for the effects.
        n_heads: How many heads are summed.
        heads: These (layer, head) instead of those of the largest effect, which are then not
            measured. They stand in the record.
        layer: Where it is added; by default the layer of the most right answers on dev pairs
            without demonstrations, kept as ``curve``.
        labels: ``shuffled`` takes the means over shuffled demonstrations: the control that shows
            the format but not the task. Needs ``heads``.
        least: The share of those prompts the model must get right; not asked of shuffled
            ones, nor where it is 0.
        seed: Chooses prompts.

    Returns:
        A vector that is added at ``resid_post`` of the layer, at the last token.

    Raises:
        TaskError: A task the model cannot do.
        SiteError: A layer that is not there.
        OptionError: Counts out of range, or shuffled labels without heads.

    Cost: 2n forward passes with demonstrations, n more with shuffled ones, and for each head and
    prompt one token through the layers after its own; choosing the layer as in ``task_vector``.

    Source: Todd et al. 2024, "Function Vectors in Large Language Models", equations 3 to 6. Where
    a block normalises what it writes, the vector is what heads write before that norm.

    >>> from probe.api import icl_task, load_model
    >>> vector = function_vector(load_model("toy"), icl_task("plural"), shots=2, n=4, n_heads=3,
    ...                          layer=1, least=0.0)
    >>> len(vector.provenance.passed["heads"])
    3
    """
    watch = Stopwatch()
    _check(model, heads, layer, n_heads, labels)
    measured = heads is None
    shown = task.prompts(
        "train", shots=shots, n=n, labels="both" if measured else labels, seed=seed
    ).encode(model)
    asked = labels == "true" and least > 0
    skill = need_skill(model, shown, task.name, least) if asked else None
    means = mean_heads(model, shown)
    chosen = _strongest(model, shown, means, n_heads) if heads is None else list(heads)
    record = of_call(
        model, "function_vector", watch, task=told(task, skill=skill), seed=seed, shots=shots, n=n,
        heads=[list(head) for head in chosen], chosen_by_effect=measured, layer=layer,
        labels=labels, least=least,
    )  # fmt: skip
    vector = VectorResult(
        name=f"{task.name} function vector",
        vector=_written(model, means, chosen),
        site=Site("resid_post", layer or 0),
        rule="add",
        where="last",
        provenance=record,
    )
    if layer is not None:
        return vector
    dev = task.prompts("dev").encode(model)
    best, curve = by_layer(
        model, dev, [vector.at(layer=depth) for depth in range(model.dims.n_layers)]
    )
    return vector.at(layer=best).with_curve(curve)


def _check(
    model: Model, heads: Sequence[Head] | None, layer: int | None, n_heads: int, labels: Labels
) -> None:
    dims = model.dims
    if layer is not None:
        check_layer(Site("resid_post", layer), dims.n_layers)
    if labels != "true" and heads is None:
        raise OptionError(
            f'labels="{labels}" without heads', expected="the heads of the vector it controls for"
        )
    if heads is None and not 1 <= n_heads <= dims.n_layers * dims.n_heads:
        raise OptionError(
            f"n_heads={n_heads}", expected=f"1 to {dims.n_layers * dims.n_heads}, all heads"
        )
    for depth, head in heads or ():
        if not (0 <= depth < dims.n_layers and 0 <= head < dims.n_heads):
            raise OptionError(
                f"head {depth}.{head} is out of range",
                expected=f"layers 0 to {dims.n_layers - 1}, heads 0 to {dims.n_heads - 1}",
            )


def _strongest(
    model: Model, shown: Encoded, means: Float[Tensor, "layer head d_head"], number: int
) -> list[Head]:
    every = [(layer, head) for layer in range(len(means)) for head in range(means.shape[1])]
    sets = [[patch(Site("z", layer, head), means[layer], pos=-1)] for layer, head in every]
    with progress_bar("effects of all heads") as report:
        effects = model.sweep(shown, sets, "prob", base="corrupted", report=report)
    order = effects.mean(1).argsort(descending=True, stable=True)[:number]
    return [every[place] for place in order.tolist()]


def _written(
    model: Model, means: Float[Tensor, "layer head d_head"], heads: Sequence[Head]
) -> Float[Tensor, " d_model"]:
    parts = [model.head_outputs(layer, means[layer])[head] for layer, head in heads]
    return torch.stack(parts).sum(0).to(torch.float32).cpu()
