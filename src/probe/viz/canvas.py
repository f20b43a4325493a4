"""The sheet a figure is drawn on: panels, axis words that explain themselves, titles."""

from collections.abc import Sequence
from typing import Any, TypedDict

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Float
from plotly.subplots import make_subplots

from probe.core.result import Result, Scale
from probe.viz import theme
from probe.viz.sketch import Axis, Panel
from probe.viz.tokens import label, wrapped

_READ_DOWNWARDS = ("query", "pos", "batch", "rank")


def sheet(
    drawn: Sequence[Panel],
    height: int,
    columns: int = theme.PANEL_COLUMNS,
    gap: int = theme.ROW_GAP,
) -> go.Figure:
    """An empty figure with one place for each panel, so many in a row."""
    columns = min(len(drawn), columns)
    rows = -(-len(drawn) // columns)
    plot = height if rows == 1 else min(height, theme.SMALL_PANEL_HEIGHT)
    total = plot * rows + gap * (rows - 1)
    figure = make_subplots(
        rows=rows,
        cols=columns,
        subplot_titles=[label(panel.heading) for panel in drawn] if len(drawn) > 1 else None,
        horizontal_spacing=theme.COLUMN_GAP / columns,
        vertical_spacing=gap / total if rows > 1 else 0,
    )
    figure.update_layout(theme.layout(), height=total + theme.MARGIN["t"] + theme.MARGIN["b"])
    figure.update_annotations(font={"size": theme.SIZE, "color": theme.INK})
    figure.update_xaxes(theme.axis())
    figure.update_yaxes(theme.axis())
    return figure


class Spot(TypedDict):
    """Where a panel stands, counted from 1."""

    row: int
    col: int


def place(index: int, n_panels: int, columns: int = theme.PANEL_COLUMNS) -> Spot:
    """Row and column of a panel."""
    columns = min(n_panels, columns)
    return {"row": index // columns + 1, "col": index % columns + 1}


def ticks(axis: Axis) -> dict:
    """Ticks at the places of an axis, and its whole length in view."""
    return {
        "tickmode": "array",
        "tickvals": axis.tick_values,
        "ticktext": axis.tick_texts,
        "range": [-0.5, len(axis.values) - 0.5],
        "showgrid": False,
        "zeroline": False,
    }


def downwards(result: Result, name: str) -> bool:
    """Whether an upright axis is read from the top: positions and words are, layers are not."""
    numeric = pd.api.types.is_numeric_dtype(result.frame[name].dtype)
    return name in _READ_DOWNWARDS or not numeric


def name_axes(figure: go.Figure, result: Result, x: str, y: str, n_panels: int) -> None:
    """Write the axis words once, at the ends of the axes; pointing at one shows its meaning."""
    last = place(n_panels - 1, n_panels)
    _word(figure, result, x, last, {"x": 1, "y": 0, "xanchor": "left", "yanchor": "top"}, 6)
    first: Spot = {"row": 1, "col": 1}
    _word(figure, result, y, first, {"x": 0, "y": 1, "xanchor": "right", "yanchor": "bottom"}, -6)


def colour(
    figure: go.Figure,
    scale: Scale,
    number: str,
    values: Float[np.ndarray, " cells"],
    *,
    flat: bool = False,
) -> None:
    """One colour scale for the whole figure; its bar says where the colours end, and why.

    ``flat`` lays the bar below a figure that is not tall enough for an upright one.
    """
    ends = theme.limits(values, scale)
    text = f"{label(number)} · {label(ends.words)}"
    title: dict[str, Any] = {
        "text": text,
        "side": "top" if flat else "right",
        "font": {"size": theme.SMALL},
    }
    figure.update_layout(
        coloraxis={
            "colorscale": theme.colorscale(scale),
            "cmin": ends.low,
            "cmax": ends.high,
            "colorbar": {"title": title, **(theme.flat_colorbar() if flat else theme.colorbar())},
        }
    )


def finish(
    figure: go.Figure, result: Result, *, note: str = "", intervals: bool = False
) -> go.Figure:
    """Title, and below it what the number means and what is left out."""
    view = result.view
    about = [result.columns.get(view.number, "")]
    if intervals:
        about.append("intervals: 95 % bootstrap over examples")
    if note:
        about.append(note)
    subtitle = wrapped(" · ".join(part for part in about if part), theme.SUBTITLE_LETTERS)
    figure.update_layout(
        title={
            "text": label(view.title or result.provenance.method),
            "font": {"size": theme.HEADING},
            "subtitle": {"text": subtitle, "font": {"size": theme.SIZE, "color": theme.FAINT}},
            "x": 0,
            "xref": "paper",
            "xanchor": "left",
            "yref": "container",
            "y": 1,
            "yanchor": "top",
            "pad": {"t": 12},
        }
    )
    return figure


def _word(figure: go.Figure, result: Result, name: str, where: Spot, at: dict, shift: int) -> None:
    meaning = result.columns.get(name, "")
    figure.add_annotation(
        **where,
        xref="x domain",
        yref="y domain",
        **at,
        xshift=shift,
        text=f"<b>{label(name)}</b>",
        hovertext=wrapped(meaning) if meaning else None,
        showarrow=False,
        font={"size": theme.SIZE, "color": theme.INK},
    )
