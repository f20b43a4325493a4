"""A heatmap with named axes on one canvas: the lens and the attribution of heads."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import streamlit as st
from numpy.typing import NDArray

from apps.components.colours import Limits, Scale
from apps.components.wire import component, pack

_draw = component("matrix")

LARGEST = 40_000
"""Cells of one canvas; a larger matrix is refused with a remedy rather than drawn slowly."""


@dataclass(frozen=True)
class Axis:
    """One axis: its name and the label of each step."""

    name: str
    labels: Sequence[str]


@dataclass(frozen=True)
class Cell:
    """A cell by its place in the matrix."""

    row: int
    column: int


def matrix_view(
    values: NDArray[np.floating],
    rows: Axis,
    columns: Axis,
    tips: Sequence[Sequence[str]],
    *,
    scale: Scale,
    ends: Limits,
    words: Sequence[str] | None = None,
    small: Sequence[bool] | None = None,
    selected: Cell | None = None,
    legend: str = "",
    alt: str = "",
    cell_height: int = 20,
    cell_width: tuple[int, int] = (12, 96),
    gamma: float = 1.0,
) -> tuple[dict[str, Any], bytes]:
    """The matrix as a plain dict and its cells.

    Args:
        values: ``[row, column]``; NaN where there is no value.
        rows: The vertical axis, from the top.
        columns: The horizontal axis.
        tips: Lines of each cell's tooltip, row by row.
        scale: What the colours mean.
        ends: Values at the two ends of the colours.
        words: What is written in each cell where there is room.
        small: Which cells are drawn as small squares, being less certain than the others.
        selected: The outlined cell.
        legend: What the colours mean, in words.
        alt: One sentence that says what the picture is.
        cell_height: Pixels.
        cell_width: Least and largest number of pixels.
        gamma: Below 1, faint values are drawn stronger.
    """
    if values.size > LARGEST:
        raise ValueError(f"{values.size} cells; at most {LARGEST} are drawn")
    head = {
        "rows": list(rows.labels),
        "columns": list(columns.labels),
        "row_axis": rows.name,
        "column_axis": columns.name,
        "tips": [list(lines) for lines in tips],
        "words": list(words) if words is not None else None,
        "small": list(small) if small is not None else None,
        "low": ends.low,
        "high": ends.high,
        "scale": scale,
        "selected": [selected.row, selected.column] if selected else None,
        "legend": legend,
        "alt": alt,
        "cell_height": cell_height,
        "min_width": cell_width[0],
        "max_width": cell_width[1],
        "gamma": gamma,
    }
    return head, values.astype("<f4").tobytes()


def matrix(
    view: tuple[dict[str, Any], bytes], *, key: str, on_pick: Callable[[Cell], None]
) -> None:
    """Draw the matrix; `on_pick` is called with the cell that was clicked."""

    def picked() -> None:
        value = st.session_state[key].picked
        on_pick(Cell(int(value["row"]), int(value["column"])))

    _draw(key=key, data=pack(*view), on_picked_change=picked)
