"""Passages of text, each token shaded by an activation: examples of where a feature fires."""

import html
from collections.abc import Sequence
from dataclasses import dataclass

import streamlit as st

from apps.components.glyphs import visible

_ORANGE = "245, 130, 32"
_FAINTEST, _STRONGEST = 0.12, 0.8


@dataclass(frozen=True)
class Passage:
    """Some text.

    Attributes:
        before: What is said in front of it.
        tokens: The tokens shown.
        activations: One for each; 0 is not shaded.
        centre: Which token the passage is about.
    """

    before: str
    tokens: Sequence[str]
    activations: Sequence[float]
    centre: int


def passages_html(passages: Sequence[Passage], largest: float) -> str:
    """The passages as markup in which no token can be anything but text.

    >>> "&lt;b&gt;" in passages_html([Passage("1", ["<b>"], [1.0], 0)], 1.0)
    True
    """
    rows = "".join(
        f'<div style="margin:0.2rem 0;line-height:1.7;display:flex;gap:0.5rem">'
        f'<small style="opacity:0.65;flex:none;min-width:5.5rem">'
        f"{html.escape(passage.before)}</small>"
        # Spaces are drawn as dots, where a line would not break by itself.
        f'<span style="overflow-wrap:anywhere">{_tokens(passage, largest)}</span></div>'
        for passage in passages
    )
    return f'<div style="font-size:0.9rem">{rows}</div>'


def _tokens(passage: Passage, largest: float) -> str:
    return "".join(
        f'<bdi style="{_shade(value, largest)}{_edge(place == passage.centre)}">'
        f"{html.escape(visible(token))}</bdi>"
        for place, (token, value) in enumerate(
            zip(passage.tokens, passage.activations, strict=True)
        )
    )


def _shade(value: float, largest: float) -> str:
    if value <= 0 or largest <= 0:
        return ""
    alpha = _FAINTEST + (_STRONGEST - _FAINTEST) * min(value / largest, 1.0)
    return f"background:rgba({_ORANGE},{alpha:.2f});border-radius:3px;"


def _edge(centre: bool) -> str:
    return "font-weight:700;text-decoration:underline;" if centre else ""


def passages(shown: Sequence[Passage], largest: float) -> None:
    """Draw them; the colour runs to the largest activation."""
    st.html(passages_html(shown, largest))
