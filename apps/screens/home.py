"""Home: which model this is, whether it is sound, and questions that work at once."""

import streamlit as st

from apps import bar, errors, library, panels, session
from apps.components.glyphs import printable
from apps.examples import EXAMPLES, Example
from apps.pages import PAGES

IN_A_ROW = 5


def gallery() -> None:
    """One card an example; its button opens it on the Prompt page."""
    st.subheader("Begin with a question", anchor=False)
    for column, example in zip(st.columns(len(EXAMPLES)), EXAMPLES, strict=True):
        with column.container(border=True, height="stretch"):
            st.markdown(f"**{example.title}**")
            st.caption(example.about)
            st.space("stretch")
            st.text(f"{example.prompt} …{example.target} or{example.distractor}?")
            if st.button("Ask", key=f"open-{example.title}", width="stretch"):
                open_example(example)


def open_example(example: Example) -> None:
    """Ask it, and go where its tokens are."""
    session.update(**example.changes())
    st.switch_page("screens/prompt.py", query_params=session.current().to_query())


def card() -> None:
    """The model in numbers."""
    model = library.load(session.current().model).model
    dims, spec = model.dims, model.spec
    st.subheader("The model", anchor=False)
    with st.container(border=True):
        st.text(printable(f"{spec.name}: {spec.architecture or 'unknown architecture'}"))
        facts = {
            "parameters": f"{spec.n_params / 1e6:,.1f} M",
            "layers": dims.n_layers,
            "heads": dims.n_heads,
            "KV heads": dims.n_kv_heads,
            "d_model": dims.d_model,
            "d_mlp": dims.d_mlp,
            "vocabulary": f"{dims.d_vocab:,}",
            "context": f"{dims.n_ctx:,}",
            "dtype": spec.dtype,
            "device": spec.device,
        }
        for column, (name, value) in zip(st.columns(len(facts)), facts.items(), strict=True):
            column.caption(name)
            column.text(str(value))
        bos = "begin" if spec.bos else "do not begin"
        st.caption(
            f"Weights {spec.weight_hash}, used as they are. Prompts {bos} with a special token."
        )


def checks() -> None:
    """What the model's own checks at load found."""
    st.subheader("Checks at load", anchor=False)
    table = library.checks(session.current().model)
    failed = table.loc[~table["ok"].astype(bool), "name"].tolist()
    if failed:
        st.badge(f"{len(failed)} of {len(table)} failed", color="orange")
    else:
        st.badge(f"all {len(table)} passed", color="green")
    st.dataframe(panels.readable(table[["name", "value", "about"]]), hide_index=True, height=212)


def pages() -> None:
    """Where each question is answered."""
    st.subheader("Then look", anchor=False)
    query = session.current().to_query()
    shown = [page for page in PAGES if page.about]
    for first in range(0, len(shown), IN_A_ROW):
        row = shown[first : first + IN_A_ROW]
        for column, page in zip(st.columns(IN_A_ROW), row, strict=False):
            with column:
                st.page_link(page.path, label=page.title, icon=page.symbol, query_params=query)
                st.caption(page.about)


gallery()
pages()
if st.session_state.get(bar.MODEL_READY):
    left, right = st.columns([3, 2], gap="large")
    with left, errors.boxed():
        card()
    with right, errors.boxed():
        checks()
