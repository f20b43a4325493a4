"""The views alone, on made-up numbers: clicks, keys, themes and hostile tokens."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
from watched import watched

pytestmark = pytest.mark.browser


@pytest.fixture
def page(chromium: Any, demo_url: str) -> Iterator[Any]:
    with watched(chromium, height=1300) as page:
        page.goto(demo_url)
        page.get_by_text("picked L2H3").wait_for()
        for drawn in ("canvas[data-name=L29H8]", "bdi >> nth=19", ".matrix canvas"):
            page.locator(drawn).wait_for()
        yield page


def test_a_click_on_a_thumbnail_locks_the_head(page: Any) -> None:
    page.locator("canvas[data-name=L17H4]").click()
    page.get_by_text("picked L17H4").wait_for()
    assert page.locator("canvas[data-name=L17H4]").get_attribute("aria-selected") == "true"
    assert page.locator("canvas[aria-selected=true]").count() == 1


def test_hovering_names_the_head_without_a_trip_to_the_server(page: Any) -> None:
    page.locator("canvas[data-name=L5H1]").hover()
    tip = page.locator(".tip:visible")
    assert tip.inner_text().split("\n") == ["L5H1", "previous 0.10", "induction 0.91"]
    assert page.get_by_text("picked L2H3").count() == 1


def test_arrow_keys_move_and_enter_locks(page: Any) -> None:
    page.locator("canvas[data-name=L2H3]").focus()
    for key in ("ArrowRight", "ArrowDown", "Enter"):
        page.keyboard.press(key)
    page.get_by_text("picked L3H4").wait_for()


def test_a_grid_says_what_it_is(page: Any) -> None:
    wall = page.get_by_role("grid", name="Attention patterns of 30 layers of 9 heads")
    assert wall.get_by_role("gridcell").count() == 270
    head = page.locator("canvas[data-name=L2H3]")
    assert head.get_attribute("aria-label") == "L2H3, previous 0.10, induction 0.91"


def test_a_click_on_a_pill_selects_its_position(page: Any) -> None:
    page.get_by_role("listbox", name="Tokens of the prompt").get_by_role("option").nth(4).click()
    page.get_by_text(re.compile("picked L2H3 4")).wait_for()


def test_pointing_at_a_token_shows_where_it_attends(page: Any) -> None:
    text = page.get_by_role("listbox", name="Attention of the selected head on the text")
    text.get_by_role("option").nth(1).hover()
    shares = [int(s.rstrip(" %")) for s in text.locator("small").all_inner_texts()[:2]]
    assert sum(shares) in (99, 100, 101)
    assert text.locator(".far").count() == 8


def test_a_click_on_a_cell_selects_it(page: Any) -> None:
    page.locator(".matrix canvas").click(position={"x": 500, "y": 140})
    page.get_by_text(re.compile(r"Cell\(row=[01], column=4\)")).wait_for()


def test_hostile_tokens_are_text(page: Any) -> None:
    words = page.locator("bdi").all_inner_texts()
    assert "<img·src=x·onerror=alert(1)>" in words
    assert {"·$x$", ":red[x]", "↵", "‹202E›abc", "‹00›"} <= set(words)
    assert page.locator("img[src=x]").count() == 0


def _corner(page: Any) -> list[int]:
    script = """canvas => [...canvas.getContext("2d").getImageData(9, 0, 1, 1).data]"""
    return page.locator("canvas[data-name=L0H0]").evaluate(script)[:3]


def test_the_pictures_follow_the_theme(page: Any) -> None:
    light = _corner(page)
    page.emulate_media(color_scheme="dark")
    page.wait_for_timeout(1500)
    dark = _corner(page)
    assert sum(light) > 600
    assert sum(dark) < 150
