"""The Steer and Vectors pages on the toy model."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest
from test_pages import ASKED, markdown, opened, sound, texts

from apps import jobs

pytestmark = pytest.mark.slow  # a minute or so: left to make test


@pytest.fixture(autouse=True)
def no_job_of_another_test() -> Iterator[None]:
    jobs.manager.clear()
    yield
    jobs.manager.clear()


def fine(at: AppTest) -> AppTest:
    assert "could not be done" not in markdown(sound(at)), texts(at)
    return at


def test_steering_shows_both_texts_the_strip_and_the_cost() -> None:
    at = fine(opened("steer", **ASKED))
    titles = [s.value for s in at.subheader]
    assert titles[:2] == ["The model alone", "With the direction, strength 2"]
    assert "Where the prediction changes" in titles
    assert [m.label for m in at.metric] == ["KL, nats a token", "Perplexity"]
    assert float(at.metric[0].value) > 0
    rows = at.toggle(key="steer-strip-table").set_value(True).run().dataframe[0].value
    assert (rows["value"] >= 0).all()
    code = at.code[0].value
    names: dict = {}
    exec(code, names)
    assert names["result"].frame["value"].tolist() == pytest.approx(rows["value"].tolist())


def test_at_strength_0_both_texts_are_the_same_and_nothing_is_spent() -> None:
    at = opened("steer", **ASKED)
    fine(at.slider(key="steer-strength").set_value(0.0).run())
    assert float(at.metric[0].value) == 0


def test_bad_directions_are_refused_in_words(tmp_path: Path) -> None:
    at = opened("steer", **ASKED)
    at.text_area(key="steer-negative").set_value("").run()
    assert "the negative texts are" in texts(sound(at))
    at.segmented_control(key="steer-source").set_value("file").run()
    at.text_input(key="steer-file").set_value(str(tmp_path / "absent.safetensors")).run()
    assert "is no saved vector" in texts(sound(at))


def test_a_saved_vector_can_be_steered_with(tmp_path: Path) -> None:
    at = opened("steer", **ASKED)
    at.text_input(key="steer-save-path").set_value(str(tmp_path / "v.safetensors"))
    fine(at.button(key="steer-save").click().run())
    at.segmented_control(key="steer-source").set_value("file").run()
    fine(at.text_input(key="steer-file").set_value(str(tmp_path / "v.safetensors")).run())
    assert "With the direction, strength 2" in [s.value for s in at.subheader]


@pytest.mark.parametrize("kind", ["task_vector", "function_vector"])
def test_a_vector_is_built_and_judged_beside_controls(kind: str) -> None:
    at = fine(opened("vectors", **ASKED))
    at.selectbox(key="vectors-task").set_value("plural")
    at.selectbox(key="vectors-kind").set_value(kind)
    at.number_input(key="vectors-shots").set_value(2)
    at.number_input(key="vectors-least").set_value(0.0)
    at.button(key="vectors-build").click().run()  # at once: the page was not drawn for these yet
    (job,) = jobs.manager()._jobs.values()
    job.join(60)
    fine(at.run())
    assert "Plural" in " ".join(s.value for s in at.subheader)
    summary = at.dataframe[0].value
    assert summary["condition"].tolist() == ["none", "vector", "random 0", "random 1"]


def test_a_task_the_model_cannot_do_and_pairs_that_are_none() -> None:
    at = opened("vectors", **ASKED)
    at.number_input(key="vectors-shots").set_value(2).run()
    at.button(key="vectors-build").click().run()
    (job,) = jobs.manager()._jobs.values()
    job.join(60)
    assert "what a model cannot do has no vector in it" in texts(sound(at.run()))
    at.selectbox(key="vectors-task").set_value("pairs of your own").run()
    at.text_area(key="vectors-pairs").set_value("a line without an arrow").run()
    assert "has no =>" in texts(sound(at))
