"""Each study of toys at its smallest size: every row gets its verdict, every exhibit its figure."""

from importlib import import_module
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import probe

SMALLEST: dict[str, tuple[dict[str, Any], int]] = {
    "packing": ({"seeds": 1, "steps": 5, "many": 100, "steps_many": 2, "model": "toy"}, 5),
    "toy_models": (
        {"seeds": 1, "grid": 2, "best_of": 2, "phase_steps": 5, "steps": 5, "batch": 8}, 3,
    ),
    "toy_geometry": (
        {"seeds": 1, "densities": 3, "features": 8, "hidden": 2, "steps": 5, "batch": 8}, 5,
    ),
    "toy_structure": (
        {"seeds": 1, "ratios": 2, "restarts": 2, "runs": 1, "steps": 3, "hidden_best_of": 2,
         "abs_steps": 2}, 7,
    ),
    "grokking": (
        {"seeds": 1, "seeds_fraction": 0, "p": 7, "epochs": 40, "weight_decay": 1.0, "d_mlp": 16,
         "keep": False}, 9,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SMALLEST)
def test_a_study_at_its_smallest(name: str) -> None:
    options, rows = SMALLEST[name]
    outcome = getattr(import_module(name), name).run(options)
    table = outcome.findings.frame
    assert table.claim.nunique() == rows
    assert "reproduced" not in set(table[table.over == "seeds"].verdict)  # one seed is never enough
    for exhibit in outcome.exhibits.values():
        assert exhibit.plot().data


def test_the_named_shapes_lie_on_their_fractions() -> None:
    distance = import_module("toy_geometry").distance
    for corners in (3, 5):  # triangle 2/3, pentagon 2/5
        angle = 2 * torch.pi * torch.arange(corners) / corners
        assert distance(torch.stack([angle.cos(), angle.sin()])[None]).abs().max() < 1e-6
    tetrahedron = torch.tensor([[1.0, 1, -1, -1], [1, -1, 1, -1], [1, -1, -1, 1]])
    assert distance(tetrahedron[None]).abs().max() < 1e-6
    assert distance(torch.eye(3)[None]).min() == 0.25  # a dimension each: 1 is not in the list


def test_pairs_cluster_and_crowds_do_not() -> None:
    study = import_module("toy_geometry")
    draw = torch.Generator().manual_seed(0)
    turns = torch.linalg.qr(torch.randn(5, 10, 10, generator=draw))[0]
    pairs = turns @ torch.cat([torch.eye(10), -torch.eye(10)], 1)
    pairs += 0.01 * torch.randn(pairs.shape, generator=draw)
    crowds = study.scattered(torch.ones(5, 4, 20))
    for W, verdict in [(pairs, "reproduced"), (crowds, "not reproduced")]:
        finding, exhibit = study.clusters(W, torch.full((5,), 0.3), seeds=5)
        assert finding.verdict == verdict
        assert exhibit.frame["value"].sum() == 100  # features of five seeds, all learnt


def test_scattered_vectors_keep_their_lengths() -> None:
    W = torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(import_module("toy_geometry").scattered(W).norm(dim=1), W.norm(dim=1))


def test_shapes_of_five_features_in_a_plane() -> None:
    shape = import_module("toy_structure").shape
    angle = 2 * torch.pi * torch.arange(5) / 5
    assert shape(torch.stack([angle.cos(), angle.sin()])) == "pentagon"
    assert shape(torch.tensor([[1.0, -1, 0, 0, 0], [0, 0, 1, -1, 0]])) == "digons"
    assert shape(torch.tensor([[1.0, 1, 0, 0, 0], [0, 0, 1, -1, 0]])) == "other"
    crossed = torch.tensor([[1.0, -1, 0, 0, 0.7], [0, 0, 1, -1, 0.7]])
    assert shape(crossed) == "other"  # all five are learnt, four of them as digons


def test_where_the_second_shape_becomes_the_better() -> None:
    crossing = import_module("toy_structure").crossing
    ratio, falls = np.array([1.0, 2, 3, 4]), np.array([4.0, 3, 2, 1])
    assert crossing(ratio, np.full(4, 2.5), falls) == 2.5
    assert np.isnan(crossing(ratio, np.full(4, 0.5), falls))


def test_a_neuron_is_polysemantic_from_a_quarter_on() -> None:
    W = torch.tensor([[[1.0, -0.2, 0.1], [0.5, 0.1, -0.4]]])
    assert import_module("toy_structure").polysemantic(W).tolist() == [[False, True]]


def losses(**columns: list[float]) -> pd.DataFrame:
    """A curve of grokking with losses of one over ten to a power."""
    table = {name.replace("_", " "): 10.0 ** -np.array(power) for name, power in columns.items()}
    epoch = np.arange(len(table["test loss"])) * 100.0
    shares = {
        "train accuracy": np.where(epoch > 0, 1.0, 0.0),
        "test accuracy": np.where(table["test loss"] < 0.1, 1.0, 0.0),
        "Gini of W_E": np.linspace(0, 1, len(epoch)),
        "Gini of W_L": np.linspace(0, 0.5, len(epoch)),
    }
    return pd.DataFrame({"epoch": epoch} | table | shares)


def test_hidden_progress_is_read_off_the_curves() -> None:
    """Restricted loss falls at 200, test loss from 500 to 700; excluded loss is least at 100."""
    curve = losses(
        test_loss=[0, 0, 0, 0, 0, 1.1, 5.1, 9.1, 10, 10, 10],
        restricted_loss=[0, 0, 10, 10, 10, 10, 10, 10, 10, 10, 10],
        excluded_loss=[0, 4, 3, 2, 1, 1, 1, 1, 1, 1, 1],
    )
    found = import_module("grokking").leads(curve)
    assert found["restricted leads by, share of epochs"] == pytest.approx((600 - 200) / 1000)
    assert found["excluded minimum leads by, epochs"] == 500
    assert found["Gini rises by"] == pytest.approx(0.2)  # clean-up is 500 to 700 of 1000
    assert found["Gini of W_L rises by"] == pytest.approx(0.1)
    assert found["test epoch"] == 500


def test_a_seed_that_does_not_grok_is_a_miss_and_not_a_gap() -> None:
    still = losses(
        test_loss=[0.0, -0.1, -0.2, -0.3], restricted_loss=[0, 1, 2, 3], excluded_loss=[0, 1, 1, 1]
    )
    study = import_module("grokking")
    found = study.leads(still)
    lines = {name: [found[name]] * 5 for name in study.PROGRESS.reproduced}
    assert all(values == [0] * 5 for values in lines.values())
    judged = {name: probe.over_seeds(values) for name, values in lines.items()}
    assert study.PROGRESS.judge(judged).verdict == "not reproduced"


def test_the_middle_feature_of_an_odd_number_is_in_neither_half() -> None:
    lower_half = import_module("toy_models").lower_half
    learnt = torch.ones(2, 5, dtype=torch.bool)
    mixed = torch.tensor([[False] * 5, [False, False, True, True, True]])
    assert lower_half(learnt, mixed) == 1
    assert lower_half(learnt, mixed, middle=True) == pytest.approx(2 / 3)
    upper = torch.tensor([[False] * 5, [True, False, False, False, True]])
    assert lower_half(learnt, upper) == 0.5
