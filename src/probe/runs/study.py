"""A published line of work, measured again: one script that yields findings as it reads down.

A script ``experiments/NAME.py`` holds one study and no more machinery than this::

    '''Nearly orthogonal directions: how many fit in d dimensions?'''

    import probe

    WELCH = probe.Claim(
        "10,000 directions in R^100 within 89-91 degrees", published="impossible", ...
        reproduced={"worst angle, degrees": probe.between(70, 84.3)},
    )

    @probe.study(
        paper="Elhage et al. 2022; Yoder 2025",
        full={"seeds": 5, "steps": 2000},
        quick={"seeds": 3, "steps": 100},
    )
    def packing(*, seed: int, seeds: int, steps: int):
        worst = [pack(10_000, 100, steps, seed=seed + s) for s in range(seeds)]
        yield WELCH.judge({"worst angle, degrees": probe.over_seeds(worst)})
        yield SECOND.leave_out("needs 24 layers")
        yield probe.Exhibit("Angles of all pairs", frame, columns, view)   # a table that is drawn
        # yield model                         # of a study on a given model: its spec is recorded

    if __name__ == "__main__":
        packing.main()

The function's name is the file's. ``probe reproduce packing --quick`` runs the script, saves
findings and exhibits with their provenance, and rewrites the report. In a test:
``packing.run({"seeds": 1, "steps": 2}).findings.frame`` is the table of findings.

For a number over seeds of our own training ``over_seeds``; over prompts, facts or heads of one
model ``over_examples``; for what has no spread ``exactly``.
"""

import inspect
import json
import re
import secrets
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import pandas as pd

from probe.core import provenance
from probe.core.claim import FINDING_COLUMNS, Finding
from probe.core.errors import OptionError, ProbeError, RunError, nearest
from probe.core.model import Model
from probe.core.result import Result, View
from probe.runs import store

SIZES = ("full", "quick")
METHOD = "reproduce:"
"""What the ``method`` of a study's record begins with."""

FINDINGS = "findings"
_VIEW = View(kind="table", x="claim", text="verdict")


@dataclass(frozen=True)
class Exhibit:
    """A table that belongs to the findings, and how it is drawn."""

    title: str
    frame: pd.DataFrame = field(repr=False)
    columns: Mapping[str, str] = field(repr=False)
    view: View


class Outcome(NamedTuple):
    """All of one run of a study."""

    findings: Result
    exhibits: dict[str, Result]

    def save(self, folder: Path) -> Path:
        """Put the run in this folder, in place of what was there; whole or not at all."""
        partial = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.partial")
        try:
            for name, result in {FINDINGS: self.findings, **self.exhibits}.items():
                store.save(result, partial).rename(partial / slug(name))
            shutil.rmtree(folder, ignore_errors=True)
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return folder


