"""What a colour means, once for canvases and charts; and how numbers are written.

Attention runs from the background to blue, activations and probabilities to orange, so the two
are never confused. Signed numbers are blue where they raise the target and orange where they
lower it, with the background at zero. In the dark theme the same scales begin at the dark
background and end bright.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from math import isfinite
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Scale = Literal["attention", "activation", "signed"]

HONEST_QUANTILE = 0.995
"""Colours saturate at this quantile, so one outlier cannot bleach a whole picture."""


@dataclass(frozen=True)
class Limits:
    """The values at the two ends of a colour scale, and whether values beyond them exist."""

    low: float
    high: float
    cut: bool = False

    def words(self) -> str:
        """For a legend.

        >>> Limits(-2.0, 2.0).words()
        '−2.00 to +2.00'
        """
        signed = self.low < 0
        why = ", the 99.5th percentile" if self.cut else ""
        return f"{number(self.low, sign=signed)} to {number(self.high, sign=signed)}{why}"


def limits(values: ArrayLike, scale: Scale) -> Limits:
    """Ends of the colour scale: from zero to the 99.5th percentile, or symmetric about zero.

    >>> limits([-3.0, 1.0], "signed").high == -limits([-3.0, 1.0], "signed").low
    True
    """
    finite = np.abs(np.asarray(values, dtype=np.float64))
    finite = finite[np.isfinite(finite)]
    top = float(np.quantile(finite, HONEST_QUANTILE)) if finite.size else 0.0
    largest = float(finite.max()) if finite.size else 0.0
    top = top or largest or 1.0
    return Limits(-top if scale == "signed" else 0.0, top, cut=top < largest)


def to_bytes(values: NDArray[np.floating], ends: Limits, gamma: float = 1.0) -> bytes:
    """One byte a cell: 0 at the low end, 255 at the high end; missing cells are 0."""
    unit = (np.nan_to_num(values.astype(np.float32)) - ends.low) / (ends.high - ends.low)
    return np.rint(np.clip(unit, 0, 1) ** gamma * 255).astype(np.uint8).tobytes()


def number(value: float | None, digits: int = 2, *, sign: bool = False) -> str:
    """A number as it is printed everywhere: a true minus, and a plus where signs matter.

    >>> number(-1.234), number(0.5, sign=True), number(float("nan"))
    ('−1.23', '+0.50', '–')
    """
    if value is None or not isfinite(value):
        return "–"
    return f"{value:{'+' if sign else ''}.{digits}f}".replace("-", "−")


def percent(value: float | None) -> str:
    """A probability as a percentage that never rounds to a false 0 or 100.

    >>> percent(0.5), percent(0.00001), percent(0.99999)
    ('50.0 %', '< 0.1 %', '> 99.9 %')
    """
    if value is None or not isfinite(value):
        return "–"
    if 0 < value < 0.0005:
        return "< 0.1 %"
    if 0.9995 < value < 1:
        return "> 99.9 %"
    return f"{100 * value:.1f} %"


def floats(values: Iterable[float]) -> list[float | None]:
    """Numbers for JSON, which has no NaN."""
    return [float(v) if isfinite(v) else None for v in values]
