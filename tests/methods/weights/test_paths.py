"""Paths sum to the logits, and orders to the loss, of models with and without MLPs."""

import numpy as np
import pytest
import torch
from dense_circuits import loaded
from families import build, tokenizer

from probe.core.errors import ModelError, OptionError, SizeError
from probe.core.task import Encoded, Task
from probe.methods.frozen import Frozen
from probe.methods.weights.path_expansion import path_expansion
from probe.methods.weights.term_importance import term_importance
from probe.models.bridge import BridgeModel
from probe.models.handbuilt import LAYOUTS, induction_model
from probe.models.load import load_model

pytestmark = pytest.mark.slow  # left to make test

FAMILIES = ["gpt2", "neox", "qwen2", "gemma3", "mixtral"]


def pairs(model: BridgeModel) -> Encoded:
    return Task.from_pairs(
        [
            {"clean": "t5 t9 t30 t31 t9", "answer": "t12", "wrong_answer": "t13"},
            {"clean": "t8 t9 t10", "answer": "t30", "wrong_answer": "t5"},
        ]
    ).encode(model)


def truth(model: BridgeModel, encoded: Encoded) -> torch.Tensor:
    logits = model.forward(encoded.clean, lengths=encoded.lengths, last_only=True)
    ids = torch.stack([encoded.need_answers(), encoded.need_wrong_answers()], dim=1)
    read = logits.gather(1, ids)
    return read[:, 0] - read[:, 1]


@pytest.mark.parametrize("family", FAMILIES)
def test_paths_sum_to_the_logit_difference(family: str) -> None:
    model = loaded(family)
    encoded = pairs(model)
    frame = path_expansion(model, encoded, order=1)
    sums = frame.groupby("batch")["value"].sum()
    np.testing.assert_allclose(sums, truth(model, encoded), rtol=1e-4, atol=2e-4)
    assert not frame.duplicated(["batch", "source", "heads"]).any()
    assert frame[frame.source == "earlier"]["value"].abs().max() > 1e-3


@pytest.mark.parametrize("order", [0, 1, 2])
def test_of_two_layers_nothing_is_longer_than_two_heads(toy: BridgeModel, order: int) -> None:
    encoded = Task.from_pairs(
        [{"clean": "When Mary and John went", "answer": " to", "wrong_answer": " the"}]
    ).encode(toy)
    frame = path_expansion(toy, encoded, order=order)
    assert frame["value"].sum() == pytest.approx(float(truth(toy, encoded)), abs=2e-4)
    assert frame["order"].max() == order
    assert (frame["source"] == "earlier").any() == (order < 2)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_induction_circuits_answer_comes_by_its_head(layout: str) -> None:
    built = induction_model(layout)
    model = load_model(built.hf, tokenizer=built.tokenizer)
    encoded = Task.from_pairs(
        [{"clean": "w5 w9 w7 w11 w5", "answer": "w9", "wrong_answer": "w7"}]
    ).encode(model)
    frame = path_expansion(model, encoded, order=2)
    best = frame.loc[frame["value"].idxmax()]
    layer, head = built.heads["induction"]
    assert (best.source, best.heads) == ("embed", f"{layer}.{head}")  # moved by its values alone
    assert best.value == pytest.approx(frame["value"].sum(), rel=1e-3)
    assert not frame["source"].str.startswith("mlp").any()  # they write nothing


def test_a_single_head_is_the_direct_effect_of_what_it_reads_of_the_embedding() -> None:
    """Computed again by hand, in double precision, for one head of one prompt."""
    model = loaded("qwen2")
    encoded = pairs(model).rows([0])
    trace = model.trace(encoded, ["embed", "pattern.1", "ln1_scale.1", "ln_final_scale"])
    weights, norm, final = model.weights, model.norm("attn_in", 1), model.norm("final")
    read = (trace["embed"][0] / trace["ln1_scale", 1][0] * norm.gain).double()
    moved = trace["pattern", 1][0, 3].double() @ read @ weights.W_V(1)[1].double()
    written = (moved @ weights.W_O(1)[3].double())[-1]
    logits = (
        written / trace["ln_final_scale"][0, -1].double() * final.gain.double()
    ) @ weights.W_U.double()
    frame = path_expansion(model, encoded, order=2)
    ours = frame[(frame.source == "embed") & (frame.heads == "1.3")]["value"].item()
    assert ours == pytest.approx(float(logits[12] - logits[13]), rel=1e-4)


