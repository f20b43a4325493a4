"""Every page on the toy model: it loads, follows its native controls, and refuses kindly."""

import tomllib
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

pytestmark = pytest.mark.slow  # a minute or so: left to make test

EXPLORER = Path(__file__).parents[2] / "apps" / "explorer.py"
PAGES = (
    "home", "prompt", "lens", "attention", "head", "attribution", "patching", "circuit"
)  # fmt: skip
ASKED = {
    "v": "1",
    "m": "toy",
    "q": "When Mary and John went to the store, John gave a drink to",
    "b": "When Mary and John went to the store, Mary gave a drink to",
    "t": " Mary",
    "d": " John",
}
RIGHT_TO_LEFT = "שלום " * 2000
HOSTILE = {
    "html": "<script>alert(1)</script> <img src=x onerror=alert(1)>",
    "mathematics": "$x$ and $$y$$ cost",
    "markdown": ":red[x] **bold** `code` [a](http://b)",
    "control characters": "a\x00b\x07c\x1b[0m\u202e\u200b\ufeffd",
    "lone surrogate": "a\ud800b",
    "right to left": "שלום עולם",
    "new lines": "one\n\ntwo\tthree\r\nfour",
}


def opened(page: str, **query: str) -> AppTest:
    """The page, as a reader finds it who opens this link."""
    at = AppTest.from_file(str(EXPLORER), default_timeout=120)
    for name, value in query.items():
        at.query_params[name] = value
    at.run()
    at.switch_page(f"screens/{page}.py")
    for name, value in query.items():
        at.query_params[name] = value
    return at.run()


def texts(at: AppTest) -> str:
    """Everything said in plain text."""
    return "\n".join(element.value for element in at.text)


def sound(at: AppTest) -> AppTest:
    assert not at.exception, [e.value for e in at.exception]
    return at


@pytest.mark.parametrize("page", PAGES)
def test_a_page_loads_and_says_its_question(page: str) -> None:
    at = sound(opened(page, **ASKED))
    assert "What makes it say “·Mary” rather than “·John” after “·to”" in texts(at)
    assert "could not be done" not in markdown(at)
    assert len(at.subheader) >= 1


def markdown(at: AppTest) -> str:
    return "\n".join(element.value for element in at.markdown)


@pytest.mark.parametrize("page", PAGES[1:])
def test_a_page_without_a_prompt_offers_an_example_that_works(page: str) -> None:
    at = sound(opened(page, m="toy"))
    assert "No prompt yet." in texts(at)
    at.button(key="empty-example").click().run()
    assert "rather than “·John”" in texts(sound(at))


@pytest.mark.parametrize("page", PAGES)
def test_a_bad_link_opens_and_says_what_was_ignored(page: str) -> None:
    at = sound(opened(page, **{**ASKED, "v": "9", "l": "x", "h": "99", "pos": "700"}))
    said = texts(at)
    assert "this link is of version 9; read as version 1" in said
    assert "l=x is not a whole number from 0; ignored" in said
    assert "head 99 does not exist; heads go from 0 to 3, so 3 is shown" in said
    assert "position 700 does not exist" in said


