"""A view is a link: the state survives the trip through a URL, and no URL can break the app."""

from urllib.parse import parse_qs, urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apps.state import LONGEST_TEXT, UrlState

anything = st.text(st.characters(exclude_categories=()), max_size=60)
texts = st.text(max_size=60)
states = st.builds(
    UrlState,
    model=texts.filter(str.strip),
    prompt=texts,
    prompt_b=texts,
    target=texts,
    distractor=texts,
    position=st.none() | st.integers(0, 999_999),
    layer=st.integers(0, 999_999),
    head=st.integers(0, 999_999),
    show=texts,
    kind=texts,
    cells=texts,
    metric=texts,
    direction=texts,
    dictionary=texts,
    feature=st.integers(0, 999_999),
    ranking=texts,
    size=texts,
    added=texts,
    removed=texts,
)


@given(states)
def test_a_state_comes_back_from_its_query(state: UrlState) -> None:
    assert UrlState.parse(state.to_query()) == (state, [])


@given(states)
def test_a_state_comes_back_from_an_encoded_url(state: UrlState) -> None:
    encoded = urlencode(state.to_query())
    query = {k: v[-1] for k, v in parse_qs(encoded, keep_blank_values=True).items()}
    assert UrlState.parse(query) == (state, [])


@given(
    st.dictionaries(
        st.sampled_from(["v", "m", "q", "b", "t", "pos", "l", "h", "k", "c", "f", "zz"]), anything
    )
)
def test_no_query_breaks_it(query: dict[str, str]) -> None:
    state, _ = UrlState.parse(query)
    urlencode(state.to_query()).encode("ascii")
    assert UrlState.parse(state.to_query()) == (state, [])


@given(states, st.integers(1, 40), st.integers(1, 40), st.integers(1, 40))
def test_a_clamped_state_is_within_and_stays_there(
    state: UrlState, n_layers: int, n_heads: int, n_positions: int
) -> None:
    moved, _ = state.within(n_layers, n_heads, n_positions)
    assert (moved.layer < n_layers, moved.head < n_heads) == (True, True)
    assert 0 <= moved.position_in(n_positions) < n_positions
    assert moved.within(n_layers, n_heads, n_positions) == (moved, [])


def test_defaults_are_omitted() -> None:
    assert UrlState().to_query() == {}
    assert UrlState(target=" Mary").to_query() == {"v": "1", "t": " Mary"}


@pytest.mark.parametrize("text", ["x", "-1", "1.5", "", "９", "1" * 30, "\x00", "\ud800"])
def test_a_bad_number_is_named_and_ignored(text: str) -> None:
    state, warnings = UrlState.parse({"l": text})
    assert state == UrlState()
    assert warnings[0].startswith("l=")
    assert warnings[0].endswith("is not a whole number from 0; ignored")


def test_a_lone_surrogate_is_replaced_and_said() -> None:
    state, warnings = UrlState.parse({"q": "a\ud800b"})
    assert state.prompt == "a\ufffdb"
    assert warnings == ["the prompt held lone surrogates, which are no text; replaced by \ufffd"]


def test_nul_and_right_to_left_text_are_kept() -> None:
    text = "a\x00" + "שלום" * 2500
    assert UrlState.parse({"q": text}) == (UrlState(prompt=text), [])


def test_a_text_too_long_for_a_link_is_cut_and_said() -> None:
    state, warnings = UrlState.parse({"q": "x" * (LONGEST_TEXT + 1)})
    assert len(state.prompt) == LONGEST_TEXT
    assert warnings == ["the prompt has 20001 characters; the first 20000 are kept"]


def test_another_version_is_read_and_said() -> None:
    state, warnings = UrlState.parse({"v": "7", "q": "Hello"})
    assert state.prompt == "Hello"
    assert warnings == ["this link is of version 7; read as version 1"]


def test_what_the_model_lacks_is_clamped_and_said() -> None:
    state, warnings = UrlState(layer=40, head=9, position=20).within(30, 9, 5)
    assert (state.layer, state.head, state.position) == (29, 8, 4)
    assert warnings[0] == "layer 40 does not exist; layers go from 0 to 29, so 29 is shown"


def test_an_empty_model_is_the_default_model() -> None:
    assert UrlState.parse({"m": " "})[0].model == UrlState().model
