"""What neurons read, write and fire on, against the model's own activations."""

import numpy as np
import pytest
import torch
from dense_circuits import loaded

from probe.core.errors import ModelError, OptionError, SiteError
from probe.core.task import Task
from probe.methods.weights.neuron_texts import neuron_texts
from probe.methods.weights.neuron_tokens import neuron_tokens
from probe.models.bridge import BridgeModel


@pytest.mark.parametrize("family", ["gpt2", "qwen2", "gemma2"])
def test_directions_are_what_the_mlp_makes_of_an_embedding(family: str) -> None:
    model, layer, neuron = loaded(family), 1, 7
    frame = neuron_tokens(model, layer=layer, neuron=neuron, top=3)
    norm, weights = model.norm("mlp_in", layer), model.weights
    assert norm is not None
    read, gate = norm(weights.W_E), weights.W_gate(layer)
    known = torch.tensor([i for i in range(61) if i > 2])  # the special ones are left out
    for end, matrix in (("reads", weights.W_in(layer)), ("gate", gate)):
        own = frame[(frame.end == end) & (frame.side == "most")]
        assert (len(own) == 0) == (matrix is None)
        if matrix is not None:
            values = (read @ matrix[:, neuron])[known]
            best = (values - values.mean()).topk(3)
            np.testing.assert_allclose(own["value"], best.values, rtol=1e-3, atol=1e-5)
            assert own["token_id"].tolist() == known[best.indices].tolist()


def test_the_output_direction_is_the_neurons_part_of_the_logits(toy: BridgeModel) -> None:
    """Of a residual stream that holds nothing else, up to the norm's denominator."""
    frame = neuron_tokens(toy, layer=1, neuron=4, top=5)
    logits = toy.unembed(toy.weights.W_out(1)[4])
    own = frame[(frame.end == "writes") & (frame.side == "most")]
    ordinary = [i for i in range(len(logits)) if not toy.tokenizer.is_special(i)]
    ordinary = [i for i in ordinary if i < toy.tokenizer.n_vocab]
    best = torch.tensor(ordinary)[logits[ordinary].topk(5).indices]
    assert own["token_id"].tolist() == best.tolist()


@pytest.mark.parametrize("reading", ["post", "pre"])
def test_the_strongest_places_are_those_of_the_recorded_neurons(
    toy: BridgeModel, reading: str
) -> None:
    encoded = Task.from_prompts(["When Mary and John went", "Tom gave a ball"]).encode(toy)
    frame = neuron_texts(toy, encoded, layer=1, neurons=[3, 8], reading=reading, top=4, window=1)
    trace = toy.trace(encoded, f"mlp_{reading}.1")
    for neuron in (3, 8):
        own = frame[frame.neuron == neuron]
        values = [
            trace[f"mlp_{reading}", 1][row, :n, neuron] for row, n in enumerate(encoded.lengths)
        ]
        best = torch.cat(values).topk(4).values
        np.testing.assert_allclose(own["value"], best, rtol=1e-5)
        assert own["share"].iloc[0] == pytest.approx(float((torch.cat(values) > 0).float().mean()))
    first = frame.iloc[0]
    assert f"⟦{first.token}⟧" in first.context
    assert first.token == trace.str_tokens[first.prompt][first.position]


def test_solu_is_computed_from_what_is_before_and_refused_of_a_gate(toy: BridgeModel) -> None:
    model = loaded("gpt2")
    encoded = Task.from_prompts("t5 t9 t30").encode(model)
    frame = neuron_texts(model, encoded, reading="solu", top=1, neurons=[2])
    pre = model.trace(encoded, "mlp_pre.0")["mlp_pre", 0][0]
    solu = pre * torch.exp(pre) / torch.exp(pre).sum(-1, keepdim=True)
    assert frame["value"].item() == pytest.approx(float(solu[:, 2].max()), rel=1e-4)
    one = Task.from_prompts("When Mary").encode(toy)
    with pytest.raises(ModelError, match="is gated, and SoLU is not"):
        neuron_texts(toy, one, reading="solu")


def test_neurons_that_are_not_there_are_refused(toy: BridgeModel) -> None:
    one = Task.from_prompts("When Mary").encode(toy)
    with pytest.raises(OptionError, match="neuron 48\nExpected: 0 to 47"):
        neuron_tokens(toy, neuron=48)
    with pytest.raises(OptionError, match="neuron 48\nExpected: 0 to 47"):
        neuron_texts(toy, one, neurons=[48])
    with pytest.raises(SiteError, match="asks for layer 2"):
        neuron_tokens(toy, layer=2)
    experts = loaded("mixtral")
    with pytest.raises(ModelError, match="mixture of 4 experts"):
        neuron_tokens(experts)
