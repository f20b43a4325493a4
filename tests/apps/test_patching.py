"""The Patching page on the toy model, and the jobs behind it."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest
from test_pages import ASKED, HOSTILE, markdown, opened, sound, texts

from apps import jobs, library, sweep
from apps.components.matrix import Cell
from apps.components.tokens import Token
from apps.context import Context
from apps.jobs import Job, JobManager
from apps.state import UrlState
from apps.views.patching import Sweep
from apps.views.patching import at as at_cell

pytestmark = pytest.mark.slow  # a minute or so: left to make test

N_LAYERS, N_HEADS, N_TOKENS = 2, 4, 14


@pytest.fixture(autouse=True)
def no_job_of_another_test() -> Iterator[None]:
    jobs.manager.clear()
    yield
    jobs.manager.clear()


def captions(at: AppTest) -> str:
    return "\n".join(element.value for element in at.caption)


def only_job() -> Job:
    (job,) = jobs.manager()._jobs.values()
    return job


def patched(at: AppTest) -> AppTest:
    """Press the button, wait for the job, look again."""
    at.button(key="patch-run").click().run()
    only_job().join(60)
    return sound(at.run())


def shown(at: AppTest) -> Any:
    """The map as a table."""
    return at.toggle(key="patching-table").set_value(True).run().dataframe[0].value


def made_by(code: str) -> Any:
    names: dict[str, Any] = {}
    exec(code, names)
    return names["result"].frame


def test_the_estimate_stands_there_before_anything_is_asked() -> None:
    at = sound(opened("patching", **ASKED))
    assert "gradient estimate" in markdown(at)
    assert f"{N_LAYERS * N_TOKENS} cells, each measured by a run of its own" in captions(at)
    frame = shown(at)
    assert "value" not in frame
    assert frame["estimate"].tolist() == pytest.approx(made_by(at.code[0].value)["value"].tolist())


@pytest.mark.parametrize(
    ("kind", "cells", "n"),
    [
        ("resid_pre", "", N_LAYERS * N_TOKENS),
        ("mlp_post", "position", N_LAYERS * N_TOKENS),
        ("z", "", N_LAYERS * N_HEADS),
        ("attn_out", "layer", N_LAYERS),
    ],
)
def test_every_cell_is_patched_and_the_code_makes_the_same(kind: str, cells: str, n: int) -> None:
    at = patched(opened("patching", **ASKED, k=kind, c=cells, r="noise"))
    assert f"All {n} cells were patched." in captions(at)
    assert "intervention" in markdown(at)
    assert "gradient estimate" not in markdown(at)
    frame, code = shown(at), at.code[0].value
    assert f"kind={kind!r}" in code
    assert "direction='noise'" in code
    assert frame["value"].tolist() == pytest.approx(made_by(code)["value"].tolist(), abs=1e-5)
    assert frame["estimate"].notna().all()


@pytest.mark.parametrize("kind", ["resid_pre", "q", "k", "v", "z", "pattern", "mlp_out"])
@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_every_activation_and_direction_has_an_estimate(kind: str, direction: str) -> None:
    at = sound(opened("patching", **ASKED, k=kind, r=direction))
    assert "could not be done" not in markdown(at)
    assert "gradient estimate" in markdown(at)


def test_cancel_keeps_the_finished_cells_and_going_on_finishes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run_heard = library.run_heard

    def cancelled_after_one(*asked: Any) -> Any:
        found = run_heard(*asked)
        only_job().stop()
        return found

    monkeypatch.setattr(library, "run_heard", cancelled_after_one)
    at = patched(opened("patching", **ASKED))
    said = f"Stopped: {N_TOKENS} of {N_LAYERS * N_TOKENS} cells were patched, and are kept."
    assert said in captions(at)
    assert "gradient estimate" in markdown(at)
    assert "layers=[1])" in at.code[0].value
    frame = shown(at)
    assert frame["value"].notna().tolist() == (frame["layer"] == 1).tolist()
    asked: list[list[int]] = []

    def listed(method: str, loaded: Any, question: Any, options: Any, report: Any) -> Any:
        asked.append(options["layers"])
        return run_heard(method, loaded, question, options, report)

    monkeypatch.setattr(library, "run_heard", listed)
    at = patched(at)
    assert f"All {N_LAYERS * N_TOKENS} cells were patched." in captions(at)
    assert asked == [[0]]


def test_while_it_runs_there_is_a_cancel_button(monkeypatch: pytest.MonkeyPatch) -> None:
    go, run_heard = threading.Event(), library.run_heard

    def held(*asked: Any) -> Any:
        assert go.wait(60)
        return run_heard(*asked)

    monkeypatch.setattr(library, "run_heard", held)
    at = opened("patching", **ASKED)
    at.button(key="patch-run").click().run()
    assert [b.key for b in sound(at).button] == ["patch-cancel"]
    at.button(key="patch-cancel").click().run()
    assert at.button(key="patch-cancel").disabled
    go.set()
    only_job().join(60)
    assert "Stopped: " in captions(sound(at.run()))


def test_a_failed_sweep_is_a_box_and_can_be_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise ZeroDivisionError("a <b>mistake</b>")

    with monkeypatch.context() as patch:
        patch.setattr(library, "run_heard", broken)
        at = patched(opened("patching", **ASKED))
    assert "ZeroDivisionError: a <b>mistake</b>" in texts(at)
    assert "All " in captions(patched(at))


def test_a_rank_has_no_estimate_but_can_be_patched() -> None:
    at = sound(opened("patching", **ASKED, e="rank"))
    assert "There is no estimate: a rank is counted, so it has no gradient" in texts(at)
    assert at.button(key="patch-run")


def test_a_ragged_pair_is_refused_with_both_token_counts() -> None:
    at = sound(opened("patching", **{**ASKED, "b": "When Mary and John went"}))
    assert "could not be done" in markdown(at)
    assert "pair 0 is ragged: 14 clean tokens, 5 corrupted" in texts(at)
    assert not [b for b in at.button if b.key == "patch-run"]


def test_a_prompt_that_is_its_own_twin_is_refused() -> None:
    at = sound(opened("patching", **{**ASKED, "b": ASKED["q"]}))
    assert "clean and corrupted are the same tokens" in texts(at)


@pytest.mark.parametrize("missing", ["q", "b", "t"])
def test_what_is_missing_is_asked_for_with_an_example(missing: str) -> None:
    at = sound(opened("patching", **{k: v for k, v in ASKED.items() if k != missing}))
    at.button(key="empty-example").click().run()
    assert "gradient estimate" in markdown(sound(at))


def test_without_a_distractor_the_logit_difference_is_not_offered() -> None:
    at = sound(opened("patching", **{k: v for k, v in ASKED.items() if k != "d"}))
    box = at.selectbox(key="patching-metric")
    assert "logit difference" not in box.options
    assert box.value == "log_prob"
    assert "could not be done" not in markdown(at)


def test_a_link_that_asks_for_what_there_is_not_opens_with_the_defaults() -> None:
    at = sound(opened("patching", **ASKED, k="<b>", c="$x$", e=":red[y]", r="\x00"))
    chosen = [at.selectbox(key=f"patching-{f}").value for f in ("kind", "cells", "direction")]
    assert chosen == ["resid_pre", "position", "denoise"]
    assert "could not be done" not in markdown(at)


@pytest.mark.parametrize("prompt", [t for t in HOSTILE.values() if "\ud800" not in t])
def test_a_hostile_pair_is_shown_as_text(prompt: str) -> None:
    at = sound(opened("patching", m="toy", q=f"{prompt} Mary", b=f"{prompt} John", t=" Mary"))
    assert "could not be done" not in markdown(at)
    for told in (*at.markdown, *at.caption, *at.subheader):
        assert "script" not in told.value
        assert ":red[x]" not in told.value


def test_a_long_pair_is_cut_to_what_is_shown_and_patched_there() -> None:
    a, b = " Mary" * 80, " Mary" * 70 + " John" * 10
    at = patched(opened("patching", m="toy", q=a, b=b, t=" Mary", d=" John"))
    assert "positions 16 to 79 are shown" in texts(at)
    assert f"All {N_LAYERS * 64} cells were patched." in captions(at)


def test_the_controls_are_part_of_the_link() -> None:
    at = sound(opened("patching", **ASKED))
    at.selectbox(key="patching-kind").select("z").run()
    at.selectbox(key="patching-direction").select("noise").run()
    at.selectbox(key="patching-cells").select("layer").run()
    query = at.query_params
    assert [query[name] for name in "krc"] == ["z", "noise", "layer"]


def test_the_same_request_is_the_same_job() -> None:
    patched(opened("patching", **ASKED))
    again = sound(opened("patching", **ASKED))
    assert f"All {N_LAYERS * N_TOKENS} cells were patched." in captions(again)
    assert only_job().status == "finished"


@pytest.mark.parametrize(
    ("kind", "by", "cell"),
    [
        ("resid_pre", "position", Cell(4, 2)),
        ("z", "head", Cell(7, 11)),
        ("k", "head", Cell(2, 11)),
        ("attn_out", "layer", Cell(0, 11)),
    ],
)
def test_a_picked_cell_is_the_one_outlined(kind: str, by: str, cell: Cell) -> None:
    dims = SimpleNamespace(n_layers=30, n_heads=9, n_kv_heads=3)
    here = Context(UrlState(), SimpleNamespace(dims=dims), [0] * 5, [Token(" a")] * 5)
    chosen = Sweep(kind, by, "denoise", "logit_diff")
    place = chosen.cell(here, cell)
    state = replace(here.state, layer=place["layer"], head=place.get("head", 0))
    there = replace(here, state=replace(state, position=place.get("pos")))
    assert at_cell(there, chosen, chosen.place(there)) == cell


# --- jobs ----------------------------------------------------------------------------------------


def held(go: threading.Event) -> Callable[[Job], bool]:
    def work(job: Job) -> bool:
        assert go.wait(30)
        job.found.append(threading.current_thread().name)
        return True

    return work


def test_jobs_take_turns_and_equal_requests_are_one() -> None:
    manager, go = JobManager(), threading.Event()
    first = manager.submit("a", held(go))
    assert manager.submit("a", held(go)) is first
    second = manager.submit("b", held(go))
    assert second.status == "waiting"
    go.set()
    for job in (first, second):
        job.join(30)
        assert job.status == "finished"
        assert len(job.found) == 1


def test_a_waiting_job_can_be_stopped_before_its_turn() -> None:
    manager, go = JobManager(), threading.Event()
    manager.submit("a", held(go))
    waiting = manager.submit("b", held(go))
    waiting.stop()
    waiting.join(5)
    assert (waiting.status, waiting.found) == ("stopped", [])
    go.set()


def test_old_jobs_are_forgotten_and_running_ones_are_not() -> None:
    manager, go = JobManager(), threading.Event()
    running = manager.submit("running", held(go))
    for number in range(jobs.JOBS_KEPT + 3):
        job = manager.submit(f"{number}", held(go))
        job.stop()
        job.join(5)
    manager.submit("last", held(go)).stop()
    assert manager.get("0") is None
    assert manager.get("running") is running
    go.set()


@pytest.mark.parametrize("n_layers", [1, 2, 10, 11, 30, 64])
def test_the_groups_of_layers_are_all_layers_once(n_layers: int) -> None:
    groups = sweep.layer_groups(n_layers)
    assert sorted(layer for group in groups for layer in group) == list(range(n_layers))
    assert len(groups) <= sweep.GROUPS
    assert groups[0][-1] == n_layers - 1
