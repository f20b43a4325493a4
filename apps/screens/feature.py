"""One feature: what it fires on, what it promotes, what it is near, and what it does here."""

import random
from typing import Any

import pandas as pd
import streamlit as st

import probe
from apps import context, dictionaries, errors, library, panels, session
from apps.components.colours import Limits, number, percent
from apps.components.passages import Passage, passages
from apps.components.tokens import Channel, Token, token_row, tokens_view
from apps.context import Context
from apps.views import features as views


def header(here: Context, index: Any, page: Any) -> None:
    """Which feature, its label, how often it fires, and the way to others."""
    last = len(index) - 1
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
        key = session.controlled("feature-number", page.id)
        st.number_input(
            "Feature", 0, last, key=key, width=130,
            on_change=lambda: session.update(feature=int(st.session_state[key])),
        )  # fmt: skip
        moves = {"Previous": (page.id - 1) % (last + 1), "Next": (page.id + 1) % (last + 1),
                 "Random": random.randint(0, last)}  # fmt: skip
        for word, to in moves.items():
            st.button(
                word, key=f"feature-{word.lower()}", on_click=session.update,
                kwargs={"feature": to}, shortcut={"Previous": "P", "Next": "N"}.get(word),
            )  # fmt: skip
        label = session.controlled("feature-label", page.label)
        st.text_input(
            "Label", key=label, placeholder="what it stands for", width="stretch",
            on_change=lambda: index.label(page.id, st.session_state[label] or ""),
            help="Kept in the index, and found on the Features page",
        )  # fmt: skip
    st.subheader(f"Feature {page.id}", anchor=False)
    st.text(
        f"fires on {percent(page.density)} of {index.about['tokens']} tokens, at most "
        f"{number(page.max)}; one of {len(index)} (dead: {index.n_dead()})"
    )


def beside(page: Any) -> None:
    """What it promotes, and which features are like it."""
    columns = st.columns(2)
    for column, title, rows in zip(
        columns, ("Promotes", "Suppresses"), (page.promoted, page.suppressed), strict=True
    ):
        with column:
            st.caption(title)
            small(views.pairs(rows, "logit"), key=f"feature-{title.lower()}")
    st.caption("Fires on: share of its whole activation")
    small(views.pairs(page.fires_on, "share"), key="feature-fires-on")
    related("Decoder rows like its own (cosine)", page.neighbours, "neighbours")
    related("Fires together with (Pearson's r)", page.correlated, "correlated")
    if page.encoder_cosine is not None:
        st.text(f"cosine of what it reads with what it writes: {number(page.encoder_cosine)}")


def small(frame: pd.DataFrame, *, key: str) -> None:
    """A short table."""
    st.dataframe(panels.readable(frame), hide_index=True, key=key, height="auto")


def related(title: str, rows: Any, key: str) -> None:
    """Features that are like it; a selected row opens that feature."""
    st.caption(title)
    if not rows:
        st.text("none")
        return
    frame = pd.DataFrame(rows, columns=["feature", "value"])
    at = f"feature-{key}"
    st.dataframe(
        frame, hide_index=True, selection_mode="single-row", key=at, height="auto",
        on_select=lambda: dictionaries.pick(at, frame["feature"].tolist()),
    )  # fmt: skip


def distribution(here: Context, page: Any, mine: float | None) -> None:
    """How strongly it fires where it does, with the reader's prompt marked."""
    with st.container(horizontal=True, vertical_alignment="center"):
        st.caption("Activations where it fires, 50 bins")
        log = st.toggle("log counts", key="feature-log")
    st.plotly_chart(
        views.histogram(page.histogram, 0.0, page.max, x="activation", mark=mine, log=log),
        key="feature-histogram",
        alt=f"Histogram of the activations of feature {page.id}",
    )
    if mine:
        st.text(
            f"on this prompt at most {number(mine)} (the dotted line): above "
            f"{percent(page.percentile(mine))} of its activations"
        )
    with st.expander("What it adds to every token's logit"):
        if page.logits:
            low, high = page.logit_ends
            st.plotly_chart(
                views.histogram(page.logits, low, high, x="logit", mark=None, log=True),
                key="feature-logits",
                alt="Histogram of logits",
            )
        else:
            st.text("it does not write into the residual stream")


