"""Attribution: which parts of the model wrote the difference between target and distractor."""

import streamlit as st

from apps import context, empty, errors, panels, session
from apps.components.matrix import matrix
from apps.context import Context
from apps.views import attribution as views

NEURONS = 20
TABLE_HEIGHT = 420


def ask(here: Context, show: str, **options: int) -> panels.Asked:
    """The split of the logit difference, at the grain asked for."""
    return panels.ask(
        "direct_logit_attribution", here.state.model, here.choice, show=show, **options
    )


def layers(here: Context) -> None:
    """From the embedding to the whole, one step a layer's attention or MLP."""
    asked = ask(here, "layers")
    frame = asked.result.frame
    if panels.header(
        "From the embedding to the answer", asked, evidence="linear attribution", key="layers"
    ):
        panels.table(frame, asked.result, key="layers-rows")
        return
    st.text(views.verdict(here, frame))
    st.plotly_chart(
        views.waterfall(frame),
        key="layers-figure",
        alt="What each layer's attention and MLP add to the logit difference",
    )


def heads(here: Context) -> None:
    """Every head's direct effect; a click selects the head."""
    asked = ask(here, "heads")
    if panels.header("Every head", asked, evidence="linear attribution", key="heads"):
        panels.table(asked.result.frame, asked.result, key="heads-rows")
    else:
        matrix(
            views.heads(here, asked.result.frame),
            key="heads-grid",
            on_pick=lambda cell: session.update(head=cell.row, layer=cell.column),
        )


def strongest_heads(here: Context) -> None:
    """The native twin of the grid: heads by size, a selected row selects the head."""
    st.subheader("Strongest heads", anchor=False)
    frame = views.strongest_first(ask(here, "heads").result.frame)
    event = st.dataframe(
        frame,
        hide_index=True,
        column_order=["component", "layer", "head", "value"],
        on_select="rerun",
        selection_mode="single-row",
        key="strongest-heads",
        height=TABLE_HEIGHT,
    )
    for row in event.selection.rows:
        layer, head = int(frame["layer"].iloc[row]), int(frame["head"].iloc[row])
        if (here.state.layer, here.state.head) != (layer, head):
            session.update(layer=layer, head=head)
            st.rerun()
    st.page_link(
        "screens/attention.py",
        label=f"Look at the pattern of L{here.state.layer}H{here.state.head}",
        icon=":material/grid_on:",
        query_params=session.current().to_query(),
    )


def neurons(here: Context) -> None:
    """The neurons with the largest direct effect."""
    asked = ask(here, "neurons", neurons=NEURONS)
    panels.header(
        "Strongest neurons",
        asked,
        evidence="linear attribution",
        key="neurons",
        offer_table=False,
    )
    only = ["component", "layer", "neuron", "value"]
    panels.table(asked.result.frame, asked.result, key="neurons-rows", only=only)


here, _ = context.read()
if not here.tokens:
    empty.page("See which heads and layers wrote the answer")
elif not here.state.target:
    empty.page("Choose a target in the bar above: the answer whose authors are sought")
else:
    with errors.boxed():
        layers(here)
    with errors.boxed():
        heads(here)
    left, right = st.columns(2, gap="large")
    with left, errors.boxed():
        strongest_heads(here)
    with right, errors.boxed():
        neurons(here)
