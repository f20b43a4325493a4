"""Built-in tasks for in-context learning: word forms a small model can do, and facts it knows.

The pairs are tables beside this file, one column a word form or a fact; each task reads two. An
empty cell is a fact with no single answer, and is passed over.
"""

import csv
import string
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files

from probe.core.errors import OptionError, nearest
from probe.core.pairs import FORMAT, PairTask

Pairs = Iterable[tuple[str, str]]

_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()


@dataclass(frozen=True)
class Entry:
    """One built-in task.

    Attributes:
        about: What the model must do, in a line.
        sort: ``form`` of a word, or ``fact``.
        pairs: Makes its pairs.
    """

    about: str
    sort: str
    pairs: Callable[[], Pairs]


def icl_task(name: str, *, seed: int = 0, format: str = FORMAT) -> PairTask:
    """A built-in task for in-context learning.

    Args:
        name: One of ``ICL_TASKS``.
        seed: Decides which pairs are for training, development and test.
        format: One demonstration; see ``PairTask``.

    Raises:
        OptionError: An unknown name.

    >>> task = icl_task("past_tense")
    >>> task.prompts("test", shots=10, n=32)
    Task(name='past_tense', 32 prompts)
    """
    if name not in ICL_TASKS:
        raise OptionError(f'there is no in-context task "{name}"', remedy=nearest(name, ICL_TASKS))
    entry = ICL_TASKS[name]
    return PairTask.of(entry.pairs(), name=name, about=entry.about, seed=seed, format=format)


@lru_cache
def _table(name: str) -> tuple[dict[str, str], ...]:
    text = (files("probe.tasks.icl") / "tables" / f"{name}.csv").read_text("utf-8")
    return tuple(csv.DictReader(text.splitlines()))


def _columns(table: str, x: str, y: str) -> Callable[[], Pairs]:
    return lambda: [(row[x], row[y]) for row in _table(table) if row[x] and row[y]]


def _capitalised() -> Pairs:
    return [(row["singular"], row["singular"].capitalize()) for row in _table("nouns")]


def _lowered() -> Pairs:
    return [(row["base"].upper(), row["base"]) for row in _table("verbs")]


def _next_letters() -> Pairs:
    """Of one letter, and of two in a row, in both cases."""
    return [
        (" ".join(letters[start : start + length]), letters[start + length])
        for letters in (string.ascii_lowercase, string.ascii_uppercase)
        for length in (1, 2)
        for start in range(len(letters) - length)
    ]


def _digits() -> Pairs:
    compound = [ten + (f"-{_ONES[one]}" if one else "") for ten in _TENS for one in range(10)]
    return [(word, str(number)) for number, word in enumerate([*_ONES, *compound])]


ICL_TASKS: dict[str, Entry] = {
    "past_tense": Entry("present to past", "form", _columns("verbs", "base", "past")),
    "gerund": Entry("present to gerund", "form", _columns("verbs", "base", "gerund")),
    "third_person": Entry(
        "present to third person singular", "form", _columns("verbs", "base", "third_person")
    ),
    "plural": Entry("singular to plural", "form", _columns("nouns", "singular", "plural")),
    "singular": Entry("plural to singular", "form", _columns("nouns", "plural", "singular")),
    "capitalise": Entry("word to the word with a capital", "form", _capitalised),
    "lower_case": Entry("upper case to lower case", "form", _lowered),
    "adverb": Entry("adjective to adverb", "form", _columns("adjectives", "adjective", "adverb")),
    "comparative": Entry(
        "adjective to comparative", "form", _columns("adjectives", "adjective", "comparative")
    ),
    "superlative": Entry(
        "adjective to superlative", "form", _columns("adjectives", "adjective", "superlative")
    ),
    "next_letter": Entry("a run of letters to the next letter", "form", _next_letters),
    "digits": Entry("number word to digits", "form", _digits),
    "antonym": Entry("word to its opposite", "fact", _columns("antonyms", "word", "antonym")),
    "capital": Entry("country to capital", "fact", _columns("countries", "country", "capital")),
    "language": Entry("country to language", "fact", _columns("countries", "country", "language")),
    "currency": Entry("country to currency", "fact", _columns("countries", "country", "currency")),
    "landmark": Entry("landmark to country", "fact", _columns("landmarks", "landmark", "country")),
    "company": Entry("product to company", "fact", _columns("products", "product", "company")),
    "occupation": Entry("person to occupation", "fact", _columns("people", "person", "occupation")),
    "young": Entry("animal to its young", "fact", _columns("animals", "animal", "young")),
    "english_french": Entry(
        "English to French", "fact", _columns("translations", "english", "french")
    ),
    "english_spanish": Entry(
        "English to Spanish", "fact", _columns("translations", "english", "spanish")
    ),
    "french_english": Entry(
        "French to English", "fact", _columns("translations", "french", "english")
    ),
    "spanish_english": Entry(
        "Spanish to English", "fact", _columns("translations", "spanish", "english")
    ),
}
"""Name → task."""
