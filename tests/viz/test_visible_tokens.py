import html
import re
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from probe.core.errors import OptionError
from probe.viz import theme
from probe.viz.tokens import label, tokens_html, visible

ANY_TEXT = st.text(st.characters(exclude_categories=()))


@pytest.mark.parametrize(
    ("token", "shown"),
    [
        (" Mary", "·Mary"), ("  x ", "··x·"), ("to the", "to the"), ("a  b", "a··b"),
        ("\n\n", "↵↵"), ("\n a", "↵·a"), ("\t", "→"), ("\r", "␍"), ("", "∅"), ("a\x00", "a‹00›"),
        ("\x1b[31m", "‹1B›[31m"),
        ("\u202eab", "‹202E›ab"), ("\u200b", "‹200B›"), ("\ufeff", "‹FEFF›"), ("\xa0", "‹A0›"),
        ("\ud83d", "‹D83D›"), ("\u0301", "◌\u0301"), ("שלום", "שלום"), ("😀", "😀"),
        ("x" * 90, "x" * 80 + "…"),
    ],
)  # fmt: skip
def test_what_cannot_be_seen_is_drawn(token: str, shown: str) -> None:
    assert visible(token) == shown


@given(ANY_TEXT)
def test_nothing_invisible_is_left(token: str) -> None:
    shown = visible(token)
    assert shown
    assert not re.search("^ | $|  ", shown)
    hidden = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
    assert not {unicodedata.category(c) for c in shown} & hidden
    shown.encode()


@given(ANY_TEXT)
def test_a_label_is_the_visible_text_once_its_entities_are_read(token: str) -> None:
    said = label(token)
    assert not set("<>$") & set(said)
    assert html.unescape(said) == visible(token)


@given(st.lists(ANY_TEXT, min_size=1, max_size=5))
def test_a_strip_holds_each_token_and_no_markup_of_theirs(tokens: list[str]) -> None:
    strip = tokens_html(tokens, [0.5] * len(tokens))
    inside = re.findall("<bdi>(.*?)</bdi>", strip, re.DOTALL)
    assert [html.unescape(part) for part in inside] == [visible(token) for token in tokens]
    assert set(re.findall(r"</?([a-z]+)", strip)) <= {"div", "span", "bdi", "wbr", "br"}


def test_a_strip_colours_by_number() -> None:
    strip = tokens_html(["a", "b", "c", "d"], [0.0, 4.0, float("nan"), -4.0], scale="signed")
    colours = re.findall(r"background:(rgb\([\d,]+\))", strip)
    end = theme.RAMPS["signed"]
    white = theme.css(theme.WHITE)
    assert colours == [white, theme.css(end[-1]), white, theme.css(end[0])]
    assert "1 b: +4" in strip
    assert "2 c: –" in strip


def test_tokens_and_numbers_must_pair_up() -> None:
    with pytest.raises(OptionError, match="2 tokens and 1 numbers"):
        tokens_html(["a", "b"], [1.0])


@given(st.floats(-1, 1), st.sampled_from(["signed", "activation", "attention", "share"]))
def test_text_can_be_read_on_every_colour(value: float, scale) -> None:
    def luminance(colour: list[int]) -> float:
        linear = [v / 3294.6 if v <= 10.3 else ((v / 255 + 0.055) / 1.055) ** 2.4 for v in colour]
        return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))

    ends = theme.limits([1.0, -1.0], scale)
    background = theme.colour(value, ends, scale)
    ink = [int(theme.ink_on(background)[i : i + 2], 16) for i in (1, 3, 5)]
    dark, light = sorted([luminance(list(background)), luminance(ink)])
    assert (light + 0.05) / (dark + 0.05) > 4.5


def test_limits_leave_out_what_is_not_finite() -> None:
    ends = theme.limits([1.0, np.nan, np.inf, -3.0], "signed")
    assert ends.high == -ends.low == pytest.approx(np.quantile([1.0, 3.0], 0.995))
    nothing = theme.limits([np.nan], "activation")
    assert (nothing.low, nothing.high) == (0.0, 1.0)
    rare = theme.limits([0.0] * 999 + [5.0], "activation")
    assert rare.high == 5.0, "a single number that is not zero still gets a colour"
