"""What is recorded of each architecture is what Hugging Face computes, by another route."""

import families
import pytest
import torch
from loaded import PROMPTS, Family
from torch import Tensor

from probe.core.errors import ModelError, SiteError, TaskError
from probe.core.task import Task, pad
from probe.core.trace import Trace
from probe.models.doctor import table

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
EVERY = ["resid_pre", "resid_post", "pattern", "z", "q", "k", "v"]


def plain_run(family: Family, tokens: Tensor) -> object:
    return family.plain(tokens, output_hidden_states=True, output_attentions=True)


def test_the_doctor_finds_each_family_well_to_1e_5(family: Family) -> None:
    rows = table(family.model.checks)
    assert rows.ok.all(), rows[~rows.ok]
    numeric = rows[rows.limit.notna()]
    assert {"logits", "residuals", "patterns", "left padding", "batch invariance"} <= {
        *numeric.name
    }
    assert (numeric.value.astype(float) <= 1e-5).all(), numeric
    assert family.model.health["ok"] is True


def test_logits_equal_those_of_the_plain_twin(family: Family) -> None:
    for tokens in family.tokens():
        theirs = family.plain(tokens).logits
        torch.testing.assert_close(family.model.forward(tokens), theirs, **CLOSE)


def test_residuals_and_patterns_equal_the_plain_twins(family: Family) -> None:
    n = family.model.dims.n_layers
    for tokens in family.tokens():
        theirs = plain_run(family, tokens)
        trace = family.model.trace(tokens, sites=["resid_pre", "resid_post", "pattern"])
        for layer in range(n):
            torch.testing.assert_close(
                trace["resid_pre", layer], theirs.hidden_states[layer], **CLOSE
            )
            torch.testing.assert_close(trace["pattern", layer], theirs.attentions[layer], **CLOSE)
        for layer in range(n - 1):
            torch.testing.assert_close(
                trace["resid_post", layer], theirs.hidden_states[layer + 1], **CLOSE
            )


def test_a_ragged_batch_equals_its_prompts_one_by_one(family: Family) -> None:
    sites = [kind for kind in EVERY if kind in family.model.sites]
    together = family.model.trace(PROMPTS, sites=sites)
    for row, tokens in enumerate(family.tokens()):
        alone, part = family.model.trace(tokens, sites=sites), together.example(row)
        assert part.tokens.tolist() == tokens.tolist()
        for site in alone:
            torch.testing.assert_close(part[site], alone[site], **CLOSE)


def test_left_padding_equals_the_plain_twin_one_by_one(family: Family) -> None:
    rows, pad_id = [t[0].tolist() for t in family.tokens()], family.model.tokenizer.pad_id
    width = max(len(ids) for ids in rows)
    tokens = torch.tensor([[pad_id] * (width - len(ids)) + ids for ids in rows])
    mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in rows])
    logits = family.model.forward(tokens, mask=mask)
    for row, ids in enumerate(rows):
        theirs = family.plain(torch.tensor([ids])).logits[0]
        torch.testing.assert_close(logits[row, width - len(ids) :], theirs, **CLOSE)


def test_the_answer_is_read_at_each_prompts_own_end(family: Family) -> None:
    rows = [t[0].tolist() for t in family.tokens()]
    lengths = torch.tensor([len(ids) for ids in rows])
    tokens = pad(rows, family.model.tokenizer.pad_id)
    last = family.model.forward(tokens, lengths=lengths, last_only=True)
    for row, ids in enumerate(rows):
        theirs = family.plain(torch.tensor([ids])).logits[0, -1]
        torch.testing.assert_close(last[row], theirs, **CLOSE)


def test_heads_are_cut_where_the_model_cuts_them(family: Family) -> None:
    dims, model = family.model.dims, family.model
    config = family.plain.config
    assert dims.n_heads == config.num_attention_heads
    assert dims.n_kv_heads == getattr(config, "num_key_value_heads", config.num_attention_heads)
    trace = model.trace(family.tokens()[0], sites=["q", "k", "v", "z"])
    assert trace["q", 0].shape == (1, 9, dims.n_heads, dims.d_head)
    assert trace["k", 0].shape == trace["v", 0].shape == (1, 9, dims.n_kv_heads, dims.d_head)
    assert trace["z", 0].shape == trace["q", 0].shape


def test_head_outputs_are_patterns_times_values(family: Family) -> None:
    trace = family.model.trace(family.tokens()[0], sites=["pattern", "v", "z"])
    shared = family.model.dims.heads_per_kv
    for layer in range(family.model.dims.n_layers):
        values = trace["v", layer].repeat_interleave(shared, dim=2)
        z = torch.einsum("bhqk,bkhd->bqhd", trace["pattern", layer], values)
        torch.testing.assert_close(z, trace["z", layer], **CLOSE)


def test_scores_become_patterns_by_softmax(causal: Family) -> None:
    trace = causal.model.trace(causal.tokens()[0], sites=["attn_scores", "pattern"])
    for layer in range(causal.model.dims.n_layers):
        softmax = trace["attn_scores", layer].softmax(-1)
        torch.testing.assert_close(softmax, trace["pattern", layer], **CLOSE)


def test_the_blocks_write_what_the_residual_stream_gains(causal: Family) -> None:
    trace = causal.model.trace(
        causal.tokens()[0], sites=["resid_pre", "attn_out", "mlp_out", "resid_post"]
    )
    for layer in range(causal.model.dims.n_layers):
        total = trace["resid_pre", layer] + trace["attn_out", layer] + trace["mlp_out", layer]
        torch.testing.assert_close(total, trace["resid_post", layer], **CLOSE)