def examples(page: Any) -> None:
    """Where it fires in the text of the index."""
    with st.container(horizontal=True, vertical_alignment="bottom"):
        kind = st.segmented_control(
            "Examples", ["top", "equal_width", "equal_count"], default="top", required=True,
            format_func={"top": "Strongest", "equal_width": "Intervals of equal width",
                         "equal_count": "Intervals of equal count"}.__getitem__,
            key="feature-examples",
        )  # fmt: skip
        around = st.segmented_control(
            "Context", list(views.CONTEXTS), default="±16", required=True, key="feature-context"
        )
    size = views.CONTEXTS[around]
    if kind == "top":
        passages([passage(example, size) for example in page.top], page.max)
        return
    for interval in getattr(page, kind):
        st.caption(
            f"{number(interval.low)} to {number(interval.high)}: {percent(interval.share)} of "
            "where it fires"
        )
        passages([passage(example, size) for example in interval.examples], page.max)


def passage(example: Any, around: int) -> Passage:
    """An example, cut to what is asked for."""
    first, end = views.window(example.tokens, example.pos, around)
    before = f"{number(example.value)}{f' ×{example.alike}' if example.alike > 1 else ''}"
    return Passage(
        before, example.tokens[first:end], example.activations[first:end], example.pos - first
    )


def own_text(here: Context, name: str, page: Any) -> None:
    """The feature on a text of the reader's."""
    text = st.text_area("Try a text", key="feature-text", height=68)
    if not text:
        return
    asked = panels.ask(
        "feature_activations", here.state.model, library.Question(text), dictionary=name,
        features=[page.id],
    )  # fmt: skip
    frame = asked.result.frame
    ends = Limits(0.0, page.max or 1.0)
    tips = [
        [f"position {pos}", f"activation {number(value)}"]
        for pos, value in zip(frame["pos"], frame["value"], strict=True)
    ]
    view = tokens_view(
        [Token(t) for t in frame["token"]], tips, int(frame["value"].idxmax()),
        colour=Channel(frame["value"].tolist(), "activation", ends),
        legend=f"activation, 0 to its largest in the index, {number(page.max)}",
    )  # fmt: skip
    token_row(view, key="feature-text-row", on_pick=lambda _: None)
    st.text(f"at most {number(float(frame['value'].max()))}")


def on_this_prompt(here: Context, name: str, page: Any) -> float | None:
    """Its largest activation on the prompt, leaving out positions the index leaves out."""
    if not here.tokens:
        return None
    asked = panels.ask(
        "feature_activations", here.state.model, here.question, dictionary=name, features=[page.id]
    )
    frame = asked.result.frame
    skip = int(dictionaries.index(here.state.model, name).about["skip_first"])
    counted = frame[frame["pos"] >= skip]["value"]
    return float(counted.max()) if len(counted) else None


def causal(here: Context, name: str, page: Any) -> None:
    """What the model does without it, measured."""
    if not (here.tokens and here.state.target):
        st.caption("With a prompt and a target, what ablating the feature does is measured here.")
        return
    if not st.toggle("Ablate it on this prompt", key="feature-ablate"):
        return
    asked = panels.ask(
        "feature_effects", here.state.model, here.choice, dictionary=name, features=[page.id]
    )
    table = panels.header("Without the feature", asked, evidence="intervention", key="effects")
    if table:
        panels.table(asked.result.frame, asked.result, key="effects-rows")
        return
    names = {"logit_diff": "logit difference", "loss": "loss", "kl": "KL from the whole run"}
    for row in asked.result.frame.itertuples():
        st.text(f"{names[row.measure]}: {number(row.value, 3, sign=True)} nats")


def draw(here: Context, name: str) -> None:
    """The page."""
    index = dictionaries.index(here.state.model, name)
    number_of = min(here.state.feature, len(index) - 1)
    page = index.feature(number_of)
    header(here, index, page)
    if page.dead:
        st.text("It fires nowhere in the text of the index.")
        if not st.toggle("Show it anyway", key="feature-anyway"):
            return
    left, right = st.columns([2, 3], gap="large")
    with left, errors.boxed():
        beside(page)
    with right:
        with errors.boxed():
            distribution(here, page, on_this_prompt(here, name, page))
        with errors.boxed():
            examples(page)
        with errors.boxed():
            own_text(here, name, page)
        with errors.boxed():
            causal(here, name, page)


here, _ = context.read()
with errors.boxed():
    name = dictionaries.choose(here)
    if not name:
        raise probe.DictionaryError(
            f"no dictionary comes with {here.state.model}",
            expected="the folder of a dictionary and its index.sqlite",
        )
    draw(here, name)
