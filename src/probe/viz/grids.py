"""Numbers on two axes: heat maps, walls of heads, walls of patterns."""

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Int

from probe.core.errors import OptionError
from probe.core.result import Result
from probe.viz import theme
from probe.viz.canvas import colour, downwards, finish, name_axes, place, sheet, ticks
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


def heatmap(result: Result) -> go.Figure:
    """One cell for each pair of axis values; panels share one colour scale."""
    view = result.view
    drawn, note = shown(result, panels(result))
    _check_size(sum(len(panel.cells) for panel in drawn))
    rows = axis_of(result.frame, view.y, (view.text,))
    height = np.clip(len(rows.values) * theme.CELL_HEIGHT, theme.MIN_PLOT, theme.MAX_PLOT)
    square = {view.x, view.y} == {"query", "key"}
    figure = sheet(drawn, theme.PANEL_HEIGHT if square else int(height))
    for i, panel in enumerate(drawn):
        at = place(i, len(drawn))
        x = axis_of(panel.frame, view.x, (view.text,))
        y = axis_of(panel.frame, view.y, (view.text,))
        figure.add_trace(_cells(result, panel, x, y), **at)
        figure.update_xaxes(ticks(x), **at)
        upright = ticks(y)
        if downwards(result, view.y):
            upright["range"] = upright["range"][::-1]
        figure.update_yaxes(upright, **at)
        if square:
            figure.update_yaxes(scaleanchor=f"x{i + 1 if i else ''}", constrain="domain", **at)
            figure.update_xaxes(constrain="domain", **at)
    numbers = np.concatenate([panel.cells[view.number].to_numpy(float) for panel in drawn])
    colour(figure, view.scale, view.number, numbers)
    name_axes(figure, result, view.x, view.y, len(drawn))
    return finish(figure, result, note=note, intervals=has_intervals(drawn))


def wall(result: Result) -> go.Figure:
    """All heads at once: a cell for each head, or each head's own map where x and y are others."""
    view = result.view
    heads = {"layer", "head"}
    if heads <= set(result.frame.columns) and not heads & {view.x, view.y}:
        return _tiles(result)
    return heatmap(result)


def _tiles(result: Result) -> go.Figure:
    """Layer × head small maps in one image: hundreds of separate panels would take seconds."""
    view = result.view
    by = ["layer", "head", view.y, view.x]
    cells = panels(result, by, n_boot=1)[0].cells  # no interval fits into a thumbnail
    _check_size(len(cells))
    layer, head, y, x = (axis_of(result.frame, name) for name in by)
    tall, wide = len(y.values) + 1, len(x.values) + 1  # one empty line between two maps
    _check_size(len(layer.values) * tall * len(head.values) * wide)
    image = np.full((len(layer.values) * tall - 1, len(head.values) * wide - 1), np.nan)
    row = layer.places(cells["layer"]) * tall + y.places(cells[view.y])
    column = head.places(cells["head"]) * wide + x.places(cells[view.x])
    image[row, column] = cells[view.number]
    figure = sheet([Panel("", result.frame, cells)], _tile_height(image.shape))
    figure.add_trace(
        go.Heatmap(
            z=image.astype(np.float32),
            customdata=_addresses(layer, head, y, x),
            coloraxis="coloraxis",
            hoverongaps=False,
            hovertemplate=_address_template(result, by),
        )
    )
    figure.update_xaxes(_tile_ticks(head, wide))
    upright = _tile_ticks(layer, tall)
    figure.update_yaxes({**upright, "range": upright["range"][::-1]})
    figure.update_layout(plot_bgcolor=theme.RULE)
    colour(figure, view.scale, view.number, cells[view.number].to_numpy(float))
    name_axes(figure, result, "head", "layer", 1)
    note = f"in each map {view.x} runs rightwards, {view.y} downwards"
    if (n := int(cells["n"].max())) > 1:
        note += f" · mean over {n} examples"
    return finish(figure, result, note=note)


def _cells(result: Result, panel: Panel, x: Axis, y: Axis) -> go.Heatmap:
    view, cells = result.view, panel.cells
    said = texts(panel, [view.y, view.x], view.text)
    row, column = y.places(cells[view.y]), x.places(cells[view.x])
    shape = (len(y.values), len(x.values))
    z = np.full(shape, np.nan)
    z[row, column] = cells[view.number]
    heatmap = go.Heatmap(
        z=z,
        hovertext=_grid(
            shape, row, column, hover(cells, (x, y), view.number, said, signed=_signed(result))
        ),
        hoverinfo="text",
        hoverongaps=False,
        coloraxis="coloraxis",
        xgap=1,
        ygap=1,
    )
    if any(said) and len(cells) <= theme.MAX_CELL_TEXTS:
        heatmap.text = _grid(shape, row, column, [in_cell(text) for text in said])
        heatmap.texttemplate = "%{text}"
        heatmap.textfont = {"size": theme.SMALL}
    return heatmap


def _grid(
    shape: tuple[int, int], row: np.ndarray, column: np.ndarray, words: Sequence[str]
) -> list[list[str]]:
    grid = np.full(shape, "", dtype=object)
    grid[row, column] = list(words)
    return grid.tolist()


def _signed(result: Result) -> bool:
    return result.view.scale == "signed"


def _check_size(n_cells: int) -> None:
    if n_cells > theme.MAX_CELLS:
        raise OptionError(
            f"the figure would have {n_cells:,} cells",
            expected=f"at most {theme.MAX_CELLS:,}, which a browser can draw",
            remedy="ask the method for fewer layers, heads or positions, or read result.frame",
        )


def _tile_height(shape: tuple[int, ...]) -> int:
    per_width = shape[0] / shape[1] * theme.WALL_WIDTH
    return int(np.clip(per_width, theme.MIN_PLOT, 2 * theme.MAX_PLOT))


def _tile_ticks(axis: Axis, step: int) -> dict:
    length = len(axis.values) * step - 1
    return {
        **ticks(axis),
        "tickvals": [place * step + (step - 2) / 2 for place in axis.tick_values],
        "range": [-0.5, length - 0.5],
    }


def _addresses(layer: Axis, head: Axis, y: Axis, x: Axis) -> Int[np.ndarray, "down across 4"]:
    """Layer, head, y and x of each pixel; as whole numbers, since words would be megabytes."""
    layers, heads, ys, xs = (_codes(axis) for axis in (layer, head, y, x))
    tall, wide = len(ys) + 1, len(xs) + 1
    down, across = np.mgrid[: len(layers) * tall - 1, : len(heads) * wide - 1]
    # The empty line between two maps repeats the last place; nothing is shown there.
    inner_y, inner_x = (
        np.minimum(i, n - 1) for i, n in ((down % tall, tall - 1), (across % wide, wide - 1))
    )
    parts = (layers[down // tall], heads[across // wide], ys[inner_y], xs[inner_x])
    return np.stack(parts, axis=-1).astype(np.int32)


def _codes(axis: Axis) -> Int[np.ndarray, " place"]:
    values = np.asarray(axis.values)
    return values if np.issubdtype(values.dtype, np.integer) else np.arange(len(values))


def _address_template(result: Result, by: Sequence[str]) -> str:
    *names, number = [label(name).replace("%", "&#37;") for name in (*by, result.view.number)]
    lines = [f"{name} %{{customdata[{i}]}}" for i, name in enumerate(names)]
    return "<br>".join([*lines, f"{number} %{{z:.4g}}<extra></extra>"])
