"""The graph of a model: counted by hand, against networkx, and refusals."""

import pytest
import torch

from probe.core.errors import OptionError
from probe.core.graph import Graph

SMALL = Graph(n_layers=2, n_heads=4, n_kv_heads=2, d_model=32)


def test_edges_of_a_multi_head_model_are_those_of_the_benchmark() -> None:
    """GPT-2 small has 32,491 edges in the MIB benchmark."""
    assert Graph(12, 12, 12, 768).n_edges == 32491


@pytest.mark.parametrize("parallel", [False, True])
def test_a_receiver_reads_all_that_is_written_before_it(parallel: bool) -> None:
    graph = Graph(2, 4, 2, 32, parallel)
    read = {r.name: graph.senders[: graph.read_by(r)] for r in graph.receivers}
    assert read["a0.h3<q>"] == ("input",)
    assert read["a1.kv1<v>"] == ("input", "a0.h0", "a0.h1", "a0.h2", "a0.h3", "m0")
    assert read["m0"] == (("input",) if parallel else read["a1.kv1<v>"][:-1])
    assert read["logits"] == graph.senders


def test_a_shared_key_is_an_input_of_each_head_of_its_group() -> None:
    feeds = {r.name: r.feeds for r in SMALL.receivers}
    assert feeds["a1.kv1<k>"] == ("a1.h2", "a1.h3")
    assert feeds["a1.h2<q>"] == ("a1.h2",)
    assert [r.name for r in Graph(1, 2, 2, 8).receivers][2:4] == ["a0.h0<k>", "a0.h1<k>"]


def test_inputs_are_found_where_they_stand() -> None:
    for place, receiver in enumerate(SMALL.receivers):
        span = SMALL.inputs(receiver.layer, receiver.kind)
        assert span.start <= place < span.stop
        assert {r.kind for r in SMALL.receivers[span]} == {receiver.kind}


def test_a_block_reads_what_any_of_its_receivers_reads() -> None:
    for layer in range(SMALL.n_layers + 1):
        place, n_read = SMALL.block(layer)
        assert {r.layer for r in SMALL.receivers[place]} == {layer}
        assert SMALL.edges[:, place].any(1).sum() == n_read


def test_names_and_places_agree() -> None:
    for sender, receiver in SMALL.edges.nonzero().tolist():
        assert SMALL.edge(SMALL.edge_name(sender, receiver)) == (sender, receiver)
    assert torch.equal(SMALL.feeds.sum(0)[1:5], torch.tensor([3, 3, 3, 3]))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("input->a2.h0<q>", 'there is no edge "input->a2.h0<q>"'),
        ("a9.h0->logits", 'there is no edge "a9.h0->logits"'),
        ("m1->m0", "m1->m0 runs backwards"),
        ("input", "sender->receiver, like"),
    ],
)
def test_an_edge_that_is_not_there_is_refused(name: str, said: str) -> None:
    with pytest.raises(OptionError, match=said):
        SMALL.edge(name)


def test_a_node_that_does_not_write_is_refused() -> None:
    with pytest.raises(OptionError, match='there is no node "logits" that writes'):
        SMALL.sender("logits")
