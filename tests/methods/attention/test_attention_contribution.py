"""What heads move: the parts add up to the heads, the heads to the logit difference."""

import numpy as np
import pytest
import torch
from families import CAUSAL, build, tokenizer

from probe.core.errors import ModelError, OptionError, TaskError
from probe.core.model import Model
from probe.core.registry import METHODS
from probe.core.task import Encoded, Task
from probe.methods.attention.attention_contribution import (
    _moved_vectors,
    attention_contribution,
)
from probe.models.handbuilt import LAYOUTS, induction_model
from probe.models.load import load_model

pytestmark = pytest.mark.slow  # left to make test

PAIRS = [
    {"clean": "t3 t4 t5 t6 t7 t8 t9 t3 t4", "answer": "t5", "wrong_answer": "t6"},
    {"clean": "t10 t11 t12 t13", "answer": "t14", "wrong_answer": "t3"},
]


@pytest.fixture(scope="module", params=CAUSAL)
def model(request: pytest.FixtureRequest) -> Model:
    return load_model(build(request.param), tokenizer=tokenizer())


@pytest.fixture
def task(model: Model) -> Encoded:
    return Task.from_pairs(PAIRS).encode(model)


@pytest.fixture(scope="module")
def toy() -> Model:
    return load_model("toy")


@pytest.fixture(scope="module")
def toy_task(toy: Model) -> Encoded:
    return Task.from_prompts(["Mary gave John a book", "the cat"]).encode(toy)


def test_what_is_moved_from_all_keys_is_the_heads_output(model: Model, task: Encoded) -> None:
    trace = model.trace(task, ["pattern", "v", "z"])
    for layer in range(model.dims.n_layers):
        moved = _moved_vectors(model, layer, trace["v", layer])
        total = torch.einsum("bhqk,bkhd->bqhd", trace["pattern", layer], moved)
        torch.testing.assert_close(
            total, model.head_outputs(layer, trace["z", layer]), atol=1e-5, rtol=1e-5
        )


