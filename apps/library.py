"""The one door to `probe`: models and answers, each made once for all readers.

Models are shared by every session and their hooks are state, so calls to one model take turns.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
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
    return run(method, load(model), question, options)


def run(
    method: str, loaded: Loaded, question: Question | None, options: Mapping[str, Any]
) -> probe.Result:
    """Ask the model itself, when it is this caller's turn."""
    about: dict[str, Any] = {}
    if question is not None:
        alone = {"prompt": question.prompt}
        about = alone if question.alone else {"task": probe.Task.from_pairs([question.pair()])}
    with loaded.turn:
        return probe.run(method, model=loaded.model, **about, **options)


@st.cache_data(max_entries=ANSWERS_KEPT, show_spinner=False)
def ask_task(
    method: str, model: str, task: str, n: int, options: Mapping[str, Any]
) -> tuple[probe.Result, str]:
    """What the method found on a built-in task, and the code that makes it again."""
    loaded = load(model)
    with loaded.turn:
        result = probe.run(method, model=loaded.model, task=probe.load_task(task, n=n), **options)
    lines, _ = _preamble(model, None)
    call = _call(method, f", task=probe.load_task({task!r}, n={n})", options)
    return result, "\n".join([*lines, f"result = {call}", "result.summary()"])


def run_heard(
    method: str,
    loaded: Loaded,
    question: Question,
    options: Mapping[str, Any],
    report: Callable[[int, int, str], bool],
) -> probe.Result:
    """The same, telling ``report`` how far it is; False from it stops, and keeps what is done."""
    with probe.listening(report):
        return run(method, loaded, question, options)


def joined(results: Sequence[probe.Result], options: Mapping[str, Any]) -> probe.Result:
    """Results of one method on the same pair for different layers, as if asked together.

    Its record is the first one's, with the time of all and the layers of none: the options are
    those of the whole.
    """
    first = results[0]
    record = first.provenance.model_copy(
        update={
            "passed": dict(options),
            "wall_seconds": round(sum(r.provenance.wall_seconds for r in results), 3),
            "notes": list(dict.fromkeys(n for r in results for n in r.provenance.notes)),
        }
    )
    frame = pd.concat([r.frame for r in results]).sort_values("layer", kind="stable")
    return probe.Result(frame.reset_index(drop=True), first.columns, first.view, record)


def check_pair(model: str, question: Question) -> None:
    """Refuse prompts that are no pair, or answers of several tokens, before anything is run."""
    probe.Task.from_pairs([question.pair()]).encode(load(model).model)


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
    lines, about = _preamble(model, question)
    return "\n".join([*lines, f"result = {_call(method, about, options)}", "result.frame"])


def python_of_patching(
    model: str,
    question: Question,
    options: Mapping[str, Any],
    layers: list[int],
    *,
    estimated: bool,
) -> str:
    """The code of a map of which only these layers have been patched."""
    lines, about = _preamble(model, question)
    if estimated:
        lines.append(f"estimate = {_call('attribution_patching', about, options)}")
    lines.append(f"result = {_call('activation_patching', about, {**options, 'layers': layers})}")
    return "\n".join([*lines, "result.frame"])


def _preamble(model: str, question: Question | None) -> tuple[list[str], str]:
    """The lines before a call, and how the call names what it is about."""
    lines = ["import probe", "", f"model = probe.load_model({model!r})"]
    if question is None:
        return lines, ""
    if question.alone:
        return lines, f", prompt={question.prompt!r}"
    pair = "".join(f"\n    {name!r}: {text!r}," for name, text in question.pair().items())
    return [*lines, f"task = probe.Task.from_pairs([{{{pair}\n}}])"], ", task=task"


def _call(method: str, about: str, options: Mapping[str, Any]) -> str:
    given = "".join(f", {name}={value!r}" for name, value in options.items())
    return f"probe.run({method!r}, model=model{about}{given})"