@pytest.mark.parametrize("causal", [f for f in families.CAUSAL if f != "mixtral"], indirect=True)
def test_neurons_times_their_output_matrix_is_what_the_mlp_writes(causal: Family) -> None:
    model = causal.model
    trace = model.trace(causal.tokens()[0], sites=["mlp_post", "mlp_out"])
    for layer in range(model.dims.n_layers):
        total = trace["mlp_post", layer] @ model.weights.W_out(layer)
        total = total + model.out_bias(layer, "mlp_out")
        written = model.write_out(layer, "mlp_out", total, total)
        written = written + model.write_bias(layer, "mlp_out")
        torch.testing.assert_close(written, trace["mlp_out", layer], **CLOSE)


def test_mlp_in_is_what_the_plain_twins_mlp_is_given(causal: Family) -> None:
    given: list[Tensor] = []
    layers = getattr(causal.plain.base_model, "layers", None) or causal.plain.base_model.h
    handle = layers[1].mlp.register_forward_pre_hook(lambda mlp, args: given.append(args[0]))
    try:
        causal.plain(causal.tokens()[0])
    finally:
        handle.remove()
    trace = causal.model.trace(causal.tokens()[0], sites=[("mlp_in", 1)])
    torch.testing.assert_close(trace["mlp_in", 1], given[0].detach(), **CLOSE)


def queries_and_keys(family: Family, trace: Trace) -> tuple[Tensor, Tensor]:
    """From the residual stream by the norm and the matrices, biases aside."""
    block = family.plain.model.layers[0]
    read = block.input_layernorm(trace["resid_pre", 0])
    weights = family.model.weights
    return tuple(torch.einsum("bpm,hmd->bphd", read, w(0)) for w in (weights.W_Q, weights.W_K))


@pytest.mark.parametrize("causal", ["llama", "mistral", "phi3", "gemma2", "mixtral"], indirect=True)
def test_weights_map_the_normed_stream_to_queries_and_keys(causal: Family) -> None:
    trace = causal.model.trace(causal.tokens()[0], sites=["resid_pre", "q", "k"])
    queries, keys = queries_and_keys(causal, trace)
    torch.testing.assert_close(queries, trace["q", 0], **CLOSE)
    torch.testing.assert_close(keys, trace["k", 0], **CLOSE)


def test_embedding_and_unembedding_are_the_plain_twins(causal: Family) -> None:
    weights = causal.model.weights
    torch.testing.assert_close(weights.W_E, causal.plain.get_input_embeddings().weight)
    torch.testing.assert_close(weights.W_U, causal.plain.get_output_embeddings().weight.T)


def test_parallel_blocks_have_no_resid_mid(causal: Family) -> None:
    assert causal.model.dims.parallel == (causal.name == "neox")
    assert ("resid_mid" in causal.model.sites) == (causal.name != "neox")


def test_gemma_2_caps_its_logits_and_so_do_we(gemma2: Family) -> None:
    cap = gemma2.plain.config.final_logit_softcapping
    assert gemma2.model.dims.softcap == cap == 30.0
    resid = torch.randn(3, gemma2.model.dims.d_model)
    linear = gemma2.plain.lm_head(gemma2.plain.model.norm(resid))
    capped = cap * torch.tanh(linear / cap)
    assert (linear - capped).abs().max() > 1e-2, "too small for the cap to show"
    torch.testing.assert_close(gemma2.model.unembed(resid), capped, **CLOSE)


def test_the_router_is_recorded_expert_by_expert(mixtral: Family) -> None:
    trace = mixtral.model.trace(mixtral.tokens()[0], sites=["router", "resid_mid"])
    assert trace["router", 1].shape == (1, 9, 4)
    block = mixtral.plain.model.layers[1]
    read = block.post_attention_layernorm(trace["resid_mid", 1])
    gate = block.mlp.gate.weight
    torch.testing.assert_close(trace["router", 1], read @ gate.T, **CLOSE)


def test_a_mixture_refuses_neurons_with_the_reason(mixtral: Family) -> None:
    with pytest.raises(SiteError, match="has no mlp_post: its experts share no one MLP"):
        mixtral.model.trace(PROMPTS, sites="mlp_post")
    with pytest.raises(ModelError, match="layer 0 is a mixture of 4 experts and has no one MLP"):
        mixtral.model.weights.W_in(0)


def test_a_model_without_experts_has_no_router(gemma2: Family) -> None:
    with pytest.raises(SiteError, match="has no router: it is no mixture of experts"):
        gemma2.model.trace(PROMPTS, sites="router")


def test_a_site_that_does_not_hold_what_it_says_is_not_offered(bert: Family) -> None:
    with pytest.raises(SiteError, match="has no attn_scores"):  # its bridge gives the pattern
        bert.model.trace(PROMPTS, sites="attn_scores")


def test_an_encoder_is_recorded_and_refuses_what_needs_a_causal_model(bert: Family) -> None:
    trace = bert.model.trace(PROMPTS[0], sites=["resid_post", "pattern"])
    assert trace["pattern", 0][0, 0].triu(1).sum() > 0, "it attends to what comes after"
    with pytest.raises(ModelError, match="not a norm and a matrix") as error:
        bert.model.unembed(trace["resid_post", 2])
    assert "Expected: a causal model" in str(error.value)
    answered = Task.from_pairs([{"clean": PROMPTS[0], "answer": "t3"}])
    with pytest.raises(TaskError, match="is an encoder and predicts no next token") as refusal:
        answered.encode(bert.model)
    assert "Task.from_prompts" in str(refusal.value)
