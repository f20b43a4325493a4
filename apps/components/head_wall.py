"""Every head of the model as a thumbnail of its attention pattern: the overview one clicks into.

Patterns travel as one byte a cell. Hovering is answered in the browser; a click locks a head.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import streamlit as st
from numpy.typing import NDArray

from apps.components.colours import Limits, to_bytes
from apps.components.wire import component, pack

_draw = component("head_wall")


@dataclass(frozen=True)
class Head:
    """A head's address."""

    layer: int
    head: int

    def __str__(self) -> str:
        return f"L{self.layer}H{self.head}"


def wall_view(
    patterns: NDArray[np.floating],
    labels: Sequence[Sequence[str]],
    selected: Head,
    *,
    ends: Limits,
    gamma: float = 1.0,
    legend: str = "",
) -> tuple[dict[str, Any], bytes]:
    """The wall as a plain dict and its cells.

    Args:
        patterns: ``[layer, head, query, key]``.
        labels: Lines of each head's tooltip, layer by layer.
        selected: The locked head.
        ends: Attention at the two ends of the colour scale.
        gamma: Below 1, faint attention is drawn stronger.
        legend: What the colours mean, in words.
    """
    n_layers, n_heads, size = patterns.shape[:3]
    cells = to_bytes(patterns, ends, gamma)
    head = {
        "n_layers": n_layers,
        "n_heads": n_heads,
        "size": size,
        "labels": [list(lines) for lines in labels],
        "selected": [selected.layer, selected.head],
        "legend": legend,
        "alt": f"Attention patterns of {n_layers} layers of {n_heads} heads",
        "sig": hashlib.sha256(cells + repr(labels).encode("utf-8", "replace")).hexdigest()[:16],
    }
    return head, cells


def head_wall(
    view: tuple[dict[str, Any], bytes], *, key: str, on_pick: Callable[[Head], None]
) -> None:
    """Draw the wall; `on_pick` is called with the head that was clicked."""

    def picked() -> None:
        value = st.session_state[key].picked
        on_pick(Head(int(value["layer"]), int(value["head"])))

    _draw(key=key, data=pack(*view), on_picked_change=picked)
