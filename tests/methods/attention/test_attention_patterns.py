"""The table of patterns against Hugging Face's own attention."""

import numpy as np
import pytest
import torch
from families import FAMILIES, build, tokenizer

from probe.core.errors import OptionError, SizeError
from probe.core.model import Model
from probe.core.registry import METHODS
from probe.core.task import Encoded, Task
from probe.methods.attention.attention_patterns import attention_patterns
from probe.models.load import load_model

PROMPTS = ["t3 t4 t5 t6 t7 t8 t9 t3 t4", "t10 t11 t12 t13", "t20 t21 t22 t23 t24 t25"]


@pytest.fixture(scope="module")
def toy() -> Model:
    return load_model("toy")


@pytest.fixture(scope="module")
def task(toy: Model) -> Encoded:
    return Task.from_prompts(["Mary gave John a book", "the cat and the dog"]).encode(toy)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_number_is_hugging_faces(family: str) -> None:
    hf = build(family).requires_grad_(False)
    ids = [tokenizer()(text, add_special_tokens=False)["input_ids"] for text in PROMPTS]
    right = [hf(torch.tensor([row]), output_attentions=True).attentions for row in ids]
    model = load_model(hf, tokenizer=tokenizer())
    frame = attention_patterns(model, Task.from_prompts(PROMPTS).encode(model))
    for row, attentions in enumerate(right):
        here = frame[frame["batch"] == row]
        length = len(ids[row])
        made = np.zeros((3, 4, length, length))
        made[here["layer"], here["head"], here["query"], here["key"]] = here["value"]
        np.testing.assert_allclose(made, torch.stack(attentions)[:, 0].numpy(), atol=1e-5)
        pairs = length * (length + 1) // 2 if model.dims.causal else length**2
        assert len(here) == 12 * pairs


def test_rows_name_their_tokens(toy: Model, task: Encoded) -> None:
    frame = attention_patterns(toy, task)
    for row in range(2):
        strings = task.str_tokens(row)
        here = frame[frame["batch"] == row]
        assert [strings[i] for i in here["query"]] == here["query_token"].tolist()
        assert [strings[i] for i in here["key"]] == here["key_token"].tolist()


def test_choosing_is_filtering(toy: Model, task: Encoded) -> None:
    every = attention_patterns(toy, task)
    some = attention_patterns(toy, task, layers=[1], heads=[3, 0], queries=[-1, 2])
    assert set(some["layer"]) == {1}
    assert set(some["head"]) == {0, 3}
    by = ["batch", "layer", "head", "query", "key"]
    both = some.merge(every, on=by, suffixes=("", "_every"), validate="one_to_one")
    assert len(both) == len(some)
    np.testing.assert_allclose(both["value"], both["value_every"], atol=1e-6)
    last = task.last.tolist()
    for row in range(2):
        assert set(some.loc[some["batch"] == row, "query"]) == {2, last[row]}


def test_one_position_named_twice_is_one(toy: Model, task: Encoded) -> None:
    last = int(task.last[0])
    one = task.rows([0])
    twice = attention_patterns(toy, one, queries=[-1, last])
    assert len(twice) == len(attention_patterns(toy, one, queries=[-1]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": [2]}, "layer 2\nExpected: 0 to 1"),
        ({"heads": [-1]}, "head -1\nExpected: 0 to 3: the model has 4 heads"),
        ({"queries": [40]}, "query position 40 lies outside prompt 0\nExpected: -.* to"),
    ],
)
def test_what_is_not_there_is_refused(
    toy: Model, task: Encoded, options: dict[str, list[int]], message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        attention_patterns(toy, task, **options)


@pytest.mark.parametrize("name", ["layers", "heads", "queries"])
def test_an_empty_list_is_refused(name: str) -> None:
    with pytest.raises(OptionError, match=f"attention_patterns: {name}="):
        METHODS.get("attention_patterns").parse({name: []})


def test_too_large_a_table_is_refused_before_anything_runs(
    toy: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = " ".join(["dog"] * 80)
    length = len(toy.tokenizer.encode(text))
    task = Task.from_prompts([text] * 100).encode(toy)
    monkeypatch.setattr(toy, "trace", lambda *_, **__: pytest.fail("something ran"))
    with pytest.raises(SizeError) as caught:
        attention_patterns(toy, task)
    rows = 2 * 4 * 100 * length * (length + 1) // 2
    assert f"{rows:,} rows: 2 layers, 4 heads" in str(caught.value)
    assert "at most 2,000,000" in str(caught.value)
    assert "queries=[-1]" in str(caught.value)
    with pytest.raises(pytest.fail.Exception, match="something ran"):
        attention_patterns(toy, task, queries=[-1])


def test_it_is_drawn_as_a_wall_or_as_the_one_head_asked_for() -> None:
    known = METHODS.get("attention_patterns")
    assert known.view_for(known.parse({})).kind == "wall"
    assert known.view_for(known.parse({"layers": [0]})).kind == "wall"
    assert known.view_for(known.parse({"layers": [0], "heads": [1]})).kind == "heatmap"


def test_columns_are_described(toy: Model, task: Encoded) -> None:
    frame = attention_patterns(toy, task)
    assert METHODS.get("attention_patterns").columns_of(frame).keys() == set(frame.columns)
