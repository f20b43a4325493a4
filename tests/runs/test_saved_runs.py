"""A run is whole or not there; a damaged one says what is wrong with it."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from made_up import result_of

from probe.core.errors import RunError
from probe.runs import list_runs, load, save, store


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "runs"


def test_a_run_comes_back(root: Path) -> None:
    result = result_of()
    folder = save(result, root)
    assert folder == root / result.id
    assert sorted(path.name for path in folder.iterdir()) == ["frame.parquet", "result.json"]
    for back in (load(result.id, root), load(folder)):
        pd.testing.assert_frame_equal(back.frame, result.frame, check_exact=True)
        assert back.columns == result.columns
        assert back.view == result.view
        assert back.provenance == result.provenance


def test_the_record_is_plain_json(root: Path) -> None:
    record = json.loads((save(result_of(), root) / "result.json").read_text("ascii"))
    assert record["schema_version"] == 1
    assert record["method"] == "made_up"
    assert record["provenance"]["defaulted"] == {"layers": None}
    assert record["columns"]["value"] == "what value means"
    assert record["frame"]["rows"] == 4


def test_where_runs_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROBE_RUNS", str(tmp_path / "elsewhere"))
    assert save(result_of()).parent == tmp_path / "elsewhere"
    assert load("last").id == result_of().id
    monkeypatch.delenv("PROBE_RUNS")
    monkeypatch.chdir(tmp_path)
    save(result_of())
    assert (tmp_path / "runs" / result_of().id).is_dir()


def test_saving_twice_changes_nothing(root: Path) -> None:
    folder = save(result_of(), root)
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert save(result_of(), root) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    with pytest.raises(RunError, match="already holds another result"):
        save(result_of(passed={"kind": "q"}), root)
    assert [path.name for path in root.iterdir()] == [result_of().id]


def test_ids_may_be_shortened(root: Path) -> None:
    for run_id in ("20260101-120000-aaaaaa", "20260101-120000-ab0000", "20260102-000000-000000"):
        save(result_of(run_id=run_id), root)
    assert load("20260102", root).id == "20260102-000000-000000"
    assert load("20260101-120000-aa", root).id == "20260101-120000-aaaaaa"
    assert load("last", root).id == "20260102-000000-000000"
    with pytest.raises(RunError, match='2 runs begin with "20260101-120000-a"'):
        load("20260101-120000-a", root)
    with pytest.raises(RunError) as raised:
        load("20260102-000000-000001", root)
    assert 'did you mean "20260102-000000-000000"' in str(raised.value)


def test_the_last_of_two_runs_of_one_second_is_the_later_written(root: Path) -> None:
    for suffix in ("ffffff", "000000"):
        folder = save(result_of(run_id=f"20260101-120000-{suffix}"), root)
        os.utime(folder, ns=(0, 10**18 + int(suffix == "000000")))
    assert load("last", root).id.endswith("000000")
    assert list_runs(root)["id"].str[-6:].tolist() == ["ffffff", "000000"]


@pytest.mark.parametrize(
    "run_id",
    [
        "../secret",
        "..",
        ".",
        "",
        "/etc",
        "a/b",
        "a\\b",
        "a\x00b",
        ".hidden",
        "-x",
        "a" * 101,
        "a\n",
    ],
)
def test_an_id_is_never_a_path(run_id: str, root: Path) -> None:
    save(result_of(), root)
    with pytest.raises(RunError, match="is not a run id"):
        load(run_id, root)
    with pytest.raises(RunError, match="is not a run id"):
        save(result_of(run_id=run_id), root)


def test_no_runs_at_all(root: Path) -> None:
    assert list_runs(root).empty
    with pytest.raises(RunError, match=r"there is no run \"last\"(.|\n)*result.save"):
        load("last", root)


def _corrupt(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(bytes(data))


def _change(path: Path, **fields: object) -> None:
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, **fields}))


DAMAGES = {
    "no record": (lambda f: (f / "result.json").unlink(), "has no result.json"),
    "cut record": (
        lambda f: (f / "result.json").write_text((f / "result.json").read_text()[:200]),
        "result.json is not JSON",
    ),
    "no text": (lambda f: (f / "result.json").write_bytes(b"\xff\xfe\x00"), "is not JSON"),
    "nested": (lambda f: (f / "result.json").write_text("[" * 100_000), "is not JSON"),
    "a list": (lambda f: (f / "result.json").write_text("[]"), "has no schema_version"),
    "no provenance": (lambda f: _change(f / "result.json", provenance={}), "provenance|Provenance"),
    "newer": (lambda f: _change(f / "result.json", schema_version=2), "newer Probe .schema 2"),
    "no frame": (lambda f: (f / "frame.parquet").unlink(), "no frame.parquet"),
}
UNSEEN_IN_A_LIST = {
    "flipped bit": (lambda f: _corrupt(f / "frame.parquet"), "checksum differs"),
    "cut frame": (lambda f: (f / "frame.parquet").write_bytes(b"PAR1"), "checksum differs"),
    "no view": (lambda f: _change(f / "result.json", view={"kind": "pie", "x": "layer"}), "View"),
    "columns": (lambda f: _change(f / "result.json", columns={}), "without description"),
}


@pytest.mark.parametrize("name", [*DAMAGES, *UNSEEN_IN_A_LIST])
def test_a_damaged_run_says_what_is_wrong(name: str, root: Path) -> None:
    damage, said = {**DAMAGES, **UNSEEN_IN_A_LIST}[name]
    damage(save(result_of(), root))
    with pytest.raises(RunError, match=said) as raised:
        load("last", root)
    assert result_of().id in raised.value.what
    assert raised.value.remedy


@pytest.mark.parametrize("name", DAMAGES)
def test_a_list_names_damaged_runs_beside_whole_ones(name: str, root: Path) -> None:
    damage, said = DAMAGES[name]
    damage(save(result_of(run_id="20260101-120000-badbad"), root))
    save(result_of(run_id="20260103-120000-aaaaaa"), root)
    (root / "notes.txt").write_text("not a run")
    (root / "tiny" / "attn-only-1l-0").mkdir(parents=True)  # where studies keep their trainings
    listed = list_runs(root).set_index("id")
    assert listed.index.tolist() == ["20260101-120000-badbad", "20260103-120000-aaaaaa"]
    assert pd.Series(listed["problem"]).str.contains(said).tolist() == [True, False]
    assert listed.loc["20260103-120000-aaaaaa", ["model", "task", "rows"]].tolist() == [
        "toy", "ioi", 4,
    ]  # fmt: skip
    assert load("last", root).id == "20260103-120000-aaaaaa"


def test_a_parquet_file_that_is_none(root: Path) -> None:
    folder = save(result_of(), root)
    (folder / "frame.parquet").write_bytes(b"PAR1 nonsense PAR1")
    frame = json.loads((folder / "result.json").read_text())["frame"]
    digest = store._sha256(folder / "frame.parquet")
    _change(folder / "result.json", frame={**frame, "sha256": digest})
    with pytest.raises(RunError, match=r"frame\.parquet cannot be read"):
        load("last", root)


@pytest.mark.parametrize("step", ["write_frame", "_sha256", "_sync"])
@pytest.mark.parametrize("error", [OSError("no space left"), KeyboardInterrupt()])
def test_a_save_that_fails_leaves_nothing(
    step: str, error: BaseException, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(store, step, fail)
    expected = RunError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected) as raised:
        save(result_of(), root)
    if isinstance(error, OSError):
        assert "no space left" in str(raised.value)
        assert "PROBE_RUNS" in str(raised.value)
    assert list(root.iterdir()) == []


def test_a_rename_that_fails_leaves_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("read-only")

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(RunError, match="read-only"):
        save(result_of(), root)
    assert list(root.iterdir()) == []


@pytest.mark.slow  # an interpreter each
@pytest.mark.parametrize("step", ["_sha256", "_sync"])
def test_a_killed_save_leaves_no_run(step: str, root: Path) -> None:
    """The process dies with the table written, and then with all of it written but the rename."""
    script = (
        "import sys, time, pathlib\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from made_up import result_of\n"
        "from probe.runs import store\n"
        "def stop(*_):\n"
        "    print('here', flush=True)\n"
        "    time.sleep(60)\n"
        f"store.{step} = stop\n"
        f"store.save(result_of(), pathlib.Path({str(root)!r}))\n"
    )
    saving = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert saving.stdout is not None
    assert saving.stdout.readline() == "here\n"
    saving.send_signal(signal.SIGKILL)
    saving.wait()
    saving.stdout.close()
    (partial,) = root.iterdir()
    assert (partial / "frame.parquet").exists(), "killed before anything was written"
    assert (partial / "result.json").exists() == (step == "_sync")
    assert list_runs(root).empty
    with pytest.raises(RunError, match="there is no run"):
        load("last", root)
    assert load(save(result_of(), root)).id == result_of().id


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="could not be saved"):
        save(result_of(), tmp_path / "file")


def test_listing_reads_no_table(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(result_of(), root)

    def refuse(*_: object) -> None:
        raise AssertionError("a list needs no numbers")

    monkeypatch.setattr(store, "read_frame", refuse)
    monkeypatch.setattr(store, "_sha256", refuse)
    assert len(list_runs(root)) == 1
