"""Features as pictures: where they fire on a prompt, how often and how strongly in a text."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from apps.components.colours import limits, number
from apps.components.glyphs import visible
from apps.components.matrix import Axis, Cell, matrix_view
from apps.context import Context
from apps.views.figures import DISTRACTOR, HEIGHT, NEUTRAL, TARGET, safe
from apps.views.grids import grid

CONTEXTS = {"±5": 5, "±16": 16, "full": 100_000}
"""What a reader can see around an example → tokens on either side."""
SEARCHES = {
    "prompt": "On my prompt",
    "token": "By token",
    "label": "By label",
    "statistics": "By statistics",
}


def heat_map(here: Context, frame: pd.DataFrame, selected: int) -> tuple[Any, list[int]]:
    """Feature by position, strongest feature first; and which feature each row is."""
    features = frame.groupby("feature")["value"].max().sort_values(ascending=False).index.tolist()
    seen = list(range(here.first, len(here.tokens)))
    known = sorted(features)
    values = grid(frame, {"feature": known, "pos": seen})
    values = values[[known.index(feature) for feature in features]]
    tips = [
        [f"feature {feature}", f"position {pos} “{visible(here.tokens[pos].text)}”",
         f"activation {number(float(values[row, column]))}"]
        for row, feature in enumerate(features)
        for column, pos in enumerate(seen)
    ]  # fmt: skip
    ends = limits(values, "activation")
    at = here.position - here.first
    cell = Cell(features.index(selected), at) if selected in features and at >= 0 else None
    view = matrix_view(
        np.nan_to_num(values),
        Axis("feature", [str(feature) for feature in features]),
        Axis("position", here.labels),
        tips,
        scale="activation",
        ends=ends,
        selected=cell,
        legend=f"activation, {ends.words()}. Click a cell to select its feature.",
        alt="Activations of features by position",
    )
    return view, features


def histogram(
    counts: Sequence[int], low: float, high: float, *, x: str, mark: float | None, log: bool
) -> go.Figure:
    """Counts in equal bins; a line marks the reader's own prompt."""
    edges = np.linspace(low, high, len(counts) + 1)
    middle = (edges[1:] + edges[:-1]) / 2
    said = [f"{a:.3g} to {b:.3g}: {n}" for a, b, n in zip(edges, edges[1:], counts, strict=False)]
    colours = [DISTRACTOR if low >= 0 or m < 0 else TARGET for m in middle]
    figure = go.Figure(
        go.Bar(
            x=middle,
            y=list(counts),
            width=(high - low) / len(counts) or 1.0,
            marker={"color": colours},
            hovertext=said,
            hoverinfo="text",
        )
    )
    if mark is not None:
        figure.add_vline(x=mark, line={"color": TARGET, "width": 2, "dash": "dot"})
    figure.update_layout(
        height=HEIGHT - 80,
        margin={"l": 8, "r": 8, "t": 8, "b": 8},
        xaxis_title=x,
        yaxis_title="tokens",
        yaxis_type="log" if log else "linear",
        bargap=0.05,
        showlegend=False,
    )
    return figure


def scatter(frame: pd.DataFrame) -> go.Figure:
    """Every feature that fires: how often, and how strongly at most."""
    alive = frame[frame["n"] > 0]
    words = [
        safe(f"feature {f}: {100 * d:.3g} % of tokens, at most {m:.3g}. {visible(str(label))}")
        for f, d, m, label in zip(
            alive["feature"], alive["density"], alive["max"], alive["label"], strict=True
        )
    ]
    figure = go.Figure(
        go.Scattergl(
            x=alive["density"],
            y=alive["max"],
            mode="markers",
            marker={"size": 4, "color": NEUTRAL, "opacity": 0.6},
            hovertext=words,
            hoverinfo="text",
        )
    )
    figure.update_layout(
        height=HEIGHT + 60,
        margin={"l": 8, "r": 8, "t": 8, "b": 8},
        xaxis={"title": "density (share of tokens)", "type": "log"},
        yaxis_title="largest activation",
    )
    return figure


def found_table(frame: pd.DataFrame) -> pd.DataFrame:
    """A search's rows as they are shown, every token visible."""
    shown = frame.drop(columns=[c for c in ("mean", "nearest", "n") if c in frame])
    if "token" in shown:
        shown = shown.assign(token=shown["token"].map(lambda t: visible(str(t))))
    return shown


def pairs(rows: Sequence[tuple[str, float]], value: str) -> pd.DataFrame:
    """Tokens with a number, every character visible."""
    return pd.DataFrame({"token": [visible(t) for t, *_ in rows], value: [r[1] for r in rows]})


def window(tokens: Sequence[str], pos: int, around: int) -> tuple[int, int]:
    """First and end of what is seen around a position.

    >>> window("abcdefgh", 1, 2), window("abcdefgh", 4, 100)
    ((0, 4), (0, 8))
    """
    return max(0, pos - around), min(len(tokens), pos + around + 1)
