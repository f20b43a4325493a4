"""The studies of dictionaries: read off made-up curves, and run whole at their smallest size."""

from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
import torch

import probe


@pytest.fixture
def frontier() -> ModuleType:
    return import_module("sae_frontier")


@pytest.fixture
def absorption() -> ModuleType:
    return import_module("sae_absorption")


def made_up(**worse: float) -> pd.DataFrame:
    """Dictionaries whose error is 100/L0, times what the architecture is worse by."""
    rows = []
    for seed in range(3):
        for d_sae in (1024, 512):
            for architecture, l0s in (
                ("topk", (8, 16, 32, 64, 128)), ("batchtopk", (16, 32, 64)),
                ("standard", (12, 24, 48, 96)), ("gated", (10, 20, 40)), ("jumprelu", (20, 40)),
            ):  # fmt: skip
                revive = "auxk" if "topk" in architecture else "none"
                for l0 in l0s:
                    error = 100 / l0 * worse.get(architecture, 1.0)
                    rows.append(
                        {
                            "seed": seed, "d_sae": d_sae, "architecture": architecture,
                            "setting": l0, "revive": revive, "l0": float(l0), "spread": 3.0,
                            "mse": error, "gamma": worse.get(f"{architecture}_gamma", 1.0),
                            "centred": 1.0, "recovered": 1 - error / 20,
                        }
                    )  # fmt: skip
    return pd.DataFrame(rows)


def test_error_at_an_l0_is_read_between_its_neighbours_and_not_beyond() -> None:
    at_l0 = import_module("dictionary_runs").at_l0
    curve = made_up().query("architecture == 'topk' and seed == 0 and d_sae == 512")
    assert at_l0(curve, 24.0) == pytest.approx(100 / 24)
    assert np.isnan(at_l0(curve, 200.0))


@pytest.mark.parametrize(("worse", "verdict"), [(1.3, "reproduced"), (0.9, "not reproduced")])
def test_topk_must_be_better_at_every_l0(frontier: ModuleType, worse: float, verdict: str) -> None:
    assert frontier.judge_topk(made_up(standard=worse)).verdict == verdict


def test_topk_better_in_one_width_alone_is_no_reproduction(frontier: ModuleType) -> None:
    table = made_up(standard=1.3)
    table.loc[(table.architecture == "standard") & (table.d_sae == 512), "mse"] *= 0.5
    assert frontier.judge_topk(table).verdict == "not reproduced"
    few = made_up(standard=1.3)
    few.loc[(few.architecture == "standard") & (few.l0 == 12), "mse"] *= 0.5
    assert frontier.judge_topk(few).verdict == "partly"


@pytest.mark.parametrize(
    ("worse", "verdict"), [(1.01, "reproduced"), (1.04, "partly"), (1.2, "not reproduced")]
)
def test_jumprelu_may_be_a_little_worse(frontier: ModuleType, worse: float, verdict: str) -> None:
    assert frontier.judge_jump(made_up(jumprelu=worse)).verdict == verdict


@pytest.mark.parametrize(
    ("relu", "topk", "verdict"),
    [(0.9, 1.0, "reproduced"), (0.9, 1.05, "not reproduced"), (0.97, 1.0, "not reproduced")],
)
def test_only_l1_may_shrink(frontier: ModuleType, relu: float, topk: float, verdict: str) -> None:
    table = made_up(standard_gamma=relu, topk_gamma=topk)
    assert frontier.judge_shrinkage(table).verdict == verdict


@pytest.mark.parametrize(("better", "verdict"), [(2.0, "reproduced"), (1.0, "not reproduced")])
def test_half_the_l0_for_equal_loss(frontier: ModuleType, better: float, verdict: str) -> None:
    found = frontier.judge_gated(made_up(gated=1 / better))
    assert found.verdict == verdict
    name = "L0 of Gated / of ReLU at equal loss recovered"
    assert found.measured[name].value == pytest.approx(1 / better, rel=0.1)


def test_batchtopk_is_at_most_partly_reproduced_without_bos(frontier: ModuleType) -> None:
    for worse, verdict in ((0.9, "partly"), (1.1, "not reproduced")):
        table = made_up(batchtopk=worse).query("d_sae == 1024")
        assert frontier.judge_batch(table).verdict == verdict


def test_a_fix_of_nothing_cuts_nothing(frontier: ModuleType) -> None:
    assert frontier.cut([0.5], [0.1]) == pytest.approx([0.8])
    assert np.isnan(frontier.cut([0.0], [0.0])).all()


def perfect(absorption: ModuleType, directions: torch.Tensor) -> probe.SparseDictionary:
    """A dictionary that names each of the tree's features."""
    tensors = {
        "W_enc": directions.T.contiguous(), "W_dec": directions,
        "b_enc": torch.full((absorption.D,), -0.01), "b_dec": torch.zeros(absorption.D),
    }  # fmt: skip
    return probe.SparseDictionary("perfect", "standard", "relu", (), (), tensors)


