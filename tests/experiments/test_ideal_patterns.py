"""Patterns written by hand: against a reading of the tokens, and what they keep of a loss gap."""

import math
from types import SimpleNamespace
from typing import Any

import ideal_patterns
import induction_heads
import pytest
import torch
from ideal_patterns import INDUCTION, PREVIOUS

import probe

ROWS = torch.tensor([[0, 5, 6, 7, 5, 6, 5, 5], [0, 7, 7, 7, 6, 7, 6, 7]])


def read(row: list[int], query: int, context: int) -> list[float]:
    """Even attention after every place where the ``context`` tokens up to the query stood before.

    Where they stood nowhere, after shorter ones; where nothing did, on position 0.
    """
    for length in range(context, 0, -1):
        now = row[max(0, query - length + 1) : query + 1]
        keys = [key for key in range(length, query + 1) if row[key - length : key] == now]
        if keys and len(now) == length:
            return [float(key in keys) / len(keys) for key in range(len(row))]
    return [1.0] + [0.0] * (len(row) - 1)


@pytest.mark.parametrize(
    ("ideal", "context"), [(ideal_patterns.followed, 1), (ideal_patterns.followed_both, 2)]
)
def test_induction_is_read_off_the_tokens(ideal: Any, context: int) -> None:
    found = ideal(ROWS)
    for number, row in enumerate(ROWS.tolist()):
        for query in range(len(row)):
            assert found[number, query].tolist() == pytest.approx(read(row, query, context))


def test_the_token_before_gets_all() -> None:
    found = ideal_patterns.previous(ROWS)
    assert found.shape == (2, 8, 8)
    assert found.argmax(-1).tolist() == [[0, 0, 1, 2, 3, 4, 5, 6]] * 2
    assert found.sum(-1).eq(1).all()


def test_heads_with_their_own_pattern_lose_nothing_and_with_another_something(
    toy_mha: Any,
) -> None:
    rows = torch.randint(3, 60, (6, 12), generator=torch.Generator().manual_seed(0))
    whole = ideal_patterns.intact(toy_mha, rows)

    def own(layer: int, head: int) -> Any:
        return lambda chunk: toy_mha.trace(chunk, ["pattern"])["pattern", layer][:, head]

    heads = [(0, 1), (1, 0), (1, 2)]
    same = ideal_patterns.by_hand({head: own(*head) for head in heads})
    assert ideal_patterns.loss(toy_mha, rows, same) == pytest.approx(whole.loss, abs=1e-6)
    other = ideal_patterns.by_hand(dict.fromkeys(heads, ideal_patterns.previous))
    assert abs(ideal_patterns.loss(toy_mha, rows, other) - whole.loss) > 1e-5
    assert ideal_patterns.share_kept(0.3, 0.0) == 1


def test_removed_heads_write_their_mean(toy_mha: Any) -> None:
    """So among rows that are all alike nothing is lost, and among others something is."""
    rows = torch.randint(3, 60, (6, 12), generator=torch.Generator().manual_seed(0))
    for given, lost in ((rows[:1].expand(6, -1), False), (rows, True)):
        whole = ideal_patterns.intact(toy_mha, given)
        edits = ideal_patterns.removed(whole, [(0, 0), (1, 3)])
        away = abs(ideal_patterns.loss(toy_mha, given, edits) - whole.loss)
        assert (away > 1e-5) == lost


def test_without_a_gap_nothing_can_be_kept() -> None:
    assert ideal_patterns.share_kept(0.4, 0.1) == pytest.approx(0.75)
    assert math.isnan(ideal_patterns.share_kept(0.0, 0.0))
    assert math.isnan(ideal_patterns.share_kept(-0.1, 0.0))


def test_scores_are_of_the_tokens_that_are_meant() -> None:
    """A model whose head 0 always attends to the token before, and head 1 as induction would."""
    pattern = torch.stack([ideal_patterns.previous(ROWS), ideal_patterns.followed(ROWS)], dim=1)
    model = SimpleNamespace(
        dims=SimpleNamespace(n_layers=1), trace=lambda *_: {("pattern", 0): pattern}
    )
    before = ideal_patterns.previous_token(model, ROWS)
    assert before[0, 0] == 1 > before[0, 1]
    assert ideal_patterns.matched(model, ROWS, (0, 1)) == 1
    assert ideal_patterns.matched(model, ROWS, (0, 0)) < 1


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        ([0.99, 0.97, 0.98], [0.65, 0.7, 0.6], "reproduced"),
        ([0.99, 0.89, 0.98], [0.65, 0.7, 0.6], "partly"),
        ([0.8, 0.75, 0.7], [0.4, 0.4, 0.3], "partly"),
        ([0.99, 0.97, 0.98], [0.1, 0.2, 0.1], "not reproduced"),
        ([0.99, 0.97, math.nan], [0.65, 0.7, 0.6], "not reproduced"),
    ],
)
def test_both_patterns_must_keep_enough(
    before: list[float], after: list[float], verdict: str
) -> None:
    shares = {PREVIOUS: probe.over_seeds(before), INDUCTION: probe.over_seeds(after)}
    assert induction_heads.IDEAL.judge(shares).verdict == verdict
