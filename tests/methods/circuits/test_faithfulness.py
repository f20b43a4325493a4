"""Judging circuits: exact ends, areas by hand, ablations, intervals, and node by node."""

import numpy as np
import pytest
import torch

from probe.core.circuit import Circuit
from probe.core.errors import OptionError, TaskError
from probe.core.graph import Graph
from probe.core.task import Encoded, Task
from probe.methods.circuit_runs import Bench, replacement
from probe.methods.circuits.circuit_benchmark import circuit_benchmark
from probe.methods.circuits.circuit_robustness import circuit_robustness
from probe.methods.circuits.completeness import completeness
from probe.methods.circuits.faithfulness import faithfulness
from probe.methods.circuits.minimality import minimality
from probe.methods.curves import cmd, cpr
from probe.methods.discovery import ranked
from probe.models.bridge import BridgeModel
from probe.tasks import load_task

pytestmark = pytest.mark.slow  # left to make test

ABLATIONS = ["patching", "zero", "mean", "mean_by_position"]


@pytest.fixture(scope="module")
def ioi(toy: BridgeModel) -> Encoded:
    return load_task("ioi", n=4).encode(toy)


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_no_edge_is_0_and_every_edge_is_1_exactly(
    toy: BridgeModel, ioi: Encoded, ablation: str
) -> None:
    frame = faithfulness(toy, ioi, rankings=["eap"], sizes=[0.0, 1.0], ablation=ablation)
    none, whole = (frame[frame["size"] == size] for size in (0.0, 1.0))
    assert (none["value"] == 0).all()
    assert none["edges"].tolist() == [0] * 4
    np.testing.assert_array_equal(whole["raw"], toy.sweep(ioi, [[]], base="clean")[0].numpy())
    assert whole["value"].mean() == pytest.approx(1, abs=1e-12)


def test_patched_with_nothing_left_the_model_is_in_the_other_run(
    toy: BridgeModel, ioi: Encoded
) -> None:
    empty = faithfulness(toy, ioi, rankings=["eap"], sizes=[0.0])["empty"]
    np.testing.assert_allclose(empty, toy.sweep(ioi, [[]])[0].numpy(), atol=1e-5)


def test_value_is_a_ratio_of_means(toy: BridgeModel, ioi: Encoded) -> None:
    frame = faithfulness(toy, ioi, rankings=["eap"], sizes=[0.3])
    by_hand = (frame["raw"] - frame["empty"]).mean() / (frame["full"] - frame["empty"]).mean()
    assert frame["value"].mean() == pytest.approx(by_hand)


def test_edges_of_ones_own(toy: BridgeModel, ioi: Encoded) -> None:
    circuit = Circuit.full(Graph.of(toy.dims)).without("m0")
    own = faithfulness(toy, ioi, edges=circuit.edges)
    assert set(own["ranking"]) == {"given"}
    assert set(own["edges"]) == {circuit.n_edges}
    bench = Bench.of(toy, ioi, "logit_diff", "patching")
    np.testing.assert_allclose(own["raw"], bench.run([circuit])[0].numpy(), atol=1e-6)


def test_means_leave_out_padding_and_are_the_means() -> None:
    from probe.models.load import load_model

    toy = load_model("toy")
    pairs = [{"clean": "Mary gave John the ball", "corrupted": "Mary gave Tom the ball"},
             {"clean": "Mary gave", "corrupted": "Tom gave"}]  # fmt: skip
    ragged = Task.from_pairs(pairs).encode(toy)
    wrote = toy.trace(ragged, ["z.0"], corrupted=True)["z", 0]
    real = torch.arange(wrote.shape[1]) < ragged.lengths[:, None]
    mean = replacement(toy, ragged, "mean")
    assert mean is not None
    torch.testing.assert_close(mean["z", 0][1, 3], wrote[real].mean(0))
    by_position = replacement(toy, ragged, "mean_by_position")
    assert by_position is not None
    first, last = by_position["z", 0][0, 0], by_position["z", 0][1, -1]
    torch.testing.assert_close(first, wrote[:, 0].mean(0))
    torch.testing.assert_close(last, wrote[0, -1])


def test_areas_of_known_curves() -> None:
    sizes = [0.0, 0.5, 1.0]
    shares = np.array([[0.0, 1.0, 1.0], [1.0, 1.0, 1.0], [0.0, 2.0, 1.0]])
    np.testing.assert_allclose(cpr(sizes, shares), [0.75, 1.0, 1.25])
    np.testing.assert_allclose(cmd(sizes, shares), [0.25, 0.0, 0.75])
    assert cpr([0.01, 0.1, 1.0], np.array([0.0, 1.0, 1.0]), "log") == pytest.approx(0.75)


