"""The Features and Feature pages on a random dictionary of the toy model."""

import pytest
from streamlit.testing.v1 import AppTest
from test_pages import ASKED, HOSTILE, markdown, opened, sound, texts, write

from apps.components.passages import Passage, passages_html
from apps.views import features as views

pytestmark = pytest.mark.slow  # with the other pages: left to make test


def frames(at: AppTest) -> list:
    return [element.value for element in at.dataframe]


def test_the_prompts_features_are_listed_and_one_can_be_opened() -> None:
    at = sound(opened("features", **ASKED))
    assert "could not be done" not in markdown(at)
    assert "toy.0: 48 features on" in texts(at)
    assert any({"feature", "percentile", "of_max"} <= set(frame) for frame in frames(at))
    at = sound(opened("feature", **{**ASKED, "f": "7"}))
    assert "Feature 7" in [heading.value for heading in at.subheader]
    assert "could not be done" not in markdown(at)


@pytest.mark.parametrize("search", ["token", "label", "statistics"])
def test_every_search_runs(search: str) -> None:
    at = sound(opened("features", **ASKED))
    at.session_state["features-search"] = search
    sound(at.run())
    assert "could not be done" not in markdown(at)
    if search == "token":
        at.text_input(key="features-token").set_value("Mary").run()
        assert any("Mary" in str(frame.get("token", "")) for frame in frames(sound(at)))


def test_a_label_is_kept_and_found() -> None:
    at = sound(opened("feature", **{**ASKED, "f": "5"}))
    at.text_input(key="feature-label").set_value("the <b>store</b> of $x$").run()
    assert at.text_input(key="feature-label").value == "the <b>store</b> of $x$"
    at.button(key="feature-next").click().run()
    assert at.text_input(key="feature-label").value == ""
    at.button(key="feature-previous").click().run()
    assert sound(at).text_input(key="feature-label").value == "the <b>store</b> of $x$"
    other = sound(opened("features", **ASKED))
    other.session_state["features-search"] = "label"
    sound(other.run())
    other.text_input(key="features-words").set_value("stor").run()
    assert any(frame["feature"].tolist() == [5] for frame in frames(other) if len(frame) == 1)
    at.text_input(key="feature-label").set_value("").run()
    sound(at)


def test_a_feature_is_ablated_on_the_prompt_and_tried_on_a_text() -> None:
    at = sound(opened("feature", **{**ASKED, "f": "3"}))
    at.toggle(key="feature-ablate").set_value(True).run()
    assert "logit difference: " in texts(sound(at))
    assert "KL from the whole run: +" in texts(at)
    at.text_area(key="feature-text").set_value("Mary gave a drink to John").run()
    assert "could not be done" not in markdown(sound(at))
    assert texts(at).count("at most") >= 2


def test_a_feature_beyond_the_last_is_the_last_and_an_unknown_dictionary_a_box() -> None:
    at = sound(opened("feature", **{**ASKED, "f": "999"}))
    assert "Feature 47" in [heading.value for heading in at.subheader]
    at = sound(opened("feature", **{**ASKED, "a": "/no/such/place"}))
    assert "could not be done" in markdown(at)
    assert "/no/such/place" in texts(at)


@pytest.mark.parametrize("page", ["features", "feature"])
def test_hostile_prompts_are_shown_as_text(page: str) -> None:
    at = opened(page, m="toy")
    write(at, HOSTILE["html"])
    assert "could not be done" not in markdown(sound(at))
    for told in (*at.markdown, *at.caption, *at.subheader):
        assert "<script>" not in told.value


def test_passages_are_text_whatever_the_tokens_are() -> None:
    tokens = ["<script>alert(1)</script>", '" onload="x', "\u202eabc", "\n", " a"]
    made = passages_html([Passage("<i>1</i>", tokens, [0, 1, 2, 0, 0.5], 1)], 2.0)
    assert "<script" not in made
    assert "<i>" not in made
    assert 'onload="' not in made
    assert "‹202E›abc" in made
    assert "↵" in made
    assert made.count("rgba(") == 3


def test_a_histogram_counts_and_marks() -> None:
    figure = views.histogram([1, 2, 3], 0.0, 3.0, x="activation", mark=1.5, log=False)
    assert list(figure.data[0].x) == [0.5, 1.5, 2.5]
    assert list(figure.data[0].y) == [1, 2, 3]
    assert figure.layout.shapes[0].x0 == 1.5
