"""Every way of finding edges finds those of a model written by hand, in both head layouts."""

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


Known = tuple[HandBuilt, BridgeModel, Encoded, Graph]


@pytest.fixture(scope="module", params=LAYOUTS)
def known(request: pytest.FixtureRequest) -> Known:
    """Soft attention, which has slopes, and norms that are linear in what they read."""
    built = induction_model(request.param, SIZE, sharpness=4.0, eps=1.0)
    model = load_model(built.hf, tokenizer=built.tokenizer)
    return built, model, induction_pairs(12).encode(model), Graph.of(model.dims)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("edge_patching", {}),
        ("eap", {}),
        ("eap", {"gradient": "both"}),
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


def test_exact_patching_agrees_with_the_construction() -> None:
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
