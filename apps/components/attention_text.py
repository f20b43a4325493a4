"""One head's attention on the text itself: point at a token to see where it looks."""

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import streamlit as st
from numpy.typing import NDArray

from apps.components.tokens import Token, token_dicts
from apps.components.wire import component, pack

_draw = component("attention_text")

Direction = Literal["sent", "received"]


def text_view(
    pattern: NDArray[np.floating],
    tokens: list[Token],
    selected: int,
    *,
    first: int = 0,
    top: float = 1.0,
    gamma: float = 1.0,
    direction: Direction = "sent",
    causal: bool = True,
) -> tuple[dict[str, Any], bytes]:
    """One head's ``[query, key]`` pattern and its tokens as a plain dict and cells.

    Args:
        pattern: Attention from each query to each key.
        tokens: The tokens shown, `first` being the position of the first one.
        selected: The locked position, in the whole prompt.
        first: Position of the first token shown.
        top: The attention that is drawn in the strongest colour.
        gamma: Below 1, faint attention is drawn stronger.
        direction: Where the token looks, or from where it is looked at.
        causal: Whether later keys are out of reach.
    """
    within = min(max(selected - first, 0), len(tokens) - 1)
    head = {
        "tokens": token_dicts(tokens),
        "selected": within,
        "first": first,
        "top": top,
        "gamma": gamma,
        "direction": direction,
        "causal": causal,
        "alt": "Attention of the selected head on the text",
    }
    return head, pattern.astype("<f4").tobytes()


def attention_text(
    view: tuple[dict[str, Any], bytes], *, key: str, on_pick: Callable[[int], None]
) -> None:
    """Draw the text; `on_pick` is called with the position that was clicked."""
    _draw(
        key=key,
        data=pack(*view),
        on_picked_change=lambda: on_pick(int(st.session_state[key].picked)),
    )
