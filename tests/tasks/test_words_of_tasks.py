"""Labels of the tasks about words, by rules of their own."""

import ast
import re

import pytest
from small_tokenizers import KINDS, tokenizer_of

from probe.core.task import Prompt
from probe.core.tokens import Tokenizer
from probe.tasks import load_task
from probe.tasks.capital_of import CAPITALS
from probe.tasks.words import ARGUMENTS, MEN, NAMES, NOUNS, OBJECTS, PLACES, WOMEN, plural, whole

pytestmark = pytest.mark.slow  # a minute or so: left to make test

LISTS = {"MEN": MEN, "WOMEN": WOMEN, "NAMES": NAMES, "PLACES": PLACES, "OBJECTS": OBJECTS} | {
    "NOUNS": NOUNS,
    "ARGUMENTS": ARGUMENTS,
}


@pytest.fixture(params=KINDS)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return tokenizer_of(request.param)


def drawn(name: str, tokenizer: Tokenizer | None = None, n: int = 60, **options: str) -> list:
    task = load_task(name, n=n, seed=5, **options)
    return list((task if tokenizer is None else task.fit(tokenizer)).prompts)


@pytest.mark.parametrize("words", LISTS.values(), ids=LISTS)
def test_no_word_is_listed_twice(words: tuple[str, ...]) -> None:
    assert len(set(words)) == len(words)


def test_objects_take_the_article_a() -> None:
    assert not [word for word in OBJECTS if word[0] in "aeiou"]


def test_argument_names_are_identifiers() -> None:
    for word in ARGUMENTS:
        ast.parse(f"def f(self, {word}): ...")


def test_whole_keeps_the_words_of_one_token() -> None:
    tokenizer = tokenizer_of("single digits")
    made_up = "Zyxwvutsr"
    assert whole([*NAMES[:4], made_up], tokenizer) == list(NAMES[:4])
    assert whole([NAMES[0], made_up], tokenizer, need=2) == [NAMES[0], made_up]
    assert whole([made_up], None) == [made_up]


def country_in(text: str) -> str:
    (found,) = [country for country in CAPITALS if re.search(rf"\b{country}\b", text)]
    return found


def test_capitals_belong_to_the_country_named(tokenizer: Tokenizer) -> None:
    for prompt in drawn("capital_of", tokenizer):
        assert prompt.answer == f" {CAPITALS[country_in(prompt.clean)]}"
        assert prompt.wrong_answer == f" {CAPITALS[country_in(prompt.corrupted)]}"


def test_no_two_countries_share_a_capital() -> None:
    assert len(set(CAPITALS.values())) == len(CAPITALS)


def number_of_subject(text: str) -> str:
    """Of the first known noun; the attractor comes after it."""
    numbers = dict.fromkeys(NOUNS, "singular") | {plural(n): "plural" for n in NOUNS}
    return next(numbers[word] for word in text.split() if word in numbers)


VERBS = {"singular": {" is", " was", " has"}, "plural": {" are", " were", " have"}}


def test_verbs_agree_with_the_first_noun(tokenizer: Tokenizer) -> None:
    seen = set()
    for prompt in drawn("subject_verb", tokenizer):
        number, other = number_of_subject(prompt.clean), number_of_subject(prompt.corrupted)
        assert {number, other} == {"singular", "plural"}
        assert prompt.answer in VERBS[number]
        assert prompt.wrong_answer in VERBS[other]
        assert prompt.tags["subject"] == number
        seen.add(number)
    assert seen == {"singular", "plural"}


@pytest.mark.parametrize("attractor", ["opposite", "same", "any"])
def test_the_attractor_has_the_number_asked_for(attractor: str) -> None:
    agree = set()
    for prompt in drawn("subject_verb", attractor=attractor):
        last = prompt.clean.split()[-1]
        number = "singular" if last in NOUNS else "plural"
        assert prompt.tags["attractor"] == number
        assert (prompt.corrupted or "").split()[-1] == last
        agree.add(number == number_of_subject(prompt.clean))
    assert agree == {"opposite": {False}, "same": {True}, "any": {True, False}}[attractor]


def pronoun(text: str) -> str:
    (name,) = [word for word in re.findall(r"[A-Z][a-z]+", text) if word in NAMES]
    return " he" if name in MEN else " she"


def test_pronouns_fit_the_name(tokenizer: Tokenizer) -> None:
    answers = set()
    for prompt in drawn("gendered_pronoun", tokenizer):
        assert prompt.answer == pronoun(prompt.clean)
        assert prompt.wrong_answer == pronoun(prompt.corrupted)
        answers.add(prompt.answer)
    assert answers == {" he", " she"}
    assert not set(MEN) & set(WOMEN)


def next_argument(text: str) -> str:
    """The argument that the definition names after the last one described."""
    signature = re.search(r"\((.*)\):", text)
    assert signature
    arguments = signature[1].split(", ")
    described = re.findall(r":param (\w+):", text)
    places = [arguments.index(name) for name in described]
    assert places == sorted(places)
    return arguments[places[-1] + 1]


def test_the_docstring_goes_on_in_the_order_of_the_definition(tokenizer: Tokenizer) -> None:
    for prompt in drawn("docstring", tokenizer):
        assert prompt.answer == f" {next_argument(prompt.clean)}"
        assert prompt.wrong_answer == f" {next_argument(prompt.corrupted)}"
        assert sorted(re.findall(r"\w+", prompt.clean)) == sorted(
            re.findall(r"\w+", prompt.corrupted)
        )


def test_the_docstring_is_python() -> None:
    prompt: Prompt = drawn("docstring")[0]
    ast.parse(f'{prompt.clean}{prompt.answer}: it\n    """')
