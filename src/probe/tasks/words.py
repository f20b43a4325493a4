"""The words tasks are made of, and which of them a tokenizer keeps whole."""

from collections.abc import Sequence
from weakref import WeakKeyDictionary

from probe.core.tokens import Tokenizer

MEN = (
    "John", "James", "Robert", "Michael", "David", "William", "Richard", "Thomas", "Charles",
    "Daniel", "Matthew", "Anthony", "Mark", "Paul", "Steven", "Andrew", "Kevin", "Brian", "George",
    "Edward", "Peter", "Henry", "Adam", "Simon", "Tom", "Frank", "Jack", "Scott", "Eric", "Jacob",
)  # fmt: skip
WOMEN = (
    "Mary", "Sarah", "Jessica", "Emily", "Anna", "Laura", "Susan", "Lisa", "Karen", "Nancy",
    "Helen", "Maria", "Alice", "Julia", "Emma", "Rachel", "Rebecca", "Kate", "Jane", "Amy",
    "Margaret", "Elizabeth", "Barbara", "Linda", "Patricia", "Jennifer", "Ruth", "Rose", "Martha",
    "Christine",
)  # fmt: skip
NAMES = (*MEN, *WOMEN)
PLACES = (
    "store", "park", "school", "office", "station", "library", "market", "beach", "hospital",
    "restaurant", "garden", "museum", "hotel", "church", "theater", "kitchen",
)  # fmt: skip
OBJECTS = (
    "book", "drink", "letter", "ring", "ball", "basket", "computer", "key", "flower", "map",
    "ticket", "pen", "phone", "cake", "bottle", "hat", "picture", "box",
)  # fmt: skip
NOUNS = (
    "key", "picture", "author", "car", "tree", "house", "boy", "girl", "doctor", "teacher",
    "student", "dog", "cat", "horse", "bird", "cup", "table", "chair", "box", "book", "door",
    "window", "friend", "farmer", "manager", "lawyer", "bridge", "boat", "road", "garden",
)  # fmt: skip
"""Singular nouns whose plural takes an s (``plural``)."""
ARGUMENTS = (
    "user", "file", "last", "size", "date", "name", "key", "time", "value", "text", "list",
    "state", "order", "path", "data", "model", "color", "page", "line", "level", "group", "image",
    "index", "field", "test", "message", "result", "option", "target", "source",
)  # fmt: skip
PLAIN = tuple(dict.fromkeys((*NOUNS, *PLACES, *OBJECTS, *ARGUMENTS)))

_counts: WeakKeyDictionary[Tokenizer, dict[str, int]] = WeakKeyDictionary()
_kept: WeakKeyDictionary[Tokenizer, dict[tuple[str, ...], list[str]]] = WeakKeyDictionary()


def plural(noun: str) -> str:
    """The plural of one of ``NOUNS``.

    >>> plural("box"), plural("key")
    ('boxes', 'keys')
    """
    return noun + ("es" if noun.endswith("x") else "s")


def n_tokens(tokenizer: Tokenizer, word: str) -> int:
    """How many tokens a word is after a space."""
    counts = _counts.setdefault(tokenizer, {})
    if word not in counts:
        counts[word] = len(tokenizer.encode(f" {word}", special=False))
    return counts[word]


def whole(words: Sequence[str], tokenizer: Tokenizer | None, need: int = 2) -> list[str]:
    """The words that can be an answer: one token after a space.

    All words where no tokenizer is given, or where fewer than ``need`` are left: then the caller
    of ``draw`` sees the misfit, and can name it.
    """
    if tokenizer is None:
        return list(words)
    known, asked = _kept.setdefault(tokenizer, {}), tuple(words)
    if asked not in known:
        known[asked] = [word for word in asked if tokenizer.single(f" {word}") is not None]
    return known[asked] if len(known[asked]) >= need else list(words)