def test_the_table_holds_the_curve_and_its_areas(toy: BridgeModel, ioi: Encoded) -> None:
    sizes = [0.05, 0.3, 1.0]
    frame = circuit_benchmark(toy, ioi, rankings=["eap", "random"], sizes=sizes, random_draws=2)
    curve = faithfulness(toy, ioi, rankings=["eap"], sizes=sizes)
    points = curve.groupby("size")["value"].mean()
    ours = frame[(frame["ranking"] == "eap") & frame["size"].notna()]
    np.testing.assert_allclose(ours["value"], points, atol=1e-6)
    (area,) = frame[(frame["ranking"] == "eap") & (frame["measure"] == "CPR")]["value"]
    assert area == pytest.approx(float(cpr(sizes, points.to_numpy())), abs=1e-6)
    assert (frame["low"] <= frame["value"] + 1e-9).all()
    assert (frame["value"] <= frame["high"] + 1e-9).all()
    whole = frame[frame["size"] == 1.0]
    np.testing.assert_allclose(whole[["value", "low", "high"]], 1.0)


@pytest.mark.parametrize("search", ["random", "greedy"])
def test_the_whole_model_is_complete(toy: BridgeModel, ioi: Encoded, search: str) -> None:
    whole = completeness(toy, ioi, size=1.0, draws=2, search=search)
    assert not whole["value"].any()
    part = completeness(toy, ioi, size=0.3, draws=3, search=search)
    assert part["value"].abs().max() > 1e-3
    np.testing.assert_allclose(part["value"], part["circuit"] - part["model"], atol=1e-6)


def test_a_node_is_worth_what_the_circuit_loses_without_it(toy: BridgeModel, ioi: Encoded) -> None:
    frame = minimality(toy, ioi, size=1.0)
    knocked = Circuit.full(Graph.of(toy.dims)).without("a0.h1")
    left = faithfulness(toy, ioi, edges=knocked.edges)["raw"]
    ours = frame[frame["node"] == "a0.h1"]
    np.testing.assert_allclose(ours["raw"], left, atol=1e-6)
    np.testing.assert_array_equal(ours["circuit"], toy.sweep(ioi, [[]], base="clean")[0].numpy())
    rest = minimality(toy, ioi, size=1.0, without=["a0.h1"])
    assert "a0.h1" not in set(rest["node"])


def test_robustness_counts_runs(toy: BridgeModel, ioi: Encoded) -> None:
    frame = circuit_robustness(toy, ioi, resamples=2, size=0.2)
    runs = frame.drop_duplicates("varied").set_index("varied")["n"]
    assert runs.to_dict() == {"all": 6, "metric": 2, "direction": 2, "prompts": 2}
    assert frame["value"].between(0, 1).all()
    assert (frame["cpr_low"] <= frame["cpr_high"]).all()
    same = circuit_robustness(
        toy, ioi, metrics=["logit_diff"] * 2, resamples=0, directions=["noise"], size=0.2
    )
    assert set(same["overlap"]) == {1.0}


def test_what_cannot_be_judged_is_refused(toy: BridgeModel, ioi: Encoded) -> None:
    with pytest.raises(OptionError, match='there is no edge "m0->m9"'):
        faithfulness(toy, ioi, edges=["m0->m9"])
    with pytest.raises(OptionError, match='there is no ranking "eapp"'):
        ranked(toy, ioi, "eapp", metric="logit_diff", direction="noise", steps=1)
    with pytest.raises(OptionError, match="no edge is on a way"):
        minimality(toy, ioi, edges=[])
    with pytest.raises(OptionError, match="has no head and no MLP"):
        completeness(toy, ioi, edges=["input->logits"])
    with pytest.raises(OptionError, match="has no head and no MLP"):
        minimality(toy, ioi, edges=["input->logits"])
    with pytest.raises(OptionError, match="fewer than two runs"):
        circuit_robustness(toy, ioi, metrics=["prob"], directions=["noise"], resamples=0)
    with pytest.raises(OptionError, match="in any of 8 circuits"):
        circuit_robustness(toy, ioi, ranking="random", size=0.02)
    with pytest.raises(TaskError, match="has no tag 'colour'"):
        circuit_robustness(toy, ioi, template="colour")
