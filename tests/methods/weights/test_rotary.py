"""How layers make their scores, and what is said of rotary frequencies."""

import numpy as np
import pytest
import torch
from dense_circuits import loaded

from probe.core.errors import ModelError, OptionError, SiteError, SizeError
from probe.core.rotary import Rotary
from probe.core.task import Encoded, Task
from probe.methods.weights.positional_heads import positional_heads
from probe.methods.weights.qk_at_distance import qk_at_distance
from probe.methods.weights.rotary_usage import rotary_usage
from probe.models.bridge import BridgeModel
from probe.models.handbuilt import induction_model
from probe.models.load import load_model

pytestmark = pytest.mark.slow  # left to make test

WORDS = ["t5 t9 t30 t31 t12 t9", "t7 t8 t9 t10"]
ROTATING = ["neox", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "mixtral"]


def prompts(model: BridgeModel, texts: list[str] = WORDS) -> Encoded:
    return Task.from_prompts(texts).encode(model)


@pytest.mark.parametrize("family", ROTATING)
def test_at_its_own_distance_a_score_is_the_models(family: str) -> None:
    model = loaded(family)
    for query, key in ((3, 0), (3, 3), (-1, 2)):
        frame = qk_at_distance(model, prompts(model), query=query, key=key, distances=[0, 1, 2, 3])
        own = frame.dropna(subset="recorded")
        assert len(own) == 2 * 3 * 4 if query == 3 else len(own) > 0
        np.testing.assert_allclose(own["value"], own["recorded"], rtol=1e-4, atol=1e-4)


def test_scores_at_other_distances_are_those_of_tokens_moved_apart(toy: BridgeModel) -> None:
    """In layer 0 queries and keys know no position: the same tokens further apart score so."""
    near = Task.from_prompts("Mary and John").encode(toy)
    far = Task.from_prompts("Mary and went went went John").encode(toy)
    at = qk_at_distance(toy, near, query=-1, key=0, distances=[5], layers=[0])
    truth = toy.trace(far, "attn_scores.0")["attn_scores", 0][0, :, -1, -6]
    if near.clean[0, -6 % near.clean.shape[1]] != far.clean[0, -6]:
        pytest.skip("the words are no single tokens")
    np.testing.assert_allclose(at["value"], truth, rtol=1e-4, atol=1e-5)


def test_the_curve_of_means_is_the_mean_of_all_pairs(toy: BridgeModel) -> None:
    one = prompts(toy, ["When Mary went"])
    n = int(one.lengths[0])
    mean = qk_at_distance(toy, one, distances=[4], layers=[1])["value"]
    pairs = [
        qk_at_distance(toy, one, query=n - 1, key=key, distances=[4], layers=[1])["value"]
        for key in range(n)
    ]
    of_last = qk_at_distance(toy, one, query=n - 1, distances=[4], layers=[1])["value"]
    np.testing.assert_allclose(of_last, sum(pairs) / n, rtol=1e-4, atol=1e-5)
    assert mean.notna().all()


def test_a_wrong_pairing_would_be_noticed(toy: BridgeModel) -> None:
    """Adjacent instead of halves gives other scores: what is checked at load can fail."""
    scoring = toy.scoring(0)
    right = scoring.rotary
    assert right is not None
    wrong = Rotary(torch.arange(8).view(4, 2), right.frequency)
    x = torch.arange(8.0)
    assert not torch.allclose(right.turn(x, 3), wrong.turn(x, 3))


def test_speeds_are_those_of_the_configuration() -> None:
    model = loaded("neox")  # half of each head is rotated
    rotary = model.scoring(2).rotary
    assert rotary is not None
    assert rotary.pairs.tolist() == [[0, 2], [1, 3]]
    np.testing.assert_allclose(rotary.frequency, [1.0, 10_000**-0.5], rtol=1e-6)
    np.testing.assert_allclose(rotary.wavelength, 2 * np.pi / rotary.frequency)


def test_turning_changes_no_length_and_adds_up() -> None:
    rotary = Rotary(torch.tensor([[0, 2], [1, 3]]), torch.tensor([0.7, 0.1]).double())
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    places = torch.arange(5)
    torch.testing.assert_close(rotary.strengths(rotary.turn(x, places)), rotary.strengths(x))
    torch.testing.assert_close(rotary.turn(rotary.turn(x, 3), 4), rotary.turn(x, 7))
    torch.testing.assert_close(rotary.turn(x, 3)[:, 4:], x[:, 4:])


