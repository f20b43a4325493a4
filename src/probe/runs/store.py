"""Save and find results: a run is a folder that is either whole or not there."""

import hashlib
import json
import os
import re
import secrets
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
from pydantic import ValidationError

from probe.core.errors import ProbeError, RunError, nearest
from probe.core.provenance import Provenance
from probe.core.result import Result, View
from probe.runs.frames import read_frame, write_frame

SCHEMA_VERSION = 1
"""Of ``result.json``. Raise it when an older Probe would misread a file."""

RESULT, FRAME = "result.json", "frame.parquet"
LAST = "last"

_ID = re.compile(r"[0-9A-Za-z][0-9A-Za-z_-]{0,99}")
_STAMP = len("20260131-235959")


def runs_root(root: Path | None = None) -> Path:
    """Where runs are: the folder given, else ``$PROBE_RUNS``, else ``./runs``."""
    return root if root is not None else Path(os.environ.get("PROBE_RUNS") or "runs")


def save(result: Result, root: Path | None = None) -> Path:
    """Keep a result; returns its folder.

    The folder is written under a hidden name and renamed when all of it is on the disk, so a run
    that can be listed is whole. Saving the same result twice changes nothing.

    Raises:
        RunError: Another result has this id, a column cannot be saved, or the disk refuses.
    """
    root, run_id = runs_root(root), _checked(result.id)
    target, partial = root / run_id, root / f".{run_id}.{secrets.token_hex(4)}.partial"
    try:
        partial.mkdir(parents=True)
        _write(result, partial)
        if target.exists():
            return _already(target, partial)
        partial.rename(target)
        _sync(root)
    except (OSError, pa.ArrowException) as error:
        raise RunError(
            f"run {run_id} could not be saved in {root}: {error}",
            remedy="free some space, or set PROBE_RUNS to a folder that can be written",
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def load(run: str | Path, root: Path | None = None) -> Result:
    """A saved result.

    Args:
        run: Its id, the beginning of one that no other run shares, or ``last``; or a folder, as a
            ``Path``. A text is never read as a path, so an id may come from anywhere.
        root: Where runs are; by default ``$PROBE_RUNS``, else ``./runs``.

    Raises:
        RunError: No such run, several, damaged, or written by a newer Probe.
    """
    folder = run if isinstance(run, Path) else find(run, root)
    record = _record(folder)
    try:
        how = record["frame"]
        _check_bytes(folder / FRAME, how["sha256"])
        return Result(
            frame=read_frame(folder / FRAME, how["columns"]),
            columns=record["columns"],
            view=View.model_validate(record["view"]),
            provenance=Provenance.model_validate(record["provenance"]),
        )
    except (KeyError, TypeError, ValidationError) as error:
        raise _damaged(folder, f"{RESULT} lacks or misstates {_first_line(error)}") from None
    except ProbeError as error:
        raise _damaged(folder, error.what) from None


def find(run: str, root: Path | None = None) -> Path:
    """The folder of a run, by its id, the beginning of it, or ``last``."""
    root = runs_root(root)
    folders = {folder.name: folder for folder in _folders(root)}
    if run == LAST and folders:
        return max(folders.values(), key=_age)
    if run != LAST:
        _checked(run)
    found = [run] if run in folders else [name for name in folders if name.startswith(run)]
    if len(found) == 1:
        return folders[found[0]]
    if found:
        raise RunError(
            f'{len(found)} runs begin with "{run}": {", ".join(sorted(found)[:5])}',
            remedy="write more of the id",
        )
    newest = sorted(folders, reverse=True)
    raise RunError(
        f'there is no run "{run}" in {root}',
        expected=f"one of {len(folders)} saved runs" if folders else "a saved run",
        remedy=nearest(run, newest[:10]) if folders else "result.save(), or set PROBE_RUNS",
    )


def list_runs(root: Path | None = None) -> pd.DataFrame:
    """All saved runs, newest last; a damaged one is named in ``problem``, never raised."""
    rows = [_row(folder) for folder in sorted(_folders(runs_root(root)), key=_age)]
    return pd.DataFrame(
        rows,
        columns=["id", "started", "method", "model", "task", "rows", "wall_seconds", "problem"],
    ).astype({"rows": "Int64"})


def _write(result: Result, folder: Path) -> None:
    columns = write_frame(result.frame, folder / FRAME)
    record = {
        "schema_version": SCHEMA_VERSION,
        "id": result.id,
        "method": result.provenance.method,
        "view": result.view.model_dump(mode="json"),
        "columns": dict(result.columns),
        "provenance": result.provenance.model_dump(mode="json"),
        "frame": {
            "rows": len(result.frame),
            "sha256": _sha256(folder / FRAME),
            "columns": columns,
        },
    }
    # ASCII, so a lone surrogate in a prompt can be written.
    (folder / RESULT).write_text(json.dumps(record, indent=1), encoding="ascii")
    for path in (folder / FRAME, folder / RESULT, folder):
        _sync(path)


def _already(target: Path, partial: Path) -> Path:
    if _record(target) == _record(partial):
        return target
    raise RunError(
        f"{target} already holds another result",
        expected="one result for each run id",
        remedy="run the method again to get a new id, or move that folder away",
    )


def _record(folder: Path) -> dict[str, Any]:
    path = folder / RESULT
    if not path.is_file():
        raise RunError(
            f"{folder} has no {RESULT}",
            expected=f"a folder with {RESULT} and {FRAME}",
            remedy="give the folder of one run, or its id",
        )
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(folder, f"{RESULT} is not JSON: {_first_line(error)}") from None
    version = record.get("schema_version") if isinstance(record, dict) else None
    if not isinstance(version, int):
        raise _damaged(folder, f"{RESULT} has no schema_version")
    if version > SCHEMA_VERSION:
        raise RunError(
            f"{folder} was written by a newer Probe (schema {version})",
            expected=f"schema {SCHEMA_VERSION} or lower",
            remedy="pip install --upgrade probe-workbench",
        )
    return record


def _row(folder: Path) -> dict[str, Any]:
    row: dict[str, Any] = {"id": folder.name, "problem": ""}
    try:
        record = _record(folder)
        provenance = Provenance.model_validate(record["provenance"])
        rows = int(record["frame"]["rows"])
    except ProbeError as error:
        return row | {"problem": error.what}
    except (KeyError, TypeError, ValueError, OSError) as error:
        return row | {"problem": f"{RESULT} lacks or misstates {_first_line(error)}"}
    if not (folder / FRAME).is_file():
        row["problem"] = f"no {FRAME}"
    return row | {
        "started": provenance.started,
        "method": provenance.method,
        "model": str(provenance.model.get("name", "")),
        "task": str(provenance.task.get("name", "")),
        "rows": rows,
        "wall_seconds": provenance.wall_seconds,
    }


def _folders(root: Path) -> list[Path]:
    """Of runs, whole or damaged; trainings, stores and dictionaries may lie beside them."""
    if not root.is_dir():
        return []
    return [
        path
        for path in root.iterdir()
        if not path.name.startswith(".") and ((path / RESULT).is_file() or (path / FRAME).is_file())
    ]


def _age(folder: Path) -> tuple[str, int]:
    """Ids sort by the second; within it the time of writing decides."""
    return folder.name[:_STAMP], folder.stat().st_mtime_ns


def _checked(run_id: str) -> str:
    if not _ID.fullmatch(run_id):
        raise RunError(
            f"{run_id!r} is not a run id",
            expected="letters, digits, - and _, like 20260131-235959-a1b2c3",
            remedy="give a folder as pathlib.Path(...)",
        )
    return run_id


def _check_bytes(path: Path, expected: str) -> None:
    if not path.is_file():
        raise RunError(f"there is no {path.name}")
    if _sha256(path) != expected:
        raise RunError(f"{path.name} is not the file that was saved (its checksum differs)")


def _damaged(folder: Path, what: str) -> RunError:
    return RunError(
        f"run {folder.name} is damaged: {what}",
        remedy=f"copy {folder} again, or run the method again",
    )


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
