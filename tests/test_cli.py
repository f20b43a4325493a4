"""The command line: what it prints, its exit status, and one clear message for each mistake."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

import probe
from probe import cli
from probe.models import doctor
from probe.runs import reproduce

PROMPT = "When Mary and John went to the store"
TOY = ("--model", "toy")


class Said(NamedTuple):
    code: int
    out: str
    err: str


Cli = Callable[..., Said]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """``probe ...`` in this process."""

    def call(*words: str) -> Said:
        monkeypatch.setattr(sys, "argv", ["probe", *words])
        monkeypatch.setenv("COLUMNS", "400")
        with pytest.raises(SystemExit) as end:
            cli.main()
        code = end.value.code
        captured = capsys.readouterr()
        return Said(int(code or 0), captured.out, captured.err)

    return call


# --- what works ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "word"),
    [
        ("methods", "logit_lens"),
        ("tasks", "greater_than"),
        ("models", "smollm2"),
        ("metrics", "logit_diff"),
    ],
)
def test_list(run: Cli, what: str, word: str) -> None:
    said = run("list", what)
    assert said.code == 0
    assert word in said.out


def test_run_prints_the_table_and_saves(run: Cli) -> None:
    said = run("run", "logit_lens", *TOY, "--prompt", PROMPT, "--layers", "[1]", "--rows", "3")
    assert said.code == 0, said.err
    result = probe.load_result("last")
    assert f"saved as {result.id}" in said.out
    assert result.provenance.passed == {"layers": [1]}
    assert len(result.frame) == 8
    assert "… 5 more rows" in said.out
    assert f"{result.frame.value[0]:.4g}" in said.out


def test_run_without_saving(run: Cli) -> None:
    assert run("run", "next_token", *TOY, "--prompt", PROMPT, "--no-save").code == 0
    assert probe.runs().empty


def test_run_on_a_task_and_on_a_file_of_prompts(run: Cli, tmp_path: Path) -> None:
    said = run("run", "direct_logit_attribution", *TOY, "--task", "ioi", "--n", "2", "--seed", "3")
    assert said.code == 0, said.err
    record = probe.load_result("last").provenance
    assert (record.task["name"], record.task["n"], record.task["seed"]) == ("ioi", 2, 3)
    file = (
        probe.load_task("ioi", n=3)
        .fit(probe.load_model("toy").tokenizer)
        .to_jsonl(tmp_path / "mine.jsonl")
    )
    assert run("run", "logit_lens", *TOY, "--task", str(file)).code == 0
    assert probe.load_result("last").provenance.task["n"] == 3


def test_run_on_several_prompts(run: Cli) -> None:
    assert run("run", "next_token", *TOY, "--prompt", "The cat", "--prompt", PROMPT).code == 0
    assert set(probe.load_result("last").frame.batch) == {0, 1}


def test_a_methods_own_n_and_seed_reach_it(run: Cli) -> None:
    assert run("run", "head_scores", *TOY, "--n", "2", "--seed", "3").code == 0
    record = probe.load_result("last").provenance
    assert record.passed == {"n": 2, "seed": 3}


def test_list_of_one_method_is_its_options(run: Cli) -> None:
    said = run("list", "logit_lens")
    assert said.code == 0
    for option, field in probe.methods()["logit_lens"].options.model_fields.items():
        assert option in said.out
        assert field.description in said.out


def test_a_page_that_cannot_be_written(run: Cli, tmp_path: Path) -> None:
    run("run", "next_token", *TOY, "--prompt", PROMPT)
    said = run("show", "--html", str(tmp_path / "no" / "page.html"))
    assert said.code == 2
    assert "cannot write" in said.err


def test_show_says_how_the_numbers_came_to_be(run: Cli, tmp_path: Path) -> None:
    run("run", "next_token", *TOY, "--prompt", PROMPT)
    page = tmp_path / "page.html"
    said = run("show", "last", "--html", str(page))
    assert said.code == 0
    result = probe.load_result("last")
    assert result.provenance.model["weight_hash"] in said.out
    assert "next_token" in said.out
    assert page.read_text("utf-8").startswith("<!doctype html>")


def test_runs_diff_and_rerun(run: Cli) -> None:
    run("run", "logit_lens", *TOY, "--prompt", PROMPT)
    first = probe.load_result("last").id
    run("run", "logit_lens", "--model", "toy-mha", "--prompt", PROMPT)
    second = probe.load_result("last").id
    listed = run("runs")
    assert first in listed.out
    assert second in listed.out
    compared = run("diff", first, second)
    assert compared.code == 0
    assert "value: 16 of 16 rows differ" in compared.out
    assert "toy-mha" in compared.out
    assert run("rerun", str(Path(os.environ["PROBE_RUNS"]) / first)).code == 0  # its folder will do
    again = run("rerun", first)
    assert again.code == 0
    assert f"every number the same as in run {first}" in again.out


def test_a_run_by_its_folder_and_a_study_by_its(run: Cli, tmp_path: Path) -> None:
    run("run", "next_token", *TOY, "--prompt", PROMPT)
    made = Path(os.environ["PROBE_RUNS"]) / probe.load_result("last").id
    shutil.copytree(made, tmp_path / "study" / "findings")
    for folder in (made, tmp_path / "study" / "findings", tmp_path / "study"):
        said = run("show", str(folder))
        assert said.code == 0
        assert made.name in said.out
    assert run("diff", str(made), str(tmp_path / "study")).code == 0


def test_of_findings_is_shown_what_is_read_first(run: Cli) -> None:
    said = run("show", str(reproduce.experiments() / "results" / "full" / "packing"))
    head, *rows = said.out.splitlines()
    assert head.split() == ["claim", "verdict", "measure", "value", "low", "high"]
    assert any("worst pair, degrees" in row and "76.54" in row for row in rows)


def test_a_rerun_that_differs_exits_with_1(run: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    run("run", "logit_lens", *TOY, "--prompt", PROMPT)
    differs = probe.api.Rerun(probe.load_result("last"), False, 0.5, "numbers differ by 0.5")
    monkeypatch.setattr(probe, "rerun", lambda _: differs)
    said = run("rerun")
    assert said.code == 1
    assert "numbers differ by 0.5" in said.out


def test_the_doctor(run: Cli) -> None:
    said = run("doctor", "toy")
    assert said.code == 0
    assert "left padding" in said.out
    assert "FAILED" not in said.out
    half = run("doctor", "toy", "--dtype", "bfloat16")
    assert half.code == 0
    assert "KL" in half.out


def test_a_row_that_fails_makes_the_doctor_exit_with_1(
    run: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(doctor._LIMIT, torch.float32, -1.0)
    with pytest.warns(probe.ProbeWarning, match="failed the checks"):
        said = run("doctor", "toy")
    assert said.code == 1
    assert re.search(r"FAILED\s+residuals", said.out)


def test_studies_are_listed_and_one_that_fails_makes_the_status_1(
    run: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "coins.py").write_text('"""Coins: are they fair?"""\n@probe.study(')
    monkeypatch.setattr(reproduce, "experiments", lambda: tmp_path)
    listed = run("reproduce")
    assert listed.code == 0
    assert "Coins: are they fair?" in listed.out
    failed = run("reproduce", "coins", "--jobs", "2")
    assert failed.code == 1
    assert "SyntaxError" in failed.out
    assert "FAILED" in failed.out
    assert "no saved results" in run("reproduce", "--report", "--quick").err
    monkeypatch.setattr(probe, "write_report", lambda *, quick: f"REPORT, quick {quick}")
    assert "wrote REPORT, quick True" in run("reproduce", "--report", "--quick").out


@pytest.mark.slow
def test_from_a_text_to_a_dictionary_its_numbers_and_its_index(run: Cli, tmp_path: Path) -> None:
    text = tmp_path / "text.jsonl"
    lines = [f"John went to the store with Mary and {i} cats . " * 8 for i in range(40)]
    text.write_text("".join(json.dumps({"said": line}) + "\n" for line in lines))
    store, made, index = (str(tmp_path / name) for name in ("store", "made", "index.sqlite"))
    read = (str(text), *TOY, "--column", "said", "--n-pos", "32")
    said = run("harvest", *read, "--out", store, "--site", "resid_post.0", "--n-tokens", "2000")
    assert said.code == 0, said.err
    rows = len(probe.ActivationStore(store))
    assert f"ActivationStore({rows} rows of resid_post.0 [32]" in said.out
    words = ("--architecture", "topk", "--d-sae", "64", "--k=4", "--n_tokens", "9000")
    said = run("train", store, "--out", made, *words, "--batch-size", "256")
    assert said.code == 0, said.err
    sae = probe.load_dictionary(made)
    assert (sae.d_sae, sae.k) == (64, 4)
    assert f"{sae.metadata['last']['explained_variance']:.4g}" in said.out
    said = run("evaluate", made, *read)
    assert said.code == 0, said.err
    frame = probe.load_result("last").frame
    assert f"{frame['value'][0]:.4g}" in said.out
    assert "… 64 more rows" in said.out
    said = run("index", made, *read, "--out", index)
    assert said.code == 0, said.err
    assert f"64 features, {probe.FeatureIndex(index).about['tokens']} tokens" in said.out


def test_the_options_of_a_training_are_listed(run: Cli) -> None:
    said = run("list", "training")
    assert said.code == 0
    assert "Leave out rows of more than so many times the median norm" in said.out
    assert "PydanticUndefined" not in said.out


@pytest.mark.parametrize("words", [["--help"], ["run", "--help"], ["doctor", "--help"]])
def test_help(run: Cli, words: list[str]) -> None:
    said = run(*words)
    assert said.code == 0
    assert "Usage" in said.out


@pytest.mark.slow  # interpreters are started
def test_the_command_itself_in_a_process_of_its_own() -> None:
    code = "from probe.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "list", "metrix"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert 'error: there is nothing called "metrix"' in done.stderr
    assert 'did you mean "metrics"?' in done.stderr
    assert "Traceback" not in done.stderr


# --- mistakes ------------------------------------------------------------------------------------

MISTAKES: dict[str, tuple[list[str], list[str]]] = {
    "list": (["list", "taskz"], ['there is nothing called "taskz"', 'mean "tasks"?']),
    "method": (
        ["run", "logit_lense", *TOY, "--prompt", "a"],
        ['there is no method "logit_lense"', 'did you mean "logit_lens"?'],
    ),
    "model": (
        ["run", "logit_lens", "--model", "toi", "--prompt", "a"],
        ['"toi" is no bundled model', 'did you mean "toy"?'],
    ),
    "doctor's model": (["doctor", "smolm2"], ['did you mean "smollm2"?']),
    "doctor's dtype": (["doctor", "toy", "--dtype", "flot16"], ['did you mean "float16"?']),
    "task": (["run", "logit_lens", *TOY, "--task", "iio"], ['did you mean "ioi"?']),
    "file": (["run", "logit_lens", *TOY, "--task", "no.jsonl"], ["cannot read no.jsonl"]),
    "option": (
        ["run", "logit_lens", *TOY, "--prompt", "a", "--layrs", "[0]"],
        ['logit_lens has no option "layrs"', 'did you mean "layers"?'],
    ),
    "option's value": (
        ["run", "logit_lens", *TOY, "--prompt", "a", "--top", "many"], ["top='many'"],
    ),
    "word alone": (
        ["run", "logit_lens", *TOY, "--prompt", "a", "stray"],
        ['"stray" stands alone', "--option value"],
    ),
    "layer": (
        ["run", "logit_lens", *TOY, "--prompt", "a", "--layers", "[7]"],
        ["layer 7", "0 to 1: the model has 2 layers"],
    ),
    "metric": (
        ["run", "activation_patching", *TOY, "--task", "ioi", "--metric", "logitdiff"],
        ['did you mean "logit_diff"?'],
    ),
    "no prompt": (["run", "logit_lens", *TOY], ["logit_lens needs prompts"]),
    "empty prompt": (
        ["run", "logit_lens", *TOY, "--prompt", ""], ["the prompt '' has no tokens"],
    ),
    "n": (["run", "logit_lens", *TOY, "--task", "ioi", "--n", "0"], ["n=0", "at least one"]),
    "show": (["show", "nope"], ['there is no run "nope"']),
    "show's path": (["show", "../../nowhere"], ["there is no folder ../../nowhere"]),
    "show's word": (["show", ".."], ["has no result.json"]),
    "rerun of nothing": (["rerun", ""], ["'' is not a run id"]),
    "rows": (["show", "--rows", "-2"], ["Invalid value for '--rows'"]),
    "seed": (["reproduce", "packing", "--seed", "-1"], ["Invalid value for '--seed'"]),
    "jobs": (["reproduce", "packing", "--jobs", "0"], ["Invalid value for '--jobs'"]),
    "some and all": (["reproduce", "packing", "--all"], ["packing and --all"]),
    "rerun": (["rerun", "nope"], ['there is no run "nope"']),
    "diff": (["diff", "a", "b"], ['there is no run "a"']),
    "corpus": (
        ["harvest", "no.jsonl", *TOY, "--out", "x", "--site", "z.0"],
        ["'no.jsonl' does not exist"],
    ),
    "kind of file": (
        ["index", "toy", "text.csv", *TOY, "--out", "x"], ["ends in '.csv'", ".jsonl, .parquet"],
    ),
    "store": (["train", "nowhere", "--out", "x"], ["no activation store in 'nowhere'"]),
    "kind of dictionary": (
        ["train", "nowhere", "--out", "x", "--kind", "sea"], ['did you mean "sae"?'],
    ),
    "dictionary": (
        ["evaluate", "smollm2-resid-51", "a.txt", *TOY], ['did you mean "smollm2-resid-15"?'],
    ),
    "command": (["rnu", "logit_lens"], ["No such command 'rnu'"]),
    "number": (["run", "logit_lens", "--n", "many"], ["Invalid value for '--n'"]),
    "prompts of no task": (
        ["run", "logit_lens", *TOY, "--prompt", "a", "--n", "5"], ['logit_lens has no option "n"'],
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_message_and_status_2(run: Cli, mistake: str) -> None:
    words, parts = MISTAKES[mistake]
    said = run(*words)
    assert said.code == 2
    for part in parts:
        assert part in said.err
    assert "Traceback" not in said.err
    assert said.out == ""


def test_an_interrupt_is_no_traceback(run: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "app", interrupt)
    said = run("runs")
    assert (said.code, said.err) == (130, "stopped\n")


# --- text that means something to a terminal -----------------------------------------------------

HOSTILE = {
    "html": "<script>alert(1)</script>",
    "formula": "$x$ and $$y$$",
    "streamlit": ":red[x]",
    "rich markup": "[red]x[/] [/b] [link=http://a]",
    "ansi": "\x1b[31mred\x1b]0;title\x07",
    "nul": "a\0b",
    "right to left": "שלום עולם \u202eabc",
    "lines": "a\r\nb\tc",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_prompts_are_shown_as_they_stand(run: Cli, tmp_path: Path, kind: str) -> None:
    text = HOSTILE[kind]
    file = tmp_path / "prompts.jsonl"
    file.write_text(json.dumps({"clean": text}) + "\n", "utf-8")
    said = run("run", "logit_lens", *TOY, "--task", str(file), "--rows", "999")
    assert said.code == 0, said.err
    tokens = probe.load_result("last").frame.query("layer == 0").token
    assert "".join(tokens).encode() == text.encode() or "<0x" in "".join(tokens)
    shown = [token for token in tokens if token.isprintable() and token.strip()]
    assert shown
    for token in shown:
        assert token.strip() in said.out
    assert not set(said.out) & set("\x1b\x07\0\u202e")
    assert run("show").code == 0


def test_markup_in_an_error_is_shown_as_it_stands(run: Cli) -> None:
    said = run("run", "[red]x[/]", *TOY)
    assert said.code == 2
    assert 'there is no method "[red]x[/]"' in said.err
    strange = run("list", "\x1b[31mred")
    assert r"\x1b[31mred" in strange.err
    assert "\x1b" not in strange.err


def test_a_lone_surrogate_in_a_file_is_refused(run: Cli, tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"clean": "a\\ud800b"}\n', "utf-8")
    said = run("run", "logit_lens", *TOY, "--task", str(file))
    assert said.code == 2
    assert "lone surrogate (U+D800)" in said.err


def test_a_prompt_over_the_context_length_is_refused(run: Cli) -> None:
    said = run("run", "logit_lens", *TOY, "--prompt", "cat " * 97)
    assert said.code == 2
    assert "at most 96, the model's context length" in said.err
