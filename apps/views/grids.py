"""Tidy rows laid out on axes."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray


def grid(
    frame: pd.DataFrame, axes: Mapping[str, Sequence[int]], value: str = "value"
) -> NDArray[np.floating]:
    """One column as an array with the named axes; NaN where the table has no row.

    The steps of each axis are in rising order.

    >>> frame = pd.DataFrame({"layer": [0, 1], "head": [1, 0], "value": [5.0, 6.0]})
    >>> grid(frame, {"layer": range(2), "head": range(2)}).tolist()
    [[nan, 5.0], [6.0, nan]]
    """
    steps = {name: np.asarray(list(labels)) for name, labels in axes.items()}
    rows = frame[np.logical_and.reduce([frame[name].isin(known) for name, known in steps.items()])]
    filled = np.full([len(known) for known in steps.values()], np.nan, dtype=np.float32)
    at = tuple(np.searchsorted(known, rows[name]) for name, known in steps.items())
    filled[at] = rows[value].to_numpy(dtype=np.float32)
    return filled


def words(frame: pd.DataFrame, axes: Mapping[str, Sequence[int]], column: str) -> list[str]:
    """One text column in the order of the cells; empty where the table has no row."""
    by_place = dict(
        zip(zip(*(frame[name] for name in axes), strict=True), frame[column], strict=True)
    )
    index = pd.MultiIndex.from_product([list(steps) for steps in axes.values()])
    return [str(by_place.get(place, "")) for place in index]
