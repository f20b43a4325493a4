"""Circuits as values: selection, pruning against networkx, and files that come back the same."""

import json
from pathlib import Path

import networkx as nx
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from probe.core.circuit import Circuit, mean_jaccard
from probe.core.circuit_file import as_dict
from probe.core.errors import OptionError
from probe.core.graph import Graph

GROUPED, HEADS = Graph(2, 4, 2, 32), Graph(2, 3, 3, 24, parallel=True)
graphs = st.sampled_from([GROUPED, HEADS])


def scored(graph: Graph, seed: int = 0) -> Circuit:
    generator = torch.Generator().manual_seed(seed)
    return Circuit.scored(graph, torch.randn(graph.edges.shape, generator=generator))


def network(circuit: Circuit) -> nx.DiGraph:
    """Every input a node of its own, so that paths can be asked for."""
    net = nx.DiGraph()
    for receiver in circuit.graph.receivers:
        net.add_edges_from((receiver.name, f"out {node}") for node in receiver.feeds)
    for name in circuit.edges:
        sender, receiver = name.split("->")
        net.add_edge(f"out {sender}", receiver)
    return net


@settings(max_examples=30)
@given(graph=graphs, seed=st.integers(0, 10**6), share=st.floats(0, 1))
def test_pruning_leaves_the_edges_on_a_way_from_input_to_logits(
    graph: Graph, seed: int, share: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    kept = graph.edges & (torch.rand(graph.edges.shape, generator=generator) < share)
    circuit = Circuit(graph, kept, torch.zeros(kept.shape, dtype=torch.float64))
    net = network(circuit)
    net.add_nodes_from(["out input", "logits"])
    after = {"out input", *nx.descendants(net, "out input")}
    before = {"logits", *nx.ancestors(net, "logits")}
    on_a_way = {
        name for name in circuit.edges
        if f"out {name.split('->')[0]}" in after and name.split("->")[1] in before
    }  # fmt: skip
    pruned = circuit.pruned()
    assert set(pruned.edges) == on_a_way
    assert pruned.pruned().edges == pruned.edges


@settings(max_examples=20)
@given(graph=graphs, seed=st.integers(0, 10**6), n=st.integers(0, 60))
def test_a_file_comes_back_the_same(
    graph: Graph, seed: int, n: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    circuit = scored(graph, seed).top(n)
    path = circuit.to_json(tmp_path_factory.mktemp("circuits") / "circuit.json")
    back = Circuit.from_json(path)
    assert back.graph == graph
    assert torch.equal(back.kept, circuit.kept)
    assert torch.equal(back.scores, circuit.scores)
    assert back.to_json(path.with_name("again.json")).read_bytes() == path.read_bytes()


def test_the_file_is_the_benchmarks_format() -> None:
    content = as_dict(scored(GROUPED).top(30))
    assert content["cfg"] == {
        "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "parallel_attn_mlp": False, "d_model": 32,
    }  # fmt: skip
    names = [
        "input",
        *(f"{k}" for n in (0, 1) for k in [*(f"a{n}.h{h}" for h in range(4)), f"m{n}"]),
    ]
    assert list(content["nodes"]) == [*names, "logits"]
    # each query head has a key and a value of its own: 1·12 + 5 + 6·12 + 10 + 11 edges
    assert len(content["edges"]) == 110
    assert content["edges"]["input->a1.h2<k>"] == content["edges"]["input->a1.h3<k>"]
    assert set(content["edges"]["m0->logits"]) == {"score", "in_graph"}


def test_a_file_without_key_value_heads_is_read_as_multi_head(tmp_path: Path) -> None:
    content = as_dict(scored(HEADS).top(12))
    del content["cfg"]["n_kv_heads"]
    path = tmp_path / "theirs.json"
    path.write_text(json.dumps(content))
    assert Circuit.from_json(path).edges == scored(HEADS).top(12).edges


def changed(**changes: object) -> str:
    content = as_dict(scored(GROUPED).top(30))
    for where, value in changes.items():
        part, _, name = where.partition("__")
        content[part] = content[part] | {name: value} if name else value
    return json.dumps(content)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is not JSON"),
        ("3", "is no circuit: TypeError"),
        ("{}", "is no circuit: KeyError 'cfg'"),
        (
            changed(edges__nowhere={"score": 1.0, "in_graph": True}),
            "1 edges of a graph that this is not",
        ),
        (changed(nodes__m0={"in_graph": True, "neurons": [True]}), "leaves out single neurons"),
        (
            changed(**{"edges__input->a1.h2<k>": {"score": 9.0, "in_graph": True}}),
            "input->a1.h2<k> and input->a1.h3<k> differ, but these heads share one k",
        ),
    ],
)
def test_a_file_that_is_no_circuit_says_why(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(content)
    with pytest.raises(OptionError, match=said):
        Circuit.from_json(path)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="there is no circuit to read at"):
        Circuit.from_json(tmp_path / "none.json")