def test_learned_positions_are_scored_but_not_turned() -> None:
    model = loaded("gpt2")
    assert model.scoring(0).rotary is None
    assert model.scoring(0).scale == pytest.approx(8**-0.5)
    for method in (rotary_usage, positional_heads, qk_at_distance):
        with pytest.raises(ModelError, match="layer 0 of .* does not rotate"):
            method(model, prompts(model))


def test_an_encoder_shows_no_scores() -> None:
    model = loaded("bert")
    with pytest.raises(ModelError, match="shows no attn_scores"):
        model.scoring(0)


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_usage_is_the_mean_length_within_each_pair(family: str) -> None:
    model = loaded(family)
    encoded = prompts(model)
    frame = rotary_usage(model, encoded, layers=[1], skip_first=1)
    trace = model.trace(encoded, ["q.1", "k.1", "v.1"])
    scoring = model.scoring(1)
    q, k, v = scoring.queries(trace["q", 1]), scoring.keys(trace["k", 1]), trace["v", 1]
    for part, x in (("q", q), ("k", k), ("v", v)):
        own = frame[frame.part == part]
        for row, length in enumerate(encoded.lengths.tolist()):
            halves = x[row, 1:length].unflatten(-1, (2, 4))  # pair i: dimensions i and i + 4
            truth = halves.pow(2).sum(-2).sqrt().mean(0)
            ours = own[own.batch == row]["value"].to_numpy().reshape(truth.shape)
            np.testing.assert_allclose(ours, truth, rtol=1e-5)
    assert frame[frame.part != "q"]["head"].isna().all()
    assert (
        frame.groupby(["batch", "part", "head", "kv_head"], dropna=False)["share"]
        .sum()
        .round(5)
        .eq(1)
        .all()
    )


def test_the_previous_token_head_is_positional_and_fast() -> None:
    built = induction_model("grouped-query")
    model = load_model(built.hf, tokenizer=built.tokenizer)
    words = " ".join(f"w{i}" for i in (5, 9, 14, 30, 8, 21, 44))
    frame = positional_heads(model, Task.from_prompts(words).encode(model))
    frame = frame.set_index(["layer", "head"])
    for name, column in (("previous", "previous"), ("current", "current")):
        head = frame.loc[built.heads[name]]
        assert head[column] > 0.99
        assert head["positional"] == head[column]
        assert head["value"] > 0.99  # positions ride on the fastest quarter
    assert frame.loc[built.heads["same_token"]]["value"] < 0.01
    assert frame.loc[built.heads["same_token"]]["slow"] > 0.2


def test_what_cannot_be_asked_is_refused(toy: BridgeModel) -> None:
    one = prompts(toy, ["When Mary went"])
    n = int(one.lengths[0])
    with pytest.raises(OptionError, match="key 2 comes after query 1 in prompt 0"):
        qk_at_distance(toy, one, query=1, key=2)
    with pytest.raises(OptionError, match="distance -1\nExpected: 0 or more"):
        qk_at_distance(toy, one, distances=[-1])
    with pytest.raises(SiteError, match=f"position {n} lies outside prompt 0"):
        qk_at_distance(toy, one, query=n, key=0)
    with pytest.raises(SizeError, match="rows\nExpected: at most 2,000,000"):
        qk_at_distance(toy, one, distances=list(range(300_000)))
    with pytest.raises(OptionError, match=f"skip_first={n}, and prompt 0 has {n} tokens"):
        rotary_usage(toy, one, skip_first=n)
    with pytest.raises(OptionError, match="pairs=3\nExpected: at most 2: a head has 4"):
        positional_heads(toy, one, pairs=3)
    with pytest.raises(OptionError, match="a prompt of one token"):
        words = loaded("qwen2")
        positional_heads(words, prompts(words, ["t5"]))


@pytest.mark.slow
def test_smollm2s_scores_are_found(smollm2: BridgeModel) -> None:
    text = "When Mary and John went to the store, John gave a drink to"
    one = Task.from_prompts(text).encode(smollm2)
    for key in (0, 7, 13):
        frame = qk_at_distance(smollm2, one, query=-1, key=key, distances=[13 - key])
        assert len(frame) == 270
        assert (frame["value"] - frame["recorded"]).abs().max() < 1e-4
