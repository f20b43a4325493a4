"""The prompt as token pills: coloured by one value, underlined by another, clicked to select."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import streamlit as st

from apps.components.colours import Limits, Scale
from apps.components.glyphs import visible
from apps.components.wire import component, pack

_draw = component("tokens")


@dataclass(frozen=True)
class Token:
    """One token of a prompt; special tokens (the beginning of text, padding) are boxed."""

    text: str
    special: bool = False


@dataclass(frozen=True)
class Channel:
    """A value for each token (NaN where there is none) and the colours it is drawn in."""

    values: Sequence[float]
    scale: Scale
    ends: Limits

    def steps(self) -> list[int | None]:
        """Each value as a step of the 256-colour scale."""
        span = self.ends.high - self.ends.low
        unit = (np.asarray(self.values, dtype=np.float64) - self.ends.low) / span
        return [None if np.isnan(u) else round(float(np.clip(u, 0, 1)) * 255) for u in unit]


def token_dicts(tokens: Sequence[Token]) -> list[dict[str, Any]]:
    """Tokens as the browser reads them, every character visible."""
    return [{"text": visible(t.text), "special": t.special} for t in tokens]


def tokens_view(
    tokens: Sequence[Token],
    tips: Sequence[Sequence[str]],
    selected: int,
    *,
    first: int = 0,
    colour: Channel | None = None,
    line: Channel | None = None,
    legend: str = "",
) -> dict[str, Any]:
    """The pills as a plain dict.

    Args:
        tokens: The tokens shown.
        tips: Lines of each token's tooltip.
        selected: The selected position, in the whole prompt.
        first: Position of the first token shown.
        colour: What the background shows.
        line: What the line under each token shows.
        legend: What the two channels mean, in words.
    """
    nothing: list[int | None] = [None] * len(tokens)
    return {
        "tokens": token_dicts(tokens),
        "tips": [list(lines) for lines in tips],
        "selected": selected - first,
        "first": first,
        "colour": colour.steps() if colour else nothing,
        "scale": colour.scale if colour else "activation",
        "line": line.steps() if line else nothing,
        "line_scale": line.scale if line else "activation",
        "legend": legend,
        "alt": "Tokens of the prompt",
    }


def token_row(view: dict[str, Any], *, key: str, on_pick: Callable[[int], None]) -> None:
    """Draw the pills; `on_pick` is called with the position that was clicked."""
    _draw(
        key=key,
        data=pack(view),
        on_picked_change=lambda: on_pick(int(st.session_state[key].picked)),
    )
