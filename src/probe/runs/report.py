"""All findings on one page: claim, published figure, ours, verdict; made from the saved results.

A study's results are in ``results/full/NAME`` or ``results/quick/NAME``; from another first seed in
``results/full-seed-3/NAME``, and the page tells which verdicts change with the seeds.
"""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from probe.core.errors import RunError
from probe.core.result import Result
from probe.runs import store
from probe.runs.study import FINDINGS, SIZES

_ORDER = ("reproduced", "partly", "not reproduced", "reported", "left out")
_ABOUT = """\
Claims of published work, measured again. Each row has the published figure with its source and how
well it is attested (read: in the source; second-hand: in notes on it; memory: not looked up;
derived: arithmetic from formulas of the source; measured: by us, before the rule was written); our
number with its 95 % bootstrap interval (over few seeds that is about their range: of three it holds
the true median three times in four, of five fifteen times in sixteen); and the verdict of a rule
that was fixed before measuring.
*Reproduced* needs the median and its whole interval on the right side of the line, and at least
three seeds where training is ours (five for toys); else *partly* or *not reproduced*. A miss stands
as a miss: no line was moved, nothing was tuned until it matched; where a setup was changed after a
first measurement, a note says so. Hours are those of the run that made the findings; trainings that
it found made already are not in them. Trainings repeat to the bit on one kind of processor; another
rounds otherwise, which by the end is as much as another seed. SmolLM2 is SmolLM2-135M-Instruct, its
weights rounded to four bits (Q4_1).
"""
_QUICK = """\
**Small sizes**: fewer seeds, steps and examples than the rules were made for. This page shows that
the studies run; the verdicts that count are those of the full size.
"""


def kept_in(folder: Path, size: str, seed: int = 0) -> Path:
    """Where the results of that size are, from that first seed; one folder a study.

    >>> kept_in(Path("experiments"), "full", 3).as_posix()
    'experiments/results/full-seed-3'
    """
    return folder / "results" / (f"{size}-seed-{seed}" if seed else size)


def write_report(folder: Path, size: str, failed: Sequence[str] = ()) -> Path:
    """Write ``REPORT.md``, or ``REPORT-quick.md``, in the folder of experiments.

    Args:
        folder: Of the experiments.
        size: ``full`` or ``quick``.
        failed: Studies that were just tried in vain; the page says so.

    Raises:
        RunError: No results are saved, or the page cannot be written.
    """
    assert size in SIZES
    where = kept_in(folder, size)
    problems = [
        f"{name} failed when it was run last; what is told of it is older, if it is told at all."
        for name in failed
    ]
    results = {_name(one): one for one in _saved(where, problems)}
    others = [
        one
        for other in sorted((folder / "results").glob(f"{size}-seed-*"))
        for one in _saved(other, problems)
    ]
    if not results and not others:
        raise RunError(
            f"there are no saved results in {where}",
            expected="findings to report",
            remedy=_command(size),
        )
    target = folder / ("REPORT.md" if size == "full" else "REPORT-quick.md")
    partial = target.with_suffix(".partial")
    try:
        partial.write_text(report(results, size, others, problems), "utf-8")
        partial.replace(target)
    except OSError as error:
        raise RunError(f"cannot write {target}: {error}") from None
    return target


def _saved(where: Path, problems: list[str]) -> list[Result]:
    """The findings of each study kept there; what is damaged is added to the problems."""
    found = []
    for path in sorted(where.glob("[!.]*")):
        if path.is_dir():
            try:
                found.append(store.load(path / FINDINGS))
            except RunError as error:
                problems.append(f"{path.name} cannot be read: {error.what}")
    return found


def _command(size: str) -> str:
    return "probe reproduce --all" + (" --quick" if size == "quick" else "")


