import functools

import families
import pandas as pd
import pytest
import torch

from probe.core.decompose import decompose
from probe.core.errors import ModelError, ProbeWarning, SiteError, TaskError
from probe.core.task import Task
from probe.methods.lens import direct_logit_attribution as module
from probe.models.load import load_model
from probe.models.toy import toy_model, toy_tokenizer

attribute = module.direct_logit_attribution

PAIRS = [
    {"clean": "t5 t9 t30 t31 t7", "answer": "t7", "wrong_answer": "t40"},
    {"clean": "t5 t9 t12", "answer": "t8", "wrong_answer": "t4"},
]
WORDS = [{"clean": "When Mary went", "answer": " to", "wrong_answer": " the"}]


@functools.cache
def load(family):
    return load_model(families.build(family), tokenizer=families.tokenizer())


@pytest.fixture(scope="module")
def toy():
    return load_model("toy")


def logits_before_cap(model, encoded):
    logits = model.forward(encoded.clean, lengths=encoded.lengths, last_only=True).double()
    cap = model.dims.softcap
    return logits if cap is None else cap * torch.atanh(logits / cap)


def sums(frame):
    return torch.tensor(frame.groupby("batch").value.sum().to_numpy())


@pytest.mark.parametrize("show", ["layers", "parts", "neurons"])
@pytest.mark.parametrize("family", families.CAUSAL)
def test_rows_add_up_to_the_models_own_logit_difference(family, show):
    model = load(family)
    encoded = Task.from_pairs(PAIRS).encode(model)
    if (family, show) == ("mixtral", "neurons"):
        with pytest.raises(SiteError, match="experts share no one MLP"):
            attribute(model, encoded, show=show)
        return
    logits = logits_before_cap(model, encoded)
    rows = torch.arange(2)
    answer = logits[rows, encoded.answers]
    expected = {
        "wrong_answer": answer - logits[rows, encoded.wrong_answers],
        "mean": answer - logits.mean(1),
    }
    for against, difference in expected.items():
        frame = attribute(model, encoded, show=show, against=against)
        torch.testing.assert_close(sums(frame), difference, rtol=1e-4, atol=1e-5)
        total = torch.tensor(frame.groupby("batch").total.first().to_numpy())
        torch.testing.assert_close(total, difference, rtol=1e-4, atol=1e-5)


def test_the_sum_holds_in_double_precision_too():
    model = load_model("toy", dtype="float64")
    encoded = Task.from_pairs(WORDS).encode(model)
    for show in ("parts", "neurons"):
        frame = attribute(model, encoded, show=show)
        # Llama's own norm works in float32 whatever the model's type, so no closer than this
        assert abs(frame.value.sum() - frame.total[0]) < 1e-6


@pytest.mark.slow
def test_the_sum_holds_on_smollm2():
    model = load_model("smollm2")
    pairs = [
        {"clean": "When Mary and John went to the store, John gave a drink to",
         "answer": " Mary", "wrong_answer": " John"},
        {"clean": "The capital of France is the city of",
         "answer": " Paris", "wrong_answer": " Rome"},
    ]  # fmt: skip
    encoded = Task.from_pairs(pairs).encode(model)
    logits = logits_before_cap(model, encoded)
    rows = torch.arange(2)
    expected = logits[rows, encoded.answers] - logits[rows, encoded.wrong_answers]
    for show in ("layers", "parts", "neurons"):
        torch.testing.assert_close(
            sums(attribute(model, encoded, show=show)), expected, rtol=1e-4, atol=0
        )


def test_layers_and_heads_equal_transformer_lens():
    from transformer_lens.tools.analysis import direct_logit_attribution as theirs

    model = load_model("toy")
    encoded = Task.from_pairs(WORDS).encode(model)
    bridge = load_model(toy_model("toy"), tokenizer=toy_tokenizer())._bridge
    bridge.enable_compatibility_mode()
    answer, wrong = int(encoded.answers), int(encoded.wrong_answers)
    for show, unit, n in (("layers", "component", 5), ("heads", "head", 8)):
        found = theirs(
            bridge, encoded.clean, answer_tokens=answer, incorrect_tokens=wrong, unit=unit
        )
        expected = found.attribution.detach().flatten()[:n]
        ours = torch.tensor(attribute(model, encoded, show=show).value.to_numpy()[:n]).float()
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "gemma3", "qwen3"])
def test_neurons_equal_their_vectors_read_out(family):
    model = load(family)
    encoded = Task.from_pairs(PAIRS).encode(model)
    layers = range(model.dims.n_layers)
    whole = decompose(model, encoded, neurons=layers)
    W_U = model.weights.W_U
    direction = (W_U[:, encoded.answers] - W_U[:, encoded.wrong_answers]).T
    read = (model.read_out(whole.vectors, whole.scale)[:, :, 0] * direction).sum(-1)
    names = [str(part) for part in whole.parts]
    frame = attribute(model, encoded, show="neurons", neurons=model.dims.n_layers * 10_000)
    listed = frame[frame.kind == "neuron"]
    assert len(listed) == 2 * model.dims.n_layers * model.dims.d_mlp
    expected = [float(read[names.index(r.component), r.batch]) for r in listed.itertuples()]
    torch.testing.assert_close(
        torch.tensor(listed.value.to_numpy()), torch.tensor(expected).double(), rtol=1e-3, atol=1e-5
    )


