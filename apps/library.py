"""The one door to `probe`: models and answers, each made once for all readers.

Models are shared by every session and their hooks are state, so calls to one model take turns.
"""

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
import streamlit as st

import probe

MODELS_KEPT = 2
ANSWERS_KEPT = 48


@dataclass(frozen=True)
class Loaded:
    """A model and the turn-taking of its callers."""

    model: Any
    turn: threading.Lock


@dataclass(frozen=True)
class Question:
    """What a method is asked about: a prompt, and where a method needs them the answers."""

    prompt: str
    corrupted: str | None = None
    answer: str | None = None
    wrong_answer: str | None = None

    def pair(self) -> dict[str, str]:
        """The fields of a prompt that are given."""
        fields = {
            "clean": self.prompt,
            "corrupted": self.corrupted,
            "answer": self.answer,
            "wrong_answer": self.wrong_answer,
        }
        return {name: text for name, text in fields.items() if text is not None}

    @property
    def alone(self) -> bool:
        """Whether the prompt is all there is."""
        return set(self.pair()) == {"clean"}


@st.cache_resource(max_entries=MODELS_KEPT, show_spinner=False)
def load(name: str) -> Loaded:
    """The model of that name."""
    return Loaded(probe.load_model(name), threading.Lock())


@st.cache_data(max_entries=MODELS_KEPT, show_spinner=False)
def checks(name: str) -> pd.DataFrame:
    """What the model was found to do when it was loaded, one row a check."""
    return probe.doctor(load(name).model)


@st.cache_data(max_entries=ANSWERS_KEPT, show_spinner=False)
def ask(
    method: str, model: str, question: Question | None, options: Mapping[str, Any]
) -> probe.Result:
    """What the method found; equal questions are answered from the cache.

    Args:
        method: Its name.
        model: The model's name.
        question: The prompt, or None for a method that asks the model alone.
        options: The method's own.
    """
    loaded = load(model)
    about: dict[str, Any] = {}
    if question is not None:
        alone = {"prompt": question.prompt}
        about = alone if question.alone else {"task": probe.Task.from_pairs([question.pair()])}
    with loaded.turn:
        return probe.run(method, model=loaded.model, **about, **options)


@st.cache_data(max_entries=ANSWERS_KEPT, show_spinner=False)
def summary(
    method: str, model: str, question: Question | None, options: Mapping[str, Any], by: list[str]
) -> pd.DataFrame:
    """Means over examples with their intervals, as the result itself sums up."""
    return ask(method, model, question, options).summary(by)


def python_of_wall(model: str, prompt: str) -> str:
    """The code that records every pattern and scores every head."""
    return "\n".join(
        [
            "import probe",
            "",
            f"model = probe.load_model({model!r})",
            f"trace = model.trace({prompt!r}, sites='pattern')",
            "trace['pattern', 0]  # layer 0: prompt, head, query, key",
            "probe.run('head_scores', model=model).summary(['layer', 'head', 'score'])",
        ]
    )


def python(method: str, model: str, question: Question | None, options: Mapping[str, Any]) -> str:
    """The code that makes the same result again, wherever probe is installed."""
    lines = ["import probe", "", f"model = probe.load_model({model!r})"]
    about = ""
    if question is not None and question.alone:
        about = f", prompt={question.prompt!r}"
    elif question is not None:
        pair = "".join(f"\n    {name!r}: {text!r}," for name, text in question.pair().items())
        lines.append(f"task = probe.Task.from_pairs([{{{pair}\n}}])")
        about = ", task=task"
    given = "".join(f", {name}={value!r}" for name, value in options.items())
    lines.append(f"result = probe.run({method!r}, model=model{about}{given})")
    return "\n".join([*lines, "result.frame"])
