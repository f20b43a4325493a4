"""What a paper claims, what we measured, and the verdict that a rule fixed beforehand gives.

A rule is a line for each number measured: ``reproduced`` and, lower, ``partly``. The verdict is on
the median over seeds (or the statistic over examples); *reproduced* needs its whole 95 % bootstrap
interval on the right side of the line too, else the claim is *partly* reproduced. Lines are never
moved after a number was seen.

>>> corner = Claim(
...     "the phase boundary of two features in one dimension",
...     published="superposition below density 4r/(2+5r)", source="companion notebook", mark="read",
...     rule="R: at least 85 % of cells agree with the closed form; P: 70 %",
...     reproduced={"cells that agree": at_least(0.85)},
...     partly={"cells that agree": at_least(0.70)}, seeds=5,
... )
>>> corner.judge({"cells that agree": over_seeds([0.93, 0.95, 0.91, 0.90, 0.94])}).verdict
'reproduced'
>>> corner.judge({"cells that agree": over_seeds([0.93, 0.95, 0.91, 0.60, 0.94])}).verdict
'partly'
>>> corner.judge({"cells that agree": over_seeds([0.6, 0.5, 0.6, 0.5, 0.4])}).verdict
'not reproduced'
>>> corner.leave_out("needs a larger machine").verdict
'left out'
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from probe.core.errors import OptionError

Mark = Literal["read", "second-hand", "memory", "derived", "measured"]
"""How well a published figure is attested; ``measured``: by us, before the rule was written."""

Verdict = Literal["reproduced", "partly", "not reproduced", "reported", "left out"]

_BOOTSTRAP = 2000


@dataclass(frozen=True)
class Line:
    """Where a number must lie, ends included."""

    low: float = -math.inf
    high: float = math.inf

    def __post_init__(self) -> None:
        if not self.low <= self.high:
            raise OptionError(
                f"a line from {self.low:g} to {self.high:g}", expected="the lower end first"
            )

    def holds(self, value: float) -> bool:
        """Whether the number lies there; a missing one (NaN) never does."""
        return bool(self.low <= value <= self.high)

    def __str__(self) -> str:
        if self.high == math.inf:
            return f"≥ {self.low:g}"
        if self.low == -math.inf:
            return f"≤ {self.high:g}"
        return f"{self.low:g} to {self.high:g}"


def at_least(low: int | float) -> Line:
    """This or more."""
    return Line(low=float(low))


def at_most(high: int | float) -> Line:
    """This or less."""
    return Line(high=float(high))


def between(low: int | float, high: int | float) -> Line:
    """From the one to the other."""
    return Line(float(low), float(high))


@dataclass(frozen=True)
class Measured:
    """One number of ours.

    Attributes:
        value: The median over seeds, a statistic over examples, or a number that has no spread.
        low: Lower end of its 95 % bootstrap interval.
        high: Upper end.
        n: Seeds or examples.
        over: What was resampled: seeds, prompts, ...; empty where nothing varies.
        each: The single values, where they are few.
    """

    value: float
    low: float
    high: float
    n: int = 1
    over: str = ""
    each: tuple[float, ...] = ()

    def holds(self, line: Line) -> bool:
        """Whether the number lies on the right side of the line."""
        return line.holds(self.value)

    def holds_whole(self, line: Line) -> bool:
        """Whether its interval does too."""
        return self.holds(line) and line.holds(self.low) and line.holds(self.high)


def over_seeds(values: Iterable[Any]) -> Measured:
    """The median over seeds of our own training, one number a seed."""
    each = tuple(float(value) for value in values)
    found = over_examples(each, np.median, of="seeds")
    return Measured(found.value, found.low, found.high, found.n, "seeds", each)


def over_examples(
    rows: Any, statistic: Callable[[np.ndarray], Any] = np.mean, *, of: str, seed: int = 0
) -> Measured:
    """A statistic over examples of one model: prompts, facts, heads.

    Args:
        rows: One row an example; ``[n]``, or ``[n, ...]`` for a statistic such as a ratio of means.
        statistic: Of the rows: a number.
        of: What a row is.
        seed: Of the bootstrap.

    >>> pairs = [[1.0, 2.0], [3.0, 6.0]]
    >>> over_examples(pairs, lambda rows: rows[:, 0].mean() / rows[:, 1].mean(), of="facts").value
    0.5
    """
    table = np.asarray(rows, dtype=float)
    if not len(table):
        raise OptionError(f"nothing was measured: no {of}", expected="at least one")
    value = float(statistic(table))
    if len(table) == 1:
        return Measured(value, math.nan, math.nan, 1, of)
    draws = np.random.default_rng(seed).integers(len(table), size=(_BOOTSTRAP, len(table)))
    low, high = np.quantile([statistic(table[draw]) for draw in draws], [0.025, 0.975])
    return Measured(value, float(low), float(high), len(table), of)


def exactly(value: int | float) -> Measured:
    """A number without spread: a bound, an identity, a count in weights that are given."""
    return Measured(float(value), float(value), float(value))


@dataclass(frozen=True)
class Claim:
    """One row of the report, written before measuring.

    Attributes:
        claim: What is claimed, in a few words.
        published: The published figure.
        source: Where it stands.
        mark: How well that is attested.
        rule: The rule in words, as fixed beforehand.
        reproduced: The line of each number; all must hold. Numbers without a line are reported.
        partly: Lines of the weaker verdict; the numbers named here must hold, no others. Without
            it a claim is partly reproduced where the medians hold and an interval does not.
        seeds: How many seeds *reproduced* needs of numbers measured over seeds.
    """

    claim: str
    published: str
    source: str
    mark: Mark
    rule: str
    reproduced: Mapping[str, Line] = field(default_factory=dict)
    partly: Mapping[str, Line] = field(default_factory=dict)
    seeds: int = 3

    def judge(self, measured: Mapping[str, Measured], note: str = "") -> "Finding":
        """The verdict on what was measured.

        Args:
            measured: Number → what was found; at least the numbers that have a line.
            note: What a reader should know: a departure, the reason for a miss.

        Raises:
            OptionError: A line without its number.
        """
        absent = [name for name in {**self.reproduced, **self.partly} if name not in measured]
        if absent:
            raise OptionError(
                f'"{self.claim}" was judged without {absent}', expected="a number for each line"
            )
        return Finding(self, dict(measured), verdict(self, measured), note)

    def leave_out(self, reason: str) -> "Finding":
        """A row that is not tested here, and why."""
        return Finding(self, {}, "left out", reason)


def verdict(claim: Claim, measured: Mapping[str, Measured]) -> Verdict:
    """What the rule says of these numbers."""
    if not claim.reproduced:
        return "reported"
    medians = all(measured[name].holds(line) for name, line in claim.reproduced.items())
    whole = all(
        measured[name].holds_whole(line) and _enough(measured[name], claim.seeds)
        for name, line in claim.reproduced.items()
    )
    if whole:
        return "reproduced"
    weaker = claim.partly and all(measured[k].holds(line) for k, line in claim.partly.items())
    return "partly" if medians or weaker else "not reproduced"


def _enough(number: Measured, seeds: int) -> bool:
    return number.over != "seeds" or number.n >= seeds


@dataclass(frozen=True)
class Finding:
    """A claim with our numbers and the verdict."""

    claim: Claim
    measured: Mapping[str, Measured]
    verdict: Verdict
    note: str = ""

    def rows(self) -> list[dict[str, Any]]:
        """One row for each number, or one without numbers."""
        about = {
            "claim": self.claim.claim,
            "verdict": self.verdict,
            "published": self.claim.published,
            "source": self.claim.source,
            "mark": self.claim.mark,
            "rule": self.claim.rule,
            "note": self.note,
        }
        return [
            about
            | {
                "measure": name,
                "value": found.value,
                "low": found.low,
                "high": found.high,
                "n": found.n,
                "over": found.over,
                "each": " ".join(f"{value:.6g}" for value in found.each),
                "line": str(self.claim.reproduced.get(name, "")),
                "line_partly": str(self.claim.partly.get(name, "")),
            }
            for name, found in (self.measured or {"": _NOTHING}).items()
        ]

    def __str__(self) -> str:
        said = [
            f"{name} {found.value:.4g}"
            + (f" [{found.low:.4g}, {found.high:.4g}]" if found.low < found.high else "")
            for name, found in self.measured.items()
        ]
        told = "; ".join(said) or self.note
        return f"{self.verdict:<14} {self.claim.claim}: {told}"


_NOTHING = Measured(math.nan, math.nan, math.nan, 0)

FINDING_COLUMNS = {
    "claim": "what is claimed",
    "verdict": "what the rule gives: reproduced, partly, not reproduced; reported; left out",
    "published": "published figure",
    "source": "where it is published",
    "mark": "how well the figure is attested: read, second-hand, memory, derived, measured",
    "rule": "the rule, fixed before measuring",
    "note": "departures, reasons",
    "measure": "what was measured",
    "value": "our number: median over seeds, or the statistic over examples",
    "low": "lower end of its 95 % bootstrap interval",
    "high": "upper end of its 95 % bootstrap interval",
    "n": "seeds or examples measured",
    "over": "what was resampled; empty where nothing varies",
    "each": "the value of each seed",
    "line": "where the number must lie for: reproduced",
    "line_partly": "where the number must lie for: partly",
}
