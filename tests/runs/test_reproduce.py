"""A study from its script to the report: run, keep, compare, tell."""

import importlib
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import probe
from probe.core.errors import OptionError, RunError
from probe.models.toy import toy_model, toy_tokenizer
from probe.runs import reproduce
from probe.runs.report import report, write_report
from probe.runs.study import FINDINGS, Study

SCRIPT = '''"""Coins: do they land as published?"""

import probe

FAIR = probe.Claim(
    "a coin | is fair", published="1/2", source="Bernoulli 1713", mark="memory",
    rule="R: within 0.1", reproduced={"heads": probe.between(0.4, 0.6)},
)


@probe.study(paper="Bernoulli 1713", full={"n": 4}, quick={"n": 3})
def coins(*, seed: int, n: int):
    yield FAIR.judge({"heads": probe.over_seeds([0.5 + 0.01 * s for s in range(seed, seed + n)])})


if __name__ == "__main__":
    coins.main()
'''

CLAIM = probe.Claim("c", "p", "s", "derived", "r", {"x": probe.at_least(1)})
SHOWN = probe.Exhibit(
    "Line of x", pd.DataFrame({"step": [0, 1], "value": [0.5, 2.0]}),
    {"step": "training step", "value": "x"}, probe.View(kind="line", x="step"),
)  # fmt: skip


