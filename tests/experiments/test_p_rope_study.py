"""The study of p-RoPE: its rows and scores by hand, its rules on numbers made up, and run whole."""

from itertools import permutations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import p_rope
import pandas as pd
import pytest
import torch

import probe
from probe.models.tiny.text import Rows


@pytest.fixture(scope="module")
def drills() -> Rows:
    none = torch.zeros(1, 4, dtype=torch.int16)
    text = Rows(none, none, "text", tokenizer=None)
    return p_rope.copy_rows(text, seed=0, steps=3)


def test_after_a_mark_comes_the_token_before_it(drills: Rows) -> None:
    assert drills.train.shape == (3 * p_rope.COPYING["batch_size"], p_rope.COPYING["n_ctx"])
    assert drills.held_out.shape == (p_rope.HELD_OUT, p_rope.COPYING["n_ctx"])
    for row in (*drills.train, *drills.held_out):
        a, b, mark, after = row.view(-1, 4).unbind(1)
        assert (mark == p_rope.MARK).all()
        assert torch.equal(after, b)
        once = torch.cat([a, b]).tolist()
        assert len(set(once)) == len(once)
        assert set(once) <= set(p_rope.SYMBOLS)


def test_rows_are_the_seeds_own(drills: Rows) -> None:
    again, other = (p_rope.copy_rows(drills, seed, 3) for seed in (0, 1))
    assert torch.equal(again.train, drills.train)
    assert again.text_hash == drills.text_hash != other.text_hash
    train, held_out = (set(map(tuple, part.tolist())) for part in (again.train, again.held_out))
    assert not train & held_out


@pytest.mark.parametrize("marks", [1, 2, 3])
def test_the_ceiling_is_that_of_the_best_guess_from_the_unordered_tokens(marks: int) -> None:
    right = []
    for mark in range(1, marks + 1):
        answers: dict[tuple, list[int]] = {}
        for symbols in permutations(range(2 * mark)):
            a, b = symbols[::2], symbols[1::2]
            seen = sorted([*a, *b, *b[:-1]])  # the answers to earlier marks stand there, too
            answers.setdefault(tuple(seen), []).append(b[-1])
        best = sum(np.bincount(given).max() for given in answers.values())
        right.append(best / sum(map(len, answers.values())))
    assert p_rope.blind(marks) == pytest.approx(np.mean(right))


def test_copying_is_all_right_and_repeating_the_mark_all_wrong(drills: Rows) -> None:
    def model(back: int) -> Any:
        def forward(tokens: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.one_hot(tokens.roll(back, 1), 70).double()

        return SimpleNamespace(forward=forward)

    tokens = drills.held_out.long()
    assert p_rope.accuracy(model(1), tokens) == 1
    assert p_rope.accuracy(model(0), tokens) == 0


# --- rules ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("with_positions", "without", "verdict"),
    [
        ([0.97, 0.99, 0.98, 1, 1], [0.15, 0.2, 0.1, 0.1, 0.2], "reproduced"),
        ([0.97, 0.99, 0.98], [0.15, 0.2, 0.1], "partly"),  # three seeds of a toy
        ([0.97, 0.90, 0.90, 1, 1], [0.15, 0.2, 0.1, 0.1, 0.2], "partly"),  # two below the line
        ([0.90, 0.90, 0.90, 1, 1], [0.15, 0.2, 0.1, 0.1, 0.2], "not reproduced"),
        ([0.97, 0.99, 0.98, 1, 1], [0.6, 0.9, 0.6, 0.1, 0.2], "not reproduced"),
    ],
)
def test_copying_needs_positions(
    with_positions: list[float], without: list[float], verdict: str
) -> None:
    found = p_rope.NOPE.judge(
        {
            "accuracy, RoPE": probe.over_seeds(with_positions),
            "accuracy, NoPE": probe.over_seeds(without),
        }
    )
    assert found.verdict == verdict


def judged(*means: float) -> Any:
    """Three seeds with a sd of 0.1 for each share: 1, 0.75, 0.25, 0."""
    rows = [
        {"p": p, "seed": seed, "perplexity": mean + shift}
        for p, mean in zip(p_rope.SHARES, means, strict=True)
        for seed, shift in enumerate((-0.1, 0.0, 0.1))
    ]
    return p_rope.compared(pd.DataFrame(rows))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("means", "verdict"),
    [
        ((20.0, 19.8, 20.5, 21.0), "reproduced"),
        ((20.0, 19.95, 20.5, 21.0), "partly"),  # equal within the spread
        ((20.0, 20.0, 20.5, 21.0), "partly"),
        ((20.0, 20.05, 20.5, 21.0), "partly"),  # 0.75 the worse of two that are as good as one
        ((20.0, 20.0, 20.05, 21.0), "partly"),  # 0.25 within the spread of RoPE
        ((20.0, 20.2, 20.5, 21.0), "not reproduced"),  # 0.75 worse
        ((20.0, 20.0, 21.0, 20.5), "not reproduced"),  # NoPE better than 0.25
        ((21.0, 21.0, 20.5, 20.0), "not reproduced"),
    ],
)
def test_the_order_and_the_gaps_decide(means: tuple[float, ...], verdict: str) -> None:
    assert judged(*means).verdict == verdict


def test_gaps_are_in_standard_deviations_over_seeds() -> None:
    found = judged(20.0, 19.8, 20.3, 20.8).measured
    gaps = [found[name].value for name in (p_rope.LESS, p_rope.MORE, p_rope.WORSE)]
    assert gaps == pytest.approx([2, 3, 5])
    assert found[p_rope.WORST].value == pytest.approx(0.5)


@pytest.mark.slow
def test_the_study_runs_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROBE_RUNS", str(tmp_path))
    monkeypatch.setattr(p_rope, "HELD_OUT", 8)
    text = {"d_model": 16, "d_mlp": 16, "n_heads": 2, "d_head": 8, "batch_size": 2, "steps": 2}
    outcome = p_rope.p_rope.run(
        {"seeds": 1, "toys": 1, "documents": 60, "copying": {"steps": 1}, "text": text}
    )
    table = outcome.findings.frame.set_index("measure")
    assert table["claim"].nunique() == 2
    assert "reproduced" not in set(table["verdict"])  # one seed has no spread
    assert 0 < table.loc["ceiling of what is blind to order", "value"] < 0.5
    (shown,) = outcome.exhibits.values()
    assert shown.frame["p"].tolist() == [1, 0.75, 0.25, 0]
    np.testing.assert_allclose(shown.frame["perplexity"], np.exp(shown.frame["loss"]))
    for p, value in zip(shown.frame["p"], shown.frame["perplexity"], strict=True):
        assert table.loc[f"perplexity, p = {p:g}", "value"] == value
    assert len(shown.plot().data) > 0
    assert len(list((tmp_path / "tiny").iterdir())) == 6
