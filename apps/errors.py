"""Mistakes shown as a box that says what happened, what was expected and what to do.

The text of an error may quote a prompt, so it is never read as markdown.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import streamlit as st

from apps.components.glyphs import printable

_log = logging.getLogger(__name__)


@contextmanager
def boxed() -> Iterator[None]:
    """Run a part of a page; if it fails, show the box there and let the rest of the page live."""
    try:
        yield
    except Exception as error:
        show(error)


def show(error: Exception) -> None:
    """One box: what, expected, remedy. An error nobody foresaw also goes to the log, whole."""
    what = getattr(error, "what", None)
    if what is None:
        _log.exception("unforeseen error")
        box(
            f"{type(error).__name__}: {error}",
            expected="this is a mistake in Probe, not in what you did",
            remedy="the details are in the terminal that runs the Explorer; please report them",
        )
        return
    box(what, expected=getattr(error, "expected", ""), remedy=getattr(error, "remedy", ""))


def box(what: str, *, expected: str = "", remedy: str = "") -> None:
    """The box itself."""
    with st.container(border=True, gap="xsmall"):
        st.markdown(":red[:material/error: **This could not be done**]")
        st.text(printable(what))
        for label, text in (("Expected", expected), ("What to do", remedy)):
            if text:
                st.caption(label)
                st.text(printable(text))


def notes(warnings: list[str]) -> None:
    """Things the reader should know that stop nothing."""
    for warning in warnings:
        with st.container(horizontal=True, gap="xsmall", vertical_alignment="center"):
            st.markdown(":material/info:", width="content")
            st.text(printable(warning), width="stretch")
