"""Run the studies of a clone of the repository, each in a process of its own."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from probe.core.errors import OptionError, RunError, nearest
from probe.core.result import Result
from probe.runs import store
from probe.runs.report import kept_in, write_report
from probe.runs.study import FINDINGS, SIZES, make_room

_DECORATOR = "@probe.study("


def experiments() -> Path:
    """The folder of experiments beside this installation.

    Raises:
        RunError: Probe is installed without one.
    """
    folder = Path(__file__).resolve().parents[3] / "experiments"
    if not folder.is_dir():
        raise RunError(
            "the experiments are not part of this installation",
            expected=f"{folder}",
            remedy="run from a clone of the repository: pip install --editable .",
        )
    return folder


def studies(folder: Path) -> dict[str, str]:
    """Name → first line, of every script there that holds a study."""
    found = {}
    for path in sorted(folder.glob("*.py")):
        text = path.read_text("utf-8")
        if _DECORATOR in text:
            found[path.stem] = text.lstrip().removeprefix('"""').split("\n")[0].removesuffix('"""')
    return found


@dataclass(frozen=True)
class Reproduced:
    """How one study went.

    Attributes:
        name: Of the study.
        folder: Where its results are; None where the script failed.
        said: What it printed.
    """

    name: str
    folder: Path | None
    said: str

    @property
    def verdicts(self) -> pd.Series:
        """How many claims got each verdict."""
        if self.folder is None:
            return pd.Series(dtype=int)
        frame = store.load(self.folder / FINDINGS).frame
        return frame.drop_duplicates("claim")["verdict"].value_counts()


def reproduce(
    names: list[str],
    *,
    quick: bool = False,
    seed: int = 0,
    jobs: int = 1,
    folder: Path | None = None,
) -> list[Reproduced]:
    """Run studies, keep their results, and rewrite the report.

    Args:
        names: Studies; none means all.
        quick: The small sizes; their results and report are kept apart from the full ones.
        seed: Of the first of the seeds; results from another than 0 are kept apart, and the report
            tells which verdicts change.
        jobs: How many run side by side, each on one thread if there are several.
        folder: Of the experiments; by default those of this clone.

    Raises:
        OptionError: There is no such study, a negative seed, or no jobs.
        RunError: There is no folder of experiments, or it cannot be written to.
    """
    if seed < 0 or jobs < 1:
        raise OptionError(
            f"seed={seed}, jobs={jobs}", expected="a seed from 0 on, and a job or more"
        )
    folder = folder or experiments()
    known = studies(folder)
    for name in names:
        if name not in known:
            raise OptionError(f'there is no study "{name}"', remedy=nearest(name, known))
    size = "quick" if quick else "full"

    def one(name: str) -> Reproduced:
        out = kept_in(folder, size, seed) / name
        threads = 1 if jobs > 1 else None
        return _run(out, folder, name, quick, seed, threads=threads, quiet=jobs > 1)

    with ThreadPoolExecutor(max(jobs, 1)) as pool:
        done = list(pool.map(one, dict.fromkeys(names or known)))
    failed = [one.name for one in done if one.folder is None]
    if len(failed) < len(done):
        write_report(folder, size, failed)
    return done


def again(old: Result, out: Path) -> Result:
    """One table of a study, from its record, measured again by the script as it is now.

    Args:
        old: The findings, or an exhibit.
        out: Where the new results go.

    Raises:
        RunError: The record names no study of this clone, or is of options given by hand; the
            script fails, or makes no such table.
    """
    record = old.provenance
    size, seed, name = record.said("passed", "size"), record.seed or 0, record.said("task", "name")
    if size not in SIZES:
        raise RunError(
            f"run {old.id} of {name} was made with options given by hand",
            expected="a run of size full or quick",
        )
    folder = experiments()
    known = studies(folder)
    if name not in known:  # a record may come from anywhere: it does not choose what is run
        raise RunError(
            f'run {old.id} is of "{name}", which is no study here', remedy=nearest(str(name), known)
        )
    done = _run(out / name, folder, name, size == "quick", seed, threads=record.threads, quiet=True)
    if done.folder is None:
        raise RunError(f"{name} failed:\n{done.said}")
    for table in sorted(path for path in done.folder.iterdir()):
        new = store.load(table)
        if new.view.title == old.view.title:
            return new
    raise RunError(
        f'{name} makes no table called "{old.view.title}" now',
        remedy=f"probe reproduce {name}, and see what it makes",
    )


def _run(
    out: Path, folder: Path, name: str, quick: bool, seed: int, *, threads: int | None, quiet: bool
) -> Reproduced:
    """One script in its own process, printing as it goes unless it shall be quiet."""
    make_room(out)
    command = [sys.executable, str(folder / f"{name}.py"), "--seed", str(seed), "--out", str(out)]
    command += ["--quick"] if quick else []
    ran = subprocess.run(
        command, check=False, text=True, cwd=folder.parent,
        env=os.environ | ({} if threads is None else {"OMP_NUM_THREADS": str(threads)}),
        stdout=subprocess.PIPE if quiet else None, stderr=subprocess.STDOUT if quiet else None,
    )  # fmt: skip
    return Reproduced(name, out if ran.returncode == 0 else None, ran.stdout or "")
