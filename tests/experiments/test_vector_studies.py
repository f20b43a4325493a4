"""The studies of vectors and of rotary frequencies: rules on numbers made up, and run whole."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import icl_vectors
import numpy as np
import pandas as pd
import pytest
import rotary_smollm2
import steer_sentiment

import probe
from probe.models.bridge import BridgeModel

N_LAYERS, N_HEADS = 10, 4


def found(accuracies: dict[str, float], best_layer: int, heads: list[int]) -> Any:
    """One split of a task: both vectors are best at a layer, and some heads carry the effect."""
    curve = pd.DataFrame({"accuracy": np.where(np.arange(N_LAYERS) == best_layer, 0.9, 0.2)})
    scores = [
        {"x": str(x), "condition": name, "value": float(x < share * 20)}
        for name, share in accuracies.items()
        for x in range(20)
    ]
    every = [(layer, head) for layer in range(N_LAYERS) for head in range(N_HEADS)]
    effects = pd.DataFrame(every, columns=["layer", "head"]).assign(value=0.001)
    effects.loc[heads, "value"] = 0.1
    vector = SimpleNamespace(curve=curve)
    shuffled = effects.sample(frac=1, random_state=0)  # in whatever order they come
    return SimpleNamespace(scores=pd.DataFrame(scores), tv=vector, fv=vector, effects=shuffled)


GOOD = {"in context": 1.0, "none": 0.05, "TV": 0.9, "FV": 0.8, "layer average": 0.1}


def verdicts(accuracies: dict[str, float], layer: int, first_head: int) -> dict[str, str]:
    """By claim; three tasks, two splits each."""
    heads = list(range(first_head, first_head + 10))
    judged = {name: [found(accuracies, layer, heads)] * 2 for name in ("a", "b", "c")}
    findings = [icl_vectors.judge_close(judged), *icl_vectors.judge(judged)]
    return {finding.claim.claim: finding.verdict for finding in findings}


@pytest.mark.slow
def test_vectors_as_published_are_reproduced() -> None:
    assert set(verdicts(GOOD, layer=4, first_head=12).values()) == {"reproduced"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("claim", "changes"),
    [
        (icl_vectors.CLOSE, {"accuracies": GOOD | {"TV": 0.4}}),
        (icl_vectors.WORKS, {"accuracies": GOOD | {"FV": 0.05}}),
        (icl_vectors.MIDDLE, {"layer": 8}),
        (icl_vectors.FADES, {"layer": 8}),
    ],
)
def test_vectors_that_are_not(claim: probe.Claim, changes: dict[str, Any]) -> None:
    usual: dict[str, Any] = {"accuracies": GOOD, "layer": 4, "first_head": 12}
    assert verdicts(**usual | changes)[claim.claim] == "not reproduced"


@pytest.mark.slow
def test_heads_that_lead_but_late_are_partly_what_was_published() -> None:
    assert verdicts(GOOD, layer=4, first_head=30)[icl_vectors.FEW.claim] == "partly"


def test_depth_is_counted_as_the_papers_do() -> None:
    """GPT-J's layer 13 of 28 lies at 46 %."""
    assert icl_vectors.peak(np.eye(28)[[13, 13]]) == pytest.approx(13 / 28)
    effects = np.zeros((2, 28 * 16))
    effects[:, 13 * 16 : 13 * 16 + 10] = 1
    assert icl_vectors.top_depth(effects, 28) == pytest.approx(13 / 28)
    assert icl_vectors.top_share(effects) == 1


def test_heads_are_ranked_by_their_mean_over_tasks() -> None:
    """Each task has ten heads of its own: none of them leads on average."""
    effects = np.kron(np.eye(4), np.ones(10))
    assert icl_vectors.top_share(effects[:1]) == 1
    assert icl_vectors.top_share(effects) == pytest.approx(1 / 4)


# --- rotary frequencies --------------------------------------------------------------------------


