"""Make any token visible: the text of a model is untrusted and often cannot be seen.

Every surface (canvas, pill, table, select box) shows tokens through `visible`, so a space, a
newline, a control character or half a UTF-8 sequence looks the same wherever it appears and
nothing can reorder, hide or format its neighbours.
"""

import re
import unicodedata

LONGEST = 40
"""Characters of one token that are shown before it is cut."""

_NAMED = {" ": "·", "\n": "↵", "\t": "→", "\r": "␍"}
_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Zs"})
_COMBINING = frozenset({"Mn", "Mc", "Me"})
_DOTTED_CIRCLE = "◌"
_SURROGATE = re.compile("[\ud800-\udfff]")


def _glyph(character: str) -> str:
    if character in _NAMED:
        return _NAMED[character]
    if unicodedata.category(character) in _HIDDEN:
        return f"‹{ord(character):02X}›"
    return character


def visible(text: str, longest: int = LONGEST) -> str:
    r"""The token with every invisible character drawn.

    >>> visible(" Mary"), visible("\n"), visible("a\x00b"), visible("\ud800")
    ('·Mary', '↵', 'a‹00›b', '‹D800›')
    """
    shown = "".join(_glyph(c) for c in text[:longest])
    if len(text) > longest:
        shown += "…"
    if text and unicodedata.category(text[0]) in _COMBINING:
        shown = _DOTTED_CIRCLE + shown
    return shown or "∅"


def printable(text: str) -> str:
    r"""Text that can be encoded and sent: lone surrogates replaced, everything else kept.

    >>> printable("a\ud800b")
    'a�b'
    """
    return _SURROGATE.sub("\N{REPLACEMENT CHARACTER}", text)


def numbered(tokens: list[str], first: int = 0) -> list[str]:
    """Labels that tell equal tokens apart: position and token.

    >>> numbered([" a", " a"])
    ['0 ·a', '1 ·a']
    """
    return [f"{first + i} {visible(token)}" for i, token in enumerate(tokens)]
