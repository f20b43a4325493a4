"""The Circuit page on the toy model: sizes, nodes in and out, and the curve behind it."""

from collections.abc import Iterator
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest
from test_pages import ASKED, markdown, opened, sound

from apps import jobs
from apps.views.circuit import Choice, head_of, picked

pytestmark = pytest.mark.slow  # a minute or so: left to make test


@pytest.fixture(autouse=True)
def no_job_of_another_test() -> Iterator[None]:
    jobs.manager.clear()
    yield
    jobs.manager.clear()


def metrics(at: AppTest) -> dict[str, str]:
    return {element.label: element.value for element in at.metric}


def code(at: AppTest) -> str:
    return next(block.value for block in at.code if "Circuit.from_frame" in block.value)


def test_the_whole_model_is_faithful_and_the_slider_moves_the_number() -> None:
    at = sound(opened("circuit", **ASKED, z="1"))
    assert metrics(at)["Faithfulness"] == "100.0%"
    assert metrics(at)["Edges"] == "82 of 82"
    at.select_slider(key="circuit-size").set_value("0.2").run()
    assert metrics(sound(at))["Edges"] != "82 of 82"
    assert metrics(at)["Faithfulness"] != "100.0%"


def test_a_node_taken_out_and_put_back() -> None:
    at = sound(opened("circuit", **ASKED, z="1"))
    at.selectbox(key="circuit-node").set_value("a0.h1").run()
    at.button(key="circuit-toggle").click().run()
    assert metrics(sound(at))["Faithfulness"] != "100.0%"
    assert at.multiselect(key="circuit-removed").value == ["a0.h1"]
    assert "circuit.without('a0.h1')" in code(at)
    at.selectbox(key="circuit-node").set_value("a0.h1").run()
    at.button(key="circuit-toggle").click().run()
    assert metrics(sound(at))["Faithfulness"] == "100.0%"


def test_a_node_put_in_by_hand() -> None:
    at = sound(opened("circuit", **ASKED, z="0.05"))
    before = metrics(at).get("Edges", "0 of 82")
    at.multiselect(key="circuit-added").set_value(["m0", "m1"]).run()
    assert metrics(sound(at))["Edges"] != before


def test_the_code_makes_the_same_number() -> None:
    at = sound(opened("circuit", **ASKED, z="0.5", rm="m0"))
    names: dict[str, Any] = {}
    exec(code(at).rsplit("\n", 1)[0], names)
    frame = names["probe"].run(
        "faithfulness", model=names["model"], task=names["task"], edges=names["circuit"].edges
    ).frame  # fmt: skip
    assert metrics(at)["Faithfulness"] == f"{frame['value'][0]:.1%}"


def test_every_size_is_run_in_the_background() -> None:
    at = sound(opened("circuit", **ASKED))
    at.button(key="curve-run").click().run()
    (job,) = jobs.manager()._jobs.values()
    job.join(120)
    at = sound(at.run())
    frame = at.toggle(key="curve-table").set_value(True).run().dataframe[-1].value
    assert len(frame) == 20
    whole = frame[frame["size"] == 1.0]["value"]
    assert whole.tolist() == pytest.approx([1.0, 1.0])


def test_a_cancelled_curve_keeps_its_sizes_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    from apps import library

    real = library.run_heard

    def cancelled(*asked: Any) -> Any:
        found = real(*asked)
        next(iter(jobs.manager()._jobs.values())).stop()
        return found

    monkeypatch.setattr(library, "run_heard", cancelled)
    at = sound(opened("circuit", **ASKED))
    at.button(key="curve-run").click().run()
    (job,) = jobs.manager()._jobs.values()
    job.join(60)
    assert (job.status, len(job.found)) == ("stopped", 1)
    monkeypatch.setattr(library, "run_heard", real)
    at = sound(at.run())
    at.button(key="curve-run").click().run()
    (job,) = jobs.manager()._jobs.values()
    job.join(120)
    assert (job.status, len(job.found)) == ("finished", 10)


def test_what_a_link_names_that_is_not_there_is_left_out() -> None:
    at = sound(opened("circuit", **ASKED, z="7", g="astrology", rm="m0 m99", ad="<b>"))
    assert "could not be done" not in markdown(at)
    assert at.multiselect(key="circuit-removed").value == ["m0"]
    assert at.selectbox(key="circuit-ranking").value == "eap"


def test_a_click_names_a_node() -> None:
    assert picked({"points": [{"x": 1, "customdata": ["a5.h3"]}]}) == "a5.h3"
    assert picked({"points": []}) is None
    assert head_of("a12.h8") == (12, 8)
    assert Choice("eap", "0.1", ("m0",), ()).code.count("\n") == 3
