"""Tokens made visible, and escaped for whoever shows them.

The text of a model is untrusted and often cannot be seen. Every figure and table shows it through
`visible`, so a leading space, a newline, a control character or half a UTF-8 sequence can be read
and nothing can hide, reorder or format its neighbours.
"""

import html
import re
import unicodedata
from collections.abc import Sequence

from probe.core.errors import OptionError
from probe.core.result import Scale
from probe.viz import theme

_NAMED = {"\n": "↵", "\t": "→", "\r": "␍"}
_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Zs"})
_COMBINING = frozenset({"Mn", "Mc", "Me"})
_DOTTED_CIRCLE = "◌"
# A single space between two words of a prompt can be seen; all others cannot.
_UNSEEN_SPACE = re.compile(r"^ +| +$| {2,}|(?<=[\n\t\r]) +| +(?=[\n\t\r])")


def visible(token: str, longest: int = theme.HOVER_LETTERS) -> str:
    r"""The text with every character that cannot be seen drawn.

    >>> visible(" Mary"), visible("\n\t"), visible("a\u202eb"), visible("\ud800"), visible("")
    ('·Mary', '↵→', 'a‹202E›b', '‹D800›', '∅')
    """
    cut = token[:longest]
    marked = _UNSEEN_SPACE.sub(lambda found: "·" * len(found[0]), cut)
    shown = "".join(_glyph(character) for character in marked)
    if len(token) > longest:
        shown += "…"
    if token and unicodedata.category(token[0]) in _COMBINING:
        shown = _DOTTED_CIRCLE + shown
    return shown or "∅"


def label(text: object, longest: int = theme.HOVER_LETTERS) -> str:
    r"""Text for a plotly label, which would read ``<b>`` as bold and ``$x$`` as a formula.

    >>> label("<b>$x$"), label(" a&lt;")
    ('&lt;b&gt;&#36;x&#36;', '·a&amp;lt;')
    """
    return html.escape(visible(str(text), longest), quote=False).replace("$", "&#36;")


def wrapped(text: str, width: int = theme.WRAP) -> str:
    """A `label` of prose, broken into lines."""
    words, lines = text.split(), [""]
    for word in words:
        if len(lines[-1]) + len(word) >= width:
            lines.append("")
        lines[-1] += (" " if lines[-1] else "") + word
    return "<br>".join(label(line, len(line)) for line in lines)


def tokens_html(
    tokens: Sequence[str],
    values: Sequence[float],
    *,
    scale: Scale = "activation",
    ends: theme.Limits | None = None,
) -> str:
    """A line of text, each token on the colour of its number; hover shows position and number.

    Args:
        tokens: Token strings, untrusted.
        values: One number for each; a missing one (NaN) is left white.
        scale: The colour scale.
        ends: Ends of the colour scale, to share one between several strips.
    """
    if len(tokens) != len(values):
        raise OptionError(
            f"{len(tokens)} tokens and {len(values)} numbers", expected="one number for each token"
        )
    ends = ends or theme.limits(list(values), scale)
    spans = "".join(
        _span(i, token, float(value), ends, scale)
        for i, (token, value) in enumerate(zip(tokens, values, strict=True))
    )
    note = f'<div style="{theme.NOTE_CSS}">{ends.words}</div>'
    return f'<div style="{theme.STRIP_CSS}">{spans}{note}</div>'


def _span(place: int, token: str, value: float, ends: theme.Limits, scale: Scale) -> str:
    background = theme.colour(value, ends, scale)
    text = visible(token)
    shown = theme.number(value, sign=scale == "signed")
    title = html.escape(f"{place} {text}: {shown}")
    # <bdi> keeps right-to-left text from reordering its neighbours.
    line = "<br>" if "\n" in token else ""
    return (
        f'<span title="{title}" style="background:{theme.css(background)};'
        f'color:{theme.ink_on(background)};{theme.TOKEN_CSS}">'
        f"<bdi>{html.escape(text)}</bdi></span><wbr>{line}"
    )


def _glyph(character: str) -> str:
    if character in _NAMED:
        return _NAMED[character]
    if character != " " and unicodedata.category(character) in _HIDDEN:
        return f"‹{ord(character):02X}›"
    return character
