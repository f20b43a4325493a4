"""Dictionaries and their indexes: which there are, and one of each for all readers."""

import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st

import probe
from apps import library, session
from apps.components.glyphs import printable
from apps.context import Context
from apps.examples import EXAMPLES

INDEXES_KEPT = 4
_TOYS = ["toy.0", "toy.1"]


def offered(model: str) -> list[str]:
    """Those made for the model, of its residual stream first; for a random model random ones."""
    if model.startswith("toy"):
        return _TOYS
    made = [name for name in probe.shipped_dictionaries() if name.startswith(f"{model}-")]
    return sorted(made, key=lambda name: "-resid-" not in name)


def choose(here: Context) -> str:
    """Whose features are shown; empty where there is none."""
    names = offered(here.state.model)
    name = here.state.dictionary or (names[0] if names else "")
    key = session.controlled("features-dictionary", name or None)

    def change() -> None:
        session.update(dictionary=printable(st.session_state[key] or ""), feature=0)

    st.selectbox(
        "Dictionary",
        list(dict.fromkeys([*names, *([name] if name else [])])),
        key=key,
        on_change=change,
        accept_new_options=True,
        placeholder="A folder in SAELens' format with its index",
        help="A name, or a folder that holds a dictionary and its index.sqlite",
        width=300,
    )
    return name


@st.cache_resource(max_entries=INDEXES_KEPT, show_spinner=False)
def index(model: str, name: str) -> Any:
    """The feature index of a dictionary; a random one is read over the examples' prompts."""
    if name not in _TOYS:
        return probe.FeatureIndex(name)
    loaded = library.load(model)
    out = Path(tempfile.mkdtemp(prefix="probe-toy-")) / "index.sqlite"
    texts = [text for example in EXAMPLES for text in (example.prompt, example.prompt_b)]
    with loaded.turn:
        return probe.index_features(loaded.model, name, texts, out=out, n_pos=32)


def on_prompt(model: str, name: str, prompt: str, by: str, densest: float) -> pd.DataFrame:
    """Features of the index that fire on a prompt, in that order."""
    loaded, features = library.load(model), index(model, name)
    with loaded.turn:
        return features.by_prompt(loaded.model, name, prompt, by=by, densest=densest)


def pick(key: str, features: list[int]) -> None:
    """Make the feature of the row that was selected in a table the feature of every page."""
    for row in st.session_state[key].selection.rows:
        session.update(feature=features[row])
