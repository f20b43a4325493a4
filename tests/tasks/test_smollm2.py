"""The tasks as the default model's tokenizer cuts them, and whether the model does them."""

import pytest

from probe.core.model import Model
from probe.core.task import encode
from probe.tasks import TASKS, load_task
from probe.tasks.check import check

pytestmark = pytest.mark.slow

LEAST = {
    "capital_of": 0.9,
    "docstring": 0.8,
    "gendered_pronoun": 0.9,
    "greater_than": 0.9,
    "induction": 0.9,
    "ioi": 0.9,
    "subject_verb": 0.9,
}
"""Share of clean prompts on which the answer scores above the wrong one; chance is one half."""


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", list(TASKS))
def test_pairs_are_aligned(name: str, seed: int, smollm2: Model) -> None:
    task = load_task(name, n=32, seed=seed).fit(smollm2.tokenizer)
    encoded = encode(task, smollm2.tokenizer, smollm2.dims.n_ctx)
    assert encoded.first_difference is not None
    assert (encoded.first_difference > 0).all()
    for prompt in task.prompts:
        clean = smollm2.tokenizer.encode(prompt.clean)
        for answer in (prompt.answer or "", prompt.wrong_answer or ""):
            token = smollm2.tokenizer.need_single(answer)
            assert smollm2.tokenizer.encode(prompt.clean + answer) == [*clean, token]


@pytest.mark.parametrize("name", list(TASKS))
def test_the_model_does_the_task(name: str, smollm2: Model) -> None:
    checked = check(load_task(name, n=32), smollm2)
    assert checked.accuracy >= LEAST[name], str(checked)


def test_greater_than_asks_for_one_digit(smollm2: Model) -> None:
    task = load_task("greater_than", n=8).fit(smollm2.tokenizer)
    assert {prompt.tags["form"] for prompt in task.prompts} == {"one"}
