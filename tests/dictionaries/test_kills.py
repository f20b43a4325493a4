"""Ten kills at random moments, and the files are those of an undisturbed run."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("killing.py")


@pytest.mark.slow
@pytest.mark.parametrize("what", ["harvest", "train"])
def test_ten_kills_change_nothing(what: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), what, str(tmp_path)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["killed"] == 10, found
    assert found["same"], found
    assert any(name.endswith(".safetensors") for name in found["left by kills"]), found
