"""What units fire on, features and neurons alike: what studies of dictionaries measure them by.

Activations are sparse columns, [token, unit], over the same tokens for all that is compared. *Top
decile*: of the tokens on which a unit fires, the tenth on which it is strongest.
"""

import re
from bisect import bisect_left
from collections.abc import Callable, Sequence

import numpy as np
import torch
from scipy import sparse, stats

FEWEST = 100
"""Tokens on which a unit must fire to be judged by them."""
ENOUGH = 0.9
"""Share from which on something is said to be all of one kind."""
_AT_ONCE = 4096
_DENSE = 0.05
"""Activations above zero, as a share, above which dense products are the faster."""

Acts = sparse.csc_array
"""Activations [token, unit]."""


def activations(encode: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> Acts:
    """What a dictionary's ``encode`` makes of activations [token, d]; ``torch.relu``: neurons."""
    parts = [sparse.csr_array(encode(part.float()).numpy()) for part in x.split(_AT_ONCE)]
    return sparse.csc_array(sparse.vstack(parts))


def counts(acts: Acts) -> np.ndarray:
    """Tokens on which each unit fires."""
    return np.diff(acts.indptr)


def judged(acts: Acts) -> np.ndarray:
    """The units that fire often enough."""
    return np.flatnonzero(counts(acts) >= FEWEST)


def strongest(acts: Acts, unit: int, n: int | None = None) -> np.ndarray:
    """The tokens on which a unit is strongest: its top decile, or ``n``."""
    inside = slice(*acts.indptr[unit : unit + 2])
    n = -(-(inside.stop - inside.start) // 10) if n is None else n
    return acts.indices[inside][np.argsort(-acts.data[inside], kind="stable")[:n]]


def purity(acts: Acts, rules: Sequence[np.ndarray], n: int | None = None) -> np.ndarray:
    """Of each judged unit, the largest share of its strongest tokens that one rule explains.

    Args:
        acts: Activations.
        rules: Kinds of rule; each has a label for every token, -1 where none applies. A rule says
            "the label is this one".
        n: How many tokens; by default the top decile.
    """
    return np.array([max(_commonest(labels[strongest(acts, unit, n)]) for labels in rules)
                     for unit in judged(acts)])  # fmt: skip


def _commonest(labels: np.ndarray) -> float:
    """Share of the commonest label, of all there are."""
    known = labels[labels >= 0]
    return np.bincount(known).max() / len(labels) if len(known) else 0.0


def in_one(acts: Acts, labels: np.ndarray) -> np.ndarray:
    """Of each judged unit, the largest share of its summed activation that has one label."""
    which, known = judged(acts), np.flatnonzero(labels >= 0)
    shape = (len(labels), labels.max(initial=0) + 1)
    member = sparse.csr_array((np.ones(len(known)), (known, labels[known])), shape)
    inside = (acts[:, which].T @ member).max(1).toarray().ravel()
    return inside / acts[:, which].sum(0)


def correlations(a: Acts, b: Acts) -> np.ndarray:
    """Pearson correlation of every unit of ``a`` with every unit of ``b``; 0 of constant ones."""
    n = a.shape[0]
    mean_a, mean_b = a.mean(0), b.mean(0)
    together = _product(a, b) / n - np.outer(mean_a, mean_b)
    spread_a, spread_b = (np.sqrt(np.maximum(u.power(2).mean(0) - m**2, 0))
                          for u, m in ((a, mean_a), (b, mean_b)))  # fmt: skip
    both = np.outer(spread_a, spread_b)
    return np.divide(together, both, out=np.zeros_like(together), where=both > 0)


def _product(a: Acts, b: Acts) -> np.ndarray:
    """aᵀb, dense where that is faster."""
    if min(u.nnz / max(1, np.prod(u.shape)) for u in (a, b)) > _DENSE:
        return (a.toarray().T @ b.toarray()).astype(float)
    return (a.T @ b).toarray().astype(float)


# --- contexts ------------------------------------------------------------------------------------


def contexts(rows: torch.Tensor, tokenizer, patterns: dict[str, str]) -> np.ndarray:
    """Which pattern each token stands in, by number, -1 for none; BOS left out, rows in a line."""
    pieces = [tokenizer.decode([token]) for token in range(len(tokenizer))]
    return np.concatenate([_inside([pieces[token] for token in row[1:]], list(patterns.values()))
                           for row in rows.tolist()])  # fmt: skip


def _inside(pieces: list[str], patterns: list[str]) -> np.ndarray:
    starts = np.cumsum([0, *map(len, pieces)])[:-1]
    found = np.full(len(pieces), -1)
    for number, pattern in enumerate(patterns):
        for match in re.finditer(pattern, "".join(pieces), re.MULTILINE):
            first, last = (bisect_left(starts, place) for place in match.span())
            found[first:last] = number
    return found


# --- two modes -----------------------------------------------------------------------------------


def dip(values: np.ndarray) -> float:
    """Hartigan and Hartigan's dip: the distance to the nearest unimodal distribution.

    The modal interval is narrowed by where the greatest convex minorant of the empirical
    distribution and its least concave majorant are farthest apart, until they are nowhere farther
    apart than they are, outside, from the distribution itself (Annals of Statistics 1985, p. 75).
    """
    x = np.sort(np.asarray(values, float))
    n = len(x)
    first, last, worst = 0, n - 1, 1.0
    while first < last:
        at = np.arange(first, last + 1)
        low, high = _hull(x, at, -1), _hull(x, at, 1)
        minorant, majorant = np.interp(x[at], x[low], low), np.interp(x[at], x[high], high + 1)
        apart = majorant - minorant
        touching = np.union1d(low, high)
        widest = touching[np.argmax(apart[touching - first])]
        if apart[widest - first] <= worst:
            break
        if widest in low:
            left, right = widest, high[np.searchsorted(high, widest)]
        else:
            left, right = low[np.searchsorted(low, widest, "right") - 1], widest
        before, after = at <= left, at >= right
        worst = max(worst, (at + 1 - minorant)[before].max(), (majorant - at)[after].max())
        if (left, right) == (first, last):
            break
        first, last = left, right
    return worst / (2 * n)


def _hull(x: np.ndarray, at: np.ndarray, side: int) -> np.ndarray:
    """Where the lower (-1) or upper (1) hull of the points (x_i, i) touches them."""
    kept: list[int] = []
    for i in at.tolist():
        while len(kept) > 1:
            a, b = kept[-2:]
            turn = (b - a) * (x[i] - x[b]) - (i - b) * (x[b] - x[a])
            if side * turn > 0:
                break
            kept.pop()
        kept.append(i)
    return np.array(kept)


def dip_test(values: np.ndarray, draws: int = 200, seed: int = 0) -> float:
    """Probability of a dip as large in a uniform sample of as many."""
    random, found = np.random.default_rng(seed), dip(values)
    larger = sum(dip(random.random(len(values))) >= found for _ in range(draws))
    return (1 + larger) / (1 + draws)


def between_modes(values: np.ndarray) -> float:
    """Distance between the two highest peaks of a kernel density estimate; 0 if there is one."""
    grid = np.linspace(values.min() - 1, values.max() + 1, 500)
    height = stats.gaussian_kde(values)(grid)
    peaks = 1 + np.flatnonzero((height[1:-1] > height[:-2]) & (height[1:-1] >= height[2:]))
    if len(peaks) < 2:
        return 0.0
    return float(np.ptp(grid[peaks[np.argsort(height[peaks])[-2:]]]))
