"""The public functions: what they record, how runs are made again, and how mistakes are met."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import families
import pandas as pd
import pytest

import probe
from probe.core.errors import ProbeError
from probe.models.bridge import BridgeModel

PROMPT = "When Mary and John went to the store"


# --- what there is -------------------------------------------------------------------------------


def test_catalogues_are_dictionaries_that_print_as_tables() -> None:
    methods = probe.methods()
    assert methods["logit_lens"].room == "lens"
    assert "What would the model say" in repr(methods)
    assert "<table" in methods._repr_html_()
    assert set(methods.table.columns) == {"method", "question", "room", "needs", "options"}
    assert len(probe.tasks()) >= 7
    assert "ioi" in repr(probe.tasks())


def test_a_plug_in_that_fails_is_a_warning_and_no_wall(monkeypatch: pytest.MonkeyPatch) -> None:
    from probe import api

    class Broken:
        name = "broken"

        def load(self) -> None:
            raise ImportError("no module named nothing")

    def entry_points(group: str) -> list[Broken]:
        assert group == "probe.methods"
        return [Broken()]

    monkeypatch.setattr(api.importlib.metadata, "entry_points", entry_points)
    api._load_methods.cache_clear()
    with pytest.warns(
        probe.ProbeWarning, match="the plug-in broken could not be loaded: no module"
    ):
        assert "logit_lens" in probe.methods()
    monkeypatch.undo()
    api._load_methods.cache_clear()


# --- running -------------------------------------------------------------------------------------


def test_a_model_may_be_given_by_its_name(toy: BridgeModel) -> None:
    by_name = probe.run("logit_lens", model="toy", prompt=PROMPT)
    pd.testing.assert_frame_equal(
        by_name.frame, probe.run("logit_lens", model=toy, prompt=PROMPT).frame
    )


def test_a_task_may_be_given_by_its_name_or_encoded(toy: BridgeModel) -> None:
    by_name = probe.run("direct_logit_attribution", model=toy, task="ioi")
    task = probe.load_task("ioi")
    for given in (task, task.encode(toy)):
        other = probe.run("direct_logit_attribution", model=toy, task=given)
        pd.testing.assert_frame_equal(by_name.frame, other.frame)


def test_prompts_encoded_for_another_model_are_encoded_again(toy: BridgeModel) -> None:
    other = probe.load_model(families.build("llama"), tokenizer=families.tokenizer())
    task = probe.Task.from_prompts("t3 t4 t5")
    expected = probe.run("logit_lens", model=other, task=task).frame
    found = probe.run("logit_lens", model=other, task=task.encode(toy)).frame
    pd.testing.assert_frame_equal(found, expected)


def test_the_record_says_how_the_numbers_came_to_be(toy: BridgeModel) -> None:
    task = probe.load_task("ioi", n=2, seed=7)
    record = probe.run("logit_lens", model=toy, task=task, layers=[1]).provenance
    assert record.passed == {"layers": [1]}
    assert record.defaulted["show"] == "probability"
    assert "layers" not in record.defaulted
    assert record.model["weight_hash"] == toy.spec.weight_hash
    assert record.health["ok"] is True
    assert record.task["name"] == "ioi"
    assert record.task["seed"] == record.seed == 7
    assert record.task["hash"] == task.encode(toy).hash
    assert len(record.task["prompts"]) == 2
    assert record.wall_seconds >= 0
    json.loads(record.model_dump_json())


def test_what_a_method_warns_of_is_kept_and_passed_on(
    toy: BridgeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    import warnings

    method = probe.methods()["next_token"]

    def warning(*given: Any, **options: Any) -> pd.DataFrame:
        warnings.warn("the plan fell back", probe.ProbeWarning, stacklevel=1)
        return method.function(*given, **options)

    from dataclasses import replace

    from probe.core.registry import METHODS

    monkeypatch.setitem(METHODS._things, "next_token", replace(method, function=warning))
    with pytest.warns(probe.ProbeWarning, match="the plan fell back"):
        result = probe.run("next_token", model=toy, prompt=PROMPT)
    assert result.provenance.notes == ["the plan fell back"]


# --- runs ----------------------------------------------------------------------------------------


def test_a_run_is_saved_listed_and_loaded(toy: BridgeModel) -> None:
    result = probe.run("next_token", model=toy, prompt=PROMPT, save=True)
    table = probe.runs()
    assert table["id"].tolist() == [result.id]
    assert table["method"].tolist() == ["next_token"]
    for name in (result.id, result.id[:12], "last", Path(os.environ["PROBE_RUNS"]) / result.id):
        pd.testing.assert_frame_equal(probe.load_result(name).frame, result.frame)


def test_without_save_nothing_is_kept(toy: BridgeModel) -> None:
    probe.run("next_token", model=toy, prompt=PROMPT)
    assert probe.runs().empty


ELSEWHERE = """
import sys, probe
again = probe.rerun(sys.argv[1])
print(again.about)
sys.exit(not again.same)
"""


@pytest.mark.slow  # two interpreters are started
def test_a_run_reruns_to_the_same_numbers_in_another_process(toy: BridgeModel) -> None:
    task = probe.load_task("ioi", n=2)
    result = probe.run("activation_patching", model=toy, task=task, save=True)
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, result.id], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert f"reproduced: {len(result.frame)} rows, every number the same" in done.stdout


def test_a_rerun_that_differs_says_by_how_much_and_where(toy: BridgeModel) -> None:
    result = probe.run("logit_lens", model=toy, prompt=PROMPT)
    result.frame.loc[3, "value"] += 0.25
    again = probe.rerun(result, model=toy)
    assert not again.same
    assert again.difference == pytest.approx(0.25)
    assert f"run {result.id}: same rows, numbers differ by up to 0.25" in str(again)
    assert f"pos {result.frame.pos[3]}" in str(again)


def test_a_rerun_that_differs_says_what_it_was_made_with(toy: BridgeModel) -> None:
    result = probe.run("logit_lens", model=toy, prompt=PROMPT)
    here = result.provenance.versions
    result.frame.loc[3, "value"] += 0.25
    assert here["processor"] not in str(probe.rerun(result, model=toy))
    there = result.provenance.model_copy(update={"versions": here | {"processor": "abacus"}})
    made = probe.Result(result.frame, result.columns, result.view, there)
    assert f"\nprocessor: abacus, now {here['processor']}" in str(probe.rerun(made, model=toy))


def test_a_rerun_of_other_rows_says_so(toy: BridgeModel) -> None:
    result = probe.run("logit_lens", model=toy, prompt=PROMPT)
    short = probe.Result(result.frame.iloc[:-1], result.columns, result.view, result.provenance)
    again = probe.rerun(short, model=toy)
    assert not again.same
    assert "rows only in" in again.about


def test_a_rerun_on_other_weights_is_refused(toy: BridgeModel, toy_mha: BridgeModel) -> None:
    result = probe.run("logit_lens", model=toy, prompt=PROMPT)
    with pytest.raises(probe.RunError, match="toy has other weights now than in run") as error:
        probe.rerun(result, model=toy_mha)
    assert toy.spec.weight_hash in str(error.value)


def test_a_run_of_a_model_object_needs_the_object() -> None:
    model = probe.load_model(families.build("gpt2"), tokenizer=families.tokenizer())
    result = probe.run("logit_lens", model=model, prompt="t3 t4")
    with pytest.raises(probe.RunError, match="used a model object") as error:
        probe.rerun(result)
    assert "probe.rerun(id, model=...)" in str(error.value)
    assert probe.rerun(result, model=model).same


def test_a_run_of_a_folder_is_made_again_from_the_folder(tmp_path: Path) -> None:
    families.build("llama").save_pretrained(tmp_path / "model")
    families.tokenizer().save_pretrained(tmp_path / "model")
    model = probe.load_model(tmp_path / "model", bos=True)
    result = probe.run("next_token", model=model, prompt="t3 t4", save=True)
    again = probe.rerun(result.id)
    assert again.same
    assert again.result.provenance.tokenizer["bos"] is True


def test_two_runs_are_compared(toy: BridgeModel, toy_mha: BridgeModel) -> None:
    one = probe.run("logit_lens", model=toy, prompt=PROMPT, save=True)
    same = probe.run("logit_lens", model=toy, prompt=PROMPT)
    other = probe.run("logit_lens", model=toy_mha, prompt=PROMPT, save=True)
    assert probe.diff(one, same).same
    found = probe.diff(one.id, other.id)
    assert found.max_difference > 0
    assert "toy-mha" in str(found)


# --- mistakes ------------------------------------------------------------------------------------

MISTAKES: dict[str, tuple[Callable[[BridgeModel], object], list[str]]] = {
    "method": (
        lambda m: probe.run("logit_lense", model=m, prompt=PROMPT),
        ['there is no method "logit_lense"', 'did you mean "logit_lens"?'],
    ),
    "task": (
        lambda m: probe.run("logit_lens", model=m, task="iio"),
        ['there is no task "iio"', 'did you mean "ioi"?'],
    ),
    "task option": (
        lambda m: probe.load_task("ioi", ordr="ABBA"), ['no option "ordr"', 'mean "order"?'],
    ),
    "model": (
        lambda m: probe.run("logit_lens", model="toi", prompt=PROMPT),
        ['"toi" is no bundled model', 'did you mean "toy"?'],
    ),
    "option": (
        lambda m: probe.run("logit_lens", model=m, prompt=PROMPT, layerz=[0]),
        ['logit_lens has no option "layerz"', 'did you mean "layers"?'],
    ),
    "option's value": (
        lambda m: probe.run("logit_lens", model=m, prompt=PROMPT, top="many"),
        ["logit_lens: top='many': Input should be a valid integer", "How many tokens"],
    ),
    "metric": (
        lambda m: probe.run("activation_patching", model=m, task="ioi", metric="logitdiff"),
        ['there is no metric "logitdiff"', 'did you mean "logit_diff"?'],
    ),
    "layer": (
        lambda m: probe.run("logit_lens", model=m, prompt=PROMPT, layers=[2]),
        ["layer 2", "0 to 1"],
    ),
    "head": (
        lambda m: probe.run("attention_patterns", model=m, prompt=PROMPT, heads=[4]),
        ["head 4", "0 to 3: the model has 4 heads"],
    ),
    "position": (
        lambda m: probe.run("logit_lens", model=m, prompt=PROMPT, positions=[8]),
        ["position 8 lies outside prompt 0", "-8 to 7"],
    ),
    "no prompts": (
        lambda m: probe.run("logit_lens", model=m),
        ["logit_lens needs prompts, and none was given", 'prompt="..." or task="ioi"'],
    ),
    "no pairs": (
        lambda m: probe.run("activation_patching", model=m),
        ["needs pairs of clean and corrupted prompts with answers", 'task="ioi"'],
    ),
    "prompt and task": (
        lambda m: probe.run("logit_lens", model=m, prompt=PROMPT, task="ioi"),
        ["both a task and a prompt were given"],
    ),
    "prompts where none are read": (
        lambda m: probe.run("head_scores", model=m, prompt=PROMPT),
        ["head_scores asks the model alone"],
    ),
    "no answers": (
        lambda m: probe.run("direct_logit_attribution", model=m, prompt=PROMPT),
        ["the task 'prompt' has no answer", 'give each pair its "answer"'],
    ),
    "no corrupted prompts": (
        lambda m: probe.run(
            "activation_patching", model=m,
            task=probe.Task.from_pairs([{"clean": PROMPT, "answer": " a"}]),
        ),
        ["has no corrupted prompts"],
    ),
    "empty prompt": (
        lambda m: probe.run("logit_lens", model=m, prompt=""), ["the prompt '' has no tokens"],
    ),
    "no such run": (lambda m: probe.load_result("nope"), ['there is no run "nope"']),
    "run out of its folder": (lambda m: probe.load_result("../x"), ["is not a run id"]),
    "no such file": (
        lambda m: probe.Task.from_jsonl("nope.jsonl"), ["cannot read nope.jsonl", "JSONL"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_met_with_the_nearest_right_word(toy: BridgeModel, mistake: str) -> None:
    make, said = MISTAKES[mistake]
    with pytest.raises(ProbeError) as error:
        make(toy)
    for part in said:
        assert part in str(error.value)


def test_a_wrong_option_is_found_before_a_model_is_loaded() -> None:
    with pytest.raises(probe.OptionError, match='has no option "layerz"'):
        probe.run("logit_lens", model="no/such-model", prompt=PROMPT, layerz=[0])


def test_the_doctor_is_a_table(toy: BridgeModel) -> None:
    rows = probe.doctor(toy)
    assert rows.ok.all()
    assert list(rows.columns) == ["name", "value", "limit", "ok", "about"]
    assert rows.equals(probe.doctor("toy"))
    assert "dtype drift" in set(probe.doctor("toy", dtype="bfloat16").name)
