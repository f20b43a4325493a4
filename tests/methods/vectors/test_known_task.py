"""On a model whose task direction was written by hand, both extractions must find it."""

from functools import cache

import pytest
import torch

import probe
from probe.models.handbuilt_task import MARK, HandBuiltTask, task_model


@cache
def built() -> HandBuiltTask:
    return task_model()


@cache
def model() -> probe.Model:
    return probe.load_model(built().hf, tokenizer=built().tokenizer)


def task(number: int) -> probe.PairTask:
    return probe.PairTask.of(built().pairs[number], name=f"task {number}")


@pytest.mark.parametrize("number", [0, 1])
def test_demonstrations_decide_and_shuffled_ones_do_not(number: int) -> None:
    shown = task(number).prompts("test", shots=4)
    assert shown.check(model(), "prob").frame.value.min() > 0.99
    moved = task(number).prompts("test", shots=4, labels="shuffled")
    assert moved.check(model(), "prob").frame.value.max() < 0.1


@pytest.mark.parametrize("number", [0, 1])
def test_the_function_vector_is_the_task(number: int) -> None:
    found = probe.function_vector(model(), task(number), shots=4, n=10, n_heads=1)
    assert found.provenance.passed["heads"] == [list(built().heads["collect"])]
    direction = built().directions[number]
    assert torch.cosine_similarity(found.vector, direction, dim=0) > 0.99
    assert found.norm == pytest.approx(MARK, rel=0.01)
    assert found.layer in (0, 1)
    right = probe.evaluate_vector(model(), found, task(number)).summary(["condition"])
    assert right.set_index("condition").value["vector"] == 1.0
    assert right.set_index("condition").value.drop("vector").max() < 0.8


@pytest.mark.parametrize("number", [0, 1])
def test_the_task_vector_is_the_task_and_what_every_prompt_has(number: int) -> None:
    found = probe.task_vector(model(), task(number), shots=4)
    assert found.layer == built().heads["collect"][0]
    bare = model().trace(task(number).prompts("train").encode(model()), [found.site])
    without = bare.sel(found.site, pos=-1).mean(0)
    gained = found.vector - without
    assert torch.cosine_similarity(gained, built().directions[number], dim=0) > 0.99
    right = probe.evaluate_vector(model(), found, task(number)).summary(["condition"])
    assert right.set_index("condition").value["vector"] == 1.0


def test_each_vector_does_its_own_task() -> None:
    vectors = [
        probe.function_vector(model(), task(i), shots=4, n=6, n_heads=1, layer=1) for i in (0, 1)
    ]
    table = probe.vector_transfer(model(), vectors, [task(0), task(1)]).summary(["task", "vector"])
    wide = table.pivot(index="task", columns="vector", values="value")
    for i in (0, 1):
        assert wide.loc[f"task {i}", f"task {i} function vector"] == 1.0
        assert wide.loc[f"task {i}", f"task {1 - i} function vector"] == 0.0
    assert abs(vectors[0].cosine(vectors[1])) < 0.01


def test_removing_the_direction_removes_the_task() -> None:
    found = probe.function_vector(model(), task(0), shots=4, n=6, n_heads=1, layer=1)
    encoded = task(0).prompts("test", shots=4).encode(model())
    without = found.at(rule="project_out", where="all")
    logits = model().forward(
        encoded.clean, without.edits(), lengths=encoded.lengths, last_only=True
    )
    prob = logits.softmax(-1).gather(1, encoded.need_answers()[:, None])
    assert prob.max() < 0.1
