"""Years and the numbers that may follow."""

import re

import pytest
from small_tokenizers import tokenizer_of

from probe.core.errors import TaskError
from probe.core.task import Prompt
from probe.tasks import load_task

FORMS = {"single digits": "one", "pairs of digits": "two", "groups of three digits": "three"}


def years(text: str, answer: str) -> tuple[int, int, int]:
    """First year, and the least and greatest last year that begins with the answer."""
    found = re.fullmatch(r"The \w+ lasted from the year (\d+) to the year (\d*)", text)
    assert found, text
    first, last = found[1], found[2] + answer
    missing = len(first) - len(last)
    return int(first), int(last + "0" * missing), int(last + "9" * missing)


@pytest.fixture(params=FORMS)
def prompts(request: pytest.FixtureRequest) -> tuple[Prompt, ...]:
    prompts = load_task("greater_than", n=60, seed=1).fit(tokenizer_of(request.param)).prompts
    assert {prompt.tags["form"] for prompt in prompts} == {FORMS[request.param]}
    return prompts


def test_the_answer_lies_after_the_first_year_and_the_wrong_one_before(
    prompts: tuple[Prompt, ...],
) -> None:
    for prompt in prompts:
        first, least, _ = years(prompt.clean, prompt.answer or "")
        assert least > first
        first, _, greatest = years(prompt.clean, prompt.wrong_answer or "")
        assert greatest < first


def test_both_answers_lie_after_the_twins_first_year(prompts: tuple[Prompt, ...]) -> None:
    for prompt in prompts:
        for answer in (prompt.answer, prompt.wrong_answer):
            first, least, _ = years(prompt.corrupted or "", answer or "")
            assert least > first
        assert prompt.tags["twin"] == "neutral"


def test_clean_and_twin_differ_in_the_first_year_alone(prompts: tuple[Prompt, ...]) -> None:
    for prompt in prompts:
        clean, twin = prompt.clean.split(), (prompt.corrupted or "").split()
        assert [i for i, (a, b) in enumerate(zip(clean, twin, strict=True)) if a != b] == [6]


def test_the_whole_sentence_is_cut_into_prompt_and_answer() -> None:
    for kind in FORMS:
        tokenizer = tokenizer_of(kind)
        for prompt in load_task("greater_than", n=20).fit(tokenizer).prompts:
            for answer in (prompt.answer or "", prompt.wrong_answer or ""):
                whole = tokenizer.encode(prompt.clean + answer)
                assert whole == [*tokenizer.encode(prompt.clean), tokenizer.need_single(answer)]


def test_a_tokenizer_that_cuts_years_otherwise_is_refused() -> None:
    for kind in ("metaspace", "words with BOS"):
        with pytest.raises(TaskError, match="greater_than cannot be asked of this tokenizer: it"):
            load_task("greater_than", n=4).fit(tokenizer_of(kind))
