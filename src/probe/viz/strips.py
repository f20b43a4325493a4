"""Tokens coloured by a number, and plain tables."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from probe.core.result import Result
from probe.viz import theme
from probe.viz.canvas import colour, finish, place, sheet
from probe.viz.sketch import Axis, Panel, axis_of, has_intervals, hover, panels, shown, texts
from probe.viz.tokens import label


def tokens(result: Result) -> go.Figure:
    """Each prompt as lines of tokens, coloured by its number; one panel for each prompt."""
    view = result.view
    apart = [*view.axes]
    if view.facet is None and "batch" in result.frame and result.frame["batch"].nunique() > 1:
        # Prompts differ in their tokens, so their numbers at one position have no common place.
        apart.append("batch")
        view = view.model_copy(update={"facet": "batch"})
        result = Result(result.frame, result.columns, view, result.provenance)
    drawn, note = shown(result, panels(result, apart))
    longest = max(len(panel.cells) for panel in drawn)
    lines = -(-longest // theme.TOKENS_IN_ROW)
    figure = sheet(
        drawn, max(lines * theme.STRIP_HEIGHT, theme.STRIP_HEIGHT), columns=1, gap=theme.STRIP_GAP
    )
    for i, panel in enumerate(drawn):
        at = place(i, len(drawn), columns=1)
        x = axis_of(panel.frame, view.x)
        figure.add_trace(_strip(result, panel, x), **at)
        figure.update_xaxes(visible=False, range=[-0.5, theme.TOKENS_IN_ROW - 0.5], **at)
        figure.update_yaxes(visible=False, range=[lines - 0.5, -0.5], **at)
    numbers = np.concatenate([panel.cells[view.number].to_numpy(float) for panel in drawn])
    colour(figure, view.scale, view.number, numbers, flat=True)
    return finish(figure, result, note=note, intervals=has_intervals(drawn))


def table(result: Result) -> go.Figure:
    """The first rows of the table as they are."""
    frame, n = result.frame, theme.MAX_TABLE_ROWS
    head = frame.head(n)
    header = {"values": [f"<b>{label(name)}</b>" for name in frame.columns], "align": "left"}
    line = {"color": theme.RULE}
    header |= {"line": line, "fill": {"color": theme.STRIPE}, "height": theme.TABLE_ROW}
    cells = {"values": [column_words(head[name]) for name in frame.columns], "align": "left"}
    cells |= {"line": line, "fill": {"color": theme.PAPER}, "height": theme.TABLE_ROW}
    figure = go.Figure(go.Table(header=header, cells=cells))
    rows = min(len(head) + 2, theme.MAX_PLOT // theme.TABLE_ROW)
    figure.update_layout(
        theme.layout(), height=rows * theme.TABLE_ROW + theme.MARGIN["t"] + theme.MARGIN["b"]
    )
    note = f"the first {n} of {len(frame)} rows" if len(frame) > n else ""
    return finish(figure, result, note=note)


def column_words(column: pd.Series) -> list[str]:
    """A column as plotly labels: short numbers, visible text."""
    if pd.api.types.is_float_dtype(column.dtype):
        return [theme.number(float(value)) for value in column]
    return [
        "–" if value is None or value is pd.NA else label(value, theme.TABLE_LETTERS)
        for value in column
    ]


def _strip(result: Result, panel: Panel, x: Axis) -> go.Heatmap:
    view, cells, wide = result.view, panel.cells, theme.TOKENS_IN_ROW
    index = x.places(cells[view.x])
    lines = int(index.max()) // wide + 1
    z = np.full(lines * wide, np.nan)
    words = np.full(lines * wide, "", dtype=object)
    hovers = words.copy()
    z[index] = cells[view.number]
    said = texts(panel, [view.x], view.text) if view.text else [x.words[i] for i in index]
    words[index] = [label(word, theme.TICK_LETTERS) for word in said]
    hovers[index] = hover(cells, [x], view.number, said, signed=view.scale == "signed")
    return go.Heatmap(
        z=z.reshape(lines, wide),
        text=words.reshape(lines, wide).tolist(),
        texttemplate="%{text}",
        textfont={"size": theme.SIZE},
        hovertext=hovers.reshape(lines, wide).tolist(),
        hoverinfo="text",
        hoverongaps=False,
        coloraxis="coloraxis",
        xgap=2,
        ygap=4,
    )
