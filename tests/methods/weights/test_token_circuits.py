"""What is read in tokens, against whole matrices, the model's own scores and hand-made circuits."""

import dense_circuits as dense
import numpy as np
import pytest
import torch
from dense_circuits import loaded

from probe.core.errors import ModelError, OptionError, TaskError
from probe.core.task import Task
from probe.methods.head_circuits import ov_tokens, qk_tokens, token_ids
from probe.methods.weights.copying_score import copying_score
from probe.methods.weights.head_tokens import head_tokens
from probe.methods.weights.matching_score import matching_score
from probe.methods.weights.singular_directions import singular_directions
from probe.methods.weights.skip_trigrams import skip_trigrams
from probe.methods.weights.top_bigrams import top_bigrams
from probe.models.bridge import BridgeModel
from probe.models.handbuilt import LAYOUTS, induction_model
from probe.models.load import load_model

pytestmark = pytest.mark.slow  # left to make test

ROTATING = ["neox", "qwen2", "qwen3", "gemma2", "phi3"]


@pytest.mark.parametrize("family", ROTATING)
def test_layer_0_scores_tokens_as_the_model_does(family: str) -> None:
    """Norms, biases, grouping and rotation: nothing else is in the stream there."""
    model = loaded(family)
    encoded = Task.from_prompts("t5 t9 t30 t31 t12").encode(model)
    ids = encoded.clean[0]
    scores = model.trace(encoded, "attn_scores.0")["attn_scores", 0][0]
    cap = model.scoring(0).softcap
    for head in (0, 3):
        for distance in (0, 2):
            table = qk_tokens(model, 0, head, ids, ids, distance)
            ours = table.left @ table.right
            ours = ours if cap is None else cap * torch.tanh(ours / cap)
            own = scores[head].diagonal(-distance)
            torch.testing.assert_close(ours.diagonal(-distance), own, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "qwen2"])
