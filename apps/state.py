"""What the reader is looking at, as one value that fits in a URL: a view is a link.

`UrlState.parse` never raises: a URL is typed by hand, cut by a mail program or made for another
model, and the app must still open. What could not be read is said in words, and ranges that
depend on the model are clamped by `within` once it is known.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Self

from apps.components.glyphs import printable, visible

VERSION = "1"
LONGEST_TEXT = 20_000
"""Characters of a prompt that a link carries."""
LARGEST_NUMBER = 999_999

_NAMES = {
    "model": "m",
    "prompt": "q",
    "prompt_b": "b",
    "target": "t",
    "distractor": "d",
    "position": "pos",
    "layer": "l",
    "head": "h",
    "show": "s",
    "side": "p",
    "kind": "k",
    "cells": "c",
    "metric": "e",
    "direction": "r",
    "dictionary": "a",
    "feature": "f",
    "ranking": "g",
    "size": "z",
    "added": "ad",
    "removed": "rm",
}
"""Field → its short name in the URL."""

_WORDS = {"m": "model", "q": "prompt", "b": "prompt B", "t": "target", "d": "distractor"}
_NUMBERS = frozenset({"position", "layer", "head", "feature"})


@dataclass(frozen=True)
class UrlState:
    """One model, one prompt, one question, and what is selected.

    Attributes:
        model: Name of the model.
        prompt: The prompt every page is about.
        prompt_b: A second prompt to compare with, as long in tokens.
        target: The token asked about, with its leading space.
        distractor: The token it is compared with.
        position: Selected position; None is the last one.
        layer: Selected layer.
        head: Selected head.
        show: The number shown by the page that offers a choice.
        side: Which prompt the pages are about: ``a``, or ``b`` where there is one.
        kind: Which activation is patched.
        cells: What one cell of a patching map is.
        metric: What is measured after patching.
        direction: Which run is patched into which.
        dictionary: Whose features are shown; empty is the first there is.
        feature: Selected feature.
        ranking: What ranks the edges of a circuit.
        size: Share of all edges in the circuit.
        added: Nodes put into it by hand, parted by spaces.
        removed: Nodes taken out of it by hand.
    """

    model: str = "smollm2"
    prompt: str = ""
    prompt_b: str = ""
    target: str = ""
    distractor: str = ""
    position: int | None = None
    layer: int = 0
    head: int = 0
    show: str = ""
    side: str = "a"
    kind: str = "resid_pre"
    cells: str = ""
    metric: str = "logit_diff"
    direction: str = "denoise"
    dictionary: str = ""
    feature: int = 0
    ranking: str = "eap"
    size: str = "0.02"
    added: str = ""
    removed: str = ""

    @property
    def text(self) -> str:
        """The prompt the pages are about."""
        return self.prompt_b if self.side == "b" and self.prompt_b else self.prompt

    @classmethod
    def parse(cls, query: Mapping[str, Any]) -> tuple[Self, list[str]]:
        """The state a query describes, and what in it could not be read.

        >>> UrlState.parse({"v": "1", "q": "Hello", "l": "x"})[1]
        ['l=x is not a whole number from 0; ignored']
        """
        warnings: list[str] = []
        version = _text(query.get("v", VERSION))
        if version != VERSION:
            warnings.append(f"this link is of version {visible(version)}; read as version 1")
        found: dict[str, Any] = {}
        for field in fields(cls):
            short = _NAMES[field.name]
            if short not in query:
                continue
            text = _text(query[short])
            if field.name in _NUMBERS:
                number = _number(short, text, warnings)
                if number is not None:
                    found[field.name] = number
            else:
                found[field.name] = _clean(short, text, warnings)
        if not found.get("model", "x").strip():
            del found["model"]
        return cls(**found), warnings

    def to_query(self) -> dict[str, str]:
        """The shortest query that `parse` reads back as this state.

        >>> UrlState(prompt="Hello", layer=3).to_query()
        {'v': '1', 'q': 'Hello', 'l': '3'}
        """
        changed = {
            _NAMES[field.name]: printable(str(value))
            for field in fields(self)
            if (value := getattr(self, field.name)) != field.default
        }
        return {"v": VERSION, **changed} if changed else {}

    def within(self, n_layers: int, n_heads: int, n_positions: int) -> tuple[Self, list[str]]:
        """The same selection inside this model and prompt, and what had to be moved.

        >>> UrlState(layer=40).within(30, 9, 5)[1]
        ['layer 40 does not exist; layers go from 0 to 29, so 29 is shown']
        """
        warnings: list[str] = []
        sizes = {"layer": n_layers, "head": n_heads, "position": n_positions}
        moved: dict[str, Any] = {}
        for name, size in sizes.items():
            value = getattr(self, name)
            if value is not None and value >= size > 0:
                moved[name] = size - 1
                warnings.append(
                    f"{name} {value} does not exist; {name}s go from 0 to {size - 1}, "
                    f"so {size - 1} is shown"
                )
        return replace(self, **moved), warnings

    def position_in(self, n_positions: int) -> int:
        """The selected position of a prompt of this length."""
        last = max(n_positions - 1, 0)
        return last if self.position is None else min(self.position, last)


def _text(value: Any) -> str:
    """A query value as text: the last one where a name is repeated."""
    if isinstance(value, list | tuple):
        value = value[-1] if value else ""
    return str(value)


def _clean(name: str, text: str, warnings: list[str]) -> str:
    what = _WORDS.get(name, name)
    if len(text) > LONGEST_TEXT:
        warnings.append(f"the {what} has {len(text)} characters; the first {LONGEST_TEXT} are kept")
        text = text[:LONGEST_TEXT]
    kept = printable(text)
    if kept != text:
        warnings.append(f"the {what} held lone surrogates, which are no text; replaced by \ufffd")
    return kept


def _number(name: str, text: str, warnings: list[str]) -> int | None:
    if text.isascii() and text.isdigit() and len(text) <= len(str(LARGEST_NUMBER)):
        return int(text)
    warnings.append(f"{name}={visible(text)} is not a whole number from 0; ignored")
    return None
