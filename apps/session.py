"""The one state of a session, in step with the URL.

Streamlit empties the query when the reader changes page, and widgets forget values that are
not drawn; so the state lives in the session, every page writes it to the URL, and the URL is
read only when somebody other than this session has changed it (a new tab, Back, a pasted link).
"""

import time
from dataclasses import dataclass, replace
from typing import Any

import streamlit as st

from apps.state import UrlState

_STATE, _WRITTEN, _WARNINGS = "probe_state", "probe_written", "probe_warnings"

_IN_FLIGHT = 1.0
"""Seconds during which a browser may still send the query from before our last change."""


@dataclass(frozen=True)
class _Written:
    """The query this session wrote last, the one before it, and when."""

    query: dict[str, str]
    before: dict[str, str] | None
    at: float

    def explains(self, query: dict[str, str]) -> bool:
        """Whether nobody else has changed the address."""
        late = query == self.before and time.monotonic() - self.at < _IN_FLIGHT
        return not query or query == self.query or late


def current() -> UrlState:
    """What the reader is looking at."""
    return st.session_state.get(_STATE, UrlState())


def update(**changes: Any) -> None:
    """Change the selection; the URL follows at once, so a fragment need not run the page."""
    st.session_state[_STATE] = replace(current(), **changes)
    write_url()


def read_url() -> list[str]:
    """Take over a query this session did not write; what could not be read, in words."""
    query = st.query_params.to_dict()
    written: _Written | None = st.session_state.get(_WRITTEN)
    if _STATE not in st.session_state or not (written and written.explains(query)):
        state, warnings = UrlState.parse(query)
        st.session_state[_STATE] = state
        st.session_state[_WARNINGS] = warnings
    write_url()
    return st.session_state.get(_WARNINGS, [])


def write_url() -> None:
    """Make the address bar a link to this view."""
    query = current().to_query()
    last: _Written | None = st.session_state.get(_WRITTEN)
    if last is None or last.query != query:
        st.session_state[_WRITTEN] = _Written(query, last and last.query, time.monotonic())
    if st.query_params.to_dict() != query:
        st.query_params.from_dict(query)


def controlled(key: str, value: Any) -> str:
    """Give a widget the state's value before it is drawn; returns its key.

    Every selection can be changed from several places (a canvas, its native twin, the URL), so
    no widget owns its value.
    """
    if st.session_state.get(key) != value:
        st.session_state[key] = value
    return key
