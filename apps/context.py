"""What every page is about: the model, the tokens of the prompt, the question, the selection."""

from dataclasses import dataclass, replace
from typing import Any

import streamlit as st

from apps import library, session
from apps.components.glyphs import numbered
from apps.components.tokens import Token
from apps.state import UrlState

SHOWN = 64
"""Positions a picture shows; of a longer prompt the last ones."""


@dataclass(frozen=True)
class Context:
    """The state with the model at hand.

    Attributes:
        state: The selection, inside this model and prompt.
        model: The loaded model.
        ids: Token ids of the prompt; empty without a prompt.
        tokens: The same tokens as text.
    """

    state: UrlState
    model: Any
    ids: list[int]
    tokens: list[Token]

    @property
    def position(self) -> int:
        """The selected position."""
        return self.state.position_in(len(self.tokens))

    @property
    def first(self) -> int:
        """The first position pictures show."""
        return max(0, len(self.tokens) - SHOWN)

    @property
    def shown(self) -> list[Token]:
        """The tokens pictures show."""
        return self.tokens[self.first :]

    @property
    def labels(self) -> list[str]:
        """Position and token, for each token pictures show."""
        return numbered([token.text for token in self.shown], self.first)

    @property
    def question(self) -> library.Question:
        """The prompt alone."""
        return library.Question(self.state.text)

    @property
    def choice(self) -> library.Question:
        """The prompt with the two tokens between which it decides, as far as they are given."""
        return library.Question(
            self.state.text,
            answer=self.state.target or None,
            wrong_answer=self.state.distractor or None,
        )

    @property
    def pair(self) -> library.Question:
        """Prompt A as the clean run, prompt B as the corrupted one, and the two tokens."""
        return replace(self.choice, prompt=self.state.prompt, corrupted=self.state.prompt_b)

    def cut_note(self) -> list[str]:
        """What is not shown of a long prompt."""
        if not self.first:
            return []
        return [
            f"the prompt has {len(self.tokens)} tokens; positions {self.first} to "
            f"{len(self.tokens) - 1} are shown"
        ]


def read() -> tuple[Context, list[str]]:
    """The context of this run and what had to be moved into range; raises a ProbeError."""
    return _about(session.current())


def of_side(here: Context, side: str) -> Context:
    """The same selection in the other prompt, or in this one."""
    return _about(replace(here.state, side=side))[0]


def _about(state: UrlState) -> tuple[Context, list[str]]:
    loaded = library.load(state.model)
    ids = tokenise(state.model, state.text) if state.text else []
    tokenizer = loaded.model.tokenizer
    texts = tokenizer.strings(ids)
    tokens = [Token(t, tokenizer.is_special(i)) for t, i in zip(texts, ids, strict=True)]
    dims = loaded.model.dims
    inside, warnings = state.within(dims.n_layers, dims.n_heads, len(tokens))
    return Context(inside, loaded.model, ids, tokens), warnings


@st.cache_data(max_entries=library.ANSWERS_KEPT, show_spinner=False)
def tokenise(model: str, prompt: str) -> list[int]:
    """Token ids of a prompt; refuses an empty one and one beyond the context length."""
    loaded = library.load(model).model
    return loaded.tokenizer.prompt(prompt, loaded.dims.n_ctx)


def select(position: int, **more: Any) -> None:
    """Select a position; the last one is kept as such, so it follows a changed prompt."""
    last = len(read()[0].tokens) - 1
    session.update(position=None if position == last else position, **more)