@probe.study(paper="nobody", full={"n": 3}, quick={"n": 1})
def made_up(*, seed: int, n: int) -> Iterator[Any]:
    yield CLAIM.judge({"x": probe.over_seeds([1.0 + seed] * n)})
    yield SHOWN
    yield probe.load_model("toy")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of experiments with one study and one other script."""
    (tmp_path / "coins.py").write_text(SCRIPT)
    (tmp_path / "other.py").write_text('"""No study."""')
    return tmp_path


def test_a_study_of_each_size_keeps_findings_exhibits_and_the_record(tmp_path: Path) -> None:
    outcome = made_up.run("full", seed=2)
    place = outcome.save(tmp_path / "made_up")
    findings = probe.load_result(place / FINDINGS)
    assert findings.frame.verdict.tolist() == ["reproduced"]
    record = findings.provenance
    assert (record.method, record.seed, record.defaulted) == ("reproduce:made_up", 2, {"n": 3})
    assert record.passed == {"size": "full", "seed": 2}
    assert record.model["name"] == "toy"
    assert record.task["hash"] == made_up.hash
    assert record.versions["torch"]
    exhibit = probe.load_result(place / "line-of-x")
    assert exhibit.frame.value.tolist() == [0.5, 2.0]
    assert exhibit.plot().data
    assert made_up.run("quick").findings.frame.verdict.tolist() == ["partly"]


def test_a_model_it_trained_is_recorded_by_its_name_and_not_by_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("first", "second"):
        toy_model("toy").save_pretrained(tmp_path / "runs" / name)
        toy_tokenizer().save_pretrained(tmp_path / "runs" / name)
    monkeypatch.chdir(tmp_path)

    @probe.study(paper="nobody", full={}, quick={})
    def trained(*, seed: int) -> Iterator[Any]:
        yield CLAIM.judge({"x": probe.over_seeds([1.0 + seed])})
        yield probe.load_model(Path("runs/first"))
        yield probe.load_model(Path("runs/second"))

    folder = trained.run().save(tmp_path / "trained") / FINDINGS
    assert probe.load_result(folder).provenance.model["location"] == "runs/first"
    assert str(tmp_path) not in (folder / "result.json").read_text()


def test_the_record_names_the_script_that_ran_though_it_was_edited_since(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = folder / "coins.py"
    monkeypatch.syspath_prepend(folder)
    coins = importlib.import_module("coins").coins
    before, measure = coins.hash, coins.function

    def edited_meanwhile(**options: Any) -> Iterator[Any]:
        yield from measure(**options)
        script.write_text(SCRIPT + "# written later")

    monkeypatch.setattr("inspect.getfile", lambda _: str(script))
    record = replace(coins, function=edited_meanwhile).run("quick").findings.provenance
    assert record.task["hash"] == before != coins.hash


def test_a_second_run_takes_the_place_of_the_first(tmp_path: Path) -> None:
    first = made_up.run("quick").save(tmp_path / "x")
    second = made_up.run({"n": 2}).save(tmp_path / "x")
    assert first == second
    assert probe.load_result(first / FINDINGS).frame.n.tolist() == [2]
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["x"]


def test_a_study_has_its_sizes_and_yields_its_things() -> None:
    with pytest.raises(OptionError, match='no size "quik".*\n.*"quick"'):
        made_up.run("quik")
    wrong = Study("wrong", "", {"full": {}}, lambda seed: iter([3]))
    with pytest.raises(OptionError, match="wrong yields int"):
        wrong.run()


def test_scripts_run_and_the_report_is_written(folder: Path) -> None:
    assert reproduce.studies(folder) == {"coins": "Coins: do they land as published?"}
    done = reproduce.reproduce([], quick=True, jobs=2, folder=folder)
    assert [one.verdicts.to_dict() for one in done] == [{"reproduced": 1}]
    assert "reproduced" in done[0].said
    text = (folder / "REPORT-quick.md").read_text("utf-8")
    assert "heads: 0.51 [0.5, 0.52], 3 seeds" in text
    assert "1/2 (Bernoulli 1713) [memory]" in text
    assert r"a coin \| is fair" in text
    assert "| [coins](#coins) | 1 | 0 | 0 | 0 | 0 |" in text
    assert "other seeds" not in text
    assert not (folder / "REPORT.md").exists()


@pytest.mark.slow
def test_other_seeds_are_kept_apart_and_the_report_tells_what_they_change(folder: Path) -> None:
    for seed in (0, 1, 30):
        reproduce.reproduce(["coins"], quick=True, seed=seed, jobs=2, folder=folder)
    text = (folder / "REPORT-quick.md").read_text("utf-8")
    assert "heads: 0.51 [0.5, 0.52], 3 seeds" in text
    assert "| coins | 1 | 1 of 1 |  |" in text
    assert r"| coins | 30 | 0 of 1 | a coin \| is fair: reproduced → not reproduced |" in text


def test_the_seeds_of_a_study_are_counted_from_its_first() -> None:
    both = [made_up.run("full", seed=seed).findings for seed in (0, 4)]
    both[1].provenance.defaulted["seeds"] = 3
    assert "| made_up | 4 to 6 | 1 of 1 |  |" in report({"made_up": both[0]}, "full", both[1:])


@pytest.mark.slow
def test_a_script_that_fails_leaves_the_old_results(folder: Path) -> None:
    reproduce.reproduce(["coins"], quick=True, folder=folder)
    (folder / "coins.py").write_text(SCRIPT.replace("yield", "1 / 0; yield"))
    failed = reproduce.reproduce(["coins"], quick=True, jobs=2, folder=folder)[0]
    assert failed.folder is None
    assert failed.verdicts.empty
    assert "ZeroDivisionError" in failed.said
    assert "0.51" in write_report(folder, "quick").read_text("utf-8")


@pytest.mark.slow
def test_rerun_measures_again_and_compares(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reproduce, "experiments", lambda: folder)
    done = probe.reproduce("coins", quick=True)[0]
    assert probe.rerun(done.folder / FINDINGS).same
    (folder / "coins.py").write_text(SCRIPT.replace("0.01", "0.02"))
    differs = probe.rerun(done.folder / FINDINGS)
    assert not differs.same
    assert differs.difference == pytest.approx(0.02)
    assert "each: 1 of 1 rows differ\nevery verdict is the same" in differs.about
    (folder / "coins.py").write_text(SCRIPT.replace("0.01", "0.2"))
    assert "verdict: 1 of 1 rows differ" in probe.rerun(done.folder / FINDINGS).about
    (folder / "coins.py").write_text("1 / 0  # @probe.study(")
    with pytest.raises(RunError, match="coins failed"):
        probe.rerun(done.folder / FINDINGS)


def test_a_run_with_options_given_by_hand_cannot_be_run_again() -> None:
    with pytest.raises(RunError, match="options given by hand"):
        probe.rerun(made_up.run({"n": 1}).findings)


def test_a_record_does_not_choose_what_is_run(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.setattr(reproduce, "experiments", lambda: here)
    monkeypatch.setattr(reproduce, "_run", lambda *_: pytest.fail("it ran"))
    findings = made_up.run("quick").findings
    for name in ("../coins", str(folder / "coins"), "made_up", 3):
        findings.provenance.task["name"] = name
        with pytest.raises(RunError, match="which is no study here"):
            probe.rerun(findings)
    del findings.provenance.task["name"]
    with pytest.raises(RunError, match='does not say "name" of its task'):
        probe.rerun(findings)


@pytest.mark.parametrize("title", ["", "Line of x"])
def test_a_rerun_of_an_exhibit_compares_that_exhibit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, title: str
) -> None:
    outcome = made_up.run("quick")
    place = outcome.save(tmp_path / "made_up")
    monkeypatch.setattr(reproduce, "studies", lambda _: {"made_up": ""})
    monkeypatch.setattr(
        reproduce, "_run", lambda *_, **how: reproduce.Reproduced("made_up", place, "")
    )
    old = outcome.exhibits[title] if title else outcome.findings
    again = probe.rerun(old)
    assert again.same
    assert list(again.result.frame) == list(old.frame)
    lost = replace(old, view=old.view.model_copy(update={"title": "Line of y"}))
    with pytest.raises(RunError, match='no table called "Line of y"'):
        probe.rerun(lost)


def test_what_was_asked_otherwise_is_told_of_a_rerun_that_differs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = made_up.run("quick"), made_up.run({"n": 2})
    monkeypatch.setattr(reproduce, "studies", lambda _: {"made_up": ""})
    place = new.save(tmp_path / "made_up")
    monkeypatch.setattr(
        reproduce, "_run", lambda *_, **how: reproduce.Reproduced("made_up", place, "")
    )
    old.findings.provenance.task["hash"] = "of another text"
    about = probe.rerun(old.findings).about
    assert "option n: 1, now 2" in about
    assert f"script: of another text, now {made_up.hash}" in about


def test_no_study_of_that_name(folder: Path) -> None:
    with pytest.raises(OptionError, match='no study "coin"'):
        reproduce.reproduce(["coin"], folder=folder)


def test_no_such_seed_and_no_such_number_of_jobs(folder: Path) -> None:
    with pytest.raises(OptionError, match="seed=-1"):
        reproduce.reproduce(["coins"], seed=-1, folder=folder)
    with pytest.raises(OptionError, match="jobs=0"):
        reproduce.reproduce(["coins"], jobs=0, folder=folder)


def test_results_that_cannot_be_kept_are_noticed_before_measuring(folder: Path) -> None:
    (folder / "results").mkdir()
    (folder / "results" / "quick").write_text("a file")
    with pytest.raises(RunError, match="cannot be kept in .*File exists"):
        reproduce.reproduce(["coins"], quick=True, folder=folder)


@pytest.mark.slow
def test_a_scripts_own_command_line_says_what_is_wrong(folder: Path) -> None:
    (folder / "taken").write_text("a file")
    done = subprocess.run(
        [sys.executable, "coins.py", "--out", "taken"],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("error: results cannot be kept in taken: taken is a file\n")
    assert done.stdout == ""  # nothing was measured


def test_a_report_of_nothing_leaves_what_is_there(folder: Path) -> None:
    (folder / "REPORT.md").write_text("of old")
    with pytest.raises(RunError, match="no saved results in .*\n.*\n.*reproduce --all"):
        write_report(folder, "full")
    assert (folder / "REPORT.md").read_text() == "of old"


def test_the_page_tells_of_what_failed_and_of_what_is_damaged(folder: Path) -> None:
    made_up.run("quick").save(folder / "results" / "quick" / "made_up")
    (folder / "results" / "quick" / "broken" / FINDINGS).mkdir(parents=True)
    text = write_report(folder, "quick", failed=["coins"]).read_text("utf-8")
    assert "**coins failed when it was run last" in text
    assert "**broken cannot be read: " in text
    assert "## made_up" in text
    assert "Small sizes" in text


def test_an_installation_without_experiments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reproduce, "__file__", "/nowhere/src/probe/runs/reproduce.py")
    with pytest.raises(RunError, match="not part of this installation"):
        reproduce.experiments()


def test_left_out_rows_say_why() -> None:
    left = Study("s", "p", {"full": {}}, lambda seed: iter([CLAIM.leave_out("needs 48 layers")]))
    text = report({"s": left.run().findings}, "full")
    assert "**left out**: needs 48 layers" in text
