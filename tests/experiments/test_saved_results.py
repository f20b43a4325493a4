"""The results that come with the repository: of the scripts beside them, and each can be drawn."""

from pathlib import Path

import pytest

import probe
from probe.core.provenance import hash_text
from probe.runs.study import FINDINGS

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"
SAVED = sorted(path for path in (EXPERIMENTS / "results").glob("full*/*") if path.is_dir())


@pytest.mark.slow
@pytest.mark.parametrize("folder", SAVED, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_results_are_of_the_script_beside_them_and_can_be_drawn(folder: Path) -> None:
    findings = probe.load_result(folder / FINDINGS)
    script = EXPERIMENTS / f"{folder.name}.py"
    assert findings.provenance.task["hash"] == hash_text(script.read_text("utf-8"))
    assert not findings.provenance.git["dirty"]
    exhibits = [path for path in folder.iterdir() if path.name != FINDINGS]
    assert all(probe.load_result(path).plot().data for path in exhibits)


def test_every_study_has_its_results() -> None:
    full = {path.name for path in SAVED if path.parent.name == "full"}
    assert full == set(probe.studies())
