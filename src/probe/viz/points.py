"""One point for each row of a table, on two of its numbers."""

import pandas as pd
import plotly.graph_objects as go

from probe.core.errors import OptionError
from probe.core.result import Result
from probe.viz import theme
from probe.viz.canvas import colour, finish, name_axes, sheet, ticks
from probe.viz.lines import along, groups, named, numeric
from probe.viz.sketch import Panel, axis_of
from probe.viz.tokens import label

_HOVER_COLUMNS = 8


def scatter(result: Result) -> go.Figure:
    """One point for each row, never a mean; ``color`` is a group, or a number on the scale."""
    view, frame = result.view, result.frame
    _check(result)
    figure = sheet([Panel("", frame, frame)], theme.PANEL_HEIGHT)
    x, y = axis_of(frame, view.x), axis_of(frame, view.y)
    kind = go.Scattergl if len(frame) > theme.MAX_POINTS_SVG else go.Scatter
    graded = view.color is not None and pd.api.types.is_float_dtype(frame[view.color].dtype)
    for name, tone, rows in [("", theme.POSITIVE, frame)] if graded else groups(result, frame):
        marker = {"size": theme.MARKER, "opacity": theme.POINT_OPACITY, "color": tone}
        if graded:
            marker |= {"color": rows[view.color].to_numpy(float), "coloraxis": "coloraxis"}
        figure.add_trace(
            kind(
                x=along(x, rows[view.x]),
                y=along(y, rows[view.y]),
                mode="markers",
                marker=marker,
                hovertext=_hover(result, rows),
                hoverinfo="text",
                **named(name, first=True),
            )
        )
    if graded:
        colour(figure, view.scale, str(view.color), frame[view.color].to_numpy(float))
    elif view.color is not None:
        figure.update_layout(legend_title_text=label(view.color))
    for axis, update in ((x, figure.update_xaxes), (y, figure.update_yaxes)):
        if not numeric(axis):
            update(ticks(axis))
    name_axes(figure, result, view.x, view.y, 1)
    return finish(figure, result)


def _hover(result: Result, rows: pd.DataFrame) -> list[str]:
    view = result.view
    first = [name for name in (view.text, view.x, view.y, view.color) if name]
    names = list(dict.fromkeys([*first, *rows.columns]))[:_HOVER_COLUMNS]
    columns = [rows[name].tolist() for name in names]
    return [
        "<br>".join(f"{label(name)} {_word(v)}" for name, v in zip(names, row, strict=True))
        for row in zip(*columns, strict=True)
    ]


def _word(value: object) -> str:
    return theme.number(value) if isinstance(value, float) else label(value)


def _check(result: Result) -> None:
    view, frame = result.view, result.frame
    missing = [n for n in (view.x, view.y, view.color) if n is not None and n not in frame]
    if missing:
        raise OptionError(
            f"the view draws columns {missing} that the table does not have",
            expected=f"columns of the table: {list(frame.columns)}",
        )
    if frame.empty:
        raise OptionError("the table has no rows, so there is nothing to draw")
