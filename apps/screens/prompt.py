"""Prompt: how the text is cut, what the model expects next, and the two tokens in question."""

import streamlit as st

from apps import context, empty, errors, panels, session
from apps.components.tokens import token_row
from apps.context import Context
from apps.views import prompt as views

TOP = 12


def tokens(here: Context) -> None:
    """The prompt as the model receives it, and how well it expected each token."""
    asked = panels.ask("next_token", here.state.model, here.question, show="prompt")
    count = f"{len(here.tokens)} token{'s' if len(here.tokens) != 1 else ''}"
    if panels.header(count, asked, evidence="observed", key="tokens"):
        panels.table(asked.result.frame, asked.result, key="tokens-rows")
    else:
        token_row(views.pills(here, asked.result.frame), key="pills", on_pick=context.select)


def choice(here: Context) -> None:
    """The two tokens between which the other pages ask the model to decide."""
    st.subheader("Target and distractor", anchor=False)
    tokenizer = here.model.tokenizer
    for name, text in (("Target", here.state.target), ("Distractor", here.state.distractor)):
        fine, words = views.verdict(tokenizer, text)
        with st.container(horizontal=True, vertical_alignment="center", gap="small"):
            st.badge(name, color="gray" if not text else "green" if fine else "orange")
            st.text(words, width="stretch")
    swap = st.button("Swap them", disabled=not (here.state.target or here.state.distractor))
    if swap:
        session.update(target=here.state.distractor, distractor=here.state.target)
        st.rerun()


def ask_next(here: Context) -> tuple[panels.Asked, str]:
    """The likeliest tokens after the selected position, and the column that names them.

    At the last position they are the model's answer; before it, the lens at the last layer, which
    equals what the model answered there.
    """
    if here.position == len(here.tokens) - 1:
        asked = panels.ask("next_token", here.state.model, here.question, top=TOP)
        return asked, "token"
    last = here.model.dims.n_layers - 1
    options = {"show": "top", "top": TOP, "layers": [last], "positions": [here.position]}
    return panels.ask("logit_lens", here.state.model, here.question, **options), "prediction"


def expectations(here: Context) -> None:
    """What the model expects after the selected position; a row becomes target or distractor."""
    asked, column = ask_next(here)
    title = f"Next token after position {here.position}"
    panels.header(title, asked, evidence="observed", key="next", offer_table=False)
    token = panels.ranking(asked.result.frame, token=column, share="value", key="next-rows")
    with st.container(horizontal=True):
        for field in ("target", "distractor"):
            st.button(
                f"Make it the {field}",
                key=f"make-{field}",
                disabled=token is None,
                on_click=session.update,
                kwargs={field: token},
            )


here, _ = context.read()
if not here.tokens:
    empty.page("See how a prompt is cut into tokens, and what the model expects next")
else:
    with errors.boxed():
        tokens(here)
    left, right = st.columns([3, 2], gap="large")
    with left, errors.boxed():
        expectations(here)
    with right, errors.boxed():
        choice(here)
