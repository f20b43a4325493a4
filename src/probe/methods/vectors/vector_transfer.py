"""Which vector does which task?"""

from collections.abc import Sequence

import pandas as pd

from probe.core.model import Model
from probe.core.pairs import PairTask, Split
from probe.core.provenance import Stopwatch, of_call
from probe.core.result import Result, View
from probe.core.vector import VectorResult
from probe.methods.shots import accuracy, told

_COLUMNS = {
    "batch": "prompt",
    "x": "the query's input",
    "vector": "the vector in the model, none for the model alone",
    "task": "the task whose answers count",
    "value": "1 where the first answer token is the likeliest, 0 where it is not",
}


def vector_transfer(
    model: Model,
    vectors: Sequence[VectorResult],
    tasks: Sequence[PairTask],
    *,
    shots: int = 0,
    n: int | None = None,
    split: Split = "test",
    seed: int = 0,
) -> Result:
    """How many held-out prompts of each task does each vector make right?

    On the diagonal a vector does its own task. Off it, tasks that share answers or format help
    one another, and a vector that helps everywhere carries the format alone.

    Args:
        model: The model.
        vectors: One for each column, as they stand.
        tasks: One for each row.
        shots: Demonstrations in the prompts.
        n: Prompts of each task, by default one for each pair of the split.
        split: The held-out part.
        seed: Of the prompts.

    Returns:
        One row a task, vector and prompt.

    Raises:
        OptionError: A strength under which the model computes no numbers.

    Cost: as ``evaluate_vector``, for each task one cell a vector.

    >>> from probe.api import icl_task, load_model, task_vector
    >>> model, task = load_model("toy"), icl_task("plural")
    >>> vector = task_vector(model, task, shots=2, layer=1, least=0.0)
    >>> vector_transfer(model, [vector], [task], n=4).frame.vector.unique().tolist()
    ['none', 'plural task vector']
    """
    watch, parts = Stopwatch(), []
    for task in tasks:
        encoded = task.prompts(split, shots=shots, n=n, seed=seed).encode(model)
        right = accuracy(model, encoded, [None, *vectors])
        for name, row in zip(["none", *(v.name for v in vectors)], right, strict=True):
            inputs = [prompt.tags["x"] for prompt in encoded.task.prompts]
            parts.append(
                pd.DataFrame(
                    {
                        "batch": range(len(encoded)),
                        "x": inputs,
                        "vector": name,
                        "task": task.name,
                        "value": row.tolist(),
                    }
                )
            )
    record = of_call(
        model, "vector_transfer", watch, seed=seed, shots=shots, n=n, split=split,
        vectors=[vector.name for vector in vectors], task={"tasks": [told(t) for t in tasks]},
    )  # fmt: skip
    view = View(kind="heatmap", x="vector", y="task", color="value", scale="share")
    return Result(pd.concat(parts, ignore_index=True), _COLUMNS, view, record)