def test_the_tree_is_the_published_one(absorption: ModuleType) -> None:
    sizes, directions = absorption.tree(20_000, 0)
    there = sizes != 0
    assert there.float().sum(1).mean() == pytest.approx(1.12, abs=0.03)
    children = there[:, 3:12].unflatten(1, (3, 3))
    assert children.sum(-1).max() == 1
    assert not (children.any(-1) & ~there[:, :3]).any()
    torch.testing.assert_close(directions @ directions.T, torch.eye(20), rtol=0, atol=1e-5)


def test_a_dictionary_of_the_tree_itself_absorbs_nothing(absorption: ModuleType) -> None:
    sizes, directions = absorption.tree(2000, 0)
    found = absorption.absorbed(perfect(absorption, directions), sizes, directions)
    assert found["value"] == 0
    assert found["explained"] > 0.99
    assert found["l0"] == pytest.approx(float((sizes != 0).sum(1).double().mean()))


def test_a_parent_that_its_children_replace_is_absorbed(absorption: ModuleType) -> None:
    """Each child's latent is parent and child; the parent's is shut where a child is there."""
    sizes, directions = absorption.tree(2000, 0)
    whole = perfect(absorption, directions)
    shut, merged = directions.T.clone(), directions.clone()
    for parent in range(3):
        for child in range(3 + 3 * parent, 6 + 3 * parent):
            shut[:, parent] -= 2 * directions[child]
            merged[child] += directions[parent]
    tensors = {**whole.tensors, "W_enc": shut, "W_dec": merged}
    merging = probe.SparseDictionary("merged", "standard", "relu", (), (), tensors)
    found = absorption.absorbed(merging, sizes, directions)
    assert found["value"] == 1
    assert found["explained"] > 0.98


def test_absorption_that_falls_with_l0_is_seen(absorption: ModuleType) -> None:
    assert absorption.not_falling([3, 2, 1], [0.1, 0.5, 0.5]) == 1
    assert absorption.not_falling([1, 3, 2], [0.1, 0.5, 0.7]) == 0.5


def rows_of(absorption: ModuleType, nested: float, worse: float) -> pd.DataFrame:
    rows = []
    for seed in range(5):
        for architecture, value, explained in (
            ("batchtopk", 0.6, 0.98), ("matryoshka_batchtopk", 0.6 * nested, 0.98 - worse),
        ):  # fmt: skip
            about = {"seed": seed, "architecture": architecture, "setting": 1, "l0": 1.0}
            rows.append(about | {"value": value, "explained": explained})
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("nested", "worse", "verdict"),
    [(0.2, 0.02, "reproduced"), (0.2, 0.05, "partly"), (0.5, 0.0, "partly"),
     (0.9, 0.0, "not reproduced")],
)  # fmt: skip
def test_matryoshka_must_absorb_less_and_cost_little(
    absorption: ModuleType, nested: float, worse: float, verdict: str
) -> None:
    assert absorption.judge_matryoshka(rows_of(absorption, nested, worse)).verdict == verdict


@pytest.mark.slow
def test_the_study_of_absorption_runs_whole(
    absorption: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROBE_RUNS", str(tmp_path))
    monkeypatch.setattr(absorption, "N_TRAIN", 2000)
    monkeypatch.setattr(absorption, "N_TEST", 500)
    size = {"seeds": 1, "steps": 5, "d_sae": 20}
    first = absorption.sae_absorption.run(size)
    again = absorption.sae_absorption.run(size)  # its trainings are found again
    assert len(list((tmp_path / "dictionaries").glob("*-0"))) == 3
    pd.testing.assert_frame_equal(first.findings.frame, again.findings.frame)
    assert first.findings.frame.claim.nunique() == 3
    for exhibit in first.exhibits.values():
        assert len(exhibit.plot().data) > 0


@pytest.mark.slow
def test_the_study_of_architectures_runs_whole(
    frontier: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROBE_RUNS", str(tmp_path))
    monkeypatch.setattr(frontier, "TOPK", (2, 32))
    monkeypatch.setattr(frontier, "JUDGED", (2, 32))
    monkeypatch.setattr("dictionary_runs.DOCUMENTS", 44)
    monkeypatch.setitem(frontier.PENALTIES, "standard", (1.0, 8.0))
    size = frontier.sae_frontier.sizes["quick"] | {
        "tokens": 600, "held_out": 200, "rows": 2, "steps": 3, "seeds": 1,
        "widths": [64, 32],
    }  # fmt: skip
    outcome = frontier.sae_frontier.run(size)
    assert outcome.findings.frame.claim.nunique() == 7
    assert "reproduced" not in set(outcome.findings.frame.verdict)  # one seed is not enough
    table = next(iter(outcome.exhibits.values())).frame
    exact = table[(table.architecture == "topk") & (table.setting == 2)]
    assert (exact.l0 <= 2).all()
    assert (table.recovered.dropna() <= 1.5).all()
