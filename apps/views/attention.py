"""The wall, one head's pattern and its contribution, from tidy attention tables."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from apps.components.colours import Limits, Scale, number, percent
from apps.components.head_wall import Head, wall_view
from apps.components.matrix import Axis, Cell, matrix_view
from apps.context import Context

STRONG = 0.5
"""Exponent that draws faint attention stronger; linear colours leave most heads blank."""


MAP_HEIGHT = 560
"""Pixels that one head's map fills at most, where its cells are not too small for that."""


@dataclass(frozen=True)
class Look:
    """How patterns are drawn.

    Attributes:
        hide_first: Leave out the column of the first position, where much attention rests.
        faint: Draw faint attention stronger.
    """

    hide_first: bool = False
    faint: bool = True

    @property
    def gamma(self) -> float:
        """Exponent of the colour scale."""
        return STRONG if self.faint else 1.0

    def apply(self, patterns: NDArray[np.floating], first: int) -> NDArray[np.floating]:
        """The patterns as they are drawn."""
        if not self.hide_first or first > 0:
            return patterns
        hidden = patterns.copy()
        hidden[..., 0] = 0.0
        return hidden

    def words(self, unit: str) -> str:
        """For a legend."""
        parts = [f"{unit}, 0 to 100 %"]
        parts += ["faint values drawn stronger (square root)"] if self.faint else []
        parts += ["the first position is hidden"] if self.hide_first else []
        return "; ".join(parts)


@dataclass(frozen=True)
class Map:
    """How one head's square is drawn.

    Attributes:
        name: Names its widgets.
        unit: What a value is.
        scale: The colours.
        look: Common to all pictures of the page.
    """

    name: str
    unit: str
    scale: Scale
    look: Look


def attention_map(look: Look) -> Map:
    """Where a head looks."""
    return Map("attends", "attention", "attention", look)


def contribution_map(look: Look) -> Map:
    """What a head moves: attention weighted by the length of the vector it moves."""
    return Map("moves", "share of what the head moves to the query", "activation", look)


def wall(
    here: Context, patterns: NDArray[np.floating], scores: pd.DataFrame, look: Look
) -> tuple[dict[str, Any], bytes]:
    """Every head as a thumbnail, named with its scores."""
    n_layers, n_heads = patterns.shape[:2]
    lines = score_lines(scores)
    heads = [Head(layer, head) for layer in range(n_layers) for head in range(n_heads)]
    return wall_view(
        look.apply(patterns, here.first),
        [[str(head), *lines.get(head, [])] for head in heads],
        Head(here.state.layer, here.state.head),
        ends=Limits(0.0, 1.0),
        gamma=look.gamma,
        legend=look.words("attention"),
    )


def score_lines(scores: pd.DataFrame) -> dict[Head, list[str]]:
    """Each head's scores, one a line."""
    names = [name for name in scores.columns if name not in ("layer", "head")]
    return {
        Head(row["layer"], row["head"]): [
            f"{str(name).replace('_', ' ')} {number(row[name])}" for name in names
        ]
        for row in scores.to_dict("records")
    }


def one_head(
    here: Context, values: NDArray[np.floating], style: Map
) -> tuple[dict[str, Any], bytes]:
    """One head's ``[query, key]`` map; keys out of reach stay empty."""
    labels = here.labels
    tips = [
        [f"{style.unit}: {percent(float(values[i, j]))}", f"from {query}", f"to {key}"]
        for i, query in enumerate(labels)
        for j, key in enumerate(labels)
    ]
    at = here.position - here.first
    head = Head(here.state.layer, here.state.head)
    return matrix_view(
        style.look.apply(values, here.first),
        Axis("query", labels),
        Axis("key", labels),
        tips,
        scale=style.scale,
        ends=Limits(0.0, 1.0),
        selected=Cell(at, at) if at >= 0 else None,
        legend=style.look.words(style.unit),
        alt=f"{style.unit} of {head}, query by key",
        cell_height=max(9, min(24, MAP_HEIGHT // len(labels))),
        cell_width=(8, 40),
        gamma=style.look.gamma,
    )
