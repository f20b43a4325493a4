"""Patching: which activations carry the difference between two prompts, estimated and measured."""

from typing import Any

import streamlit as st

from apps import context, empty, errors, library, panels, patterns, session, sweep
from apps.components.head_wall import Head
from apps.components.matrix import Cell, matrix
from apps.context import Context
from apps.jobs import Job
from apps.state import UrlState
from apps.views import attention as attention_views
from apps.views import patching as views

TABLE_HEIGHT = 480


def controls(here: Context) -> views.Sweep:
    """What is patched into what, and what is measured."""
    chosen = views.Sweep.read(here)
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
        choose("Activation", "kind", chosen.kind, views.offered_kinds(here), width=290)
        choose("A cell is", "cells", chosen.by, views.offered_cells(chosen.kind), width=190)
        choose("Direction", "direction", chosen.direction, views.DIRECTIONS, width=270)
        choose("Measured", "metric", chosen.metric, views.offered_metrics(here), width=210)
        st.space("stretch")
        patterns.choose_head(here)
    return chosen


def choose(label: str, field: str, value: str, offered: dict[str, str], *, width: int) -> None:
    """One choice that is part of the link."""
    key = session.controlled(f"patching-{field}", value)
    st.selectbox(
        label,
        list(offered),
        format_func=lambda name: offered.get(name, name),
        key=key,
        on_change=lambda: session.update(**{field: st.session_state[key]}),
        width=width,
    )


def pick(here: Context, chosen: views.Sweep, cell: Cell) -> None:
    """Select a cell; every page follows."""
    place: dict[str, Any] = chosen.cell(here, cell)
    if "pos" in place:
        context.select(here.first + place.pop("pos"), **place)
    else:
        session.update(**place)


def progress(request: sweep.Request, job: Job | None, n_exact: int, n_cells: int) -> None:
    """How far it is, and the one thing to do about it."""
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        if job is None:
            sweep.button("Patch every cell", request, first=True)
            st.caption(f"{n_cells} cells, each measured by a run of its own; later layers first")
        elif job.active:
            st.progress(job.share, text=f"{n_exact} of {n_cells} cells patched")
            st.button(
                "Cancel",
                key="patch-cancel",
                icon=":material/stop:",
                on_click=job.stop,
                disabled=job.stopping,
            )
        elif job.status == "finished":
            st.caption(f"All {n_exact} cells were patched.")
        else:
            sweep.button("Go on", request, first=True)
            st.caption(f"Stopped: {n_exact} of {n_cells} cells were patched, and are kept.")
    if job is not None and isinstance(job.error, Exception):
        errors.show(job.error)


def heat_map(
    here: Context, chosen: views.Sweep, request: sweep.Request, seen: UrlState, watched: bool
) -> None:
    """The map as it is now.

    Args:
        here: What the page is about.
        chosen: What is patched.
        request: The same, as asked.
        seen: The state the page was drawn for; after a click the page is drawn again.
        watched: Whether this is drawn again and again until the job is over.
    """
    job = sweep.job_of(request)
    found = sweep.find(request, list(job.found) if job else [])
    frames = [None if r is None else r.frame for r in (found.estimate, found.exact)]
    cells = views.numbers(here, chosen, *frames)
    progress(request, job, cells.n_exact, cells.best.size)
    if found.refusal:
        errors.notes([f"There is no estimate: {found.refusal}"])
    if found.shown is not None:
        complete = found.estimate is None or cells.n_exact == cells.best.size
        asked = panels.Asked(found.shown, found.code)
        evidence = "intervention" if complete else "gradient estimate"
        title = views.KINDS[chosen.kind].capitalize()
        if panels.header(title, asked, evidence=evidence, key="patching"):
            rows(here, chosen, views.table(chosen, *frames), found.shown)
        else:
            draw(here, chosen, cells)
    over = watched and not (job is not None and job.active)
    if over or session.current() != seen:
        st.rerun()


def draw(here: Context, chosen: views.Sweep, cells: views.Numbers) -> None:
    """The map on its canvas."""
    tokens = [token.text for token in here.tokens]
    errors.notes(here.cut_note())
    matrix(
        views.matrix_of(here, chosen, cells, tokens),
        key="patching-map",
        on_pick=lambda cell: pick(here, chosen, cell),
    )
    if cells.n_exact < cells.best.size:
        st.caption("Small squares are estimates, full ones were patched.")


def rows(here: Context, chosen: views.Sweep, frame: Any, result: Any) -> None:
    """The map as a table that can be sorted; a selected row selects its cell."""
    event = st.dataframe(
        panels.readable(frame),
        hide_index=True,
        column_config=panels.explained(result, estimate=views.ESTIMATE),
        on_select="rerun",
        selection_mode="single-row",
        key="patching-rows",
        height=TABLE_HEIGHT,
    )
    for row in event.selection.rows:
        place = {name: int(frame[name].iloc[row]) for name in chosen.place(here)}
        if place != chosen.place(here):
            pick(here, chosen, views.at(here, chosen, place))


def both_patterns(here: Context) -> None:
    """Where the selected head looks in either prompt."""
    for side, column in zip("ab", st.columns(2, gap="large"), strict=True):
        with column, errors.boxed():
            pattern(context.of_side(here, side), side)


def pattern(there: Context, side: str) -> None:
    """Where the selected head looks in one prompt."""
    head = Head(there.state.layer, there.state.head)
    asked = patterns.of_head(there, "attention_patterns")
    title = f"{head} in prompt {side.upper()}"
    style = attention_views.attention_map(attention_views.Look())
    if panels.header(title, asked, evidence="observed", key=f"pattern-{side}"):
        panels.table(asked.result.frame, asked.result, key=f"pattern-{side}-rows")
    else:
        matrix(
            attention_views.one_head(there, patterns.square(there, asked), style),
            key=f"pattern-{side}-map",
            on_pick=lambda cell: context.select(there.first + cell.row),
        )
    st.page_link(
        "screens/attention.py",
        label=f"Every head in prompt {side.upper()}",
        icon=":material/grid_on:",
        query_params=there.state.to_query(),
    )


here, _ = context.read()
if not (here.state.prompt and here.state.prompt_b):
    empty.page("Write two prompts, A and B, to see what carries the difference between them")
elif not here.state.target:
    empty.page("Choose a target in the bar above: the answer that prompt A calls for")
else:
    with errors.boxed():
        library.check_pair(here.state.model, here.pair)
        chosen = controls(here)
        request = sweep.Request(
            here.state.model, here.pair, chosen.options(here), here.model.dims.n_layers
        )
        job = sweep.job_of(request)
        seen, job = session.current(), sweep.job_of(request)
        panels.watched(job, heat_map, here, chosen, request, seen)
        both_patterns(here)
