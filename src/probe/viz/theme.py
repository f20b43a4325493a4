"""Every style number: colours, fonts, sizes, limits. No other file of this room holds one.

Attention runs from white to blue, activations and probabilities to orange, so the two are never
confused. Signed numbers are blue above zero and orange below, white at zero, with limits
symmetric about it. Colours end at the 99.5th percentile, so one outlier cannot bleach a picture;
the colour bar says so.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

import numpy as np
from jaxtyping import Float

from probe.core.result import Scale

RGB = tuple[int, int, int]
Ramp = tuple[RGB, ...]

WHITE: RGB = (255, 255, 255)
_ORANGE: Ramp = ((253, 160, 82), (179, 66, 0))
_BLUE: Ramp = ((107, 174, 214), (8, 69, 148))
_PURPLE: Ramp = ((158, 154, 200), (84, 39, 143))

RAMPS: dict[Scale, Ramp] = {
    "activation": (WHITE, *_ORANGE),
    "attention": (WHITE, *_BLUE),
    "share": (WHITE, *_PURPLE),
    "signed": (_ORANGE[1], _ORANGE[0], WHITE, *_BLUE),
}
"""Scale → colours from its low end to its high end, evenly spaced."""

QUANTILE = 0.995
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Liberation Sans', sans-serif"
MONO = "ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono', monospace"
INK, FAINT, RULE, PAPER, STRIPE = "#1b1f27", "#5d6675", "#d9dde4", "#ffffff", "#f4f5f7"
BLACK, BRIGHT = "#000000", "#ffffff"
POSITIVE, NEGATIVE = "rgb(33,113,181)", "rgb(217,95,14)"
BAND_OPACITY, POINT_OPACITY = 0.18, 0.8
LINE_WIDTH, MARKER, ERROR_WIDTH = 2, 7, 3
SIZE, SMALL, HEADING = 12, 10, 15

GROUPS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#8c6d00", "#5d3a9b", "#444444")
"""Colours of a few unordered groups, told apart also by colour-blind readers."""
_MANY: Ramp = ((68, 1, 84), (33, 113, 181), (0, 158, 115), (217, 160, 14), (213, 94, 0))

MARGIN = {"l": 84, "r": 96, "t": 84, "b": 64}
PANEL_HEIGHT, SMALL_PANEL_HEIGHT, MIN_PLOT, MAX_PLOT = 360, 230, 180, 900
ROW_GAP, STRIP_GAP, COLUMN_GAP, WALL_WIDTH, SUBTITLE_LETTERS = 130, 44, 0.2, 900, 130
CELL_HEIGHT, STRIP_HEIGHT, TABLE_ROW = 24, 40, 24
PANEL_COLUMNS, MAX_PANELS, TOKENS_IN_ROW = 4, 24, 12
MAX_CELLS, MAX_CELL_TEXTS, MAX_BAR_TEXTS, MAX_POINTS_SVG = 250_000, 700, 16, 4000
GRAPH_HEIGHT, GRAPH_ROW, MAX_EDGES, NODE_SIZE = 620, 34, 80, 30
EDGE_WIDTHS, EDGE_BOW = (0.6, 7.0), 0.06
MAX_TICKS, MAX_MARKERS, MAX_TABLE_ROWS = 64, 40, 200
TICK_LETTERS, CELL_LETTERS, HOVER_LETTERS, TABLE_LETTERS, WRAP = 14, 9, 80, 60, 60

NOTE_CSS = f"font:{SIZE}px {FONT};color:{FAINT};margin:4px 0"
STRIP_CSS = f"font-family:{MONO};font-size:13px;line-height:1.9"
TOKEN_CSS = "padding:1px 2px;border-radius:2px"
TABLE_CSS = f"border-collapse:collapse;font:{SIZE}px {FONT};color:{INK};background:{PAPER}"
CELL_CSS = f"padding:2px 10px;text-align:left;border-bottom:1px solid {RULE}"
RESULT_CSS = f"font:{SIZE}px {FONT};color:{INK};background:{PAPER};max-width:1200px"


@dataclass(frozen=True)
class Limits:
    """The numbers at the two ends of a colour scale."""

    low: float
    high: float
    cut: bool

    @property
    def words(self) -> str:
        """For the colour bar: where colours end, and why there.

        >>> Limits(-2.0, 2.0, cut=True).words
        'colours end at ±2, the 99.5th percentile'
        """
        end = ("±" if self.low < 0 else "") + number(self.high)
        why = f"the {100 * QUANTILE:g}th percentile" if self.cut else "the largest value"
        return f"colours end at {end}, {why}"


def limits(values: Float[np.ndarray, "..."] | Sequence[float], scale: Scale) -> Limits:
    """Ends of the colour scale: from zero to the 99.5th percentile of the absolute values.

    >>> limits([-3.0, 1.0, float("nan")], "signed").low == -limits([-3.0, 1.0], "signed").high
    True
    """
    size = np.abs(np.asarray(values, dtype=float))
    size = size[np.isfinite(size)]
    top = float(np.quantile(size, QUANTILE)) if size.size else 0.0
    largest = float(size.max()) if size.size else 0.0
    top = top or largest or 1.0
    return Limits(-top if scale == "signed" else 0.0, top, cut=top < largest)


def colorscale(scale: Scale) -> list[tuple[float, str]]:
    """A scale as plotly takes it."""
    ramp = RAMPS[scale]
    return [(i / (len(ramp) - 1), css(colour)) for i, colour in enumerate(ramp)]


def colour(value: float, ends: Limits, scale: Scale) -> RGB:
    """The colour of one number; a missing one is white.

    >>> colour(0.0, Limits(-1.0, 1.0, cut=False), "signed")
    (255, 255, 255)
    """
    if not isfinite(value):
        return WHITE
    return _between(RAMPS[scale], (value - ends.low) / (ends.high - ends.low))


def ink_on(background: RGB) -> str:
    """Black or white text, whichever contrasts more: they are equal at luminance 0.179."""
    linear = [v / 3294.6 if v <= 10.3 else ((v / 255 + 0.055) / 1.055) ** 2.4 for v in background]
    return BLACK if np.dot(linear, (0.2126, 0.7152, 0.0722)) > 0.179 else BRIGHT


def group_colours(values: Sequence[Hashable]) -> list[str]:
    """One colour for each group: a palette for a few, a ramp in order for many."""
    n = len(values)
    if n <= len(GROUPS):
        return list(GROUPS[:n])
    return [css(_between(_MANY, i / (n - 1))) for i in range(n)]


def css(colour: RGB) -> str:
    """As a stylesheet writes it."""
    return "rgb({},{},{})".format(*colour)


def number(value: float | None, *, sign: bool = False) -> str:
    """Four digits, a true minus, and a dash for what is missing.

    >>> number(-0.123456), number(2.0, sign=True), number(float("nan"))
    ('−0.1235', '+2', '–')
    """
    if value is None or not isfinite(value):
        return "–"
    return f"{value:{'+' if sign else ''}.4g}".replace("-", "−")


def layout() -> dict[str, Any]:
    """What all figures share."""
    return {
        "template": "none",
        "font": {"family": FONT, "size": SIZE, "color": INK},
        "paper_bgcolor": PAPER,
        "plot_bgcolor": PAPER,
        "margin": dict(MARGIN),
        "hoverlabel": {"font": {"family": FONT, "size": SIZE}, "align": "left"},
        "legend": {"x": 1.02, "y": 1, "yanchor": "top", "font": {"size": SIZE}},
        "bargap": 0.25,
    }


def axis() -> dict[str, Any]:
    """What all axes share."""
    return {
        "showgrid": True,
        "gridcolor": RULE,
        "zerolinecolor": FAINT,
        "linecolor": RULE,
        "tickfont": {"size": SIZE, "color": INK},
        "ticks": "",
        "automargin": True,
    }


def colorbar() -> dict[str, Any]:
    """The colour bar, clear of the word at the end of the x axis."""
    return {
        "thickness": 12,
        "len": 0.88,
        "y": 1,
        "yanchor": "top",
        "outlinewidth": 0,
        "tickfont": {"size": SMALL},
    }


def flat_colorbar() -> dict[str, Any]:
    """The colour bar, lying below the left half of the figure."""
    lying = {"orientation": "h", "len": 0.5, "x": 0, "xanchor": "left", "y": 0, "yanchor": "top"}
    return {**colorbar(), **lying}


def _between(ramp: Ramp, share: float) -> RGB:
    place = min(max(share, 0.0), 1.0) * (len(ramp) - 1)
    first = min(int(place), len(ramp) - 2)
    a, b = np.array(ramp[first]), np.array(ramp[first + 1])
    r, g, blue = np.rint(a + (b - a) * (place - first)).astype(int).tolist()
    return r, g, blue
