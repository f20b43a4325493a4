"""Each study of toys at its smallest size: every row gets its verdict, every exhibit its figure."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
SMALLEST: dict[str, tuple[dict[str, Any], int]] = {
    "packing": ({"seeds": 1, "steps": 5, "many": 100, "steps_many": 2, "model": "toy"}, 5),
    "toy_models": (
        {"seeds": 1, "grid": 2, "best_of": 2, "phase_steps": 5, "densities": 3, "features": 8,
         "hidden": 2, "steps": 5, "batch": 8}, 15,
    ),
    "grokking": (
        {"seeds": 1, "seeds_fraction": 0, "p": 7, "epochs": 40, "weight_decay": 1.0, "d_mlp": 16,
         "keep": False}, 9,
    ),
}  # fmt: skip


def study(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, EXPERIMENTS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, name)


@pytest.mark.parametrize("name", SMALLEST)
def test_a_study_at_its_smallest(name: str) -> None:
    options, rows = SMALLEST[name]
    outcome = study(name).run(options)
    table = outcome.findings.frame
    assert table.claim.nunique() == rows
    assert "reproduced" not in set(table[table.over == "seeds"].verdict)  # one seed is never enough
    for exhibit in outcome.exhibits.values():
        assert exhibit.plot().data