def test_an_unknown_model_is_a_box_with_a_remedy() -> None:
    at = sound(opened("lens", **{**ASKED, "m": "toyy"}))
    assert "could not be done" in markdown(at)
    assert "toyy" in texts(at)
    assert "What to do" in [caption.value for caption in at.caption]
    home = sound(opened("home", m="toyy"))
    assert markdown(home).count("could not be done") == 1


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("prompt", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_prompt_is_shown_as_text(page: str, prompt: str) -> None:
    at = AppTest.from_file(str(EXPLORER), default_timeout=120)
    at.query_params["m"] = "toy"
    at.run()
    at.switch_page(f"screens/{page}.py").run()
    write(at, prompt)
    assert "could not be done" not in markdown(sound(at))
    for told in (*at.markdown, *at.caption, *at.subheader):
        assert "script" not in told.value
        assert ":red[x]" not in told.value


def write(at: AppTest, prompt: str) -> None:
    """Take over a prompt as from a link; AppTest itself could not send every text."""
    from apps.state import UrlState

    state, _ = UrlState.parse({"m": "toy", "q": prompt, "t": " Mary"})
    at.session_state["probe_state"] = state
    at.run()


@pytest.mark.parametrize("page", PAGES[1:])
def test_a_prompt_over_the_context_length_is_refused_with_its_length(page: str) -> None:
    at = sound(opened(page, m="toy", q=RIGHT_TO_LEFT))
    assert "could not be done" in markdown(at)
    said = texts(at)
    assert "the prompt has 18000 tokens" in said
    assert "at most 96, the model's context length" in said
    assert "keep the last part of the text" in said


@pytest.mark.parametrize("page", ["lens", "attention"])
def test_a_long_prompt_shows_its_last_positions_and_says_so(page: str) -> None:
    at = sound(opened(page, m="toy", q=" Mary" * 80))
    assert "the prompt has 80 tokens; positions 16 to 79 are shown" in texts(at)
    assert "could not be done" not in markdown(at)


def test_a_prompt_of_one_token_is_shown() -> None:
    for page in PAGES:
        at = sound(opened(page, m="toy", q=" Mary", t=" Mary"))
        assert "could not be done" not in markdown(at)


def test_an_answer_of_several_tokens_is_named_with_its_parts() -> None:
    at = sound(opened("attribution", **{**ASKED, "t": " Zanzibar"}))
    said = texts(at)
    assert "the answer ' Zanzibar' is" in said
    assert "an answer of one token" in said
    at = sound(opened("prompt", **{**ASKED, "t": " Zanzibar"}))
    assert "“·Zanzibar” is" in texts(at)


def test_the_native_twin_of_the_wall_moves_the_url() -> None:
    at = sound(opened("attention", **ASKED))
    at.selectbox(key="head-layer").select(1).run()
    at.selectbox(key="head-head").select(3).run()
    assert (at.query_params["l"], at.query_params["h"]) == ("1", "3")
    assert [s.value for s in at.subheader][1] == "L1H3 attends"


def test_the_position_is_selected_in_the_bar_and_kept_on_the_next_page() -> None:
    at = sound(opened("prompt", **ASKED))
    at.selectbox(key="bar-position").select(3).run()
    assert at.query_params["pos"] == "3"
    at.switch_page("screens/lens.py").run()
    assert "after “·John” (position 3 of" in texts(sound(at))


def test_prompt_b_flips_every_page() -> None:
    at = sound(opened("prompt", **{**ASKED, "b": "Mary and John", "p": "b"}))
    assert "(position 2 of 2)" in texts(at)


@pytest.mark.parametrize(
    ("page", "toggle"),
    [
        ("prompt", "tokens-table"),
        ("lens", "lens-table"),
        ("attention", "wall-table"),
        ("attention", "attends-table"),
        ("attribution", "layers-table"),
        ("attribution", "heads-table"),
    ],
)
def test_every_picture_has_a_table(page: str, toggle: str) -> None:
    at = sound(opened(page, **ASKED))
    before = len(at.dataframe)
    at.toggle(key=toggle).set_value(True).run()
    assert len(sound(at).dataframe) == before + 1


def test_the_code_on_a_panel_makes_the_same_numbers() -> None:
    at = sound(opened("attribution", **ASKED))
    code = next(c.value for c in at.code if "show='heads'" in c.value)
    names: dict[str, Any] = {}
    exec(code, names)
    at.toggle(key="heads-table").set_value(True).run()
    shown = at.dataframe[0].value
    assert shown["value"].tolist() == pytest.approx(names["result"].frame["value"].tolist())


def test_a_mistake_of_ours_is_a_box_and_not_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    at = sound(opened("lens", **ASKED))

    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a <b>mistake</b>")

    monkeypatch.setattr("apps.library.ask", broken)
    said = texts(sound(at.run()))
    assert "ZeroDivisionError: a <b>mistake</b>" in said
    assert "this is a mistake in Probe, not in what you did" in said


def test_nobody_else_on_the_network_can_look_in() -> None:
    settings = tomllib.loads((EXPLORER.parent / ".streamlit" / "config.toml").read_text("utf-8"))
    assert settings["server"]["address"] == "127.0.0.1"
    assert settings["browser"]["gatherUsageStats"] is False


def test_pages_import_only_the_public_list() -> None:
    root = EXPLORER.parent
    for file in root.rglob("*.py"):
        source = file.read_text("utf-8")
        for inner in ("from probe", "import probe.", "torch", "transformer_lens"):
            assert inner not in source, f"{file.name} reaches past the public list: {inner}"