def test_norms_are_those_of_hugging_faces_weights() -> None:
    hf = build("llama")
    attention = hf.model.layers[1].self_attn
    W_O = attention.o_proj.weight.detach().T.reshape(4, 8, 32)
    model = load_model(hf, tokenizer=tokenizer())
    task = Task.from_pairs(PAIRS).encode(model)
    trace = model.trace(task.rows([1]), ["pattern.1", "v.1"])
    frame = attention_contribution(model, task.rows([1]), layers=[1])
    for head in range(4):
        vectors = trace["v", 1][0, :, head // 2] @ W_O[head]
        right = trace["pattern", 1][0, head] * vectors.norm(dim=-1)
        here = frame[frame["head"] == head]
        made = right.numpy()[here["query"], here["key"]]
        np.testing.assert_allclose(here["value"], made, rtol=1e-5, atol=1e-7)


def test_shares_of_a_row_sum_to_one_and_keep_the_norm(toy: Model, toy_task: Encoded) -> None:
    norms = attention_contribution(toy, toy_task)
    shares = attention_contribution(toy, toy_task, measure="share")
    row = ["batch", "layer", "head", "query"]
    np.testing.assert_allclose(shares.groupby(row)["value"].sum(), 1, atol=1e-6)
    np.testing.assert_array_equal(shares["raw"], norms["value"])
    total = norms.groupby(row)["value"].transform("sum")
    np.testing.assert_allclose(shares["value"], norms["value"] / total, rtol=1e-5)


def test_logit_differences_of_a_layer_sum_to_what_it_added(model: Model, task: Encoded) -> None:
    frame = attention_contribution(model, task, measure="logit_diff")
    assert (frame["query"] == frame["batch"].map(dict(enumerate(task.last.tolist())))).all()
    trace = model.trace(task, ["attn_out", "ln_final_scale"])
    W_U = model.weights.W_U
    direction = (W_U[:, task.need_answers()] - W_U[:, task.need_wrong_answers()]).T
    scale = trace.sel("ln_final_scale", pos=-1)
    sums = frame.groupby(["layer", "batch"])["value"].sum()
    for layer in range(model.dims.n_layers):
        # biases belong to no head; in no family here does a norm stand between bias and residual
        bias = model.out_bias(layer, "attn_out") + model.write_bias(layer, "attn_out")
        added = trace.sel(("attn_out", layer), pos=-1) - bias
        right = (model.read_out(added, scale) * direction).sum(-1)
        np.testing.assert_allclose(sums[layer], right, rtol=1e-3, atol=1e-4)


def test_a_bias_before_the_norm_of_what_is_written_has_its_part_in_the_denominator() -> None:
    hf = build("gemma2")
    hf.config.attention_bias = True
    hf = type(hf)(hf.config)
    for name, weight in hf.named_parameters():
        weight.data.normal_(std=1.0 if "o_proj.bias" in name else 0.2)
    model = load_model(hf, tokenizer=tokenizer())
    task = Task.from_pairs(PAIRS).encode(model)
    sums = (
        attention_contribution(model, task, measure="logit_diff", layers=[1])
        .groupby("batch")["value"]
        .sum()
    )
    trace = model.trace(task, ["attn_out.1", "z.1", "ln_final_scale"])
    bias = model.out_bias(1, "attn_out")
    total = model.head_outputs(1, trace.sel("z.1", pos=-1)).sum(1) + bias
    rest = model.write_out(1, "attn_out", bias.expand_as(total), total)
    added = trace.sel("attn_out.1", pos=-1) - rest
    W_U = model.weights.W_U
    direction = (W_U[:, task.need_answers()] - W_U[:, task.need_wrong_answers()]).T
    read = model.read_out(added, trace.sel("ln_final_scale", pos=-1))
    assert bias.norm() > 1
    np.testing.assert_allclose(sums, (read * direction).sum(-1), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_induction_head_moves_the_answer_from_where_it_stood(layout: str) -> None:
    built = induction_model(layout)
    model = load_model(built.hf, tokenizer=built.tokenizer)
    pair = {"clean": "w3 w4 w5 w6 w7 w3 w4", "answer": "w5", "wrong_answer": "w6"}
    task = Task.from_pairs([pair]).encode(model)
    frame = attention_contribution(model, task, measure="logit_diff")
    found = frame.set_index(["layer", "head", "key"])["value"]
    answer = found.pop((*built.heads["induction"], 2))
    assert found.abs().max() < 1e-3
    logits = model.forward(task.clean, last_only=True)[0]
    assert answer == pytest.approx((logits[5] - logits[6]).item(), rel=1e-4)


def test_a_head_that_moves_nothing_has_no_shares() -> None:
    built = induction_model("grouped-query")
    model = load_model(built.hf, tokenizer=built.tokenizer)
    task = Task.from_prompts("w3 w4 w5 w3").encode(model)
    frame = attention_contribution(model, task, measure="share", layers=[0], heads=[0])
    assert (frame["value"] == 0).all()


def test_padding_changes_nothing(toy: Model, toy_task: Encoded) -> None:
    together = attention_contribution(toy, toy_task, measure="share")
    for row in range(2):
        alone = attention_contribution(toy, toy_task.rows([row]), measure="share")
        same = together.loc[together["batch"] == row, "value"]
        np.testing.assert_allclose(same, alone["value"], atol=1e-5)


def test_choosing_is_filtering(toy: Model, toy_task: Encoded) -> None:
    every = attention_contribution(toy, toy_task)
    some = attention_contribution(toy, toy_task, layers=[1], heads=[2], queries=[0, -1])
    last = every["batch"].map(dict(enumerate(toy_task.last.tolist())))
    kept = every["query"].eq(0) | every["query"].eq(last)
    right = every[kept & every["layer"].eq(1) & every["head"].eq(2)]
    np.testing.assert_allclose(some["value"], right["value"], atol=1e-6)


def test_an_encoder_has_norms_and_no_logit_difference() -> None:
    model = load_model(build("bert"), tokenizer=tokenizer())
    task = Task.from_prompts("t3 t4 t5").encode(model)
    assert len(attention_contribution(model, task)) == 3 * 4 * 9
    with pytest.raises(ModelError, match='Expected: a causal model\nTry: measure="norm"'):
        attention_contribution(model, task, measure="logit_diff")


def test_the_answer_is_read_at_the_last_token_only(toy: Model, toy_task: Encoded) -> None:
    with pytest.raises(OptionError, match=r"queries \[0\]\nExpected: \[-1\] or none"):
        attention_contribution(toy, toy_task, measure="logit_diff", queries=[0])


def test_a_logit_difference_needs_answers(toy: Model, toy_task: Encoded) -> None:
    with pytest.raises(TaskError, match="has no answer"):
        attention_contribution(toy, toy_task, measure="logit_diff")


@pytest.mark.parametrize("measure", ["norm", "share"])
def test_columns_are_described(toy: Model, toy_task: Encoded, measure: str) -> None:
    frame = attention_contribution(toy, toy_task, measure=measure)
    known = METHODS.get("attention_contribution")
    assert known.columns_of(frame).keys() == set(frame.columns)
    scale = {"norm": "activation", "share": "share"}[measure]
    assert known.view_for(known.parse({"measure": measure})).scale == scale
