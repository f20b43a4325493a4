"""The prompt's tokens as pills, and the two tokens in question checked one by one."""

from typing import Any

import pandas as pd

from apps.components.colours import Limits, number
from apps.components.glyphs import visible
from apps.components.tokens import Channel, tokens_view
from apps.context import Context

MOST_LOSS = 12.0
"""Nats at which a token is as surprising as the colours can say."""


def pills(here: Context, frame: pd.DataFrame) -> dict[str, Any]:
    """Every token, coloured by how surprising it was, underlined by the doubt before it."""
    loss, doubt = frame["value"].tolist(), frame["entropy"].tolist()
    tips = [
        [
            f"“{visible(token.text)}”",
            f"position {i}",
            f"id {number_of}",
            f"loss {number(loss[i])} nats",
            f"entropy before it {number(doubt[i])} nats",
            *_special(token.special),
        ]
        for i, (token, number_of) in enumerate(zip(here.tokens, here.ids, strict=True))
    ]
    ends = Limits(0.0, MOST_LOSS)
    return tokens_view(
        here.tokens,
        tips,
        here.position,
        colour=Channel(loss, "activation", ends),
        line=Channel(doubt, "attention", ends),
        legend="Orange: loss of the token. Blue line: entropy of the prediction before it. "
        f"Both from 0 to {MOST_LOSS:.0f} nats. Click a token to select it.",
    )


def _special(special: bool) -> list[str]:
    return ["special token, not part of the text"] if special else []


def verdict(tokenizer: Any, text: str) -> tuple[bool, str]:
    """Whether a text is one token, and if not what to write instead."""
    if not text:
        return False, "not chosen yet"
    ids = tokenizer.encode(text, special=False)
    if len(ids) == 1:
        return True, f"“{visible(text)}” is one token, id {ids[0]}"
    parts = " ".join(f"“{visible(part)}”" for part in tokenizer.strings(ids))
    spaced = tokenizer.single(f" {text}") if not text.startswith(" ") else None
    hint = f"; “{visible(' ' + text)}”, with its space, is one" if spaced is not None else ""
    return False, f"“{visible(text)}” is {len(ids)} tokens: {parts}{hint}"
