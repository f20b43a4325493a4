import functools
import types

import families
import pytest
import torch

from probe.core import decompose as module
from probe.core.decompose import Part, decompose
from probe.core.errors import ModelError, SiteError, SizeError
from probe.core.task import Task
from probe.models.load import load_model

TOKENS = torch.tensor([[5, 9, 30, 31, 7, 44], [8, 8, 3, 50, 21, 60]])


@functools.cache
def load(family):
    return load_model(families.build(family), tokenizer=families.tokenizer())


@pytest.fixture(scope="module")
def toy():
    return load_model("toy")


@pytest.mark.parametrize("family", families.CAUSAL)
def test_parts_add_up_to_the_last_residual_of_every_family(family):
    model = load(family)
    recorded = model.trace(TOKENS, ("resid_post", 2))["resid_post", 2]
    whole = decompose(model, TOKENS, positions=None)
    gap = (whole.vectors.sum(0) - recorded).abs().max() / recorded.abs().max()
    assert gap < 1e-5
    assert abs(whole.gap - float(gap)) < 1e-7
    torch.testing.assert_close(whole.resid, recorded)


@pytest.mark.parametrize("family", [name for name in families.CAUSAL if name != "mixtral"])
def test_neurons_add_up_too_and_keep_the_rest_as_it_was(family):
    model = load(family)
    plain, split = decompose(model, TOKENS), decompose(model, TOKENS, neurons=[1])
    assert split.gap < 1e-5
    kinds = [part.kind for part in split.parts if part.layer == 1 and part.kind != "head"]
    assert kinds.count("neuron") == model.dims.d_mlp and kinds.count("mlp_bias") == 1
    of_layer = [i for i, p in enumerate(split.parts) if p.layer == 1 and "head" not in p.kind]
    split_up = [i for i in of_layer if split.parts[i].kind in ("neuron", "mlp_bias")]
    whole = plain.vectors[plain.parts.index(Part("mlp", 1))]
    torch.testing.assert_close(split.vectors[split_up].sum(0), whole, rtol=1e-4, atol=1e-5)
    shared = [part for part in split.parts if part in plain.parts]
    assert len(shared) == len(plain.parts) - 1
    for part in shared:
        ours, theirs = (d.vectors[d.parts.index(part)] for d in (split, plain))
        torch.testing.assert_close(ours, theirs)


def test_biases_inside_a_normalised_output_are_shared_out_rightly():
    hf = families.build("gemma2")
    generator = torch.Generator().manual_seed(0)
    for block in hf.model.layers:
        for linear in (block.self_attn.o_proj, block.mlp.down_proj):
            linear.bias = torch.nn.Parameter(torch.randn(32, generator=generator))
    model = load_model(hf, tokenizer=families.tokenizer())
    whole = decompose(model, TOKENS, positions=None, neurons=[0, 2])
    assert whole.gap < 1e-5
    assert Part("attn_bias", 1) in whole.parts


def test_heads_of_a_layer_sum_to_what_attention_added(toy):
    whole = decompose(toy, TOKENS)
    added = toy.trace(TOKENS, "attn_out", positions=[-1])
    for layer in range(2):
        rows = [i for i, p in enumerate(whole.parts) if p.kind == "head" and p.layer == layer]
        assert [whole.parts[i].head for i in rows] == [0, 1, 2, 3]
        total = whole.vectors[rows].sum(0)
        torch.testing.assert_close(total, added["attn_out", layer], rtol=1e-4, atol=1e-5)


def test_attention_bias_is_a_part_only_where_there_is_one():
    assert any(part.kind == "attn_bias" for part in decompose(load("gpt2"), TOKENS).parts)
    assert not any(part.kind == "attn_bias" for part in decompose(load("llama"), TOKENS).parts)


def test_positions_count_from_each_prompts_end(toy):
    texts = ["When Mary went to the store", "Mary went"]
    together = decompose(toy, texts, positions=[0, -1])
    for row, text in enumerate(texts):
        alone = decompose(toy, Task.from_prompts(text).encode(toy), positions=[0, -1])
        torch.testing.assert_close(
            together.vectors[:, row], alone.vectors[:, 0], rtol=1e-4, atol=1e-5
        )


def test_gap_notices_a_missing_part(toy):
    whole = decompose(toy, TOKENS)
    less = module.Decomposition(whole.parts[1:], whole.vectors[1:], whole.resid, whole.scale)
    assert less.gap > 1e-3


def test_an_encoder_is_refused_with_the_reason():
    with pytest.raises(ModelError, match="blocks normalise the residual stream"):
        decompose(load("bert"), TOKENS)


def test_neurons_of_a_mixture_are_refused():
    with pytest.raises(SiteError, match="experts share no one MLP"):
        decompose(load("mixtral"), TOKENS, neurons=[0])


def test_a_layer_out_of_range_is_refused(toy):
    with pytest.raises(SiteError, match="0 to 1: the model has 2 layers"):
        decompose(toy, TOKENS, neurons=[2])


def test_what_does_not_fit_is_refused_before_it_is_taken(toy, monkeypatch):
    little = types.SimpleNamespace(virtual_memory=lambda: types.SimpleNamespace(available=1000))
    monkeypatch.setattr(module, "psutil", little)
    with pytest.raises(SizeError, match=r"13 parts at 2 x 1 positions[^T]*Try: positions"):
        decompose(toy, TOKENS)


def test_half_precision_is_summed_in_single():
    model = load_model("toy", dtype="bfloat16")
    whole = decompose(model, TOKENS)
    assert whole.vectors.dtype == torch.float32
    assert whole.gap < 0.05