def test_ov_in_tokens_is_what_the_head_adds_to_the_logits(family: str) -> None:
    """A stream of one embedding, moved by the head and read by norm and unembedding."""
    model, (layer, head) = loaded(family), (0, 2)
    ids = torch.tensor([4, 17, 40])
    norm, final = model.norm("attn_in", layer), model.norm("final")
    weights, shared = model.weights, 2 // model.dims.heads_per_kv
    read = norm(weights.W_E[ids])
    values = read @ weights.W_V(layer)[shared] + weights.b_V(layer)[shared]
    written = values.double() @ weights.W_O(layer)[head].double()
    written = written @ dense.gained(model, "attn_out", layer, model.dims.d_model)
    logits = final.apply(written, torch.ones(1)) @ weights.W_U.double()
    table = ov_tokens(model, layer, head, ids)
    ours = (table.left @ table.right).double()
    torch.testing.assert_close(ours, logits - logits.mean(1, keepdim=True), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("circuit", ["ov", "qk"])
def test_the_strongest_pairs_are_those_of_the_whole_table(toy: BridgeModel, circuit: str) -> None:
    ids = token_ids(toy, None)
    make = ov_tokens(toy, 1, 3, ids) if circuit == "ov" else qk_tokens(toy, 1, 3, ids, ids)
    right = make.right[:, ids] if circuit == "ov" else make.right
    whole = make.left @ right
    if circuit == "qk":
        whole = whole - whole.mean(1, keepdim=True)
    frame = head_tokens(toy, layer=1, head=3, circuit=circuit, top=7)
    np.testing.assert_allclose(frame["value"], whole.flatten().topk(7).values, rtol=1e-4)
    each = head_tokens(toy, layer=1, head=3, circuit=circuit, tokens=[" the", " Mary"], top=2)
    assert each["place"].tolist() == [0, 1, 0, 1]
    row = int((ids == each["token_id"][2]).nonzero())
    assert each["other_id"][2] == int(ids[whole[row].argmax()])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_hand_made_head_copies_and_matches(layout: str) -> None:
    built = induction_model(layout, size=32)
    model = load_model(built.hf, tokenizer=built.tokenizer)
    layer, head = built.heads["induction"]
    copied = copying_score(model, draws=20).set_index(["layer", "head"])
    assert copied.value[layer, head] == pytest.approx(1, abs=0.01)
    assert copied.value[layer, head] > copied.high[layer, head]
    assert (copied.value.drop((layer, head)).abs() < 0.01).all()  # no other head writes an answer
    matched = matching_score(model, via=built.heads["previous"], draws=2).set_index(
        ["layer", "head"]
    )
    assert matched.value[layer, head] == pytest.approx(1, abs=0.01)
    assert set(matched.index.get_level_values("layer")) == {1}
    assert (matched.value.drop((layer, head)).abs() < 0.01).all()
    same = matching_score(model, draws=2).set_index(["layer", "head"])
    assert same.value[built.heads["same_token"]] == pytest.approx(1, abs=0.01)
    pairs = head_tokens(model, layer=layer, head=head, tokens=["w9", "w20"], top=1)
    assert pairs["other"].tolist() == ["w9", "w20"]


def test_copying_of_random_matrices_is_inside_the_interval(
    toy: BridgeModel, toy_mha: BridgeModel
) -> None:
    frames = [copying_score(model, draws=200) for model in (toy, toy_mha)]
    inside = [frame.value.between(frame.low, frame.high) for frame in frames]
    assert np.mean(np.concatenate(inside)) >= 0.8  # 95 % are expected of 16 heads
    assert all((frame.low < 0).all() and (frame.high > 0).all() for frame in frames)


@pytest.mark.parametrize(("family", "fold"), [("gpt2", True), ("gemma2", True), ("gemma2", False)])
def test_copying_is_the_share_of_the_vocabulary_sized_matrix(family: str, fold: bool) -> None:
    model = loaded(family)
    size = model.dims.d_model
    read = model.weights.W_U.double()
    read = (dense.gained(model, "final", None, size) if fold else torch.eye(size).double()) @ read
    read = read - read.mean(1, keepdim=True)
    frame = copying_score(model, fold=fold, draws=2).set_index(["layer", "head"])
    for layer, head in ((0, 0), (2, 3)):
        ov = dense.head_ov(model, layer, head, fold=fold)
        values = torch.linalg.eigvals(model.weights.W_E.double() @ ov @ read)
        truth = values.real.sum() / values.abs().sum()
        assert frame.value[layer, head] == pytest.approx(float(truth), abs=1e-4)


@pytest.mark.parametrize("circuit", ["ov", "qk"])
@pytest.mark.parametrize("family", ["qwen3"])
def test_singular_directions_are_those_of_the_dense_circuit(family: str, circuit: str) -> None:
    model = loaded(family)
    make = dense.head_ov if circuit == "ov" else dense.head_qk
    values = torch.linalg.svdvals(make(model, 1, 2))
    frame = singular_directions(model, layer=1, head=2, circuit=circuit, directions=3, top=1)
    ours = frame.groupby("direction")["singular"].first()
    np.testing.assert_allclose(ours, values[:3], rtol=1e-5)
    share = values[:8].square() / values.square().sum()
    np.testing.assert_allclose(frame.groupby("direction")["share"].first(), share[:3], rtol=1e-5)
    assert set(frame["end"]) == ({"reads", "writes"} if circuit == "ov" else {"query", "key"})
    assert (frame[frame.side == "+"]["value"] > 0).all()


def test_bigrams_are_the_logits_of_a_model_without_layers(toy: BridgeModel) -> None:
    ids = token_ids(toy, [" the", " Mary"])
    logits = toy.unembed(toy.weights.W_E[ids])[:, token_ids(toy, None)]
    frame = top_bigrams(toy, tokens=[" the", " Mary"], top=3)
    best = logits.topk(3).values - toy.unembed(toy.weights.W_E[ids])[
        :, : toy.tokenizer.n_vocab
    ].mean(1, keepdim=True)
    np.testing.assert_allclose(frame["value"], best.flatten(), rtol=1e-4, atol=1e-4)
    strongest = top_bigrams(toy, top=4)
    assert strongest["place"].tolist() == [0, 1, 2, 3]
    assert strongest["value"].is_monotonic_decreasing


def test_skip_trigrams_are_the_products_of_both_circuits(toy: BridgeModel) -> None:
    ids = token_ids(toy, None)
    qk = qk_tokens(toy, 1, 0, ids, ids)
    scores = qk.left @ (qk.right - qk.right.mean(1, keepdim=True))
    ov = ov_tokens(toy, 1, 0, ids)
    logits = ov.left @ ov.right[:, ids]
    frame = skip_trigrams(toy, layer=1, top=5)
    best = scores.max(0).values * logits.max(1).values
    assert frame["value"][0] == pytest.approx(float(best.max()), rel=1e-4)
    np.testing.assert_allclose(frame["value"], frame["score"] * frame["promoted"], rtol=1e-5)
    one = skip_trigrams(toy, layer=1, earlier=[" Mary"], top=9)
    assert set(one["earlier"]) == {" Mary"}
    key = int((ids == one["earlier_id"][0]).nonzero())
    assert one["score"].max() == pytest.approx(float(scores[:, key].max()), rel=1e-4)
    # crossed trigrams: every query of a key comes with every next token of it
    assert len(one) == one["present"].nunique() * one["next"].nunique()


def test_what_is_not_there_is_refused(toy: BridgeModel) -> None:
    bert = loaded("bert")
    for method in (head_tokens, skip_trigrams, top_bigrams, copying_score, matching_score):
        with pytest.raises(ModelError, match="is an encoder"):
            method(bert)
    for method in (head_tokens, skip_trigrams, singular_directions):
        with pytest.raises(OptionError, match="head 4\nExpected: 0 to 3: the model has 4 heads"):
            method(toy, layer=0, head=4)
    with pytest.raises(OptionError, match=r"via=\(1, 0\): no layer comes after layer 1"):
        matching_score(toy, via=(1, 0))
    with pytest.raises(TaskError, match="tokens for this tokenizer"):
        head_tokens(toy, tokens=["Zanzibar"])
    with pytest.raises(OptionError, match="does not rotate"):
        head_tokens(loaded("gpt2"), circuit="qk", distance=2)
