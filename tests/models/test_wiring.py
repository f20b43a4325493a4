"""Runs with some edges only: against the plain runs, exact edge patches, and a naive forward."""

import pytest
import torch
from families import CAUSAL, build, tokenizer
from torch import Tensor

from probe.core.errors import ModelError, OptionError
from probe.core.graph import Graph
from probe.core.task import Encoded, Task
from probe.core.trace import Trace
from probe.models.bridge import BridgeModel
from probe.models.load import load_model

pytestmark = pytest.mark.slow  # a minute or so: left to make test

PAIRS = [
    {"clean": "t3 t4 t5 t6 t7 t8 t9 t3 t4", "corrupted": "t3 t4 t5 t10 t7 t8 t9 t3 t4",
     "answer": "t5", "wrong_answer": "t6"},
    {"clean": "t10 t11 t12 t13", "corrupted": "t10 t11 t14 t13",
     "answer": "t14", "wrong_answer": "t3"},
]  # fmt: skip
WRITES = ["resid_pre.0", "z", "mlp_out"]


def load(name: str) -> tuple[BridgeModel, Encoded, Trace]:
    model = load_model(build(name), tokenizer=tokenizer())
    task = Task.from_pairs(PAIRS).encode(model)
    return model, task, model.trace(task, WRITES, corrupted=True)


def some_edges(graph: Graph, *shares: float) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.stack([torch.rand(graph.edges.shape, generator=generator) < s for s in shares])


@pytest.mark.parametrize("name", CAUSAL)
def test_all_edges_are_the_model_to_the_bit_and_none_the_other_run(name: str) -> None:
    model, task, other = load(name)
    edges = Graph.of(model.dims).edges
    full, empty = model.sweep_edges(
        task, torch.stack([edges, torch.zeros_like(edges)]), other=other
    )
    assert torch.equal(full, model.sweep(task, [[]], base="clean")[0])
    torch.testing.assert_close(
        empty, model.sweep(task, [[]], base="corrupted")[0], atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("name", ["neox", "gemma3"])
def test_resumed_runs_are_whole_runs(name: str) -> None:
    """And chunks do not show: rows begin at their own blocks, one alone or many together."""
    model, task, other = load(name)
    kept = some_edges(Graph.of(model.dims), 0.5, 0.9, 0.99)
    kept[1, :, : kept.shape[2] // 2] = True
    whole = model.sweep_edges(task, kept, other=other, resume=False)
    assert (whole[0] - whole[1]).abs().max() > 1e-2
    for chunk_bytes in (1, 2**27):
        resumed = model.sweep_edges(task, kept, other=other, chunk_bytes=chunk_bytes)
        torch.testing.assert_close(resumed, whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "neox", "gemma2"])
def test_with_zeros_for_all_that_is_cut_nothing_is_left(name: str) -> None:
    model, task, _ = load(name)
    graph = Graph.of(model.dims)
    none = torch.zeros_like(graph.edges)[None]
    assert model.sweep_edges(task, none).isfinite().all()
    only_logits = graph.edges.clone()
    only_logits[:, -1] = False
    last = model.unembed(_biases(model))
    expected = (last[task.need_answers()] - last[task.need_wrong_answers()])[None]
    # Where nothing is left but rounding, the last norm makes it larger.
    made = model.sweep_edges(task, only_logits[None])
    torch.testing.assert_close(made, expected, atol=5e-3 if name == "gemma2" else 1e-5, rtol=1e-5)


def _biases(model: BridgeModel) -> Tensor:
    """What is on the stream that no sender wrote: the biases of attention's outputs."""
    layers = range(model.dims.n_layers)
    return sum((model.out_bias(layer, "attn_out") for layer in layers), torch.zeros(32))


def test_the_metric_and_the_base_are_those_asked_for(toy: BridgeModel) -> None:
    task = Task.from_pairs(
        [{"clean": "Mary gave John", "corrupted": "Mary gave Tom", "answer": " a"}]
    ).encode(toy)
    edges = Graph.of(toy.dims).edges[None]
    for base in ("clean", "corrupted"):
        for metric in ("kl", "log_prob"):
            made = toy.sweep_edges(task, edges, metric, base=base)
            assert torch.equal(made, toy.sweep(task, [[]], metric, base=base))


def test_a_model_without_a_plain_read_out_gives_the_same_numbers(
    toy: BridgeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = Task.from_pairs(
        [{"clean": "Mary gave John", "corrupted": "Mary gave Tom", "answer": " a",
          "wrong_answer": " the"}]
    ).encode(toy)  # fmt: skip
    kept, other = some_edges(Graph.of(toy.dims), 0.6), toy.trace(task, WRITES, corrupted=True)
    right = toy.sweep_edges(task, kept, other=other)
    monkeypatch.setitem(toy.health, "reads_out", False)
    torch.testing.assert_close(toy.sweep_edges(task, kept, other=other), right)


def test_it_can_be_stopped(toy: BridgeModel) -> None:
    task = Task.from_pairs(
        [{"clean": "Mary gave John", "corrupted": "Mary gave Tom", "answer": " a",
          "wrong_answer": " the"}]
    ).encode(toy)  # fmt: skip
    kept = some_edges(Graph.of(toy.dims), 0.6, 0.6, 0.6)
    values = toy.sweep_edges(task, kept, report=lambda *_: False, chunk_bytes=1)
    assert values.isnan()[:, 0].tolist() == [False, True, True]


def test_what_is_no_graph_of_this_model_is_refused(toy: BridgeModel) -> None:
    task = Task.from_pairs(
        [{"clean": "Mary gave John", "corrupted": "Mary gave Tom", "answer": " a",
          "wrong_answer": " the"}]
    ).encode(toy)  # fmt: skip
    edges = Graph.of(toy.dims).edges[None]
    with pytest.raises(OptionError, match=r"edges of shape \(3, 3\)"):
        toy.sweep_edges(task, torch.ones(1, 3, 3, dtype=torch.bool))
    with pytest.raises(OptionError, match="base='clan'"):
        toy.sweep_edges(task, edges, base="clan")
    encoder = load_model(build("bert"), tokenizer=tokenizer())
    with pytest.raises(ModelError, match="is no graph of heads and MLPs on one stream"):
        encoder.sweep_edges(task, edges)