def report(
    results: dict[str, Result],
    size: str,
    others: Sequence[Result] = (),
    problems: Sequence[str] = (),
) -> str:
    """The page.

    Args:
        results: By name of study.
        size: ``full`` or ``quick``.
        others: The same studies from other seeds.
        problems: Sentences on what is missing.
    """
    again = "probe reproduce --report" + (" --quick" if size == "quick" else "")
    parts = [f"# Published claims, measured again ({size} size)\n", _ABOUT]
    parts += [_QUICK] if size == "quick" else []
    parts.append(f"Made by `{_command(size)}`; `{again}` writes it from what is saved.\n")
    parts += [f"**{_cell(problem)}**\n" for problem in problems]
    parts.append(_overview(results))
    known = [(results[name], one) for one in others if (name := _name(one)) in results]
    if known:
        parts.append(_from_other_seeds(known))
    parts += [_section(name, result) for name, result in results.items()]
    return "\n".join(parts)


def _name(result: Result) -> str:
    return result.provenance.task["name"]


def _from_other_seeds(pairs: Sequence[tuple[Result, Result]]) -> str:
    """Each study beside itself from other seeds: which verdicts are another?"""
    rows = []
    for first, other in pairs:
        old, new = _verdicts(first), _verdicts(other)
        both = [claim for claim in old if claim in new]
        changed = [f"{c}: {old[c]} → {new[c]}" for c in both if old[c] != new[c]]
        same = f"{len(both) - len(changed)} of {len(both)}"
        rows.append([_name(first), _seeds(other), same, "<br>".join(changed)])
    about = "The same studies, all else equal, trained from seeds that are not those below.\n"
    table = _table(["study", "seeds", "same verdict", "another"], rows)
    return "\n".join(["## From other seeds\n", about, table])


def _verdicts(result: Result) -> dict[str, str]:
    return dict(zip(result.frame["claim"], result.frame["verdict"], strict=True))


def _seeds(result: Result) -> str:
    first, n = result.provenance.seed or 0, result.provenance.defaulted.get("seeds", 1)
    return str(first) if n == 1 else f"{first} to {first + n - 1}"


def _overview(results: dict[str, Result]) -> str:
    rows = []
    for name, result in results.items():
        counts = result.frame.drop_duplicates("claim")["verdict"].value_counts()
        hours = f"{result.provenance.wall_seconds / 3600:.2f}"
        link = f"[{name}](#{name.replace(' ', '-')})"
        rows.append([link, *(str(counts.get(verdict, 0)) for verdict in _ORDER), hours])
    return _table(["study", *_ORDER, "hours"], rows)


def _section(name: str, result: Result) -> str:
    record = result.provenance
    made = [f"run {record.run_id}", f"seed {record.seed}", f"{record.wall_seconds:.0f} s"]
    made.append(f"script {record.task['hash']}")
    if record.model:
        made.append(f"{record.model['name']}, weights {record.model['weight_hash']}")
    made += [f"{package} {number}" for package, number in record.versions.items()]
    if record.git:
        made.append(f"commit {record.git['commit'][:12]}{' + changes' * record.git['dirty']}")
    options = ", ".join(f"{k} {v}" for k, v in record.defaulted.items())
    rows = [_row(rows) for _, rows in result.frame.groupby("claim", sort=False)]
    head = ["claim", "published", "rule", "ours", "verdict"]
    parts = [f"## {name}\n", f"{record.task['paper']}. Sizes: {options}.\n", _table(head, rows)]
    return "\n".join([*parts, f"<sub>{'; '.join([*made, *record.notes])}</sub>\n"])


def _row(rows: pd.DataFrame) -> list[str]:
    """One claim, its numbers below one another in one cell."""
    first = rows.iloc[0]
    published = f"{first.published} ({first.source}) [{first['mark']}]"
    numbers = [_ours(row) for row in rows.to_dict("records") if row["measure"]]
    verdict = f"**{first.verdict}**" + (f": {first.note}" if first.note else "")
    return [first.claim, published, first.rule, "<br>".join(numbers), verdict]


def _ours(row: dict) -> str:
    number = f"{row['measure']}: {row['value']:.4g}"
    if row["low"] < row["value"] or row["high"] > row["value"]:
        number += f" [{row['low']:.4g}, {row['high']:.4g}]"
    return number + (f", {row['n']} {row['over']}" if row["over"] else "")


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *([_cell(text) for text in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _cell(text: str) -> str:
    """A pipe would end the cell, a line break the table."""
    return " ".join(text.split()).replace("|", "\\|")
