"""Steer: add a direction to the model as it writes, see what changes and what it costs."""

import numpy as np
import streamlit as st

from apps import context, empty, errors, library, panels, session, vectors
from apps.components.colours import Limits
from apps.components.glyphs import printable, visible
from apps.components.tokens import Channel, Token, token_row, tokens_view
from apps.context import Context
from apps.vectors import Direction, Sampling

GOOD = "The film was wonderful\nThe food was excellent\nHer new song sounds lovely"
BAD = "The film was terrible\nThe food was awful\nHer new song sounds ugly"
SOURCES = {"texts": "Two sets of texts", "file": "Saved vector", "feature": "Dictionary feature"}
HOWS = {
    "mean_difference": "Mean difference",
    "principal_component": "Principal component",
    "probe": "Probe",
    "activation_addition": "Activation addition",
}
MOST = 12.0


def choose_direction(here: Context) -> Direction:
    """Where the direction comes from."""
    source = st.segmented_control(
        "Direction from",
        list(SOURCES),
        format_func=SOURCES.__getitem__,
        default="texts",
        required=True,
        key="steer-source",
    )
    if source == "texts":
        left, right = st.columns(2)
        good = left.text_area("Towards, one text a line", GOOD, key="steer-positive", height=110)
        bad = right.text_area("Away from", BAD, key="steer-negative", height=110)
        with st.container(horizontal=True):
            how = st.selectbox(
                "Found by", list(HOWS), format_func=HOWS.__getitem__, key="steer-how", width=230
            )
            layer = choose_layer(here)
        return Direction("texts", lines(good), lines(bad), how, layer)
    if source == "file":
        return Direction("file", path=st.text_input("File of the vector", key="steer-file"))
    with st.container(horizontal=True):
        path = st.text_input("Folder of the dictionary", key="steer-dictionary")
        feature = st.number_input("Feature", 0, None, 0, key="steer-feature", width=150)
    return Direction("feature", path=path, feature=int(feature))


def choose_layer(here: Context) -> int:
    """The layer, which every page shares."""
    key = session.controlled("steer-layer", here.state.layer)
    st.number_input(
        "Layer",
        0,
        here.model.dims.n_layers - 1,
        key=key,
        width=120,
        on_change=lambda: session.update(layer=int(st.session_state[key])),
    )
    return here.state.layer


def lines(text: str) -> tuple[str, ...]:
    """The texts of a box, one a line."""
    return tuple(line.strip() for line in printable(text).splitlines() if line.strip())


def choose_sampling() -> tuple[float, Sampling]:
    """How strongly, and how text is continued."""
    with st.container(horizontal=True, vertical_alignment="bottom"):
        strength = st.slider("Strength", -MOST, MOST, 2.0, 0.5, key="steer-strength", width=360)
        n = st.number_input("New tokens", 1, 100, 20, key="steer-n", width=120)
        heat = st.number_input("Temperature", 0.0, 2.0, 0.0, 0.1, key="steer-heat", width=130)
        seed = st.number_input("Seed", 0, None, 0, key="steer-seed", width=110)
    return float(strength), Sampling(int(n), float(heat), int(seed))


def side_by_side(
    here: Context, direction: Direction, strength: float, sampling: Sampling
) -> tuple[str, str]:
    """What is written without and with the direction."""
    with st.spinner("Writing twice …", show_time=True):
        base, steered = vectors.written(
            here.state.model, here.state.text, direction, strength, sampling
        )
    for column, title, text in zip(
        st.columns(2, gap="large", border=True),
        ("The model alone", f"With the direction, strength {strength:g}"),
        (base, steered),
        strict=True,
    ):
        with column:
            st.subheader(title, anchor=False)
            st.text(printable(text) or "∅")
    return base, steered


def strip(here: Context, direction: Direction, strength: float, text: str) -> None:
    """Token by token, how far the steered prediction is from the model's own."""
    whole = here.state.text + text
    result = vectors.cost(here.state.model, direction, [whole], [strength])
    code = f"{direction.code(here.state.model)}\nresult = probe.vector_cost(model, vector, "
    asked = panels.Asked(result, f"{code}[{whole!r}], strengths=[{strength}])\nresult.frame")
    title = "Where the prediction changes"
    if panels.header(title, asked, evidence="intervention", key="steer-strip"):
        panels.table(result.frame, result, key="steer-strip-rows")
        return
    values = result.frame["value"].to_numpy(float)
    tokens = [Token(str(token)) for token in result.frame["token"]]
    tips = [
        [f"{visible(token.text)}, position {pos}", f"KL {kl:.3f} nats"]
        for pos, (token, kl) in enumerate(zip(tokens, values, strict=True))
    ]
    ends = Limits(0.0, float(max(values.max(), 1e-3)))
    view = tokens_view(
        tokens,
        tips,
        min(here.position, len(tokens) - 1),
        colour=Channel(values.tolist(), "activation", ends),
        legend=f"KL of the next-token distributions, up to {ends.high:.2f} nats",
    )
    token_row(view, key="steer-tokens", on_pick=lambda pos: pick(here, pos))


def pick(here: Context, pos: int) -> None:
    """Select a token of the prompt; what was written after it is no position of other pages."""
    if pos < len(here.tokens):
        context.select(pos)


def meter(here: Context, direction: Direction, strength: float) -> None:
    """What the direction costs on text it has nothing to do with, by strength."""
    strengths = sorted({*vectors.STRENGTHS, strength})
    with st.spinner("Reading neutral text …", show_time=True):
        result = vectors.cost(here.state.model, direction, list(vectors.NEUTRAL), strengths)
    code = f"{direction.code(here.state.model)}\nresult = probe.vector_cost(model, vector, "
    asked = panels.Asked(
        result, f"{code}{list(vectors.NEUTRAL)!r}, strengths={strengths})\nresult.summary()"
    )
    table = panels.header(
        "What it costs on neutral text", asked, evidence="intervention", key="steer-cost"
    )
    now = result.frame[result.frame["strength"] == strength]
    alone, steered = (float(np.exp(now[name].mean())) for name in ("base_loss", "loss"))
    with st.container(horizontal=True):
        st.metric("KL, nats a token", f"{now['value'].mean():.3f}")
        st.metric("Perplexity", f"{steered:.1f}", f"{steered - alone:+.1f}", delta_color="inverse")
    if table:
        panels.table(result.summary(), result, key="steer-cost-rows")
    else:
        st.plotly_chart(
            result.plot(), key="steer-cost-figure", alt="KL on neutral text by strength"
        )


def save(here: Context, direction: Direction) -> None:
    """Keep the vector as a file."""
    with st.popover("Save the vector", type="tertiary"):
        path = st.text_input("File", "vector.safetensors", key="steer-save-path")
        if st.button("Save", key="steer-save"):
            written = vectors.find(library.load(here.state.model), direction).save(path)
            st.text(f"Saved: {written}")


def draw(here: Context) -> None:
    """The page, once there is a prompt."""
    direction = choose_direction(here)
    if direction.source != "texts" and not direction.path:
        st.caption("Name the file or folder above.")
        return
    strength, sampling = choose_sampling()
    _, steered = side_by_side(here, direction, strength, sampling)
    with errors.boxed():
        strip(here, direction, strength, steered)
    with errors.boxed():
        meter(here, direction, strength)
    with errors.boxed():
        save(here, direction)


here, _ = context.read()
if not here.tokens:
    empty.page("Push the model in a direction as it writes")
else:
    with errors.boxed():
        draw(here)
