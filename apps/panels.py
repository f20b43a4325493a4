"""What surrounds every picture: its title, the kind of evidence, its table, code and origin."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd
import streamlit as st

import probe
from apps import errors, library
from apps.components.glyphs import printable, visible
from apps.jobs import Job

LOOK_AGAIN = 0.3  # seconds

Evidence = Literal["observed", "linear attribution", "readout", "gradient estimate", "intervention"]

_MEANING = {
    "observed": "Recorded from the model as it ran. What is correlated need not be a cause.",
    "readout": "Read from a state inside the model through its own final norm and unembedding.",
    "linear attribution": "An exact split of the logit difference with the final norm held fixed; "
    "it does not say what would change under intervention.",
    "gradient estimate": "What patching would do, to first order, from one gradient. Cells that "
    "matter have to be patched to be sure.",
    "intervention": "Measured by running the model with this one activation replaced.",
}
_COLOURS: dict[str, Any] = {
    "observed": "gray",
    "readout": "orange",
    "linear attribution": "blue",
    "gradient estimate": "violet",
    "intervention": "green",
}


@dataclass(frozen=True)
class Asked:
    """A result and the call that made it."""

    result: probe.Result
    code: str


def ask(method: str, model: str, question: library.Question | None, **options: Any) -> Asked:
    """Ask a method, with a word to the reader while it works."""
    with st.spinner(f"{method.replace('_', ' ')} …", show_time=True):
        result = library.ask(method, model, question, options)
    return Asked(result, library.python(method, model, question, options))


def header(
    title: str, asked: Asked, *, evidence: Evidence, key: str, offer_table: bool = True
) -> bool:
    """The line above a picture; returns whether to show the table instead."""
    table = False
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.subheader(title, anchor=False, width="content")
        st.badge(evidence, color=_COLOURS[evidence], help=_MEANING[evidence])
        st.space("stretch")
        if offer_table:
            table = st.toggle("as table", key=f"{key}-table", width="content")
        with st.popover("Copy Python", type="tertiary"):
            st.code(printable(asked.code), language="python", wrap_lines=True)
        with st.popover("Provenance", type="tertiary"):
            _provenance(asked.result)
    errors.notes(asked.result.provenance.notes)
    return table


def _provenance(result: probe.Result) -> None:
    st.caption("How these numbers came to be")
    st.json(printable(result.provenance.model_dump_json()), expanded=1)


def table(
    frame: pd.DataFrame,
    result: probe.Result,
    *,
    key: str,
    only: Sequence[str] | None = None,
) -> None:
    """The numbers themselves, each column explained; also the way for a screen reader."""
    st.dataframe(
        readable(frame),
        hide_index=True,
        column_config=explained(result),
        column_order=only,
        key=key,
    )


def explained(result: probe.Result, **more: str) -> dict[str, Any]:
    """What each column means, on its head."""
    meanings = {**result.columns, **more}
    return {str(name): st.column_config.Column(help=about) for name, about in meanings.items()}


def readable(frame: pd.DataFrame) -> pd.DataFrame:
    """A copy whose text can be sent to the browser."""
    texts = [name for name in frame if not pd.api.types.is_numeric_dtype(frame[name])]
    return frame.assign(**{str(name): frame[name].map(_said) for name in texts})


def _said(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else printable(str(value))


def ranking(frame: pd.DataFrame, *, token: str, share: str, key: str) -> str | None:
    """Likeliest tokens first, each with its bar; returns the token whose row is selected."""
    shown = pd.DataFrame({"token": frame[token].map(visible), "probability": frame[share]})
    event = st.dataframe(
        shown,
        hide_index=True,
        column_config={
            "token": st.column_config.TextColumn("token"),
            "probability": st.column_config.ProgressColumn(
                "probability", format="percent", min_value=0.0, max_value=1.0
            ),
        },
        on_select="rerun",
        selection_mode="single-row",
        key=key,
    )
    chosen = event.selection.rows
    return str(frame[token].iloc[chosen[0]]) if chosen else None


def watched(job: Job | None, draw: Callable[..., None], *what: Any) -> None:
    """Draw what a job has found so far: again and again while it is active, else once.

    Both in the same place of the page, a fragment's container and a plain one, so that what was
    drawn before is drawn over, never left beside.

    ``draw`` is called with ``what`` and whether the job was active. When it then no longer is,
    ``draw`` must run the whole page again.
    """
    if job is not None and job.active:
        st.fragment(draw, run_every=LOOK_AGAIN)(*what, True)
    else:
        with st.container():
            draw(*what, False)
