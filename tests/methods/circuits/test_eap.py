"""Scores of edges: against the textbook, one edge at a time, and the sums they must have."""

from collections.abc import Callable

import families
import naive
import numpy as np
import pandas as pd
import pytest
import torch

from probe.core.edit import patch
from probe.core.errors import ModelError, OptionError
from probe.core.graph import Graph
from probe.core.metric import get_metric
from probe.core.task import Encoded, Task
from probe.methods import discovery
from probe.methods import edges as helpers
from probe.methods.circuits.eap import eap
from probe.methods.circuits.eap_ig import eap_ig
from probe.methods.circuits.edge_patching import edge_patching
from probe.methods.discovery import eap_scores, sender_groups
from probe.models.bridge import BridgeModel
from probe.models.load import load_model
from probe.tasks import load_task

pytestmark = pytest.mark.slow  # a minute or so: left to make test

PAIR = {"clean": "t3 t4 t5 t6 t7", "corrupted": "t3 t8 t5 t6 t7", "answer": "t5",
        "wrong_answer": "t6"}  # fmt: skip
FAMILIES = ["gpt2", "neox", "llama", "qwen3", "gemma2"]


def load(name: str) -> tuple[BridgeModel, Encoded]:
    model = load_model(families.build(name), tokenizer=families.tokenizer(), dtype="float64")
    return model, Task.from_pairs([PAIR]).encode(model)


@pytest.fixture(scope="module")
def ioi(toy: BridgeModel) -> Encoded:
    return load_task("ioi", n=3).encode(toy)


@pytest.mark.parametrize("name", FAMILIES)
def test_each_edge_is_the_textbooks(name: str) -> None:
    model, task = load(name)
    hf = families.build(name).double().requires_grad_(False)
    dims, answer, wrong = model.dims, int(task.need_answers()[0]), int(task.need_wrong_answers()[0])
    parts = naive.blocks(hf, dims.n_heads, dims.n_kv_heads)
    clean, corrupted = (
        naive.written(hf, parts, tokens, dims.n_heads)
        for tokens in (task.clean, task.need_corrupted())
    )
    ours = eap(model, task, sign="effect")
    # All receivers of the middle block and the logits, from every kind of sender.
    some = ours[ours["receiver"].str.match(r"a1\.\w+<.>|m1|m0|logits")]
    some = some[some["sender"].isin(["input", "a0.h1", "m0", "a1.h2", "a2.h3"])]
    theirs = [
        naive.score(
            hf, parts, task.clean, row.receiver, corrupted[row.sender] - clean[row.sender],
            lambda logits: logits[0, -1, answer] - logits[0, -1, wrong],
        )
        for row in some.itertuples()
    ]  # fmt: skip
    assert len(theirs) > 20
    assert np.abs(theirs).max() > 0.01
    np.testing.assert_allclose(some["value"], theirs, atol=1e-6)


def test_edges_add_up_to_the_slope_of_the_whole_stream(toy: BridgeModel, ioi: Encoded) -> None:
    """Edges out of the input; and nodes, which are the sum over their edges."""
    clean, slope = toy.gradients(ioi, ["resid_pre.0", "mlp_out"])
    other = toy.trace(ioi, ["resid_pre.0", "mlp_out"], corrupted=True)
    nodes = eap(toy, ioi, level="node", sign="effect").set_index("node")["value"]
    for node, site in (("input", "resid_pre.0"), ("m0", "mlp_out.0"), ("m1", "mlp_out.1")):
        change = (other[site] - clean[site]) * slope[site]
        real = torch.arange(change.shape[1]) < ioi.lengths[:, None]
        assert nodes[node] == pytest.approx(float(change[real].sum()) / 3, abs=1e-5)
    edges = eap(toy, ioi, sign="effect")
    sums = edges.groupby("sender")["value"].sum()
    np.testing.assert_allclose(nodes.loc[sums.index], sums, atol=1e-6)


@pytest.mark.parametrize("method", [eap, eap_ig])
def test_neurons_add_up_to_their_node(
    toy: BridgeModel, ioi: Encoded, method: Callable[..., pd.DataFrame]
) -> None:
    neurons = method(toy, ioi, level="neuron").groupby("node")["value"].sum()
    nodes = method(toy, ioi, level="node").set_index("node")["value"]
    assert set(neurons.index) == set(nodes.index) - {"input"}
    np.testing.assert_allclose(neurons, nodes[neurons.index], atol=1e-5)


@pytest.mark.parametrize("direction", ["noise", "denoise"])
def test_support_is_the_effect_seen_from_the_clean_side(
    toy: BridgeModel, ioi: Encoded, direction: str
) -> None:
    support = eap(toy, ioi, direction=direction)["value"]
    effect = eap(toy, ioi, direction=direction, sign="effect")["value"]
    np.testing.assert_allclose(support, effect if direction == "denoise" else -effect)


def test_where_the_slope_is_taken(toy: BridgeModel, ioi: Encoded) -> None:
    """Noise with the source's slope is denoise with the base's; both is the mean of the two."""
    base, source, both = (
        eap(toy, ioi, gradient=at)["value"].to_numpy() for at in ("base", "source", "both")
    )
    np.testing.assert_allclose(source, eap(toy, ioi, direction="denoise")["value"], atol=1e-6)
    np.testing.assert_allclose(both, (base + source) / 2, atol=1e-6)
    assert np.abs(base - source).max() > 1e-3


