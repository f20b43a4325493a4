"""The Head page on the toy model: scores with ranks, circuits in tokens, partners that lead on."""

import re
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest
from test_pages import ASKED, markdown, opened, sound

pytestmark = pytest.mark.slow

HEAD = {**ASKED, "l": "1", "h": "2"}


@pytest.fixture(scope="module")
def page() -> AppTest:
    return sound(opened("head", **HEAD))


def table(at: AppTest, column: str) -> Any:
    """The table that has this column."""
    return next(frame.value for frame in at.dataframe if column in frame.value)


def test_every_part_is_there_and_none_failed(page: AppTest) -> None:
    headings = [heading.value for heading in page.subheader]
    assert headings[0] == "L1H2, reading key/value head 1"
    for part in ("Scores", "On this prompt", "Composition", "Rotary frequencies", "Without it"):
        assert part in headings
    assert "could not be done" not in markdown(page)


def test_scores_have_their_rank_among_all_heads(page: AppTest) -> None:
    ranks = table(page, "rank").set_index("score")
    assert {"induction", "previous", "copying"} <= set(ranks.index)
    assert all(re.fullmatch(r"[1-8] of 8", rank) for rank in ranks["rank"])


def test_circuits_are_read_for_the_tokens_of_the_prompt(page: AppTest) -> None:
    circuits = [frame.value for frame in page.dataframe if "token" in frame.value]
    assert len(circuits) == 2
    for shown in circuits:
        assert "·Mary" in set(shown["token"])
        assert list(shown.columns) == ["token", "1", "2", "3", "4", "5"]
        assert shown.notna().all().all()


def test_partners_are_earlier_heads_and_in_the_last_layer_none_follow(page: AppTest) -> None:
    earlier = table(page, "by its")
    assert set(earlier["layer"]) == {0}
    assert earlier["above chance"].is_monotonic_decreasing
    said = [caption.value for caption in page.caption]
    assert "No layer comes after." in said


def test_ablation_says_what_a_task_loses(page: AppTest) -> None:
    lost = table(page, "in its place")
    assert set(lost["in its place"]) == {"zero", "mean", "resample"}
    assert (lost["low"] <= lost["change"]).all()
    assert (lost["change"] <= lost["high"]).all()


def test_the_native_twin_shows_another_head() -> None:
    at = sound(opened("head", **HEAD))
    at.selectbox(key="head-layer").select(0).run()
    assert (at.query_params["h"], at.query_params.get("l")) == ("2", None)
    assert sound(at).subheader[0].value == "L0H2, reading key/value head 1"
    assert "No layer comes before." in [caption.value for caption in at.caption]


def test_the_code_of_a_panel_makes_the_same_numbers(page: AppTest) -> None:
    code = next(c.value for c in page.code if "composition_scores" in c.value)
    names: dict[str, Any] = {}
    exec(code, names)
    best = names["result"].frame.nlargest(1, "value")["value"].item()
    assert best == pytest.approx(table(page, "by its")["above chance"][0])


def test_a_picture_has_a_table() -> None:
    at = sound(opened("head", **HEAD))
    before = len(at.dataframe)
    at.toggle(key="head-rotary-table").set_value(True).run()
    assert len(sound(at).dataframe) == before + 1
