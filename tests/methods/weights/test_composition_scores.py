"""composition_scores against dense products, random matrices and a circuit made by hand."""

import dense_circuits as dense
import pandas as pd
import pytest
import torch
from dense_circuits import loaded
from families import build, tokenizer

from probe.core.errors import ModelError, OptionError
from probe.methods.weights.composition_scores import composition_scores
from probe.models.bridge import BridgeModel
from probe.models.handbuilt import LAYOUTS, induction_model
from probe.models.load import load_model


@pytest.mark.parametrize(
    ("family", "fold"), [("gpt2", True), ("neox", True), ("qwen3", True), ("gemma2", False)]
)
def test_scores_are_those_of_the_whole_matrices(family: str, fold: bool) -> None:
    model = loaded(family)
    distance = 0 if family == "gpt2" else 2
    frame = composition_scores(model, fold=fold, distance=distance, draws=2)
    for row in frame.sample(12, random_state=0).itertuples():
        ov = dense.head_ov(model, row.sender_layer, row.sender_head, fold=fold)
        qk = dense.head_qk(model, row.layer, row.head, distance=distance, fold=fold)
        read = {"Q": qk, "K": qk.T, "V": dense.head_ov(model, row.layer, row.head, fold=fold)}
        b = read[row.kind]
        assert row.raw == pytest.approx(float((ov @ b).norm() / (ov.norm() * b.norm())), rel=1e-4)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_k_composition_of_the_induction_circuit_is_the_largest(layout: str) -> None:
    built = induction_model(layout, size=32)
    model = load_model(built.hf, tokenizer=built.tokenizer)
    frame = composition_scores(model, kinds=["K"])
    best = frame.loc[frame["value"].idxmax()]
    assert (best.sender_layer, best.sender_head) == built.heads["previous"]
    assert (best.layer, best["head"]) == built.heads["induction"]
    others = frame[(frame.sender != best.sender) | (frame.receiver != best.receiver)]
    assert best.value > 10 * others.value.max()


def test_random_matrices_stay_inside_the_interval(toy: BridgeModel, toy_mha: BridgeModel) -> None:
    for model in (toy, toy_mha):
        frame = composition_scores(model, draws=200)
        inside = frame.raw.between(frame.low, frame.high)
        assert inside.mean() >= 0.85  # 95 % are expected of 48 pairs
        assert abs(frame.value.mean()) < (frame.high - frame.low).iloc[0] / 4


def test_value_is_what_exceeds_the_baseline(toy: BridgeModel) -> None:
    frame = composition_scores(toy, kinds=["V"], draws=5)
    assert set(frame.kind) == {"V"}
    assert len(frame) == 16
    torch.testing.assert_close(
        torch.tensor(frame.value.to_numpy()), torch.tensor((frame.raw - frame.baseline).to_numpy())
    )
    assert not composition_scores(toy, kinds=["V"], draws=5, seed=1).equals(frame)


def test_pairs_of_one_head_are_those_of_the_whole_table(toy: BridgeModel) -> None:
    whole = composition_scores(toy, draws=5)
    one = composition_scores(toy, of=(1, 2), draws=5)
    own = whole[(whole.sender == "1.2") | (whole.receiver == "1.2")].reset_index(drop=True)
    pd.testing.assert_frame_equal(one, own)
    with pytest.raises(OptionError, match="layer 2\nExpected: 0 to 1"):
        composition_scores(toy, of=(2, 0))


def test_an_encoder_and_a_distance_without_rotation_are_refused() -> None:
    bert = loaded("bert")
    with pytest.raises(ModelError, match="is an encoder.*\nExpected: a causal model"):
        composition_scores(bert)
    gpt2 = loaded("gpt2")
    with pytest.raises(OptionError, match="distance=3, and layer 1 .* does not rotate"):
        composition_scores(gpt2, distance=3)


def test_one_layer_cannot_compose() -> None:
    hf = build("llama")
    hf.model.layers = hf.model.layers[:1]
    hf.config.num_hidden_layers = 1
    with pytest.raises(ModelError, match="has one layer"):
        composition_scores(load_model(hf, tokenizer=tokenizer()))
