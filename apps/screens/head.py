"""Head: one attention head, by what it does, what its weights say, and what is lost without it."""

from typing import Any

import pandas as pd
import streamlit as st

import probe
from apps import context, empty, errors, head_facts, panels, patterns, session
from apps.components.head_wall import Head
from apps.components.matrix import matrix
from apps.context import Context
from apps.views import attention as attention_views
from apps.views.figures import line_figure

CIRCUITS = {
    "ov": "What attending to a token promotes (OV)",
    "qk": "What a token would attend to (QK)",
}
ROW = 36  # pixels of a table's row


def title(here: Context) -> str:
    """The head by name, and which keys and values it reads."""
    head, group = Head(here.state.layer, here.state.head), here.model.dims.heads_per_kv
    shared = f", reading key/value head {here.state.head // group}" if group > 1 else ""
    return f"{head}{shared}"


def scores(here: Context) -> None:
    """How it stands among all heads."""
    asked = patterns.scores(here)
    panels.header("Scores", asked, evidence="observed", key="head-scores", offer_table=False)
    found = head_facts.ranks(here)
    st.dataframe(found, hide_index=True, key="head-ranks")
    copying = head_facts.copying_of(here).result.frame
    own = copying[
        (copying["layer"] == here.state.layer) & (copying["head"] == here.state.head)
    ].iloc[0]
    st.caption(
        "On repeated random tokens; copying by the eigenvalues of OV between tokens, "
        f"where random heads lie from {own['low']:.2f} to {own['high']:.2f}."
    )


def pattern(here: Context) -> None:
    """Where it looks in this prompt."""
    asked = patterns.of_head(here, "attention_patterns")
    errors.notes(here.cut_note())
    if panels.header("On this prompt", asked, evidence="observed", key="head-pattern"):
        panels.table(asked.result.frame, asked.result, key="head-pattern-rows")
    else:
        style = attention_views.attention_map(attention_views.Look())
        matrix(
            attention_views.one_head(here, patterns.square(here, asked), style),
            key="head-pattern-map",
            on_pick=lambda cell: context.select(here.first + cell.row),
        )
    st.page_link(
        "screens/attention.py",
        label="Every head",
        icon=":material/grid_on:",
        query_params=here.state.to_query(),
    )


def in_tokens(here: Context, circuit: str) -> None:
    """One circuit, for the tokens of the prompt."""
    asked = head_facts.tokens_of(here, circuit)
    if asked is None:
        st.caption("None of the prompt's tokens can be written down alone.")
        return
    panels.header(
        CIRCUITS[circuit], asked, evidence="readout", key=f"head-{circuit}", offer_table=False
    )
    shown = head_facts.partners_in_line(asked.result.frame)
    st.dataframe(shown, hide_index=True, key=f"head-{circuit}-rows", height=360)


def partners(here: Context) -> None:
    """Whom its weights fit; a selected row goes to that head."""
    asked = head_facts.composition_of(here)
    panels.header(
        "Composition", asked, evidence="readout", key="head-composition", offer_table=False
    )
    for earlier, column in zip((True, False), st.columns(2, gap="large"), strict=True):
        with column:
            st.caption("Reads what these write" if earlier else "Is read by these")
            choose(here, head_facts.partners(here, asked.result.frame, earlier=earlier), earlier)
    low, high = asked.result.frame[["low", "high"]].iloc[0] if len(asked.result.frame) else (0, 0)
    st.caption(
        "Norm of the product over the product of the norms, less its mean for random matrices "
        f"(which lie from {low:.3f} to {high:.3f} before that). A candidate, not yet an effect."
    )


def choose(here: Context, found: pd.DataFrame, earlier: bool) -> None:
    """Heads in a table; a selected row becomes the head the page is about."""
    if found.empty:
        st.caption("No layer comes before." if earlier else "No layer comes after.")
        return
    place = f"{here.state.layer}.{here.state.head}"
    event: Any = st.dataframe(
        found,
        hide_index=True,
        on_select="rerun",
        selection_mode="single-row",
        column_order=list(found.columns[:4]),
        key=f"head-partners-{earlier}-{place}",
        height=ROW * (len(found) + 1),
    )
    for row in event.selection.rows:
        session.update(layer=int(found["layer"].iloc[row]), head=int(found["number"].iloc[row]))
        st.rerun(scope="fragment")


def rotary(here: Context) -> None:
    """Which rotary pairs its queries and the keys it reads use."""
    asked = head_facts.rotary_of(here)
    frame = asked.result.frame
    key = "head-rotary"
    if panels.header("Rotary frequencies", asked, evidence="observed", key=key):
        panels.table(frame, asked.result, key=f"{key}-rows")
        return
    lines = head_facts.shares(here, frame)
    even = 1 / frame["pair"].nunique()
    figure = line_figure(lines, x="pair, fastest first", y="share of length", mark=None)
    figure.add_hline(y=even, line={"width": 1, "dash": "dot"})
    st.plotly_chart(figure, key=f"{key}-figure", config={"displayModeBar": False})
    waves = frame["wavelength"]
    st.caption(
        f"Dotted: all pairs alike. Wavelengths from {waves.min():.1f} to {waves.max():,.0f} tokens."
    )


def without_it(here: Context) -> None:
    """What a task loses when the head's output is taken away."""
    names = list(probe.tasks())
    with st.container(horizontal=True, vertical_alignment="bottom"):
        task = st.selectbox("Task", names, index=names.index("ioi"), key="head-task", width=220)
    asked = head_facts.ablated(here, task)
    panels.header(
        "Without it", asked, evidence="intervention", key="head-ablation", offer_table=False
    )
    st.dataframe(head_facts.lost(asked.result), hide_index=True, key="head-ablation-rows")
    clean = float(asked.result.frame["clean"].mean())
    st.caption(
        f"Change of the logit difference in nats, mean over {head_facts.PROMPTS} prompts with its "
        f"95 % interval; with the head it is {clean:.2f}. Negative: the answer needs the head."
    )


@st.fragment
def body() -> None:
    """All of the page: another head runs this again, and not the bar above."""
    here, _ = context.read()
    with st.container(horizontal=True, vertical_alignment="bottom"):
        patterns.choose_head(here)
        st.subheader(title(here), anchor=False)
    left, right = st.columns([2, 3], gap="large")
    with left, errors.boxed():
        scores(here)
    with right, errors.boxed():
        pattern(here)
    for circuit, column in zip(CIRCUITS, st.columns(2, gap="large"), strict=True):
        with column, errors.boxed():
            in_tokens(here, circuit)
    with errors.boxed():
        partners(here)
    left, right = st.columns(2, gap="large")
    with left, errors.boxed():
        rotary(here)
    with right, errors.boxed():
        without_it(here)


if not context.read()[0].tokens:
    empty.page("See what one head does")
else:
    body()
