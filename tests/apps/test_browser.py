"""Journeys through the Explorer on SmolLM2, in a real browser and in both themes."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlparse

import pytest
from watched import watched

pytestmark = [pytest.mark.browser, pytest.mark.slow]

ASKED = {
    "v": "1",
    "q": "When Mary and John went to the store, John gave a drink to",
    "b": "When Mary and John went to the store, Mary gave a drink to",
    "t": " Mary",
    "d": " John",
    "l": "23",
    "h": "3",
}
PAGES = {
    "": "Begin with a question",
    "prompt": "Next token after position 13",
    "lens": "Layer 23, position 13",
    "attention": "On the text",
    "head": "Without it",
    "attribution": "Strongest neurons",
    "patching": "L23H3 in prompt B",
    "steer": "What it costs on neutral text",
    "vectors": "A task as a vector",
    "circuit": "Faithfulness over size",
}
"""Address of each page → its last heading, which stands there when all of it is drawn."""


@pytest.fixture
def page(chromium: Any, explorer_url: str) -> Iterator[Any]:
    with watched(chromium) as page:
        yield page


def address(url: str, name: str, **more: str) -> str:
    return f"{url}/{name}?{urlencode({**ASKED, **more})}"


def query(page: Any) -> dict[str, str]:
    return {name: values[-1] for name, values in parse_qs(urlparse(page.url).query).items()}


def settled(page: Any, heading: str) -> None:
    """The page is drawn to its end, and nothing on it failed."""
    page.get_by_role("heading", name=heading, exact=True).wait_for()
    page.wait_for_function(
        "() => document.querySelector('[data-testid=stApp]')"
        ".dataset.testScriptState === 'notRunning'"
    )
    page.wait_for_timeout(600)
    assert page.get_by_text("This could not be done").count() == 0


def test_the_five_pages_from_an_example_to_an_attribution(page: Any, explorer_url: str) -> None:
    page.goto(explorer_url)
    settled(page, "Begin with a question")
    page.get_by_role("button", name="Ask", exact=True).first.click()
    settled(page, "Next token after position 13")
    assert page.get_by_role("listbox", name="Tokens of the prompt").is_visible()
    for name, heading in (
        ("Lens", "Layer 0, position 13"),
        ("Attention", "On the text"),
        ("Attribution", "Strongest neurons"),
        ("Home", "Begin with a question"),
    ):
        page.get_by_test_id("stTopNavLink").filter(has_text=name).click()
        settled(page, heading)
        assert (query(page)["t"], query(page)["d"]) == (" Mary", " John")


def test_a_click_on_a_head_is_a_link_that_brings_it_back(page: Any, explorer_url: str) -> None:
    page.goto(address(explorer_url, "attention"))
    settled(page, "L23H3 attends")
    page.locator("canvas[data-name=L11H1]").click()
    settled(page, "L11H1 attends")
    assert (query(page)["l"], query(page)["h"]) == ("11", "1")
    page.reload()
    settled(page, "L11H1 attends")
    settled(page, "On the text")
    assert page.locator("canvas[data-name=L11H1]").get_attribute("aria-selected") == "true"


def test_the_back_button_returns_to_the_head_before(page: Any, explorer_url: str) -> None:
    page.goto(address(explorer_url, "attention"))
    settled(page, "On the text")
    for head in ("L11H1", "L16H2"):
        page.locator(f"canvas[data-name={head}]").click()
        settled(page, f"{head} attends")
    page.wait_for_timeout(1000)  # a query that arrives sooner counts as still on its way
    page.go_back()
    settled(page, "L11H1 attends")


def test_the_bar_stays_in_sight(page: Any, explorer_url: str) -> None:
    page.goto(address(explorer_url, "attribution"))
    settled(page, "Strongest neurons")
    page.get_by_role("heading", name="Strongest neurons").scroll_into_view_if_needed()
    assert page.get_by_text("What makes it say").bounding_box()["y"] > 0


def test_the_native_twin_moves_the_wall(page: Any, explorer_url: str) -> None:
    page.goto(address(explorer_url, "attention"))
    settled(page, "On the text")
    layer = page.get_by_role("combobox", name="layer")
    layer.fill("7")  # the list closes when the page draws itself again; what is typed stays
    layer.press("Enter")
    settled(page, "L7H3 attends")
    assert page.locator("canvas[data-name=L7H3]").get_attribute("aria-selected") == "true"


def test_a_cell_of_the_lens_selects_layer_and_position(page: Any, explorer_url: str) -> None:
    page.goto(address(explorer_url, "lens"))
    settled(page, "Layer 23, position 13")
    page.locator(".matrix canvas").click(position={"x": 120, "y": 60})
    settled(page, "Layer 28, position 0")
    assert (query(page)["l"], query(page)["pos"]) == ("28", "0")


def test_a_token_pill_selects_its_position_on_every_page(page: Any, explorer_url: str) -> None:
    page.goto(address(explorer_url, "prompt"))
    settled(page, PAGES["prompt"])
    page.get_by_role("listbox", name="Tokens of the prompt").get_by_role("option").nth(3).click()
    settled(page, "Next token after position 3")
    page.get_by_test_id("stTopNavLink").filter(has_text="Lens").click()
    settled(page, "Layer 23, position 3")


def test_prompt_b_flips_the_page(page: Any, explorer_url: str) -> None:
    page.goto(address(explorer_url, "attribution"))
    settled(page, "Strongest neurons")
    page.get_by_text("prefers “·Mary” to “·John” by +").wait_for()
    page.get_by_role("radio", name="B", exact=True).click()
    page.get_by_text("prefers “·Mary” to “·John” by −").wait_for()
    assert query(page)["p"] == "b"


def test_patching_runs_to_its_end_and_a_cell_is_a_link(page: Any, explorer_url: str) -> None:
    page.goto(address(explorer_url, "patching", k="z"))
    settled(page, PAGES["patching"])
    page.get_by_text("gradient estimate", exact=True).first.wait_for()
    page.get_by_role("button", name="Patch every cell").click()
    page.get_by_role("button", name="Cancel").wait_for()
    page.get_by_text("All 270 cells were patched.").wait_for()
    settled(page, PAGES["patching"])
    page.get_by_text("intervention", exact=True).first.wait_for()
    canvas = page.locator(".matrix canvas").first
    canvas.click(position={"x": 300, "y": 100})
    page.wait_for_timeout(1500)
    picked = query(page)
    assert (picked["l"], picked["h"]) != ("23", "3")
    settled(page, f"L{picked['l']}H{picked['h']} in prompt B")
    page.get_by_text("Every head in prompt B").click()
    settled(page, f"L{picked['l']}H{picked['h']} attends")
    assert query(page)["p"] == "b"


def test_patching_can_be_cancelled_and_gone_on_with(page: Any, explorer_url: str) -> None:
    page.goto(address(explorer_url, "patching", k="attn_out"))
    settled(page, PAGES["patching"])
    page.get_by_role("button", name="Patch every cell").click()
    page.get_by_text(re.compile(r"^[1-9]\d* of 420 cells patched")).wait_for()
    page.get_by_role("button", name="Cancel").click()
    page.get_by_text(re.compile(r"^Stopped: [1-9]\d* of 420 cells were patched")).wait_for()
    page.get_by_text("gradient estimate", exact=True).first.wait_for()
    page.get_by_role("button", name="Go on").click()
    page.get_by_text("All 420 cells were patched.").wait_for()


def test_the_attention_page_leads_to_the_page_of_its_head(page: Any, explorer_url: str) -> None:
    page.goto(address(explorer_url, "attention"))
    settled(page, "On the text")
    page.get_by_role("link", name="All about L23H3").click()
    settled(page, "L23H3, reading key/value head 1")
    settled(page, PAGES["head"])
    page.get_by_text("of 270").first.wait_for(state="attached")  # drawn on a canvas
    assert (query(page)["l"], query(page)["h"]) == ("23", "3")


def test_a_composition_partner_leads_to_its_own_page(page: Any, explorer_url: str) -> None:
    """To one that it reads, and from there to one that reads that."""
    page.goto(address(explorer_url, "head"))
    settled(page, PAGES["head"])
    here = 23
    for column, earlier in (("by its", True), ("into its", False)):
        grid = page.get_by_test_id("stDataFrame").filter(has_text=column)
        grid.scroll_into_view_if_needed()
        name = grid.get_by_text(re.compile(r"^L\d+H\d$")).first.text_content()
        layer, head = map(int, re.findall(r"\d+", name))
        assert (layer < here) == earlier
        # The first row's own box; the grid's scroller lies over what it draws.
        grid.locator("canvas").first.click(position={"x": 18, "y": 53}, force=True)
        settled(page, f"{name}, reading key/value head {head // 3}")
        settled(page, PAGES["head"])
        assert (query(page)["l"], query(page)["h"]) == (str(layer), str(head))
        here = layer


def test_a_hostile_prompt_is_text_everywhere(page: Any, explorer_url: str) -> None:
    hostile = "<img src=x onerror=alert(1)> $x$ :red[y] \u202e\u05e9\u05dc\u05d5\u05dd"
    page.goto(f"{explorer_url}/prompt?{urlencode({'q': hostile, 't': ' <b>'})}")
    page.get_by_role("listbox", name="Tokens of the prompt").wait_for()
    for name in ("Lens", "Attention", "Attribution"):
        page.get_by_test_id("stTopNavLink").filter(has_text=name).click()
        page.wait_for_timeout(3000)
        assert page.locator("img[src=x], .katex, b b").count() == 0


def test_a_long_prompt_is_cut_and_a_longer_one_refused(page: Any, explorer_url: str) -> None:
    page.goto(f"{explorer_url}/attention?{urlencode({'q': ' word' * 300})}")
    page.get_by_text("positions 236 to 299 are shown").wait_for()
    settled(page, "On the text")
    page.goto(f"{explorer_url}/attention?{urlencode({'q': ' a' * 9000})}")
    page.get_by_text("the model's context length").wait_for()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_screenshots(chromium: Any, explorer_url: str, tmp_path: Path, scheme: str) -> None:
    folder = Path(os.environ.get("PROBE_SCREENSHOTS", tmp_path))
    with watched(chromium, scheme=scheme, height=1500) as page:
        for name, heading in PAGES.items():
            page.goto(address(explorer_url, name))
            settled(page, heading)
            file = folder / f"{name or 'home'}-{scheme}.png"
            page.screenshot(path=str(file))
            assert file.stat().st_size > 20_000
            background = page.evaluate(
                "() => getComputedStyle(document.querySelector('[data-testid=stApp]'))"
                ".backgroundColor"
            )
            dark = sum(int(n) for n in background[4:-1].split(",")[:3]) < 150
            assert dark == (scheme == "dark")


def test_a_circuit_moves_with_its_size_and_its_nodes(page: Any, explorer_url: str) -> None:
    page.goto(address(explorer_url, "circuit", z="1"))
    settled(page, PAGES["circuit"])
    assert page.get_by_text("100.0%", exact=True).first.is_visible()
    page.get_by_role("button", name="Take it out").click()
    page.get_by_role("button", name="Put it back").wait_for()
    settled(page, PAGES["circuit"])
    assert query(page)["rm"]
    page.get_by_role("slider").press("ArrowLeft")
    page.wait_for_function("() => location.search.includes('z=0.5')")
    settled(page, PAGES["circuit"])
    page.get_by_role("button", name="Run every size").click()
    page.get_by_role("button", name="Cancel").click()
    page.get_by_role("button", name="Go on").wait_for()
    settled(page, PAGES["circuit"])
