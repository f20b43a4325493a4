"""The search in batches against the search as published, one edge and one run at a time."""

import pytest
import torch

from probe.core.circuit import Circuit
from probe.core.graph import Graph
from probe.core.task import Encoded
from probe.methods.circuits.acdc import acdc
from probe.methods.edges import WRITES
from probe.models.bridge import BridgeModel
from probe.tasks import load_task

pytestmark = pytest.mark.slow  # a minute or so: left to make test


@pytest.fixture(scope="module")
def ioi(toy: BridgeModel) -> Encoded:
    return load_task("ioi", n=2).encode(toy)


def one_by_one(model: BridgeModel, task: Encoded, threshold: float, metric: str) -> Circuit:
    graph, sign = Graph.of(model.dims), 1 if metric == "kl" else -1
    other, kept = model.trace(task, WRITES, corrupted=True), graph.edges.clone()

    def run() -> float:
        return sign * float(model.sweep_edges(task, kept[None], metric, other=other).mean())

    now = run()
    for place in reversed(range(len(graph.receivers))):
        for sender in reversed(range(graph.read_by(graph.receivers[place]))):
            kept[sender, place] = False
            new = run()
            if new - now < threshold:
                now = new
            else:
                kept[sender, place] = True
    return Circuit(graph, kept, torch.zeros(kept.shape, dtype=torch.float64)).pruned()


@pytest.mark.parametrize(("metric", "threshold"), [("kl", 0.002), ("logit_diff", 0.02)])
def test_the_verdicts_are_those_of_the_search_one_by_one(
    toy: BridgeModel, ioi: Encoded, metric: str, threshold: float
) -> None:
    found = Circuit.from_frame(toy, acdc(toy, ioi, metric=metric, threshold=threshold))
    slow = one_by_one(toy, ioi, threshold, metric)
    assert 0 < slow.n_edges < slow.graph.n_edges
    assert found.edges == slow.edges


def test_the_threshold_decides_how_much_stays(toy: BridgeModel, ioi: Encoded) -> None:
    sizes = [int(acdc(toy, ioi, threshold=t)["kept"].sum()) for t in (-10.0, 0.01, 10.0)]
    assert sizes[0] == Graph.of(toy.dims).n_edges
    assert sizes[0] > sizes[1] >= sizes[2] == 0


def test_getting_better_counts_as_a_change_when_asked(toy: BridgeModel, ioi: Encoded) -> None:
    options = {"metric": "logit_diff", "threshold": 0.02}
    one_sided, two_sided = (acdc(toy, ioi, absolute=flag, **options) for flag in (False, True))
    assert two_sided["kept"].sum() > one_sided["kept"].sum()
