"""Result → plotly figure, by the kind of its view."""

from collections.abc import Callable

import plotly.graph_objects as go

from probe.core.result import Kind, Result
from probe.viz.graphs import graph
from probe.viz.grids import heatmap, wall
from probe.viz.lines import bar, line
from probe.viz.points import scatter
from probe.viz.strips import table, tokens

KINDS: dict[Kind, Callable[[Result], go.Figure]] = {
    "heatmap": heatmap,
    "wall": wall,
    "line": line,
    "bar": bar,
    "scatter": scatter,
    "tokens": tokens,
    "table": table,
    "graph": graph,
}
"""Kind of view → what draws it. To add a kind: one function here, one name in `core.result`."""


def draw(result: Result) -> go.Figure:
    """The figure of a result's view.

    Means and intervals come from ``result.summary()``; scatter and table show the rows as they
    are. Text of the model is escaped, so it shows as it is.

    Raises:
        OptionError: The view names absent columns, several rows fall on one place, there are no
            rows, or too many cells to draw.
    """
    return KINDS[result.view.kind](result)
