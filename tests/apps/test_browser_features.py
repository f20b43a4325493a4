"""From a cell of the prompt's heat map to the page of a feature, in a real browser."""

from typing import Any

import pytest
from test_browser import query, settled
from watched import watched

pytestmark = [pytest.mark.browser, pytest.mark.slow]

ASKED = (
    "?v=1&m=toy&q=When+Mary+and+John+went+to+the+store%2C+John+gave+a+drink+to"
    "&t=+Mary&d=+John&f=999"
)


def test_from_the_prompt_to_a_feature_with_a_label(chromium: Any, explorer_url: str) -> None:
    with watched(chromium) as page:
        page.goto(f"{explorer_url}/features{ASKED}")
        settled(page, "Features on the prompt")
        canvas = page.locator(".matrix canvas").first
        canvas.click(position={"x": 120, "y": 60})
        page.wait_for_function("() => !location.search.includes('f=999')")
        feature = query(page).get("f", "0")
        page.get_by_role("link", name=f"Open feature {feature}").click()
        settled(page, f"Feature {feature}")
        page.get_by_role("textbox", name="Label").fill("<script>alert(1)</script>")
        page.get_by_role("textbox", name="Label").press("Enter")
        settled(page, f"Feature {feature}")
        page.get_by_role("button", name="Next").click()
        settled(page, f"Feature {(int(feature) + 1) % 48}")
        page.get_by_role("button", name="Previous").click()
        settled(page, f"Feature {feature}")
        assert (
            page.get_by_role("textbox", name="Label").input_value() == "<script>alert(1)</script>"
        )
