"""The bar above every page: model, prompt, the two tokens in question, the selected position."""

import streamlit as st

import probe
from apps import context, errors, library, session
from apps.components.glyphs import numbered, printable, visible

MODEL_READY = "model_ready"
"""Where the session remembers whether the bar could load the model."""

_WIDTHS = [1.5, 4.2, 1.2, 1.2, 1.6, 1.1]


def draw() -> bool:
    """The widgets of the bar, each writing the state; returns whether pages have what they need."""
    state = session.current()
    with st.container(key="context-bar", gap="xsmall"):
        model, prompt, target, distractor, position, more = st.columns(_WIDTHS, gap="small")
        with model:
            _model(state.model)
        with prompt:
            _text("Prompt", "prompt", "Write or paste a prompt …", area=True)
        with target:
            _text("Target", "target", "␣Mary", help=_SPACE)
        with distractor:
            _text("Distractor", "distractor", "␣John", help=_SPACE)
        with position:
            slot = st.container()
        more.space("xsmall")
        with more, st.popover("Prompt B", width="stretch", help=_PROMPT_B):
            _text("Prompt B", "prompt_b", "As many tokens as the prompt", area=True)
        with more:
            _side(state.prompt_b)
        with errors.boxed():
            with st.spinner(f"Loading {printable(state.model)} …", show_time=True):
                st.session_state[MODEL_READY] = False
                library.load(state.model)
                st.session_state[MODEL_READY] = True
            here, moved = context.read()
            with slot:
                _position(here)
            st.text(question_line(here))
            errors.notes(moved)
            return True
    return False


_SPACE = "One token. Most words begin with a space: it is part of the token."
_PROMPT_B = "A second prompt with the deciding word changed. A and B below flip every page."


def _model(name: str) -> None:
    names = list(dict.fromkeys([*probe.models(), name]))

    def change() -> None:
        session.update(model=st.session_state["bar-model"] or name)

    st.selectbox(
        "Model",
        names,
        key=session.controlled("bar-model", name),
        on_change=change,
        accept_new_options=True,
        help="A name, a local folder, a .gguf file, or a hub id",
    )


def _side(prompt_b: str) -> None:
    """Flip every page between the two prompts."""
    key = session.controlled("bar-side", session.current().side if prompt_b else "a")
    st.segmented_control(
        "Shown",
        ["a", "b"],
        format_func={"a": "A", "b": "B"}.__getitem__,
        key=key,
        required=True,
        disabled=not prompt_b,
        label_visibility="collapsed",
        on_change=lambda: session.update(side=st.session_state[key]),
        width="stretch",
    )


def _text(label: str, field: str, hint: str, *, area: bool = False, help: str = "") -> None:
    key = session.controlled(f"bar-{field}", getattr(session.current(), field))

    def change() -> None:
        text = printable(st.session_state[key] or "")
        session.update(**{field: text}, **({"position": None} if field == "prompt" else {}))

    if area:
        st.text_area(label, key=key, on_change=change, placeholder=hint, height=68)
    else:
        st.text_input(label, key=key, on_change=change, placeholder=hint, help=help)


def _position(here: context.Context) -> None:
    labels = numbered([token.text for token in here.tokens])

    def change() -> None:
        chosen = st.session_state["bar-position"]
        session.update(position=None if chosen == len(labels) - 1 else chosen)

    st.selectbox(
        "Position",
        range(len(labels)),
        format_func=lambda i: labels[i],
        key=session.controlled("bar-position", here.position if labels else None),
        on_change=change,
        disabled=not labels,
        placeholder="no prompt",
    )


def question_line(here: context.Context) -> str:
    """What the pages answer, in one sentence.

    >>> from apps.components.tokens import Token
    >>> from apps.state import UrlState
    >>> state = UrlState(prompt="x", target=" a", distractor=" b")
    >>> question_line(context.Context(state, None, [1], [Token(" x")]))
    'What makes it say “·a” rather than “·b” after “·x” (position 0 of 0)?'
    """
    if not here.tokens:
        return "No prompt yet."
    where = f"“{visible(here.tokens[here.position].text)}”"
    place = f"(position {here.position} of {len(here.tokens) - 1})"
    target, distractor = here.state.target, here.state.distractor
    if not target:
        return f"What does it predict after {where} {place}?"
    other = f" rather than “{visible(distractor)}”" if distractor else ""
    return f"What makes it say “{visible(target)}”{other} after {where} {place}?"
