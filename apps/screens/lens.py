"""Lens: layer by layer, what the model would say next if it stopped there."""

from typing import Any

import streamlit as st

from apps import context, empty, errors, panels, session
from apps.components.matrix import Cell, matrix
from apps.context import Context
from apps.views import lens as views

TOP = 10


def choose_quantity() -> views.Quantity:
    """The number the colours show."""
    state = session.current()
    offered = views.offered(state.target)
    key = session.controlled("lens-show", state.show if state.show in offered else "probability")
    st.segmented_control(
        "Colour shows",
        list(offered),
        format_func=lambda show: offered[show].title,
        key=key,
        required=True,
        on_change=lambda: session.update(show=st.session_state[key]),
    )
    return offered[st.session_state[key]]


def options(here: Context, quantity: views.Quantity) -> dict[str, Any]:
    """What the method is asked, leaving out what it does by itself."""
    asked: dict[str, Any] = {"show": quantity.show}
    if quantity.of_target:
        asked["target"] = [here.state.target]
    if here.first:
        asked["positions"] = list(range(here.first, len(here.tokens)))
    return asked


def pick(here: Context, layers: list[int], cell: Cell) -> None:
    """A cell is a layer and a position."""
    context.select(here.first + cell.column, layer=layers[cell.row])


def grid(here: Context) -> None:
    """All layers and positions."""
    quantity = choose_quantity()
    asked = panels.ask("logit_lens", here.state.model, here.question, **options(here, quantity))
    table = panels.header("Logit lens", asked, evidence="readout", key="lens")
    errors.notes(here.cut_note())
    frame = asked.result.frame
    if table:
        panels.table(frame, asked.result, key="lens-rows")
        return
    layers = views.layers_shown(frame)
    matrix(
        views.lens(here, frame, quantity),
        key="lens-grid",
        on_pick=lambda cell: pick(here, layers, cell),
    )


def trajectories(here: Context) -> None:
    """Target against distractor, layer by layer, at the selected position."""
    tokens = list(dict.fromkeys(t for t in (here.state.target, here.state.distractor) if t))
    if not tokens:
        st.caption("Choose a target to follow it through the layers.")
        return
    asked = panels.ask(
        "logit_lens",
        here.state.model,
        here.question,
        show="log_prob",
        target=tokens,
        positions=[here.position],
    )
    title = f"Through the layers, at position {here.position}"
    if panels.header(title, asked, evidence="readout", key="lens-lines"):
        panels.table(asked.result.frame, asked.result, key="lens-line-rows")
    else:
        st.plotly_chart(
            views.through_layers(here, asked.result.frame),
            key="lens-lines-figure",
            alt="Log-probability of target and distractor after each layer",
        )


def selected_cell(here: Context) -> None:
    """The likeliest tokens at the selected layer and position."""
    layer, position = here.state.layer, here.position
    asked = panels.ask(
        "logit_lens",
        here.state.model,
        here.question,
        show="top",
        top=TOP,
        layers=[layer],
        positions=[position],
    )
    title = f"Layer {layer}, position {position}"
    panels.header(title, asked, evidence="readout", key="lens-cell", offer_table=False)
    panels.ranking(asked.result.frame, token="prediction", share="value", key="lens-top")


here, _ = context.read()
if not here.tokens:
    empty.page("See at which layer the model makes up its mind")
else:
    with errors.boxed():
        grid(here)
    left, right = st.columns([3, 2], gap="large")
    with left, errors.boxed():
        trajectories(here)
    with right, errors.boxed():
        selected_cell(here)