def test_small_chunks_change_nothing(
    toy: BridgeModel, ioi: Encoded, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = [eap(toy, ioi), eap_ig(toy, ioi, steps=3)]
    monkeypatch.setattr(helpers, "_BYTES_PER_CHUNK", 1)
    monkeypatch.setattr(discovery, "_RUNS_HELD", 2)
    for before, now in zip(right, (eap(toy, ioi), eap_ig(toy, ioi, steps=3)), strict=True):
        np.testing.assert_allclose(now["value"], before["value"], atol=1e-6)


def test_many_steps_along_the_inputs_give_the_whole_effect(toy: BridgeModel, ioi: Encoded) -> None:
    """The integral: edges out of the input add up to the change of the metric, error as 1/m."""
    clean, corrupted = (toy.sweep(ioi, [[]], base=base)[0] for base in ("clean", "corrupted"))
    whole = float((clean - corrupted).mean())
    errors = []
    for steps in (8, 64):
        frame = eap_ig(toy, ioi, steps=steps)
        errors.append(abs(frame[frame["sender"] == "input"]["value"].sum() - whole))
    assert errors[1] < errors[0] / 4
    assert errors[1] < 0.05 * abs(whole)


def test_many_steps_along_activations_give_each_groups_effect(
    toy: BridgeModel, ioi: Encoded
) -> None:
    start = toy.sweep(ioi, [[]], base="clean")[0]
    frames = [eap_ig(toy, ioi, variant="activations", steps=n, sign="effect") for n in (4, 32)]
    for site, senders in sender_groups(toy):
        names = Graph.of(toy.dims).senders[senders]
        there = toy.trace(ioi, [site], corrupted=True)[site]
        exact = float((toy.sweep(ioi, [[patch(site, there)]], base="clean")[0] - start).mean())
        ours = [frame[frame["sender"].isin(names)]["value"].sum() for frame in frames]
        assert abs(ours[1] - exact) < max(abs(ours[0] - exact) / 4, 1e-3)


def test_one_step_is_the_slope_at_an_end(toy: BridgeModel, ioi: Encoded) -> None:
    at_the_source = eap(toy, ioi, gradient="source")["value"]
    np.testing.assert_allclose(eap_ig(toy, ioi, steps=1)["value"], at_the_source, atol=1e-5)
    one = eap_ig(toy, ioi, variant="activations", steps=1)["value"]
    np.testing.assert_allclose(one, eap(toy, ioi)["value"], atol=1e-6)


def test_small_differences_are_patched_as_estimated() -> None:
    """Where the runs are close, the exact effect of each edge is its estimate."""
    hf = families.build("llama")
    hf.model.embed_tokens.weight.data[8] = hf.model.embed_tokens.weight.data[4] + 3e-4
    model = load_model(hf, tokenizer=families.tokenizer(), dtype="float64")
    task = Task.from_pairs([PAIR]).encode(model)
    exact, estimate = edge_patching(model, task), eap(model, task)
    assert exact[["sender", "receiver"]].equals(estimate[["sender", "receiver"]])
    scale = estimate["value"].abs().max()
    np.testing.assert_allclose(exact["value"] / scale, estimate["value"] / scale, atol=0.03)


@pytest.mark.parametrize("direction", ["noise", "denoise"])
def test_an_edge_patched_is_a_circuit_without_it(
    toy: BridgeModel, ioi: Encoded, direction: str
) -> None:
    graph = Graph.of(toy.dims)
    frame = edge_patching(toy, ioi, direction=direction, sign="effect")
    cut = graph.edges.repeat(graph.n_edges, 1, 1)
    for row, edge in enumerate(frame["sender"] + "->" + frame["receiver"]):
        cut[row][graph.edge(edge)] = False
    base, other = ("clean", True) if direction == "noise" else ("corrupted", False)
    wrote = toy.trace(ioi, helpers.WRITES, corrupted=other)
    raw = toy.sweep_edges(ioi, cut, base=base, other=wrote)
    effect = (raw - toy.sweep(ioi, [[]], base=base)).mean(1)
    np.testing.assert_allclose(frame["value"], effect.numpy(), atol=2e-5)


def test_one_forward_for_each_run_and_one_backward(
    toy: BridgeModel, ioi: Encoded, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    real = type(toy).run_raw

    def counted(self: BridgeModel, *args: object, **how: object) -> object:
        calls.append(how.get("grad", False))
        return real(self, *args, **how)

    monkeypatch.setattr(type(toy), "run_raw", counted)
    eap(toy, ioi)
    assert sorted(calls) == [False, True]
    calls.clear()
    eap_ig(toy, ioi, steps=3)
    assert sum(calls) == 3


def test_an_encoder_has_no_such_graph() -> None:
    model = load_model(families.build("bert"), tokenizer=families.tokenizer())
    task = Task.from_prompts(["t3 t4"]).encode(model)
    with pytest.raises(ModelError, match="it is an encoder|it has no mlp_resid"):
        eap_scores(model, task, get_metric("kl"), "noise", "base")


def test_what_is_not_there_is_refused(toy: BridgeModel, ioi: Encoded) -> None:
    with pytest.raises(OptionError, match='there is no receiver "a0.h0"'):
        edge_patching(toy, ioi, receivers=["a0.h0"])
    with pytest.raises(OptionError, match="neurons at two slopes"):
        eap(toy, ioi, level="neuron", gradient="both")
    with pytest.raises(OptionError, match="no slope reaches them"):
        eap_ig(toy, ioi, level="neuron", variant="activations")
