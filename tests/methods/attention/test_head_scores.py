"""head_scores on models whose heads are known, and on SmolLM2."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from families import build, tokenizer

from probe.core.errors import OptionError
from probe.core.model import Model
from probe.core.registry import METHODS
from probe.methods.attention.head_scores import _repeated_tokens, head_scores
from probe.methods.heads import ABOUT, SHARES
from probe.models.handbuilt import LAYOUTS, HandBuilt, induction_model
from probe.models.load import load_model


@pytest.fixture(scope="module", params=LAYOUTS)
def known(request: pytest.FixtureRequest) -> tuple[HandBuilt, Model]:
    built = induction_model(request.param)
    return built, load_model(built.hf, tokenizer=built.tokenizer)


@pytest.fixture(scope="module")
def toy() -> Model:
    return load_model("toy")


def means(frame: pd.DataFrame, score: str, column: str = "value") -> pd.Series:
    rows = frame[frame["score"] == score]
    return rows.groupby(["layer", "head"])[column].mean()


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("repeats", [2, 4])
def test_the_induction_head_scores_one_and_no_other_does(
    known: tuple[HandBuilt, Model], bos: bool, repeats: int
) -> None:
    built, model = known
    frame = head_scores(model, length=15, repeats=repeats, bos=bos)
    for name in ("value", "without_first"):
        scores = means(frame, "induction", name)
        assert scores.pop(built.heads["induction"]) > 0.99
        assert scores.max() < 0.2


@pytest.mark.parametrize("bos", [True, False])
def test_every_named_head_is_found(known: tuple[HandBuilt, Model], bos: bool) -> None:
    built, model = known
    frame = head_scores(model, bos=bos, scores=list(ABOUT))
    for head, score, value in [
        ("previous", "previous", 1.0),
        ("current", "current", 1.0),
        ("same_token", "duplicate", 0.5),
        ("previous", "mean_distance", 1.0),
        ("current", "entropy", 0.0),
    ]:
        assert means(frame, score)[built.heads[head]] == pytest.approx(value, abs=1e-3)
    for score in ("previous", "current", "duplicate"):
        named = {"duplicate": "same_token"}.get(score, score)
        assert means(frame, score).idxmax() == built.heads[named]
    # heads without a name attend evenly
    assert means(frame, "entropy_share")[1, 3] == pytest.approx(1)
    assert means(frame, "preceding").max() < 0.2


def test_sequences_are_bos_and_one_sequence_repeated(toy: Model) -> None:
    tokens = _repeated_tokens(toy, n=5, length=12, repeats=3, bos=None, seed=0)
    assert tokens.shape == (5, 37)
    assert (tokens[:, 0] == toy.tokenizer.hf.bos_token_id).all()
    first, *others = tokens[:, 1:].split(12, dim=1)
    assert all(torch.equal(first, other) for other in others)
    for row in first.tolist():
        assert len(set(row)) == 12
        assert not any(toy.tokenizer.is_special(token) for token in row)
    assert len({tuple(row) for row in first.tolist()}) == 5
    without = _repeated_tokens(toy, n=5, length=12, repeats=3, bos=False, seed=0)
    assert torch.equal(without, tokens[:, 1:])


def test_tokens_are_drawn_from_those_given(toy: Model) -> None:
    drawn = _repeated_tokens(
        toy, n=4, length=3, repeats=2, bos=False, seed=0, drawn_from=[9, 5, 7, 5]
    )
    assert set(drawn.unique().tolist()) == {5, 7, 9}
    assert all(len(set(row.tolist())) == 3 for row in drawn)
    with pytest.raises(OptionError, match=r"4 different tokens.*\n.*at most 3"):
        head_scores(toy, length=4, drawn_from=[9, 5, 7, 5])
    unknown = toy.dims.d_vocab
    with pytest.raises(OptionError, match=f"token {unknown} to draw from"):
        head_scores(toy, length=2, drawn_from=[5, unknown])
    bos = toy.tokenizer.hf.bos_token_id
    with pytest.raises(OptionError, match="no special token"):
        head_scores(toy, length=2, drawn_from=[5, bos])


def test_a_seed_gives_one_table(toy: Model) -> None:
    same = head_scores(toy, n=3, seed=1), head_scores(toy, n=3, seed=1)
    pd.testing.assert_frame_equal(*same)
    assert not head_scores(toy, n=3, seed=2)["value"].equals(same[0]["value"])


def test_one_row_for_each_sequence_head_and_score(toy: Model) -> None:
    frame = head_scores(toy, n=3, layers=[1])
    assert len(frame) == 3 * 4 * len(SHARES)
    assert not frame.duplicated(["batch", "layer", "head", "score"]).any()
    assert frame["value"].between(0, 1).all()
    assert set(frame["layer"]) == {1}


def test_scores_are_those_of_each_sequence_by_itself(toy: Model) -> None:
    frame = head_scores(toy, n=2, scores=["induction"], layers=[0])
    tokens = _repeated_tokens(toy, n=2, length=25, repeats=2, bos=None, seed=0)
    to = torch.arange(26, 51)
    for row in range(2):
        pattern = toy.trace(tokens[row : row + 1], "pattern.0")["pattern", 0][0]
        right = pattern[:, to, to - 24].mean(-1)
        ours = frame.loc[frame["batch"] == row, "value"]
        np.testing.assert_allclose(ours, right, rtol=1e-5)


def test_options_are_described_and_round_trip() -> None:
    known = METHODS.get("head_scores")
    options = known.parse({"scores": ["induction", "entropy"], "layers": [0]})
    assert known.parse(json.loads(options.model_dump_json())) == options
    assert known.view_for(options).facet == "score"
    assert known.view_for(known.parse({"scores": ["induction"]})).facet is None
    assert known.view_for(known.parse({})).scale == "attention"


def test_columns_are_described(toy: Model) -> None:
    described = METHODS.get("head_scores").columns_of(head_scores(toy, n=1))
    assert list(described) == ["batch", "layer", "head", "score", "value", "without_first"]


def test_an_unknown_score_is_refused() -> None:
    with pytest.raises(OptionError, match=r"scores=.*'previous', 'duplicate', 'induction'"):
        METHODS.get("head_scores").parse({"scores": ["inductive"]})


def test_too_long_sequences_are_refused_with_a_length_that_fits(toy: Model) -> None:
    with pytest.raises(OptionError) as caught:
        head_scores(toy, length=50)
    assert "2 × 50 tokens and 1 before them are 101" in str(caught.value)
    assert "at most 96" in str(caught.value)
    assert "Try: length=47" in str(caught.value)
    head_scores(toy, length=47, n=1)


def test_more_different_tokens_than_there_are_is_refused(
    known: tuple[HandBuilt, Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = known[1]
    monkeypatch.setattr(model, "dims", replace(model.dims, n_ctx=1000))
    with pytest.raises(OptionError, match="62 different tokens\nExpected: at most 61"):
        head_scores(model, length=62)


def test_bos_that_is_not_there_is_refused() -> None:
    hf = build("llama")
    words = tokenizer()
    words.bos_token = None
    model = load_model(hf, tokenizer=words)
    with pytest.raises(OptionError, match="no BOS token\nTry: bos=False"):
        head_scores(model, bos=True)
    tokens = _repeated_tokens(model, n=1, length=5, repeats=2, bos=None, seed=0)
    assert tokens.shape == (1, 10)


def test_a_layer_that_is_not_there_is_refused(toy: Model) -> None:
    with pytest.raises(OptionError, match="layer 2\nExpected: 0 to 1: the model has 2 layers"):
        head_scores(toy, layers=[2])


@pytest.mark.slow
def test_smollm2_has_induction_and_previous_token_heads() -> None:
    frame = head_scores(load_model("smollm2"))
    assert means(frame, "induction").max() >= 0.5
    assert means(frame, "previous").max() >= 0.5
    # they come in that order: the previous-token head a K-composed circuit needs is earlier
    strong = means(frame, "previous").loc[lambda x: x >= 0.5].index
    assert min(layer for layer, _ in strong) < means(frame, "induction").idxmax()[0]
