"""Who is named once, and who twice."""

import re
from collections import Counter

import pytest
from small_tokenizers import KINDS, tokenizer_of

from probe.core.task import Prompt, encode
from probe.core.tokens import Tokenizer
from probe.tasks import load_task
from probe.tasks.words import NAMES


@pytest.fixture(params=KINDS)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return tokenizer_of(request.param)


def names_in(text: str) -> list[str]:
    return [word for word in re.findall(r"[A-Z][a-z]+", text) if word in NAMES]


def once_and_twice(text: str) -> tuple[str, str]:
    counts = Counter(names_in(text))
    assert sorted(counts.values()) == [1, 2], text
    (twice, _), (once, _) = counts.most_common()
    return once, twice


@pytest.fixture(params=range(2))
def prompts(request: pytest.FixtureRequest, tokenizer: Tokenizer) -> tuple[Prompt, ...]:
    return load_task("ioi", n=40, seed=request.param).fit(tokenizer).prompts


def test_the_answer_is_named_once_and_flips_in_the_twin(prompts: tuple[Prompt, ...]) -> None:
    for prompt in prompts:
        receiver, giver = once_and_twice(prompt.clean)
        assert (prompt.answer, prompt.wrong_answer) == (f" {receiver}", f" {giver}")
        assert once_and_twice(prompt.corrupted or "") == (giver, receiver)


def test_the_swapped_twin_differs_in_the_last_name_alone(prompts: tuple[Prompt, ...]) -> None:
    for prompt in prompts:
        clean, twin = prompt.clean.split(), (prompt.corrupted or "").split()
        differ = [i for i, (a, b) in enumerate(zip(clean, twin, strict=True)) if a != b]
        assert len(differ) == 1
        assert clean[differ[0]] == names_in(prompt.clean)[2]


def test_both_orders_occur_and_are_tagged(prompts: tuple[Prompt, ...]) -> None:
    seen = set()
    for prompt in prompts:
        first, second, giver = names_in(prompt.clean)
        assert giver in (first, second)
        order = "ABBA" if giver == second else "BABA"
        assert prompt.tags["order"] == order
        seen.add(order)
    assert seen == {"ABBA", "BABA"}


@pytest.mark.parametrize("order", ["ABBA", "BABA"])
def test_one_order_alone(order: str) -> None:
    assert {p.tags["order"] for p in load_task("ioi", n=20, order=order).prompts} == {order}


def test_templates_names_places_and_objects_vary() -> None:
    prompts = load_task("ioi", n=200).prompts
    assert len({prompt.tags["template"] for prompt in prompts}) >= 6
    assert len({prompt.answer for prompt in prompts}) >= 30
    assert len({prompt.tags["place"] for prompt in prompts}) >= 10
    assert len({prompt.tags["object"] for prompt in prompts}) >= 10


def test_the_abc_twin_has_three_names_of_its_own() -> None:
    tokenizer = tokenizer_of("single digits")
    task = load_task("ioi", n=40, corruption="abc").fit(tokenizer)
    for prompt in task.prompts:
        receiver, giver = once_and_twice(prompt.clean)
        others = names_in(prompt.corrupted or "")
        assert len(set(others)) == 3
        assert not {receiver, giver} & set(others)
        assert prompt.tags["twin"] == "neutral"
    encoded = encode(task, tokenizer, 512)
    assert encoded.first_difference is not None
    assert (encoded.first_difference <= 4).all()