@dataclass(frozen=True)
class Study:
    """A function that yields findings, exhibits and the models they are about."""

    name: str
    paper: str
    sizes: Mapping[str, Mapping[str, Any]]
    function: Callable[..., Iterator[Any]]

    def run(
        self, size: str | Mapping[str, Any] = "full", seed: int = 0, *, say: bool = False
    ) -> Outcome:
        """Measure.

        Args:
            size: ``full``, ``quick``, or the options themselves.
            seed: Of the first of the seeds.
            say: Print each finding as it comes.

        Raises:
            OptionError: No such size, or the study yields something that is none of its things.
        """
        import torch

        options = self._options(size)
        watch, started = provenance.Stopwatch(), provenance.now()
        # Of the code that runs: hours later the files may say something else.
        script, git = self.hash, provenance.git_state()
        findings, exhibits, models = [], [], []
        for thing in self.function(seed=seed, **options):
            if isinstance(thing, Finding):
                findings.append(thing)
                if say:
                    sys.stdout.write(f"{thing}\n")
                    sys.stdout.flush()
            elif isinstance(thing, Exhibit):
                exhibits.append(thing)
            elif isinstance(thing, Model):
                models.append(thing)
            else:
                raise OptionError(
                    f"{self.name} yields {type(thing).__name__}",
                    expected="a Finding (claim.judge, claim.leave_out), an Exhibit or a Model",
                )
        record = provenance.Provenance(
            **{
                "model": {},
                "threads": torch.get_num_threads(),
                **(_described(models[0]) if models else {}),
            },
            run_id=provenance.new_run_id(),
            started=started,
            method=METHOD + self.name,
            passed={"size": size if isinstance(size, str) else "given", "seed": seed},
            defaulted=json.loads(json.dumps(dict(options))),
            task={"name": self.name, "paper": self.paper, "hash": script},
            seed=seed,
            versions=provenance.versions(),
            git=git,
            wall_seconds=round(watch.seconds, 3),
            peak_bytes=provenance.peak_bytes(),
            notes=[
                f"also on {model.spec.name}, weights {model.spec.model_dump()['weight_hash']}"
                for model in models[1:]
            ],
        )
        table = pd.DataFrame([row for finding in findings for row in finding.rows()])
        table = table.reindex(columns=list(FINDING_COLUMNS))
        return Outcome(
            Result(table, FINDING_COLUMNS, _VIEW, record),
            {shown.title: _exhibit(shown, record) for shown in exhibits},
        )

    @property
    def hash(self) -> str:
        """Names the text of the script."""
        return provenance.hash_text(Path(inspect.getfile(self.function)).read_text("utf-8"))

    def main(self) -> None:
        """The script's own command line: ``[--quick] [--seed N] [--out FOLDER]``."""
        import typer

        def command(
            quick: bool = False,
            seed: Annotated[int, typer.Option(min=0)] = 0,
            out: Path | None = None,
        ) -> None:
            try:
                if out is not None:
                    make_room(out)  # not only when all is measured
                outcome = self.run("quick" if quick else "full", seed, say=True)
                if out is not None:
                    outcome.save(out)
            except ProbeError as error:
                sys.stderr.write(f"error: {error}\n")
                raise typer.Exit(2) from None

        command.__doc__ = inspect.getdoc(self.function) or self.paper
        typer.run(command)

    def _options(self, size: str | Mapping[str, Any]) -> Mapping[str, Any]:
        if not isinstance(size, str):
            return size
        if size not in self.sizes:
            raise OptionError(f'{self.name} has no size "{size}"', remedy=nearest(size, self.sizes))
        return self.sizes[size]


def study(
    *, paper: str, full: Mapping[str, Any], quick: Mapping[str, Any]
) -> Callable[[Callable[..., Iterator[Any]]], Study]:
    """Make a generator function of findings a study; its options are those of each size.

    Args:
        paper: Who published it.
        full: Options of the run that counts.
        quick: Options of a run of seconds to a minute or two.
    """

    def make(function: Callable[..., Iterator[Any]]) -> Study:
        return Study(function.__name__, paper, {"full": full, "quick": quick}, function)

    return make


def make_room(out: Path) -> None:
    """The folder that results are to go into, if it can be had.

    Raises:
        RunError: It cannot, with the system's reason.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if out.exists() and not out.is_dir():
            raise NotADirectoryError(f"{out} is a file")
        with tempfile.TemporaryDirectory(prefix=".", dir=out.parent):
            pass
    except OSError as error:
        raise RunError(
            f"results cannot be kept in {out}: {error}", remedy="a folder that can be written to"
        ) from None


def slug(title: str) -> str:
    """A title as the name of a folder.

    >>> slug("D_i of all features, histogram")
    'd-i-of-all-features-histogram'
    """
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def _described(model: Model) -> dict[str, Any]:
    """What the record says of a model; a folder's place on this machine is no part of it.

    The script finds the models it trains by itself, so a committed record needs their names alone.
    """
    about = provenance.describe(model)
    if about["model"]["source"] == "folder":
        about["model"] = {**about["model"], "location": about["model"]["name"]}
    return about


def _exhibit(shown: Exhibit, record: provenance.Provenance) -> Result:
    view = shown.view.model_copy(update={"title": shown.view.title or shown.title})
    mine = record.model_copy(update={"run_id": provenance.new_run_id()})
    return Result(shown.frame.reset_index(drop=True), dict(shown.columns), view, mine)
