"""How a number came to be: ids that sort, a clock, and folders that can be moved."""

import re
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from probe.core import provenance
from probe.core.provenance import Provenance, Stopwatch
from probe.models.bridge import BridgeModel


def test_ids_sort_by_time_and_are_never_equal() -> None:
    ids = [provenance.new_run_id() for _ in range(200)]
    assert len(set(ids)) == 200
    assert all(re.fullmatch(r"\d{8}-\d{6}-[0-9a-f]{6}", one) for one in ids)
    stamps = [one[:15] for one in ids]
    assert stamps == sorted(stamps)
    made = datetime.strptime(ids[0][:15], "%Y%m%d-%H%M%S").replace(tzinfo=UTC)
    assert abs((datetime.now(UTC) - made).total_seconds()) < 60


def test_the_time_is_utc() -> None:
    assert datetime.fromisoformat(provenance.now()).utcoffset().total_seconds() == 0


def test_a_stopwatch_runs() -> None:
    watch = Stopwatch()
    time.sleep(0.01)
    first = watch.seconds
    assert 0.01 <= first < watch.seconds < 10


def test_versions_name_what_decides_numbers() -> None:
    import torch
    import transformers

    found = provenance.versions()
    assert found["torch"] == torch.__version__.split("+")[0] or found["torch"] == torch.__version__
    assert found["transformers"] == transformers.__version__
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert "probe-workbench" in found
    assert found["processor"].endswith(f", {torch.backends.cpu.get_cpu_capability()}")
    assert not found["processor"].startswith(",")


def test_the_commit_is_that_of_the_source() -> None:
    here = Path(provenance.__file__).parent
    done = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=False
    )
    provenance.git_state.cache_clear()
    state = provenance.git_state()
    if done.returncode:
        assert state == {}
    else:
        assert state["commit"] == done.stdout.strip()
        assert isinstance(state["dirty"], bool)


def test_without_git_nothing_is_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    provenance.git_state.cache_clear()
    try:
        assert provenance.git_state() == {}
    finally:
        provenance.git_state.cache_clear()


def test_a_model_describes_itself(toy: BridgeModel) -> None:
    told = provenance.describe(toy)
    assert told["model"]["name"] == "toy"
    assert re.fullmatch(r"[0-9a-f]{16}", told["model"]["weight_hash"])
    assert told["health"]["ok"] is True
    assert told["tokenizer"]["n_vocab"] == len(toy.tokenizer.hf)
    assert (told["device"], told["dtype"]) == ("cpu", "float32")
    assert told["threads"] >= 1


def test_a_record_survives_json(toy: BridgeModel) -> None:
    record = Provenance(
        run_id=provenance.new_run_id(),
        started=provenance.now(),
        method="logit_lens",
        passed={"layers": [0, 1]},
        defaulted={"show": "rank"},
        notes=["fell back"],
        **provenance.describe(toy),
    )
    assert Provenance.model_validate_json(record.model_dump_json()) == record


def test_memory_is_counted_in_bytes() -> None:
    assert 10 * 2**20 < provenance.peak_bytes() < 2**44


def test_a_text_has_one_name() -> None:
    assert provenance.hash_text("a") == provenance.hash_text("a") != provenance.hash_text("b")
    assert len(provenance.hash_text("a\ud800")) == 16


def test_the_users_folders_can_be_moved(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PROBE_HOME", str(tmp_path))
    assert provenance.user_dir("cache") == tmp_path / "cache"
    monkeypatch.delenv("PROBE_HOME")
    assert provenance.user_dir("cache").name == "probe-workbench"
    assert provenance.user_dir("cache") != provenance.user_dir("data")
