"""Head scores on prompts."""

import numpy as np
import pandas as pd
import pytest

from probe.core.errors import TaskError
from probe.core.model import Model
from probe.core.registry import METHODS
from probe.core.task import Task
from probe.methods.attention.head_scores import head_scores
from probe.methods.attention.task_head_scores import task_head_scores
from probe.methods.heads import ABOUT
from probe.models.handbuilt import LAYOUTS, HandBuilt, induction_model
from probe.models.load import load_model

PROMPTS = ["w3 w4 w5 w6 w7 w3 w4 w5", "w9 w8 w9", "w3 w4 w5 w6 w7"]


@pytest.fixture(scope="module", params=LAYOUTS)
def known(request: pytest.FixtureRequest) -> tuple[HandBuilt, Model]:
    built = induction_model(request.param)
    return built, load_model(built.hf, tokenizer=built.tokenizer)


def test_repetitions_of_the_prompts_find_the_induction_head(known: tuple[HandBuilt, Model]) -> None:
    built, model = known
    task = Task.from_prompts(PROMPTS).encode(model)
    frame = task_head_scores(model, task, scores=["induction", "duplicate", "previous"])
    table = frame.pivot_table(index="batch", columns=["score", "layer", "head"], values="value")
    assert (table["induction"].dropna()[built.heads["induction"]] > 0.99).all()
    assert table["duplicate"].dropna()[built.heads["same_token"]].to_numpy() == pytest.approx(0.5)
    assert (table["previous"][built.heads["previous"]] > 0.99).all()


def test_a_prompt_without_repetition_has_no_row_of_it(known: tuple[HandBuilt, Model]) -> None:
    model = known[1]
    frame = task_head_scores(model, Task.from_prompts(PROMPTS).encode(model))
    assert set(frame.loc[frame["score"] == "induction", "batch"]) == {0, 1}
    assert set(frame.loc[frame["score"] == "previous", "batch"]) == {0, 1, 2}
    assert frame["value"].notna().all()


def test_padding_changes_nothing(known: tuple[HandBuilt, Model]) -> None:
    model = known[1]
    scores = list(ABOUT)
    together = task_head_scores(model, Task.from_prompts(PROMPTS).encode(model), scores=scores)
    for row, prompt in enumerate(PROMPTS):
        alone = task_head_scores(model, Task.from_prompts(prompt).encode(model), scores=scores)
        same = together[together["batch"] == row].assign(batch=0)
        pd.testing.assert_frame_equal(same.reset_index(drop=True), alone, atol=1e-5)


def test_on_repeated_random_tokens_it_is_head_scores(known: tuple[HandBuilt, Model]) -> None:
    model = known[1]
    words = [f"w{token}" for token in range(10, 30)]
    task = Task.from_prompts(" ".join(words + words)).encode(model)
    ours = task_head_scores(model, task).drop(columns="batch")
    by = ["layer", "head", "score"]
    random = head_scores(model, n=1, length=20, bos=False).drop(columns="batch")
    # which words they are does not matter to these heads
    both = ours.merge(random, on=by, validate="one_to_one")
    assert len(both) == len(ours) == len(random)
    np.testing.assert_allclose(both["value_x"], both["value_y"], atol=1e-3)


def test_prompts_that_repeat_nothing_are_refused_where_repetition_is_asked_for(
    known: tuple[HandBuilt, Model],
) -> None:
    model = known[1]
    task = Task.from_prompts("w3 w4 w5").encode(model)
    with pytest.raises(
        TaskError, match=r"no prompt of 'prompt' repeats a token.*\nTry: head_scores"
    ):
        task_head_scores(model, task, scores=["induction", "duplicate"])


def test_columns_are_described(known: tuple[HandBuilt, Model]) -> None:
    model = known[1]
    frame = task_head_scores(model, Task.from_prompts(PROMPTS).encode(model))
    described = METHODS.get("task_head_scores").columns_of(frame)
    assert described["batch"] == "prompt within the task"
