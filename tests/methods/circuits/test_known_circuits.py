"""Every way of finding edges finds those of models written by hand, in both head layouts."""

import itertools
import random

import pytest

from probe.core.circuit import Circuit
from probe.core.graph import Graph
from probe.core.registry import METHODS
from probe.core.task import Encoded, Task
from probe.methods.circuits import (  # noqa: F401  (registered by being imported)
    acdc,
    circuit_benchmark,
    eap,
    eap_ig,
    edge_patching,
    faithfulness,
    information_flow,
)
from probe.models.bridge import BridgeModel
from probe.models.handbuilt import LAYOUTS, HandBuilt, induction_model
from probe.models.handbuilt_compare import compare_model
from probe.models.load import load_model

pytestmark = pytest.mark.slow  # left to make test

SIZE = 16


def induction_pairs(n: int, seed: int = 0) -> Task:
    """``A B ... C D ... A``: the corrupted twin swaps A and C, asks for C, or has another B.

    Together they change what every edge that carries a token carries.
    """
    rng, pairs = random.Random(seed), []
    for number in range(n):
        a, b, c, d, e, f, other = rng.sample([f"w{i}" for i in range(3, SIZE)], 7)
        clean = [e, a, b, f, c, d, a]
        twins = [[e, c, b, f, a, d, a], [e, a, b, f, c, d, c], [e, a, other, f, c, d, a]]
        pairs.append(
            {"clean": " ".join(clean), "corrupted": " ".join(twins[number % 3]), "answer": b,
             "wrong_answer": other if number % 3 == 2 else d}
        )  # fmt: skip
    return Task.from_pairs(pairs)


def compare_pairs(n: int, seed: int = 0) -> Task:
    """``A B B C D``: in the corrupted twin ``A A B`` or ``B C C`` stands twice in a row."""
    rng, pairs = random.Random(seed), []
    for number in range(n):
        a, b, c, d = rng.sample([f"w{i}" for i in range(3, SIZE)], 4)
        earlier = number % 2 == 0
        twin = [a, a, b, c, d] if earlier else [a, b, c, c, d]
        pairs.append(
            {"clean": " ".join(["<bos>", a, b, b, c, d]), "answer": b,
             "corrupted": " ".join(["<bos>", *twin]), "wrong_answer": a if earlier else c}
        )  # fmt: skip
    return Task.from_pairs(pairs)


CIRCUITS = {
    "induction": (induction_model, induction_pairs),
    "compare": (compare_model, compare_pairs),
}

EACH = list(itertools.product(CIRCUITS, LAYOUTS))
Known = tuple[HandBuilt, BridgeModel, Encoded, Graph]


def made(circuit: str, layout: str, **how: float) -> Known:
    build, pairs = CIRCUITS[circuit]
    built = build(layout, SIZE, **how)
    model = load_model(built.hf, tokenizer=built.tokenizer)
    return built, model, pairs(12).encode(model), Graph.of(model.dims)


@pytest.fixture(scope="module", params=EACH, ids="-".join)
def known(request: pytest.FixtureRequest) -> Known:
    """Soft attention, which has slopes, and norms that are linear in what they read."""
    return made(*request.param, sharpness=4.0, eps=1.0)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("edge_patching", {}),
        ("eap", {}),
        ("eap", {"gradient": "both"}),
        ("eap", {"gradient": "source"}),
        ("eap", {"direction": "denoise"}),
        ("eap_ig", {}),
        ("eap_ig", {"variant": "activations"}),
        ("acdc", {"threshold": 1e-3}),
    ],
)
def test_edges_that_carry_tokens_outscore_all_others(
    known: Known, name: str, options: dict
) -> None:
    built, model, task, graph = known
    frame = METHODS.get(name).function(model, task, **options)
    truth = Circuit.of_edges(graph, built.edges)
    assert Circuit.from_frame(model, frame).auroc(truth) >= 0.99


def test_information_flows_along_positions_too(known: Known) -> None:
    """It knows no counterfactual, so what all prompts share counts as well."""
    built, model, task, graph = known
    frame = METHODS.get("information_flow").function(model, task)
    truth = Circuit.of_edges(graph, [*built.edges, *built.position_edges])
    assert Circuit.from_frame(model, frame).auroc(truth) >= 0.99