def usage(slow: float, values: float) -> pd.DataFrame:
    """Shares of 32 pairs: ``slow`` in the slowest eight of queries and keys."""
    rows = [
        {"batch": 0, "part": part, "layer": layer, "head": head, "kv_head": 0, "pair": pair,
         "share": share / 8 if pair >= 24 else (1 - share) / 24}
        for part, share in (("q", slow), ("k", slow), ("v", values))
        for layer in range(3)
        for head in range(2)
        for pair in range(32)
    ]  # fmt: skip
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("slow", "values", "verdict"),
    [(0.5, 0.25, "reproduced"), (0.35, 0.25, "partly"), (0.25, 0.25, "not reproduced"),
     (0.5, 0.5, "not reproduced")],
)  # fmt: skip
def test_slow_pairs_of_queries_and_keys_alone(slow: float, values: float, verdict: str) -> None:
    numbers = rotary_smollm2.slowest(usage(slow, values))
    assert numbers["slowest pairs, queries and keys"].value == pytest.approx(slow)
    assert rotary_smollm2.SLOW.judge(numbers).verdict == verdict


@pytest.mark.parametrize(("fast", "verdict"), [(0.9, "reproduced"), (0.25, "not reproduced")])
def test_previous_token_heads_use_fast_pairs(fast: float, verdict: str) -> None:
    at = pd.MultiIndex.from_product([range(10), range(2)], names=["layer", "head"])
    previous = pd.Series(np.where(np.arange(20) < 2, 0.9, 0.1), at)
    heads = at.to_frame(index=False).assign(value=np.where(np.arange(20) < 2, fast, 0.25))
    found = rotary_smollm2.fastest(heads, previous)
    assert rotary_smollm2.FAST.judge(found).verdict == verdict


# --- steering ------------------------------------------------------------------------------------


def generations(slope: float, noise: float) -> pd.DataFrame:
    """Sentiment that rises with strength in every text, and that of a control."""
    rows = [
        {"direction": name, "strength": strength, "batch": text, "value": rise * strength + text,
         "words": rise * strength - text, "cost": 0.1 * abs(strength)}
        for name, rise in (("sentiment", slope), ("random", noise))
        for strength in (-2.0, -1.0, 0.0, 1.0, 2.0)
        for text in range(4)
    ]  # fmt: skip
    return pd.DataFrame(rows)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("slope", "noise", "verdict"),
    [(1, 0.1, "reproduced"), (-1, 0.1, "not reproduced"), (1, 0.9, "not reproduced")],
)
def test_strength_moves_sentiment_and_controls_do_not(
    slope: float, noise: float, verdict: str
) -> None:
    (finding,) = steer_sentiment.judged(generations(slope, noise))
    assert finding.verdict == verdict


@pytest.mark.slow
def test_a_strength_that_costs_too_much_is_not_judged() -> None:
    """Beyond one nat the sentiment falls again; that is no miss."""
    frame = generations(1, 0.1)
    frame.loc[frame.strength == 2, ["value", "words", "cost"]] = [-9.0, -9.0, 1.5]
    (finding,) = steer_sentiment.judged(frame)
    assert finding.verdict == "reproduced"


def test_words_of_sentiment_are_counted_by_the_hundred() -> None:
    assert steer_sentiment.words("A good, GOOD day; bad.") == pytest.approx(100 / 5)


# --- whole ---------------------------------------------------------------------------------------

SMALLEST = [
    (icl_vectors.icl_vectors, {"tasks": ["plural"], "splits": 1, "n": 2, "n_test": 2}, 7),
    (rotary_smollm2.rotary_smollm2, {"n": 1}, 3),
    (steer_sentiment.steer_sentiment, {"strengths": [-1, 0, 1], "seeds": 1, "tokens": 2}, 1),
]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:An input array is constant")  # two tokens, no word of the list
@pytest.mark.parametrize(("study", "options", "rows"), SMALLEST)
def test_a_study_at_its_smallest(
    study: Any,
    options: dict[str, Any],
    rows: int,
    smollm2: BridgeModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(probe, "load_model", lambda name: smollm2, raising=False)
    monkeypatch.setattr(rotary_smollm2, "PROSE", rotary_smollm2.PROSE[:1])
    monkeypatch.setattr(steer_sentiment, "PROMPTS", steer_sentiment.PROMPTS[:1])
    monkeypatch.setattr(steer_sentiment, "NEUTRAL", steer_sentiment.NEUTRAL[:1])
    outcome = study.run(options)
    assert outcome.findings.frame.claim.nunique() == rows
    for exhibit in outcome.exhibits.values():
        assert exhibit.plot().data
