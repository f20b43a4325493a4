"""Numbers along one axis: lines with their interval, bars with error bars."""

from collections.abc import Iterator

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from probe.core.result import Result
from probe.viz import theme
from probe.viz.canvas import Spot, finish, name_axes, place, sheet, ticks
from probe.viz.sketch import (
    Axis,
    Panel,
    axis_of,
    has_intervals,
    hover,
    in_cell,
    panels,
    shown,
    texts,
)
from probe.viz.tokens import label


def line(result: Result) -> go.Figure:
    """One line for each value of ``color``, with a band where the number is a mean."""
    drawn, note = shown(result, panels(result))
    figure = sheet(drawn, theme.PANEL_HEIGHT)
    for at, x, parts in _each(result, drawn):
        for name, colour, part, first in parts:
            where = along(x, part.cells[x.name])
            if part.cells["low"].notna().any():
                figure.add_trace(_band(where, part.cells, colour, name), **at)
            trace = go.Scatter(
                x=where,
                y=part.cells[result.view.number].to_numpy(float),
                mode="lines+markers" if len(x.values) <= theme.MAX_MARKERS else "lines",
                line={"color": colour, "width": theme.LINE_WIDTH},
                marker={"size": theme.MARKER},
                hovertext=_hover(result, part, x),
                hoverinfo="text",
                **named(name, first=first),
            )
            figure.add_trace(trace, **at)
        if not numeric(x):
            figure.update_xaxes(ticks(x), **at)
    return _finish(figure, result, drawn, note)


def bar(result: Result) -> go.Figure:
    """One bar for each x, grouped by ``color``, with error bars where the number is a mean."""
    view = result.view
    drawn, note = shown(result, panels(result))
    figure = sheet(drawn, theme.PANEL_HEIGHT)
    for at, x, parts in _each(result, drawn):
        for name, colour, part, first in parts:
            height = part.cells[view.number].to_numpy(float)
            fit = len(x.values) <= theme.MAX_BAR_TEXTS
            by_sign = np.where(height < 0, theme.NEGATIVE, theme.POSITIVE)
            trace = go.Bar(
                x=x.places(part.cells[x.name]),
                y=height,
                marker={"color": by_sign if not name and view.scale == "signed" else colour},
                error_y=_error(part.cells, height),
                text=[in_cell(text) for text in _said(result, part)],
                textposition="auto" if view.text and fit else "none",
                hovertext=_hover(result, part, x),
                hoverinfo="text",
                **named(name, first=first),
            )
            figure.add_trace(trace, **at)
        figure.update_xaxes(ticks(x), **at)
    return _finish(figure, result, drawn, note)


def groups(result: Result, rows: pd.DataFrame) -> list[tuple[str, str, pd.DataFrame]]:
    """Name, colour and rows of each value of ``color``; coloured alike in every panel."""
    color = result.view.color
    if color is None or color == result.view.number:
        return [("", theme.POSITIVE, rows)]
    values = axis_of(result.frame, color).values
    pairs = zip(values, theme.group_colours(values), strict=True)
    split = [(label(value), colour, rows[rows[color] == value]) for value, colour in pairs]
    return [(name, colour, part) for name, colour, part in split if len(part)]


def along(axis: Axis, column: pd.Series) -> np.ndarray:
    """Where rows stand: at their number, or at the place of their word."""
    return column.to_numpy(float) if numeric(axis) else axis.places(column)


def numeric(axis: Axis) -> bool:
    """Whether an axis is a line of numbers rather than a row of words."""
    return all(
        isinstance(value, int | float) and not isinstance(value, bool) and word == str(value)
        for value, word in zip(axis.values, axis.words, strict=True)
    )


def named(name: str, *, first: bool) -> dict:
    """Legend settings: a group is listed once, whatever the number of panels."""
    return {"name": name, "legendgroup": name, "showlegend": bool(name) and first}


def _each(
    result: Result, drawn: list[Panel]
) -> Iterator[tuple[Spot, Axis, list[tuple[str, str, Panel, bool]]]]:
    """Where each panel stands, its x axis, and its groups (name, colour, part, first seen)."""
    seen: set[str] = set()
    for i, panel in enumerate(drawn):
        x = axis_of(panel.frame, result.view.x, (result.view.text,))
        parts = []
        for name, colour, cells in groups(result, panel.cells):
            order = np.argsort(x.places(cells[x.name]), kind="stable")
            part = Panel(panel.heading, panel.frame, cells.iloc[order])
            parts.append((name, colour, part, name not in seen))
            seen.add(name)
        yield place(i, len(drawn)), x, parts


def _said(result: Result, part: Panel) -> list[str]:
    return texts(part, result.view.axes, result.view.text)


def _hover(result: Result, part: Panel, x: Axis) -> list[str]:
    view = result.view
    axes = [x]
    if view.color is not None and view.color in view.axes:
        axes.append(axis_of(result.frame, view.color))
    said = _said(result, part)
    return hover(part.cells, axes, view.number, said, signed=view.scale == "signed")


def _error(cells: pd.DataFrame, height: np.ndarray) -> dict | None:
    if cells["low"].isna().all():
        return None
    return {
        "type": "data",
        "symmetric": False,
        "array": cells["high"].to_numpy(float) - height,
        "arrayminus": height - cells["low"].to_numpy(float),
        "thickness": 1,
        "width": theme.ERROR_WIDTH,
        "color": theme.INK,
    }


def _band(where: np.ndarray, cells: pd.DataFrame, colour: str, name: str) -> go.Scatter:
    """The interval of a line, as an outline filled in."""
    known = cells["low"].notna().to_numpy()
    x, low, high = where[known], cells["low"].to_numpy()[known], cells["high"].to_numpy()[known]
    return go.Scatter(
        x=np.concatenate([x, x[::-1]]),
        y=np.concatenate([high, low[::-1]]),
        fill="toself",
        fillcolor=colour,
        opacity=theme.BAND_OPACITY,
        mode="none",
        hoverinfo="skip",
        legendgroup=name,
        showlegend=False,
    )


def _finish(figure: go.Figure, result: Result, drawn: list[Panel], note: str) -> go.Figure:
    view = result.view
    name_axes(figure, result, view.x, view.number, len(drawn))
    if view.color is not None:
        figure.update_layout(legend_title_text=label(view.color))
    return finish(figure, result, note=note, intervals=has_intervals(drawn))
