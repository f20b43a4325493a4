"""The few charts that are not canvases, in the colours of the canvases and of either theme."""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import plotly.graph_objects as go

TARGET, DISTRACTOR, NEUTRAL = "#3182bd", "#e6750e", "#8a92a0"
"""Blue raises the target, orange the distractor; both read on white and on the dark background."""

HEIGHT = 300


def safe(text: str) -> str:
    """Text that plotly, which reads a little HTML, shows as it is.

    >>> safe("<b>a</b>")
    '&lt;b&gt;a&lt;/b&gt;'
    """
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def line_figure(
    lines: Mapping[str, tuple[Sequence[Any], Sequence[float]]], *, x: str, y: str, mark: int | None
) -> go.Figure:
    """Up to two lines with their names; a thin line marks the selection, if there is one."""
    figure = go.Figure()
    for (name, (at, values)), colour in zip(lines.items(), (TARGET, DISTRACTOR), strict=False):
        figure.add_scatter(
            x=at,
            y=values,
            name=safe(name),
            mode="lines+markers",
            marker={"size": 5},
            line={"color": colour, "width": 2},
        )
    if mark is not None:
        figure.add_vline(x=mark, line={"color": NEUTRAL, "width": 1, "dash": "dot"})
    figure.update_layout(
        height=HEIGHT,
        margin={"l": 8, "r": 8, "t": 28, "b": 8},
        xaxis_title=x,
        yaxis_title=y,
        legend={"orientation": "h", "y": 1.12, "x": 0},
        hovermode="x unified",
    )
    return figure


def waterfall_figure(names: Sequence[str], values: Sequence[float]) -> go.Figure:
    """Steps that start at nothing; the last bar is where they arrive."""
    figure = go.Figure(
        go.Waterfall(
            x=[safe(name) for name in [*names, "all parts"]],
            y=[*values, 0],
            measure=["relative"] * len(names) + ["total"],
            increasing={"marker": {"color": TARGET}},
            decreasing={"marker": {"color": DISTRACTOR}},
            totals={"marker": {"color": NEUTRAL}},
            connector={"line": {"color": NEUTRAL, "width": 0.5}},
            hovertemplate="%{x}: %{delta:+.3f}, together %{final:+.3f} nats<extra></extra>",
            cliponaxis=False,
        )
    )
    heights = [0.0, *accumulate(values)]
    room = 0.05 * (max(heights) - min(heights))
    figure.update_layout(
        height=HEIGHT + 60,
        margin={"l": 8, "r": 8, "t": 24, "b": 8},
        xaxis={"tickangle": -90, "tickfont": {"size": 10}, "dtick": 1},
        # plotly leaves no room above a waterfall that ends at its highest step
        yaxis={
            "title": "logit difference (nats)",
            "range": [min(heights) - room, max(heights) + room] if room else None,
        },
        showlegend=False,
    )
    return figure
