"""Vectors of SmolLM2 in a real browser: built, judged, steered with."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from watched import watched

pytestmark = [pytest.mark.browser, pytest.mark.slow]

MINUTES = 60_000
LOOK_FOR_TWINS = """window.twins = new Set();
(function look() {
    const titles = [...document.querySelectorAll("h3")].map((title) => title.innerText);
    titles.filter((title, at) => titles.indexOf(title) < at).forEach((t) => window.twins.add(t));
    requestAnimationFrame(look);
})();"""
"""Keeps every heading that stood on the page twice at once, be it for a moment."""


@pytest.fixture
def page(chromium: Any, explorer_url: str) -> Iterator[Any]:
    with watched(chromium) as page:
        page.set_default_timeout(5 * MINUTES)
        yield page


def test_steer_writes_both_texts_and_the_strip_selects_a_token(
    page: Any, explorer_url: str
) -> None:
    page.goto(f"{explorer_url}/steer?{urlencode({'v': '1', 'q': 'The hotel was', 'l': '15'})}")
    page.get_by_role("heading", name="What it costs on neutral text", exact=True).wait_for()
    assert page.get_by_role("heading", name="With the direction, strength 2").is_visible()
    strip = page.get_by_role("listbox", name="Tokens of the prompt")
    strip.get_by_role("option").nth(1).click()
    page.wait_for_url("**pos=1**")
    assert page.get_by_text("This could not be done").count() == 0


def test_a_task_becomes_a_vector_is_judged_and_steered_with(
    page: Any, explorer_url: str, tmp_path: Path
) -> None:
    page.add_init_script(LOOK_FOR_TWINS)
    asked = urlencode({"v": "1", "q": "Q: river\nA:"})
    page.goto(f"{explorer_url}/vectors?{asked}")
    page.get_by_role("combobox", name="Task").click()
    page.get_by_role("option", name="plural: ").click()
    page.get_by_role("button", name="Build the vector").click()
    page.get_by_role("heading", name="Plural task vector", exact=True).wait_for()
    page.get_by_text("Right answers by layer").wait_for()
    page.get_by_role("heading", name="Held-out pairs, with the vector and with controls").wait_for()
    page.get_by_text("random 1").first.wait_for(state="attached")  # drawn on a canvas
    assert page.get_by_role("button", name="Build the vector").count() == 0
    assert page.evaluate("[...window.twins]") == []  # drawn over, never beside what was there
    page.get_by_role("button", name="Save the vector").click()
    file = page.get_by_role("textbox", name="File", exact=True)
    file.fill(str(tmp_path / "plural.safetensors"))
    file.press("Enter")
    page.get_by_role("button", name="Save and steer with it").click()
    page.get_by_role("heading", name="With the direction, strength 1").wait_for()
    page.get_by_role("heading", name="What it costs on neutral text", exact=True).wait_for()
    assert page.get_by_text("rivers").count() > 0
    assert page.get_by_text("This could not be done").count() == 0