def test_the_strongest_neurons_are_listed_first(toy):
    encoded = Task.from_pairs(WORDS).encode(toy)
    every = attribute(toy, encoded, show="neurons", neurons=96)
    few = attribute(toy, encoded, show="neurons", neurons=7)
    strongest = every[every.kind == "neuron"].value.abs().sort_values(ascending=False)[:7]
    assert few.kind.tolist() == ["neuron"] * 7 + ["rest"]
    assert few.value[:7].abs().tolist() == strongest.tolist()


def test_layers_are_the_sums_of_parts(toy):
    encoded = Task.from_pairs(WORDS).encode(toy)
    parts, layers = (attribute(toy, encoded, show=show) for show in ("parts", "layers"))
    heads = attribute(toy, encoded, show="heads")
    for layer in range(2):
        attn = layers[layers.component == f"attn {layer}"].value.item()
        of_layer = parts[(parts.kind == "head") & (parts.layer == layer)].value.sum()
        assert abs(attn - of_layer) < 1e-6
        assert abs(attn - heads[heads.layer == layer].value.sum()) < 1e-6


def test_a_ragged_batch_equals_its_prompts_one_by_one(monkeypatch):
    model = load("gpt2")
    encoded = Task.from_pairs(PAIRS).encode(model)
    for show in ("layers", "heads", "parts", "neurons"):
        together = attribute(model, encoded, show=show)
        alone = [attribute(model, encoded.rows([i]), show=show).assign(batch=i) for i in range(2)]
        pd.testing.assert_frame_equal(
            together, pd.concat(alone, ignore_index=True), rtol=1e-3, atol=1e-5
        )
        with monkeypatch.context() as patched:  # one prompt at a time
            patched.setattr(module, "_ELEMENTS", 1)
            pd.testing.assert_frame_equal(
                attribute(model, encoded, show=show), together, rtol=1e-3, atol=1e-5
            )


def test_a_scale_of_ones_own_divides_what_the_parts_add(toy):
    encoded = Task.from_pairs(WORDS).encode(toy)
    own, other = attribute(toy, encoded), attribute(toy, encoded, scale=2.0)
    assert (other.scale == 2.0).all() and (other.total == own.total).all()
    ratio = (own.value * own.scale - other.value * 2.0).abs().max()
    assert ratio < 1e-4


def test_without_wrong_answers_the_mean_is_the_baseline(toy):
    pairs = [{key: pair[key] for key in ("clean", "answer")} for pair in WORDS]
    encoded = Task.from_pairs(pairs).encode(toy)
    pd.testing.assert_frame_equal(attribute(toy, encoded), attribute(toy, encoded, against="mean"))
    with pytest.raises(TaskError, match="no wrong_answer"):
        attribute(toy, encoded, against="wrong_answer")


def test_prompts_without_answers_are_refused(toy):
    with pytest.raises(TaskError, match="has no answer"):
        attribute(toy, Task.from_prompts("When Mary").encode(toy))


def test_parts_that_do_not_add_up_are_reported(toy, monkeypatch):
    encoded = Task.from_pairs(WORDS).encode(toy)
    whole = decompose(toy, encoded)
    less = type(whole)(whole.parts[1:], whole.vectors[1:], whole.resid, whole.scale)
    monkeypatch.setattr(module, "decompose", lambda *_: less)
    with pytest.warns(ProbeWarning, match="parts of toy add up to"):
        attribute(toy, encoded)


def test_an_encoder_is_refused():
    bert = load("bert")
    encoded = Task.from_pairs(PAIRS).encode(load("llama"))
    with pytest.raises(ModelError, match="is an encoder"):
        attribute(bert, encoded)
