"""Positions by number, by text and by tag."""

import pytest

from probe.core.errors import OptionError, TaskError
from probe.core.task import Encoded, Task
from probe.methods.spans import in_turn, positions_of
from probe.methods.windows import layers_around
from probe.models.bridge import BridgeModel


@pytest.fixture
def encoded(toy: BridgeModel) -> Encoded:
    prompts = [
        {"clean": "When Mary and John went", "tags": {"who": "John"}},
        {"clean": " the dog and the cat", "tags": {"who": "dog and"}},
    ]
    return Task.from_pairs(prompts).encode(toy)


def said(encoded: Encoded, found: list[list[int]]) -> list[str]:
    return ["".join(encoded.str_tokens(row)[p] for p in ps) for row, ps in enumerate(found)]


def test_numbers_count_from_the_start_or_from_each_end(encoded: Encoded) -> None:
    n = encoded.lengths.tolist()
    assert positions_of(encoded, [0, -1]) == [[0, n[0] - 1], [0, n[1] - 1]]
    assert positions_of(encoded, [-1, 2, 2]) == [[2, n[0] - 1], [2, n[1] - 1]]


def test_a_text_is_every_token_that_holds_some_of_it(encoded: Encoded) -> None:
    assert said(encoded, positions_of(encoded, "and")) == [" and", " and"]
    assert said(encoded, positions_of(encoded, "{who}")) == [" John", " dog and"]
    rows = encoded.rows([1])
    assert said(rows, positions_of(rows, "the")) == [" the"], "its first occurrence"
    assert said(rows, positions_of(rows, "og a")) == [" dog and"], "parts of tokens"
    assert said(rows, positions_of(rows, " the dog and the cat")) == [" the dog and the cat"]
    assert positions_of(rows, " the") == [[0]]


def test_a_text_of_several_bytes_is_found(toy: BridgeModel) -> None:
    encoded = Task.from_prompts("the kéy of Rome").encode(toy)
    assert said(encoded, positions_of(encoded, "of Rome"))[0].strip() == "of Rome"


@pytest.mark.parametrize("where", [[7], [-9], []])
def test_positions_that_are_not_there(encoded: Encoded, where: list[int]) -> None:
    with pytest.raises(OptionError, match=r"of prompt 0\nExpected: at least one from -\d to \d"):
        positions_of(encoded, where)


def test_texts_and_tags_that_are_not_there(encoded: Encoded) -> None:
    with pytest.raises(TaskError, match=r"'Mary' does not stand in prompt 1: .*dog\| and"):
        positions_of(encoded, "Mary")
    with pytest.raises(TaskError, match="'' does not stand in prompt 0"):
        positions_of(encoded, "")
    with pytest.raises(TaskError, match=r"no tag 'whom'\nTry: did you mean \"who\""):
        positions_of(encoded, "{whom}")


def test_in_turn_a_shorter_list_repeats_its_first() -> None:
    turns = in_turn([[1, 2, 3], [7], [5, 6]])
    assert [turn.tolist() for turn in turns] == [[1, 7, 5], [2, 7, 6], [3, 7, 5]]


def test_windows_are_those_of_the_paper() -> None:
    """Meng et al.: from layer - window // 2 up to, not including, layer - (-window // 2)."""
    for n_layers in (1, 5, 12):
        for window in range(1, 15):
            for layer in range(n_layers):
                low, high = max(0, layer - window // 2), min(n_layers, layer - (-window // 2))
                assert layers_around(layer, window, n_layers) == list(range(low, high))
