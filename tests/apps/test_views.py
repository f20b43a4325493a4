"""The views as plain dicts: what is drawn for hostile tokens, and how numbers become colours."""

import doctest
import importlib
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from apps.components import colours, glyphs
from apps.components.attention_text import text_view
from apps.components.head_wall import Head, wall_view
from apps.components.matrix import LARGEST, Axis, matrix_view
from apps.components.tokens import Channel, Token, tokens_view
from apps.components.wire import pack

anything = st.text(st.characters(exclude_categories=()), max_size=60)


def unpack(data: bytes) -> tuple[dict, bytes]:
    size = int.from_bytes(data[:4], "little")
    return json.loads(data[4 : 4 + size]), data[4 + size :]


@pytest.mark.parametrize(
    ("token", "shown"),
    [
        (" Mary", "·Mary"),
        ("\n", "↵"),
        ("\t", "→"),
        ("\x00", "‹00›"),
        ("\u202e", "‹202E›"),
        ("\ud800", "‹D800›"),
        ("\u0301", "◌\u0301"),
        ("", "∅"),
        ("<script>", "<script>"),
        ("x" * 50, "x" * 40 + "…"),
    ],
)
def test_every_token_is_visible(token: str, shown: str) -> None:
    assert glyphs.visible(token) == shown


@given(anything)
def test_what_is_shown_can_be_sent_and_hides_nothing(text: str) -> None:
    shown = glyphs.visible(text)
    shown.encode("utf-8")
    assert shown
    assert not any(c in shown for c in "\u202e\u200b\x00\n\t ")
    glyphs.printable(text).encode("utf-8")


@given(anything, st.binary(max_size=20))
def test_a_message_carries_any_text_and_its_cells(text: str, cells: bytes) -> None:
    assert unpack(pack({"text": text}, cells)) == ({"text": text}, cells)


def test_signed_limits_are_symmetric_and_zero_is_in_the_middle() -> None:
    ends = colours.limits([-3.0, 1.0, float("nan")], "signed")
    assert ends.low == -ends.high
    assert colours.to_bytes(np.array([0.0]), ends) in (b"\x7f", b"\x80")


def test_one_outlier_does_not_bleach_the_picture() -> None:
    ends = colours.limits([*np.ones(999), 1000.0], "activation")
    assert ends.words() == "0.00 to 1.00, the 99.5th percentile"


def test_limits_of_nothing_can_still_be_drawn() -> None:
    assert colours.limits([], "activation").high == 1.0
    assert colours.limits([0.0, 0.0], "signed").high == 1.0


def test_probabilities_never_round_to_a_false_certainty() -> None:
    assert colours.percent(0.00001) == "< 0.1 %"
    assert colours.percent(0.999999) == "> 99.9 %"
    assert colours.percent(1.0) == "100.0 %"


def test_the_wall_sends_one_byte_a_cell() -> None:
    patterns = np.random.default_rng(0).random((2, 3, 5, 5))
    labels = [[f"L{i}H{j}"] for i in range(2) for j in range(3)]
    ends = colours.Limits(0.0, 1.0)
    head, cells = wall_view(patterns, labels, Head(1, 2), ends=ends)
    assert len(cells) == patterns.size
    assert (head["n_layers"], head["n_heads"], head["size"]) == (2, 3, 5)
    assert head["labels"][1 * 3 + 2] == ["L1H2"]


def test_the_selection_alone_does_not_redraw_the_wall() -> None:
    patterns, ends = np.zeros((1, 2, 3, 3)), colours.Limits(0.0, 1.0)
    first, _ = wall_view(patterns, [["a"], ["b"]], Head(0, 0), ends=ends)
    second, _ = wall_view(patterns, [["a"], ["b"]], Head(0, 1), ends=ends)
    assert first["sig"] == second["sig"]


def test_a_locked_position_outside_the_text_shown_is_moved_inside() -> None:
    head, cells = text_view(np.eye(3), [Token("a"), Token("b"), Token("c")], 1, first=10)
    assert head["selected"] == 0
    assert len(cells) == 4 * 9


def test_a_token_without_a_value_has_no_colour() -> None:
    colour = Channel([float("nan"), 1.0], "activation", colours.Limits(0.0, 1.0))
    view = tokens_view([Token("<s>", special=True), Token(" a")], [["0"], ["1"]], 1, colour=colour)
    assert view["colour"] == [None, 255]
    assert view["tokens"] == [{"text": "<s>", "special": True}, {"text": "·a", "special": False}]


def test_a_matrix_too_large_to_draw_is_refused() -> None:
    axis = Axis("layer", [])
    with pytest.raises(ValueError, match=r"40401 cells; at most 40000 are drawn"):
        matrix_view(
            np.zeros((201, 201)), axis, axis, [], scale="signed", ends=colours.Limits(-1.0, 1.0)
        )
    assert LARGEST == 40_000


@pytest.mark.parametrize(
    "module",
    [
        "bar",
        "components.colours",
        "components.glyphs",
        "components.wire",
        "state",
        "sweep",
        "views.figures",
        "views.grids",
        "views.patching",
    ],
)
def test_the_examples_in_the_docstrings_hold(module: str) -> None:
    found = doctest.testmod(importlib.import_module(f"apps.{module}"))
    assert found.attempted
    assert not found.failed
