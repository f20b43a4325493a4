"""Does a vector make the model do the task, and would any other vector?"""

from collections.abc import Mapping, Sequence

import pandas as pd
import torch

from probe.core.errors import OptionError
from probe.core.model import Model
from probe.core.pairs import PairTask, Split
from probe.core.progress import progress_bar
from probe.core.provenance import Stopwatch, of_call
from probe.core.result import Result, View
from probe.core.vector import VectorResult
from probe.methods.shots import accuracy, told

_COLUMNS = {
    "batch": "prompt",
    "x": "the query's input",
    "layer": "layer the vector acts at",
    "strength": "what the vector is multiplied by",
    "condition": "none: the model alone; vector; random: a random direction of the same norm; or "
    "the name of another vector in its place",
    "value": "1 where the first answer token is the likeliest, 0 where it is not",
}


def evaluate_vector(
    model: Model,
    vector: VectorResult,
    task: PairTask,
    *,
    shots: int = 0,
    n: int | None = None,
    split: Split = "test",
    layers: Sequence[int] | None = None,
    strengths: Sequence[float] | None = None,
    randoms: int = 3,
    others: Mapping[str, VectorResult] | None = None,
    seed: int = 0,
) -> Result:
    """How many held-out prompts does a vector make right, against the model alone and controls?

    Every control acts where and as the vector does: at its layer, with its rule and strength.

    Args:
        model: The model.
        vector: The vector.
        task: Pairs; the queries are of ``split``.
        shots: Demonstrations in the prompts.
        n: Prompts, by default one for each pair of the split.
        split: The held-out part.
        layers: Where the vector acts, by default its own layer.
        strengths: How strongly, by default its own strength.
        randoms: Random directions of the vector's norm, drawn anew for each.
        others: Further controls by name, such as the vector of shuffled labels or of another task.
        seed: Of prompts and random directions.

    Returns:
        One row a prompt, layer, strength and condition; ``summary`` gives accuracies with
        intervals over prompts. A sweep of layers or strengths is drawn as a line a condition.

    Raises:
        SiteError: A layer that is not there.
        OptionError: A strength under which the model computes no numbers, a control that has a
            condition's name.

    Cost: one forward pass of the prompts, and from its layer on one token a prompt, condition,
    layer and strength (the whole prompt for vectors that act at all positions).

    >>> from probe.api import icl_task, load_model, task_vector
    >>> model, task = load_model("toy"), icl_task("plural")
    >>> vector = task_vector(model, task, shots=2, layer=1, least=0.0)
    >>> result = evaluate_vector(model, vector, task, n=4, randoms=2)
    >>> list(result.summary(["condition"]).condition)
    ['none', 'vector', 'random 0', 'random 1']
    """
    watch = Stopwatch()
    others = dict(others or {})
    made = {"none": None, "vector": vector, **_random(vector, randoms, seed)}
    if taken := sorted(set(made) & set(others)):
        raise OptionError(f'a control is called "{taken[0]}"', expected="another name")
    conditions = made | {name: _in_place(other, vector) for name, other in others.items()}
    encoded = task.prompts(split, shots=shots, n=n, seed=seed).encode(model)
    places = [
        (layer, strength)
        for layer in (layers if layers is not None else [vector.layer])
        for strength in (strengths if strengths is not None else [vector.strength])
    ]
    cells = [
        (name, place, None if one is None else one.at(layer=place[0], strength=place[1]))
        for place in places
        for name, one in conditions.items()
    ]
    if not cells:
        raise OptionError("nothing to evaluate", expected="at least one layer and one strength")
    with progress_bar("vector and controls") as report:
        right = accuracy(model, encoded, [cell[2] for cell in cells], report=report)
    inputs = [prompt.tags["x"] for prompt in encoded.task.prompts]
    frame = pd.concat(
        pd.DataFrame(
            {
                "batch": range(len(encoded)),
                "x": inputs,
                "layer": layer,
                "strength": strength,
                "condition": name,
                "value": row.tolist(),
            }
        )
        for (name, (layer, strength), _), row in zip(cells, right, strict=True)
    ).dropna(subset="value")
    record = of_call(
        model, "evaluate_vector", watch, task=told(task, split=split, shots=shots), seed=seed,
        vector=vector.name, site=str(vector.site), rule=vector.rule, where=vector.where,
        layers=None if layers is None else list(layers),
        strengths=None if strengths is None else list(strengths), randoms=randoms,
        others={name: other.provenance.run_id for name, other in others.items()},
    )  # fmt: skip
    return Result(frame.reset_index(drop=True), _COLUMNS, _view(frame), record)


def _random(vector: VectorResult, number: int, seed: int) -> dict[str, VectorResult]:
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for i in range(number):
        drawn = torch.randn(vector.vector.shape, generator=generator)
        made[f"random {i}"] = vector.named(f"random {i}", drawn * vector.norm / drawn.norm())
    return made


def _in_place(other: VectorResult, vector: VectorResult) -> VectorResult:
    return other.at(layer=vector.layer, rule=vector.rule, where=vector.where)


def _view(frame: pd.DataFrame) -> View:
    if frame.layer.nunique() > 1:
        facet = "strength" if frame.strength.nunique() > 1 else None
        return View(kind="line", x="layer", color="condition", facet=facet)
    if frame.strength.nunique() > 1:
        return View(kind="line", x="strength", color="condition")
    return View(kind="bar", x="condition")
