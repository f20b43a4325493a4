"""Each study of toys at its smallest size: every row gets its verdict, every exhibit its figure."""

from importlib import import_module
from typing import Any

import numpy as np
import pytest
import torch

SMALLEST: dict[str, tuple[dict[str, Any], int]] = {
    "packing": ({"seeds": 1, "steps": 5, "many": 100, "steps_many": 2, "model": "toy"}, 5),
    "toy_models": (
        {"seeds": 1, "grid": 2, "best_of": 2, "phase_steps": 5, "densities": 3, "features": 8,
         "hidden": 2, "steps": 5, "batch": 8}, 8,
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


def test_shapes_of_five_features_in_a_plane() -> None:
    shape = import_module("toy_structure").shape
    angle = 2 * torch.pi * torch.arange(5) / 5
    assert shape(torch.stack([angle.cos(), angle.sin()])) == "pentagon"
    assert shape(torch.tensor([[1.0, -1, 0, 0, 0], [0, 0, 1, -1, 0]])) == "digons"
    assert shape(torch.tensor([[1.0, 1, 0, 0, 0], [0, 0, 1, -1, 0]])) == "other"


def test_where_the_second_shape_becomes_the_better() -> None:
    crossing = import_module("toy_structure").crossing
    ratio, falls = np.array([1.0, 2, 3, 4]), np.array([4.0, 3, 2, 1])
    assert crossing(ratio, np.full(4, 2.5), falls) == 2.5
    assert np.isnan(crossing(ratio, np.full(4, 0.5), falls))


def test_a_neuron_is_polysemantic_from_a_quarter_on() -> None:
    W = torch.tensor([[[1.0, -0.2, 0.1], [0.5, 0.1, -0.4]]])
    assert import_module("toy_structure").polysemantic(W).tolist() == [[False, True]]
