"""The study of patterns: what its prompts say, whose row a token is, and verdicts."""

from itertools import pairwise

import abstract_induction as study
import numpy as np
import pytest
import torch
from abstract_induction import CLASSES, FIRST, KINDS, RIGHT, SECOND, Row

import probe


def draw(n: int, asked: int = 2, seed: int = 0) -> list[Row]:
    return study.prompt(np.random.default_rng(seed), asked, n)


def read(line: str) -> int:
    """The class of a line's two words, from the words alone."""
    first, second = line.split(":")[0].split(" ")
    return 2 * (first in FIRST[1]) + (second in SECOND[1])


@pytest.mark.parametrize("asked", range(CLASSES))
def test_labels_are_the_classes_of_words_and_the_words_asked_for_are_new(asked: int) -> None:
    *before, last = study.text(draw(28, asked, seed=asked)).split("\n")
    assert [int(line[-1]) for line in before] == [read(line) for line in before]
    assert np.bincount([read(line) for line in before]).tolist() == [7] * CLASSES
    assert read(last) == int(last[-1]) == asked
    earlier = " ".join(before).replace(":", "").split()
    assert not set(last.split(":")[0].split()) & set(earlier)


def test_kinds_of_words_share_none() -> None:
    for kinds in (FIRST, SECOND):
        assert len(set(kinds[0]) | set(kinds[1])) == len(kinds[0]) + len(kinds[1])
        assert not any(" " in word for kind in kinds for word in kind)


@pytest.mark.parametrize("seed", range(5))
def test_a_token_is_of_the_row_its_first_character_is_in(seed: int) -> None:
    """However a tokenizer cuts the text."""
    rows, rng = draw(12, seed=seed), np.random.default_rng(seed)
    text = study.text(rows)
    cuts = [0, *sorted(rng.choice(range(1, len(text)), 40, replace=False)), len(text)]
    pieces = [text[a:b] for a, b in pairwise(cuts)]
    assert study.rows_of(pieces) == [text[:start].count("\n") for start in cuts[:-1]]
    lines = text.split("\n")
    for start, kind in list(zip(cuts, study.kinds_of(pieces, rows), strict=False))[1:]:
        line = lines[text[:start].count("\n")]
        wanted = "same class" if read(line) == rows[-1].label else "other classes"
        assert KINDS[kind] == ("own row" if line == lines[-1] else wanted)
    assert KINDS[study.kinds_of(pieces, rows)[0]] == "first token"


def test_attention_is_shared_out_whole_as_one_prompt_by_itself_says(toy) -> None:
    prompts = [draw(4, asked, seed=asked) for asked in range(CLASSES)]
    found = study.measure(toy, prompts)
    assert found.shares.shape == (4, toy.dims.n_layers, toy.dims.n_heads, len(KINDS))
    np.testing.assert_allclose(found.shares.sum(-1), 1, atol=1e-5)
    for number, rows in enumerate(prompts):
        trace = toy.trace(study.text(rows), ["pattern.1"])
        kinds = study.kinds_of(trace.str_tokens[0], rows)
        pattern = trace["pattern", 1][0, :, -2]
        by_kind = [pattern[:, [k == kind for k in kinds]].sum(-1) for kind in range(len(KINDS))]
        torch.testing.assert_close(
            torch.tensor(found.shares[number, 1]), torch.stack(by_kind, -1), rtol=1e-4, atol=1e-5
        )
        likely = toy.forward(trace.tokens)[0, -2].argmax()
        assert found.most_likely[number] == (likely == trace.tokens[0, -1])


def attention(right: list[list[float]]) -> study.Attention:
    """Of one layer: the right class's share, [prompt, head], the rest on the first token."""
    share = np.array(right)[:, None]
    zero = np.zeros_like(share)
    foretold = np.ones(len(right), bool)
    return study.Attention(np.stack([share, zero, zero, 1 - share], -1), foretold, foretold)


def test_a_head_is_chosen_of_those_that_match_prefixes() -> None:
    found = attention([[0.9, 0.2, 0.5], [0.8, 0.3, 0.4]])
    assert study.best(found, np.array([[True, True, True]])) == (0, 0)
    assert study.best(found, np.array([[False, True, True]])) == (0, 2)


@pytest.mark.parametrize(
    ("right", "verdict"),
    [
        ([0.6, 0.65, 0.7], "reproduced"), ([0.4, 0.6, 0.7], "partly"), ([0.4, 0.45], "partly"),
        ([0.2, 0.3, 0.25], "not reproduced"),
    ],
)  # fmt: skip
def test_half_of_all_attention_must_be_on_the_right_class(right: list[float], verdict: str) -> None:
    numbers = study.numbers(attention([[share] for share in right]), (0, 0), (0, 0))
    assert numbers["right class, of attention to earlier rows"].value == 1
    assert study.ABSTRACT.judge(numbers).verdict == verdict


@pytest.mark.slow
def test_it_runs_whole_and_leaves_out_what_no_head_can_show(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    size = {"model": "toy", "n": 4, "rows": 4}
    found = study.abstract_induction.run(size)
    assert set(found.findings.frame.verdict) == {"left out"}
    monkeypatch.setattr(study, "MATCHES", 0)
    found = study.abstract_induction.run(size)
    value = found.findings.frame.set_index("measure").value
    assert value["right class, of earlier rows: chance"] == 1 / CLASSES
    assert value[RIGHT] == pytest.approx(value[f"{RIGHT}, best of all heads"])
    (heads,) = found.exhibits.values()
    assert len(heads.frame) == 2 * 4
    assert np.allclose(heads.frame[["value", "other", "own", "first"]].sum(axis=1), 1)
    assert isinstance(heads, probe.Result)
