"""What there is to say of one feature: its distribution, and examples chosen from all of it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from probe.dictionaries.firings import Firings

BINS = 50
_ALIKE = 5
"""Tokens before and after by which two examples count as the same."""
_CANDIDATES = 8
"""Examples looked at for each that is kept, since some are alike."""


class Summariser:
    """Summaries of features over the same text.

    Args:
        tokens: Row of text → its token ids.
        n_top: Strongest examples kept.
        n_intervals: Intervals of each kind.
        per_interval: Examples kept of each interval.
        seed: Chooses them.
    """

    def __init__(
        self,
        tokens: Sequence[Sequence[int]],
        *,
        n_top: int,
        n_intervals: int,
        per_interval: int,
        seed: int,
    ) -> None:
        self.tokens, self.seed = tokens, seed
        self.n_top, self.n_intervals, self.per_interval = n_top, n_intervals, per_interval

    def of(self, feature: int, firings: Firings) -> dict[str, Any]:
        """One feature, as JSON can hold it; empty lists where it never fires."""
        if not len(firings):
            return {
                "histogram": [0] * BINS, "fires_on": [], "top": [], "equal_width": [],
                "equal_count": [],
            }  # fmt: skip
        rng = np.random.default_rng([self.seed, feature])
        value = firings.value.astype(np.float64)
        order = np.argsort(-value, kind="stable")
        return {
            "histogram": np.histogram(value, BINS, (0, value.max()))[0].tolist(),
            "fires_on": self._fires_on(firings),
            "top": self._top(firings, order),
            "equal_width": self._intervals(firings, equal_width(value, self.n_intervals), rng),
            "equal_count": self._intervals(firings, equal_count(value, self.n_intervals), rng),
        }

    def _fires_on(self, firings: Firings, most: int = 10) -> list[tuple[int, float, int]]:
        """The tokens it fires on: token, share of its whole activation, how often."""
        ids = np.array([self.tokens[r][p] for r, p in zip(firings.row, firings.pos, strict=True)])
        unique, inverse, count = np.unique(ids, return_inverse=True, return_counts=True)
        total = np.bincount(inverse, weights=firings.value)
        share = total / total.sum()
        best = np.argsort(-share, kind="stable")[:most]
        return [(int(unique[i]), rounded(share[i]), int(count[i])) for i in best]

    def _top(self, firings: Firings, order: NDArray[np.intp]) -> list[list[Any]]:
        """Strongest first; one a row, and of equal contexts one, with how many there are."""
        found: dict[tuple[int, ...], list[Any]] = {}
        rows: set[int] = set()
        for place in order[: self.n_top * _CANDIDATES].tolist():
            row, pos = int(firings.row[place]), int(firings.pos[place])
            if row in rows:
                continue
            rows.add(row)
            context = tuple(self.tokens[row][max(0, pos - _ALIKE) : pos + _ALIKE + 1])
            if context in found:
                found[context][3] += 1
            elif len(found) < self.n_top:
                found[context] = self._example(firings, place)
        return list(found.values())

    def _intervals(
        self,
        firings: Firings,
        intervals: Sequence[tuple[float, float, NDArray[np.intp]]],
        rng: np.random.Generator,
    ) -> list[dict[str, Any]]:
        made = []
        for low, high, members in intervals:
            drawn = rng.permutation(members)[: self.per_interval].tolist()
            examples = [self._example(firings, place) for place in drawn]
            share = rounded(len(members) / len(firings))
            made.append(
                {"low": rounded(low), "high": rounded(high), "share": share, "examples": examples}
            )
        return made

    def _example(self, firings: Firings, place: int) -> list[Any]:
        """Row, position, activation, how many alike, and where else in the row it fires."""
        row = int(firings.row[place])
        start, stop = np.searchsorted(firings.row, [row, row + 1])
        places = zip(
            firings.pos[start:stop].tolist(), firings.value[start:stop].tolist(), strict=True
        )
        others = [(p, rounded(v)) for p, v in places]
        return [row, int(firings.pos[place]), rounded(float(firings.value[place])), 1, others]


def equal_width(
    value: Float[np.ndarray, " firing"], n: int
) -> list[tuple[float, float, NDArray[np.intp]]]:
    """Intervals of one width from 0 to the largest activation, highest first: low, high, members.

    These are not quantiles: most activations lie in the lowest. Empty ones are left out.
    """
    edges = np.linspace(0, value.max(), n + 1)
    which = np.clip(np.searchsorted(edges, value, side="left") - 1, 0, n - 1)
    each = [(edges[i], edges[i + 1], np.flatnonzero(which == i)) for i in reversed(range(n))]
    return [(float(low), float(high), members) for low, high, members in each if len(members)]


def equal_count(
    value: Float[np.ndarray, " firing"], n: int
) -> list[tuple[float, float, NDArray[np.intp]]]:
    """Intervals that hold as many activations each (to one), highest first: low, high, members."""
    order = np.argsort(-value, kind="stable")
    groups = [group for group in np.array_split(order, n) if len(group)]
    return [(float(value[g].min()), float(value[g].max()), g) for g in groups]


def rounded(value: float) -> float:
    """Four digits: what a page shows."""
    return float(f"{value:.4g}")
