"""A page with nothing to show yet: one sentence and one button that works."""

import streamlit as st

from apps import session
from apps.examples import EXAMPLES


def page(sentence: str) -> None:
    """Say what the page is for, and offer the first example."""
    with st.container(border=True, horizontal_alignment="center", gap="small"):
        st.space("small")
        st.markdown(f"**{sentence}**", width="content")
        st.caption("Write a prompt in the bar above, or", width="content")
        st.button(
            "Try “When Mary and John went to the store …”",
            key="empty-example",
            on_click=lambda: session.update(**EXAMPLES[0].changes()),
            type="primary",
        )
        st.space("small")
