"""Features: find one on the prompt, by a token, by its label, or by how it behaves."""

import pandas as pd
import streamlit as st

import probe
from apps import context, dictionaries, empty, errors, panels
from apps.components.matrix import matrix
from apps.context import Context
from apps.views import features as views

SHOWN = 30
TABLE_HEIGHT = 420
ORDERS = {
    "percentile": "rank among its own activations",
    "of_max": "share of its largest activation",
    "value": "activation",
}
HOW = {
    "promoted": "promote the token",
    "suppressed": "suppress it",
    "fires_on": "fire on it",
}


def search(here: Context, name: str) -> None:
    """The one search that is chosen."""
    key = "features-search"
    st.session_state.setdefault(key, "prompt")
    st.segmented_control(
        "Find features",
        list(views.SEARCHES),
        format_func=views.SEARCHES.__getitem__,
        key=key,
        required=True,
        label_visibility="collapsed",
    )
    chosen = st.session_state[key]
    {"prompt": on_prompt, "token": by_token, "label": by_label, "statistics": by_statistics}[
        chosen
    ](here, name)


def on_prompt(here: Context, name: str) -> None:
    """Which fire on the prompt, where, and how unusual that is for them."""
    if not here.tokens:
        empty.page("Write a prompt to see which features fire on it")
        return
    skip = int(dictionaries.index(here.state.model, name).about["skip_first"])
    asked = panels.ask(
        "feature_activations", here.state.model, here.question, dictionary=name, top=SHOWN,
        skip_first=skip,
    )  # fmt: skip
    frame = asked.result.frame
    if panels.header("Features on the prompt", asked, evidence="observed", key="features-map"):
        panels.table(frame, asked.result, key="features-map-rows")
    else:
        errors.notes(here.cut_note())
        view, rows = views.heat_map(here, frame, here.state.feature)
        matrix(
            view,
            key="features-map",
            on_pick=lambda cell: context.select(here.first + cell.column, feature=rows[cell.row]),
        )
    with st.container(horizontal=True, vertical_alignment="bottom"):
        by = st.selectbox("Order by", list(ORDERS), format_func=ORDERS.__getitem__, width=290)
        dense = st.toggle("hide features that fire on more than 1 % of tokens", value=True)
    found = dictionaries.on_prompt(
        here.state.model, name, here.state.text, by, 0.01 if dense else 1.0
    )
    listed(found, key="features-on-prompt")


def by_token(here: Context, name: str) -> None:
    """Features for which a token is among the ten strongest."""
    with st.container(horizontal=True, vertical_alignment="bottom"):
        how = st.selectbox("Features that", list(HOW), format_func=HOW.__getitem__, width=220)
        token = st.text_input("Token", key="features-token", placeholder="Mary", width=220)
    if not token:
        st.caption("Write a word: tokens that are it are found with and without a space before.")
        return
    listed(dictionaries.index(here.state.model, name).by_token(token, how), key="features-of-token")
    st.caption(
        "Promoted and suppressed: logits added by the direct path, in logits for a unit of "
        "activation before the final norm's denominator. Fires on: share of its whole activation."
    )


def by_label(here: Context, name: str) -> None:
    """Features whose label holds the words."""
    text = st.text_input("Words of the label", key="features-words", placeholder="names of people")
    found = dictionaries.index(here.state.model, name).by_label(text)
    if found.empty:
        st.caption("No label holds these words. Labels are written on a feature's own page.")
    else:
        listed(found, key="features-of-label")


def by_statistics(here: Context, name: str) -> None:
    """Every feature by density and largest activation."""
    index = dictionaries.index(here.state.model, name)
    frame = index.features()
    st.text(f"{len(index)} features, {index.n_dead()} of them fire nowhere in the index's text")
    st.plotly_chart(
        views.scatter(frame), key="features-scatter", alt="Density and largest activation"
    )
    listed(frame.sort_values("density", ascending=False), key="features-all", whole=True)


def listed(frame: pd.DataFrame, *, key: str, whole: bool = False) -> None:
    """Rows of features; a selected one becomes the feature of every page."""
    features = frame["feature"].tolist()
    st.dataframe(
        panels.readable(frame if whole else views.found_table(frame)),
        hide_index=True,
        on_select=lambda: dictionaries.pick(key, features),
        selection_mode="single-row",
        key=key,
        height=TABLE_HEIGHT if len(frame) > 10 else "auto",
    )


here, _ = context.read()
with errors.boxed():
    with st.container(horizontal=True, vertical_alignment="bottom"):
        name = dictionaries.choose(here)
        if name:
            st.page_link(
                "screens/feature.py",
                label=f"Open feature {here.state.feature}",
                icon=":material/adjust:",
                query_params=here.state.to_query(),
            )
    if name:
        about = dictionaries.index(here.state.model, name)
        st.subheader("Features of the dictionary", anchor=False)
        st.text(repr(about))
        search(here, name)
    else:
        raise probe.DictionaryError(
            f"no dictionary comes with {here.state.model}",
            expected="the folder of a dictionary and its index.sqlite",
            remedy="probe.index_features(model, sae, corpus, out=folder / 'index.sqlite')",
        )