def test_without_a_wrong_answer_the_mean_of_the_vocabulary_is_taken() -> None:
    model = loaded("gpt2")
    encoded = Task.from_pairs([{"clean": "t5 t9 t30", "answer": "t12"}]).encode(model)
    logits = model.forward(encoded.clean, last_only=True)[0]
    total = path_expansion(model, encoded, order=1)["value"].sum()
    assert total == pytest.approx(float(logits[12] - logits.mean()), abs=2e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_order_is_the_model(family: str) -> None:
    model = loaded(family)
    encoded = Task.from_prompts(["t5 t9 t30 t31 t9", "t8 t9 t10"]).encode(model)
    frame = term_importance(model, encoded)
    last = frame[frame.kept == "order 3"]["value"]
    for row, loss in enumerate(last):
        n = int(encoded.lengths[row])
        logits = model.forward(encoded.clean[row : row + 1, :n])[0, :-1]
        own = torch.nn.functional.cross_entropy(logits, encoded.clean[row, 1:n])
        assert loss == pytest.approx(float(own), abs=1e-4)


def test_gains_add_up_and_layers_are_added_and_left_out() -> None:
    model = loaded("qwen2")
    encoded = Task.from_prompts(["t5 t9 t30 t31 t9"]).encode(model)
    frame = term_importance(model, encoded).set_index("kept")
    orders = frame.loc[["order 0", "order 1", "order 2", "order 3"]]
    assert np.log(61) - orders["gain"].sum() == pytest.approx(orders["value"].iloc[-1], abs=1e-5)
    assert set(frame.index[4:]) == {f"{a} layer {n}" for a in ("0 +", "1 -") for n in range(3)}
    only = term_importance(model, encoded, order=1, by_layer=False)
    assert only["kept"].tolist() == ["order 0", "order 1"]


def test_one_layers_single_heads_are_the_whole_of_a_one_layer_model() -> None:
    hf = build("llama")
    hf.model.layers = hf.model.layers[:1]
    hf.config.num_hidden_layers = 1
    model = load_model(hf, tokenizer=tokenizer())
    frame = term_importance(model, Task.from_prompts(["t5 t9 t30 t31 t9"]).encode(model)).set_index(
        "kept"
    )
    assert frame["value"]["0 + layer 0"] == pytest.approx(frame["value"]["order 1"])
    assert frame["value"]["1 - layer 0"] == pytest.approx(frame["value"]["order 0"])


def test_the_parts_of_a_stream_are_the_stream() -> None:
    for family in ("gpt2", "gemma3"):
        model = loaded(family)
        run = Frozen(model, pairs(model))
        for layer in range(4):
            sources = sum(s.vectors for s in run.sources() if s.after <= layer)
            heads = sum(run.heads(at, run.entering(at)).sum(0) for at in range(layer))
            real = torch.arange(5) < run.encoded.lengths[:, None]
            gap = (sources + heads - run.entering(layer))[real]
            assert gap.abs().max() < 1e-4 * run.entering(layer).abs().max()


def test_what_cannot_be_expanded_is_refused(toy: BridgeModel) -> None:
    capped, bert = loaded("gemma2"), loaded("bert")
    with pytest.raises(ModelError, match="caps its logits"):
        path_expansion(capped, pairs(capped))
    with pytest.raises(ModelError, match="is an encoder"):
        term_importance(bert, Task.from_prompts(["t5 t9"]).encode(bert))
    with pytest.raises(OptionError, match="a prompt of one token"):
        model = loaded("qwen2")
        term_importance(model, Task.from_prompts(["t5"]).encode(model))


def test_too_many_paths_are_refused(toy: BridgeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    from probe.methods.weights import path_expansion as module

    monkeypatch.setattr(module, "_MOST_PATHS", 20)
    encoded = Task.from_pairs([{"clean": "When Mary", "answer": " went"}]).encode(toy)
    with pytest.raises(SizeError, match=r"paths of up to 2 heads .*\n.*at most 20\nTry: order=1"):
        path_expansion(toy, encoded)
