"""What a view asks for, resolved against its table: axes with their words, panels, hover text.

Positions stand on an axis by their index and carry their token as a tick label, so two equal
tokens stay two ticks.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from probe.core.errors import OptionError
from probe.core.result import Result
from probe.viz import theme
from probe.viz.tokens import label, visible

_POSITIONS = ("pos", "query", "key")
_TOKEN_COLUMNS = ("str_token", "token", "string")


@dataclass(frozen=True)
class Axis:
    """One column laid out along a figure.

    Attributes:
        name: The column.
        values: Its values: numbers in order, words as they come.
        words: What stands beside each tick: the token, else the value itself.
    """

    name: str
    values: tuple[Hashable, ...]
    words: tuple[str, ...]

    def places(self, column: pd.Series) -> np.ndarray:
        """The index on this axis of each entry of a column."""
        index = {value: place for place, value in enumerate(self.values)}
        return column.map(index).to_numpy(int)

    @property
    def tick_values(self) -> list[int]:
        """Places that get a tick: all of them while they can be read."""
        step = -(-len(self.values) // theme.MAX_TICKS)
        return list(range(0, len(self.values), max(step, 1)))

    @property
    def tick_texts(self) -> list[str]:
        """What the ticks say."""
        return [label(self.words[place], theme.TICK_LETTERS) for place in self.tick_values]

    def said(self, place: int) -> str:
        """One value in the words of a hover box: ``pos 5 ·Mary``."""
        value, word = str(self.values[place]), self.words[place]
        extra = "" if word == value else f" {label(word)}"
        return f"{label(self.name)} {label(value)}{extra}"


@dataclass(frozen=True)
class Panel:
    """The part of a table that one panel shows.

    Attributes:
        heading: What the panel says it is; empty where there is only one.
        frame: The rows of the result in this panel.
        cells: Their summary: axis columns, the number, low, high, n.
    """

    heading: str
    frame: pd.DataFrame
    cells: pd.DataFrame


def panels(result: Result, by: Sequence[str] | None = None, *, n_boot: int = 1000) -> list[Panel]:
    """A result's summary, split by the facet of its view.

    Args:
        result: What to draw.
        by: Columns to keep apart; by default the axes of the view.
        n_boot: Bootstrap draws of the intervals.

    Raises:
        OptionError: Several rows fall on one place, or there is nothing to draw.
    """
    view, frame = result.view, result.frame
    by = list(dict.fromkeys(view.axes if by is None else by))
    _check(result, by)
    cells = result.summary(by, n_boot=n_boot).dropna(subset=by)
    doubled = cells.duplicated(by)
    if doubled.any():
        where = cells.loc[doubled, by].iloc[0].to_dict()
        others = [name for name in frame if name not in by and frame[name].nunique() > 1]
        raise OptionError(
            f"{int(doubled.sum())} rows fall on a place that another row has, one at {where}",
            expected=f"one row for each of {by}",
            remedy=f"name one of {others} as color or facet of the view, or keep one value of it",
        )
    facet = view.facet if view.facet in by else None
    if facet is None:
        return [Panel("", frame, cells)]
    values = axis_of(frame, facet).values
    return [
        Panel(f"{facet} {value}", frame[frame[facet] == value], cells[cells[facet] == value])
        for value in values
    ]


def shown(result: Result, all_panels: list[Panel]) -> tuple[list[Panel], str]:
    """The panels that fit, and what to say about all that is left out."""
    notes = []
    for name in result.view.axes:
        absent = int(result.frame[name].isna().sum())
        notes += [f"{absent} rows without a {name} are not drawn"] if absent else []
    if len(all_panels) > theme.MAX_PANELS:
        notes.append(f"the first {theme.MAX_PANELS} of {len(all_panels)} panels")
    return all_panels[: theme.MAX_PANELS], " · ".join(notes)


def axis_of(frame: pd.DataFrame, name: str, taken: Sequence[str | None] = ()) -> Axis:
    """The values of a column in drawing order, with their tokens where the table has them."""
    values = frame[name].dropna().unique().tolist()
    if pd.api.types.is_numeric_dtype(frame[name].dtype):
        values = sorted(values)
    words = _tokens_of(frame, name, taken)
    return Axis(name, tuple(values), tuple(words.get(value, str(value)) for value in values))


def _tokens_of(frame: pd.DataFrame, name: str, taken: Sequence[str | None]) -> dict:
    """The token of each position, if one column has exactly one for each."""
    columns = [f"{name}_token", f"{name}_str_token"]
    columns += _TOKEN_COLUMNS if name in _POSITIONS else ()
    for column in columns:
        if column in frame and column not in taken:
            pairs = frame[[name, column]].dropna().drop_duplicates()
            if not pairs.empty and pairs[name].is_unique:
                return dict(zip(pairs[name], map(str, pairs[column]), strict=True))
    return {}


def texts(panel: Panel, by: Sequence[str], column: str | None) -> list[str]:
    """A text column for each cell, empty where the examples of a cell do not agree."""
    if column is None:
        return [""] * len(panel.cells)
    pairs = panel.frame[[*by, column]].drop_duplicates()
    pairs = pairs[~pairs.duplicated(list(by), keep=False)] if by else pairs.iloc[:0]
    merged = panel.cells[list(by)].merge(pairs, on=list(by), how="left")[column]
    return ["" if pd.isna(text) else str(text) for text in merged]


def hover(
    cells: pd.DataFrame, axes: Sequence[Axis], number: str, said: Sequence[str], *, signed: bool
) -> list[str]:
    """What each cell says when pointed at: where it is, its number, the interval, the text."""
    places = [axis.places(cells[axis.name]).tolist() for axis in axes]
    lines = []
    columns = zip(cells[number], cells["low"], cells["high"], cells["n"], said, strict=True)
    for row, (value, low, high, n, text) in enumerate(columns):
        parts = [axis.said(place[row]) for axis, place in zip(axes, places, strict=True)]
        line = f"{label(number)} {theme.number(float(value), sign=signed)}"
        if np.isfinite(low):
            line += f" [{theme.number(low)}, {theme.number(high)}]"
        parts.append(line if n == 1 else f"{line}, n={n}")
        lines.append("<br>".join([*parts, label(text)] if text else parts))
    return lines


def in_cell(text: str) -> str:
    """A text short enough to stand in a cell."""
    return label(text, theme.CELL_LETTERS) if text else ""


def has_intervals(all_panels: Sequence[Panel]) -> bool:
    """Whether any number drawn is a mean over several examples."""
    return any(panel.cells["low"].notna().any() for panel in all_panels)


def _check(result: Result, by: Sequence[str]) -> None:
    missing = [name for name in [*by, result.view.number] if name not in result.frame]
    if missing:
        raise OptionError(
            f"the view draws columns {missing} that the table does not have",
            expected=f"columns of the table: {list(result.frame.columns)}",
        )
    if result.frame.empty:
        raise OptionError(
            f"{visible(result.provenance.method)} returned no rows, so there is nothing to draw"
        )
