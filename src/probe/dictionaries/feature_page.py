"""All that an index knows of one feature, as values, and how they are read from the file."""

import json
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from probe.dictionaries import index_file


@dataclass(frozen=True)
class Example:
    """A place in the text where a feature fires.

    Attributes:
        row: Row of text.
        pos: Position in it.
        value: Activation there.
        alike: Places with the same tokens around, this one included.
        tokens: Tokens of the whole row.
        activations: The feature's activation at each of them, 0 where it does not fire.
    """

    row: int
    pos: int
    value: float
    alike: int
    tokens: tuple[str, ...] = field(repr=False)
    activations: tuple[float, ...] = field(repr=False)


@dataclass(frozen=True)
class Interval:
    """Examples drawn from those whose activation lies between two numbers.

    Attributes:
        low: The lower end.
        high: The upper end.
        share: Share of all places where the feature fires.
        examples: Some of them.
    """

    low: float
    high: float
    share: float
    examples: tuple[Example, ...] = field(repr=False)


@dataclass(frozen=True)
class FeaturePage:
    """All that an index knows of one feature.

    Attributes:
        id: The feature.
        label: What a reader called it; empty where nobody did.
        n: Tokens on which it fires.
        density: Their share of all tokens.
        max: Largest activation.
        mean: Mean activation where it fires.
        histogram: Counts of activations in 50 bins from 0 to the largest.
        fires_on: Token, its share of the whole activation, how often.
        top: Strongest examples, one a row of text.
        equal_width: Examples by intervals of one width, highest first.
        equal_count: Examples by intervals that hold as many activations each, highest first.
        promoted: Tokens whose logit a unit of it raises most, by the direct path.
        suppressed: Tokens whose logit it lowers most.
        logits: Counts of what it adds to each token's logit in 50 bins.
        logit_ends: The ends of those bins.
        neighbours: Features by the cosine of their decoder rows with this one's.
        correlated: Features it fires with, by Pearson's r.
        encoder_cosine: Cosine of what it reads with what it writes; None for a transcoder.
    """

    id: int
    label: str
    n: int
    density: float
    max: float
    mean: float
    histogram: tuple[int, ...] = field(repr=False)
    fires_on: tuple[tuple[str, float, int], ...] = field(repr=False)
    top: tuple[Example, ...] = field(repr=False)
    equal_width: tuple[Interval, ...] = field(repr=False)
    equal_count: tuple[Interval, ...] = field(repr=False)
    promoted: tuple[tuple[str, float], ...]
    suppressed: tuple[tuple[str, float], ...]
    logits: tuple[int, ...] = field(repr=False)
    logit_ends: tuple[float, ...] = field(repr=False)
    neighbours: tuple[tuple[int, float], ...] = field(repr=False)
    correlated: tuple[tuple[int, float], ...] = field(repr=False)
    encoder_cosine: float | None

    @property
    def dead(self) -> bool:
        """Whether it fires nowhere in the text of the index."""
        return self.n == 0

    def percentile(self, value: float) -> float:
        """Share of the activations where it fires that lie below this one, from the histogram."""
        return percentile(self.histogram, self.n, self.max, value)


def percentile(counts: Sequence[int], n: int, largest: float, value: float) -> float:
    """Share of activations below a value, read off a histogram from 0 to the largest."""
    if not n or value <= 0:
        return 0.0
    edges = np.linspace(0, largest, len(counts) + 1)
    return float(np.interp(value, edges, np.concatenate([[0], np.cumsum(counts)]) / n))


class Reader:
    """A stored page with its ids turned into tokens."""

    def __init__(self, file: sqlite3.Connection, stored: dict[str, Any]) -> None:
        self.stored = stored
        examples = [*stored["top"], *(e for kind in ("equal_width", "equal_count")
                                      for i in stored[kind] for e in i["examples"])]  # fmt: skip
        rows = {e[0] for e in examples}
        self.rows = {
            row: index_file.unpack_tokens(blob)
            for row, blob in some(file, "select row, tokens from texts where row", rows)
        }
        used = {token for row in self.rows.values() for token in row}
        used |= {int(t[0]) for how in ("promoted", "suppressed", "fires_on") for t in stored[how]}
        self.words = dict(some(file, "select token, text from vocabulary where token", used))

    def page(self, row: tuple, label: str) -> FeaturePage:
        """The page of the feature with these numbers and this label."""
        s = self.stored
        number, n, density, largest, mean, _ = row
        return FeaturePage(
            id=number, label=label, n=n, density=density, max=largest, mean=mean,
            histogram=tuple(s["histogram"]),
            fires_on=tuple((self.words[t], share, count) for t, share, count in s["fires_on"]),
            top=tuple(map(self._example, s["top"])),
            equal_width=tuple(map(self._interval, s["equal_width"])),
            equal_count=tuple(map(self._interval, s["equal_count"])),
            promoted=tuple((self.words[t], v) for t, v in s["promoted"]),
            suppressed=tuple((self.words[t], v) for t, v in s["suppressed"]),
            logits=tuple(s["logits"]), logit_ends=tuple(s["ends"]),
            neighbours=tuple((int(f), v) for f, v in s["neighbours"]),
            correlated=tuple((int(f), v) for f, v in s["correlated"]),
            encoder_cosine=s["encoder_cosine"],
        )  # fmt: skip

    def _example(self, stored: list[Any]) -> Example:
        row, pos, value, alike, fired = stored
        tokens = tuple(self.words[token] for token in self.rows[row])
        activations = [0.0] * len(tokens)
        for place, size in fired:
            activations[place] = size
        return Example(row, pos, value, alike, tokens, tuple(activations))

    def _interval(self, stored: dict[str, Any]) -> Interval:
        examples = tuple(map(self._example, stored["examples"]))
        return Interval(stored["low"], stored["high"], stored["share"], examples)


def some(file: sqlite3.Connection, query: str, ids: Iterable[int]) -> list[tuple[int, Any]]:
    """The rows whose id is among these."""
    asked = json.dumps([int(i) for i in ids])
    return file.execute(f"{query} in (select value from json_each(?))", (asked,)).fetchall()