@pytest.mark.parametrize(("circuit", "layout"), EACH)
def test_ordinary_norms_cost_first_order_scores_a_little(circuit: str, layout: str) -> None:
    """A word in a slot that is not read is, to first order, a change of the norm's denominator.

    It is none: every word is as long. So exact patching sees nothing, and a slope something.
    """
    built, model, task, graph = made(circuit, layout, sharpness=4.0)
    truth = Circuit.of_edges(graph, built.edges)
    auroc = {
        name: Circuit.from_frame(model, METHODS.get(name).function(model, task)).auroc(truth)
        for name in ("edge_patching", "eap", "eap_ig")
    }
    assert auroc["edge_patching"] == 1
    assert 0.97 <= auroc["eap"] < auroc["eap_ig"] <= 1


def test_exact_patching_agrees_with_the_construction_of_induction() -> None:
    """At full sharpness: each token edge does what it is there for, and no other edge anything."""
    built = induction_model("grouped-query", SIZE)
    model = load_model(built.hf, tokenizer=built.tokenizer)
    task = induction_pairs(12).encode(model)
    frame = METHODS.get("edge_patching").function(model, task)
    score = dict(zip(frame["sender"] + "->" + frame["receiver"], frame["value"], strict=True))
    gap = (model.sweep(task, [[]], base="clean") - model.sweep(task, [[]])).mean()
    third = float(gap) / 3  # each of the three twins changes one way of reading only
    # To the logits both answers' logits are carried, of which each other edge moves one.
    expected = dict.fromkeys(built.edges, third)
    expected |= {"a1.h1->logits": 3 * third, "input->a1.kv0<k>": 0.0}
    for edge, value in expected.items():
        assert score[edge] == pytest.approx(value, abs=0.02 * third), edge
    rest = {edge: value for edge, value in score.items() if edge not in built.edges}
    assert max(map(abs, rest.values())) < 1e-3 * third


@pytest.mark.parametrize("layout", LAYOUTS)
def test_exact_patching_agrees_with_the_construction_of_comparing(layout: str) -> None:
    """At full sharpness, in units of the clean run's logit difference; gone wrong it is -1.

    ``A B B C D`` has the mark at its third word. Where nothing is marked, *find* attends evenly:
    of six tokens two are the answer and one is the wrong one, which leaves 1/6.
    """
    built, model, task, _ = made("compare", layout, sharpness=30.0, eps=1.0)
    key, value, first = built.edges[3], built.edges[4], built.edges[0]
    earlier = {  # A A B C D: nothing is marked; or both Bs; or the first B alone, to be copied
        first: 5 / 6, "a0.h2->m0": 5 / 6, "input->m0": 0, key: 0, value: 0, "a1.h1->logits": 2,
    }  # fmt: skip
    later = {  # A B C C D: B and C are marked; nothing; C alone; B alone, where C is to be copied
        first: 1, "a0.h2->m0": 1, "input->m0": 5 / 6, key: 2, value: 2, "a1.h1->logits": 2,
    }  # fmt: skip
    frame = METHODS.get("edge_patching").function(model, task)
    score = dict(zip(frame["sender"] + "->" + frame["receiver"], frame["value"], strict=True))
    unit = float(model.sweep(task, [[]], base="clean").mean())
    for edge in built.edges:
        expected = (earlier[edge] + later[edge]) / 2
        assert score.pop(edge) / unit == pytest.approx(expected, abs=0.02), edge
    assert max(map(abs, score.values())) < 5e-3 * unit


def test_the_known_circuit_is_faithful_and_the_rest_of_the_model_is_not(known: Known) -> None:
    built, model, task, graph = known
    whole = [*built.edges, *built.position_edges]
    run = METHODS.get("faithfulness").function
    assert run(model, task, edges=whole)["value"].mean() == pytest.approx(1, abs=0.05)
    rest = [e for e in Circuit.full(graph).edges if e not in whole]
    assert abs(run(model, task, edges=rest)["value"].mean()) < 0.05


def test_rankings_that_find_it_are_nearer_the_model_than_chance(known: Known) -> None:
    _, model, task, _ = known
    frame = METHODS.get("circuit_benchmark").function(
        model, task, rankings=["eap", "random"], select="greedy"
    )
    distance = frame[frame["measure"] == "CMD"].set_index("ranking")["value"]
    assert distance["eap"] < distance["random"] / 2


def test_acdc_keeps_the_circuit_and_little_else(known: Known) -> None:
    built, model, task, _ = known
    frame = METHODS.get("acdc").function(model, task, threshold=0.05)
    kept = set(Circuit.from_frame(model, frame).edges)
    assert kept <= {*built.edges, *built.position_edges}
    strong = {e for e in built.edges if not e.startswith("input->a1") or not e.endswith("<k>")}
    assert strong <= kept