def test_top_keeps_the_largest_and_signed_the_most_positive() -> None:
    circuit = scored(GROUPED)
    size = circuit.scores[GROUPED.edges].abs().sort(descending=True).values
    by_size = circuit.top(25)
    assert (by_size.scores[by_size.kept].abs() >= size[24]).all()
    signed = circuit.top(25, by="signed")
    assert (signed.scores[signed.kept] > 0).all()
    assert torch.equal(circuit.top(1.0).kept, GROUPED.edges)
    assert circuit.top(0.5).n_edges <= GROUPED.n_edges // 2


def test_greedy_spends_every_edge_on_a_way_to_the_logits() -> None:
    circuit = scored(GROUPED)
    for n in (1, 5, 20, GROUPED.n_edges):
        grown = circuit.greedy(n)
        assert grown.n_edges <= n
        assert all(nx.has_path(network(grown), e.split("->")[1], "logits") for e in grown.edges)
    assert torch.equal(circuit.greedy(GROUPED.n_edges).kept, GROUPED.edges)
    first = circuit.greedy(1)
    strongest = circuit.scores[:, -1].abs().argmax()
    assert first.edges in ([], ["input->logits"]), strongest  # pruned unless it is the input


def test_above_a_threshold() -> None:
    circuit = scored(GROUPED)
    assert torch.equal(circuit.above(-1.0).kept, GROUPED.edges)
    assert circuit.above(100.0).n_edges == 0


def test_nodes_are_taken_out_and_put_in() -> None:
    full = Circuit.full(GROUPED)
    without = full.without("a0.h1")
    assert "a0.h1" not in without.nodes
    assert GROUPED.n_edges - without.n_edges == 1 + 1 + 9 + 1  # its query; m0; layer 1; logits
    assert "input->a0.kv0<k>" in without.edges  # the other head of its group reads it, too
    neither = without.without("a0.h0")
    assert "input->a0.kv0<k>" not in neither.edges
    assert full.without("a0.h1").adding("a0.h1").edges == full.edges
    assert Circuit.of_edges(GROUPED, []).adding("m1").edges == ["input->m1", "m1->logits"]


def test_nodes_of_a_shared_key_are_those_that_write() -> None:
    circuit = Circuit.of_edges(GROUPED, ["input->a0.kv0<v>", "a0.h1->logits"])
    assert circuit.nodes == ["input", "a0.h1", "logits"]
    assert sorted(circuit.network().edges) == [("a0.h1", "logits"), ("input", "a0.h1")]


def test_a_table_of_scores_becomes_a_circuit(toy: object) -> None:
    frame = pd.DataFrame(
        {"sender": ["input", "m1"], "receiver": ["m0", "logits"], "value": [1.0, -3.0],
         "kept": [False, True]}
    )  # fmt: skip
    circuit = Circuit.from_frame(toy, frame)
    assert circuit.edges == ["m1->logits"]
    assert float(circuit.scores.sum()) == -2.0
    with pytest.raises(OptionError, match="columns sender, receiver and value"):
        Circuit.from_frame(toy, frame[["sender"]])


def test_overlap_and_auroc_of_known_cases() -> None:
    one = Circuit.of_edges(GROUPED, ["input->m0", "m0->logits"])
    other = Circuit.of_edges(GROUPED, ["m0->logits", "m1->logits"])
    assert one.jaccard(other) == pytest.approx(1 / 3)
    assert mean_jaccard([one, one, other]) == pytest.approx((1 + 1 / 3 + 1 / 3) / 3)
    perfect = Circuit.scored(GROUPED, one.kept.double())
    assert perfect.auroc(one) == 1.0
    assert Circuit.scored(GROUPED, -perfect.scores).auroc(one) == 1.0
    assert Circuit.scored(GROUPED, -perfect.scores).auroc(one, by="signed") == 0.0
    assert Circuit.scored(GROUPED, torch.zeros(GROUPED.edges.shape)).auroc(one) == 0.5
    with pytest.raises(OptionError, match="the known circuit has 82 of 82 edges"):
        perfect.auroc(Circuit.full(GROUPED))


@pytest.mark.parametrize("n", [-1, 83, 1.5])
def test_a_size_that_cannot_be_is_refused(n: float) -> None:
    with pytest.raises(OptionError, match="of 82 edges"):
        scored(GROUPED).top(n)
