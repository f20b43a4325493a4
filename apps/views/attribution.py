"""The direct logit attribution as a grid of heads and as a waterfall."""

from typing import Any

import pandas as pd
import plotly.graph_objects as go

from apps.components.colours import limits, number
from apps.components.glyphs import visible
from apps.components.head_wall import Head
from apps.components.matrix import Axis, Cell, matrix_view
from apps.context import Context
from apps.views.figures import waterfall_figure
from apps.views.grids import grid


def verdict(here: Context, frame: pd.DataFrame) -> str:
    """What the model itself says, of which the parts are a split."""
    target, distractor = visible(here.state.target), visible(here.state.distractor)
    other = f"“{distractor}”" if here.state.distractor else "the average token"
    total = number(float(frame["total"].iloc[0]), sign=True)
    return f"At the last position the model prefers “{target}” to {other} by {total} nats."


def waterfall(frame: pd.DataFrame) -> go.Figure:
    """Step by step from nothing to the logit difference."""
    return waterfall_figure(frame["component"].tolist(), frame["value"].tolist())


def strongest_first(frame: pd.DataFrame) -> pd.DataFrame:
    """The same rows in the order of their size."""
    return frame.sort_values("value", key=abs, ascending=False, ignore_index=True)


def heads(here: Context, frame: pd.DataFrame) -> tuple[dict[str, Any], bytes]:
    """Each head's share of the logit difference, layers left to right."""
    dims = here.model.dims
    values = grid(frame, {"head": range(dims.n_heads), "layer": range(dims.n_layers)})
    ends = limits(values, "signed")
    tips = [
        [
            str(Head(i % dims.n_layers, i // dims.n_layers)),
            f"{number(float(value), 3, sign=True)} nats",
        ]
        for i, value in enumerate(values.flat)
    ]
    return matrix_view(
        values,
        Axis("head", [str(i) for i in range(dims.n_heads)]),
        Axis("layer", [str(i) for i in range(dims.n_layers)]),
        tips,
        scale="signed",
        ends=ends,
        selected=Cell(here.state.head, here.state.layer),
        legend=f"nats, {ends.words()}; blue raises the target, orange lowers it",
        alt="Direct effect of each head on the logit difference",
        cell_height=26,
        cell_width=(12, 44),
    )
