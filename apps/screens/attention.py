"""Attention: where every head looks, and for one head what it moves from there."""

import pandas as pd
import streamlit as st

from apps import context, empty, errors, panels, patterns, session
from apps.components.attention_text import attention_text, text_view
from apps.components.head_wall import Head, head_wall
from apps.components.matrix import matrix
from apps.context import Context
from apps.views import attention as views

_DIRECTIONS: dict[str, str] = {"sent": "attends to", "received": "is attended to from"}


def lock(head: Head) -> None:
    """Select a head; every page follows."""
    session.update(layer=head.layer, head=head.head)


def look() -> views.Look:
    """How patterns are drawn, as the reader likes it."""
    hide = st.toggle(
        "hide first position",
        key="look-hide",
        help="Most heads rest on the first token when they have nothing to fetch",
    )
    faint = st.toggle(
        "faint stronger", value=True, key="look-faint", help="Square root of attention as colour"
    )
    return views.Look(hide_first=hide, faint=faint)


def wall(here: Context, appearance: views.Look) -> None:
    """All heads at once, each named with what it does on repeated random tokens."""
    scores = patterns.scores(here)
    means = patterns.mean_scores(here)
    table = panels.header("Every head", scores, evidence="observed", key="wall")
    errors.notes(here.cut_note())
    if table:
        score_table(means)
        return
    view = views.wall(here, patterns.wall(here), means, appearance)
    head_wall(view, key="wall-view", on_pick=lock)
    st.caption("Scores in the tooltip: mean attention on repeated random tokens, 0 to 1.")


def score_table(means: pd.DataFrame) -> None:
    """The wall as a table that can be sorted; a selected row locks its head."""
    event = st.dataframe(
        means,
        hide_index=True,
        on_select="rerun",
        selection_mode="single-row",
        key="wall-rows",
        height=420,
    )
    for row in event.selection.rows:
        head = Head(int(means["layer"].iloc[row]), int(means["head"].iloc[row]))
        state = session.current()
        if (state.layer, state.head) != (head.layer, head.head):
            lock(head)
            st.rerun(scope="fragment")


def detail(here: Context, appearance: views.Look) -> None:
    """The locked head: where it looks, and how much it moves from there."""
    head = Head(here.state.layer, here.state.head)
    left, right = st.columns(2, gap="large")
    with left, errors.boxed():
        asked = patterns.of_head(here, "attention_patterns")
        one_map(here, asked, f"{head} attends", views.attention_map(appearance))
    with right, errors.boxed():
        asked = patterns.of_head(here, "attention_contribution", measure="share")
        one_map(here, asked, f"{head} moves", views.contribution_map(appearance))


def one_map(here: Context, asked: panels.Asked, title: str, style: views.Map) -> None:
    """One head's map, query by key."""
    if panels.header(title, asked, evidence="observed", key=style.name):
        panels.table(asked.result.frame, asked.result, key=f"{style.name}-rows")
        return
    matrix(
        views.one_head(here, patterns.square(here, asked), style),
        key=f"{style.name}-map",
        on_pick=lambda cell: context.select(here.first + cell.row),
    )


def on_text(here: Context, appearance: views.Look) -> None:
    """The pattern on the words themselves."""
    with st.container(horizontal=True, vertical_alignment="center"):
        st.subheader("On the text", anchor=False, width="content")
        direction = st.segmented_control(
            "Direction",
            list(_DIRECTIONS),
            format_func=_DIRECTIONS.__getitem__,
            default="sent",
            required=True,
            key="text-direction",
            label_visibility="collapsed",
        )
    values = patterns.square(here, patterns.of_head(here, "attention_patterns"))
    view = text_view(
        values,
        here.shown,
        here.position,
        first=here.first,
        gamma=appearance.gamma,
        direction="received" if direction == "received" else "sent",
        causal=here.model.dims.causal,
    )
    attention_text(view, key="text-view", on_pick=context.select)


@st.fragment
def body() -> None:
    """All of the page: locking a head runs this again, and not the bar above."""
    here, _ = context.read()
    with st.container(horizontal=True, vertical_alignment="bottom"):
        patterns.choose_head(here)
        st.space("stretch")
        appearance = look()
    with errors.boxed():
        wall(here, appearance)
    detail(here, appearance)
    st.page_link(
        "screens/head.py",
        label=f"All about {Head(here.state.layer, here.state.head)}",
        icon=":material/center_focus_strong:",
        query_params=here.state.to_query(),
    )
    with errors.boxed():
        on_text(here, appearance)


if not context.read()[0].tokens:
    empty.page("See where every head looks")
else:
    body()
