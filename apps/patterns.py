"""Attention for pictures: every head as one small array, one head as a table."""

from typing import Any

import numpy as np
import pandas as pd
import streamlit as st
from numpy.typing import NDArray

from apps import library, panels, session
from apps.context import Context
from apps.views.grids import grid

WALLS_KEPT = 6


def choose_head(here: Context) -> None:
    """The native twin of a click on a head."""
    dims = here.model.dims
    for name, size in (("layer", dims.n_layers), ("head", dims.n_heads)):
        key = session.controlled(f"head-{name}", getattr(here.state, name))
        st.selectbox(
            name,
            range(size),
            key=key,
            on_change=lambda name=name, key=key: session.update(**{name: st.session_state[key]}),
            width=110,
        )


def wall(here: Context) -> NDArray[np.floating]:
    """``[layer, head, query, key]`` of the positions that pictures show.

    Recorded as tensors: as a table, the patterns of every head would not fit a long prompt.
    """
    with st.spinner("attention patterns …", show_time=True):
        return _wall(here.state.model, here.state.text, here.first, len(here.tokens))


@st.cache_data(max_entries=WALLS_KEPT, show_spinner=False)
def _wall(model: str, prompt: str, first: int, end: int) -> NDArray[np.float16]:
    loaded = library.load(model)
    seen = list(range(first, end))
    with loaded.turn:
        trace = loaded.model.trace(prompt, sites="pattern", positions=seen if first else None)
    layers = [trace["pattern", i][0, :, :, first:end] for i in range(loaded.model.dims.n_layers)]
    return np.stack([layer.float().cpu().numpy().astype(np.float16) for layer in layers])


def scores(here: Context) -> panels.Asked:
    """What every head does on repeated random tokens, with the code of the whole wall."""
    asked = panels.ask("head_scores", here.state.model, None)
    code = library.python_of_wall(here.state.model, here.state.text)
    return panels.Asked(asked.result, code)


def mean_scores(here: Context) -> pd.DataFrame:
    """A row a head, a column a score: means over the random sequences."""
    by = ["layer", "head", "score"]
    means = library.summary("head_scores", here.state.model, None, {}, by)
    return means.pivot(index=["layer", "head"], columns="score", values="value").reset_index()


def of_head(here: Context, method: str, **options: Any) -> panels.Asked:
    """One head's table."""
    at: dict[str, Any] = {"layers": [here.state.layer], "heads": [here.state.head]}
    if here.first:
        at["queries"] = list(range(here.first, len(here.tokens)))
    return panels.ask(method, here.state.model, here.question, **at, **options)


def square(here: Context, asked: panels.Asked) -> NDArray[np.floating]:
    """One head's table as ``[query, key]`` of the positions that pictures show."""
    seen = range(here.first, len(here.tokens))
    return grid(asked.result.frame, {"query": seen, "key": seen})
