"""Steering SmolLM2 in a real browser."""

from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode

import pytest
from watched import watched

pytestmark = [pytest.mark.browser, pytest.mark.slow]

MINUTES = 60_000


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
