"""The door to vectors: found once for all readers, and what they do to text."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import streamlit as st

import probe
from apps import jobs, library

NEUTRAL = (
    "Water boils at one hundred degrees at sea level and at a lower temperature on a mountain.",
    "The train to the north leaves the central station at noon and stops at every village.",
)
"""Text that no direction of interest has anything to do with: what cost is measured on."""
STRENGTHS = (-8.0, -4.0, -2.0, -1.0, 0.0, 1.0, 2.0, 4.0, 8.0)
RANDOMS = 2


@dataclass(frozen=True)
class Direction:
    """How a direction is had.

    Attributes:
        source: ``texts``, ``file`` or ``feature``.
        positive: Texts with the property.
        negative: Texts without it.
        how: Way to a direction between them.
        layer: Where it is read and added.
        path: A saved vector, or the folder of a dictionary.
        feature: Of the dictionary.
    """

    source: str
    positive: tuple[str, ...] = ()
    negative: tuple[str, ...] = ()
    how: str = "mean_difference"
    layer: int = 0
    path: str = ""
    feature: int = 0

    def code(self, model: str) -> str:
        """The lines that make it again."""
        lines = ["import probe", "", f"model = probe.load_model({model!r})"]
        made = {
            "texts": f"probe.steering_vector(model, {list(self.positive)!r}, "
            f"{list(self.negative)!r}, layer={self.layer}, how={self.how!r})",
            "file": f"probe.load_vector({self.path!r})",
            "feature": f"probe.feature_vector(model, probe.load_dictionary({self.path!r}), "
            f"{self.feature})",
        }[self.source]
        return "\n".join([*lines, f"vector = {made}"])


def find(loaded: library.Loaded, direction: Direction) -> probe.VectorResult:
    """The vector; raises a ProbeError for texts, files and features that give none."""
    with loaded.turn:
        if direction.source == "file":
            vector = probe.load_vector(direction.path)
        elif direction.source == "feature":
            dictionary = probe.load_dictionary(direction.path)
            vector = probe.feature_vector(loaded.model, dictionary, direction.feature)
        else:
            how: Any = direction.how
            vector = probe.steering_vector(
                loaded.model, direction.positive, direction.negative, layer=direction.layer, how=how
            )
    vector.check(loaded.model)
    return vector


@dataclass(frozen=True)
class Sampling:
    """How text is continued."""

    n: int
    temperature: float
    seed: int


@st.cache_data(max_entries=library.ANSWERS_KEPT, show_spinner=False)
def written(
    model: str, prompt: str, direction: Direction, strength: float, sampling: Sampling
) -> tuple[str, str]:
    """The model's continuation alone and with the vector, from the same seed."""
    loaded = library.load(model)
    vector = find(loaded, direction)
    how = {
        "max_new_tokens": sampling.n,
        "temperature": sampling.temperature,
        "seed": sampling.seed,
    }
    with loaded.turn:
        base = loaded.model.generate(prompt, **how)
        if strength == 0 and vector.rule == "add":
            return base.text, base.text
        steered = vector.at(strength=strength).apply(loaded.model).generate(prompt, **how)
    return base.text, steered.text


@st.cache_data(max_entries=library.ANSWERS_KEPT, show_spinner=False)
def cost(
    model: str, direction: Direction, texts: Sequence[str], strengths: Sequence[float]
) -> probe.Result:
    """What the vector changes in these texts, token by token."""
    loaded = library.load(model)
    vector = find(loaded, direction)
    with loaded.turn:
        return probe.vector_cost(loaded.model, vector, texts, strengths=strengths)


@dataclass(frozen=True)
class Wanted:
    """A vector of an in-context task.

    Attributes:
        model: The model's name.
        task: A built-in task's name, or empty for pairs of one's own.
        pairs: One's own pairs.
        kind: ``task_vector`` or ``function_vector``.
        shots: Demonstrations a prompt.
        n: Prompts it is made of.
        least: The share of them the model must get right.
    """

    model: str
    task: str
    pairs: tuple[tuple[str, str], ...]
    kind: str
    shots: int
    n: int
    least: float

    @property
    def code(self) -> str:
        """The lines that make it again; they also name the job."""
        task = (
            f"probe.icl_task({self.task!r})"
            if self.task
            else f"probe.PairTask.of({list(self.pairs)!r})"
        )
        options = f"shots={self.shots}, n={self.n}, least={self.least}"
        return "\n".join(
            [
                "import probe",
                "",
                f"model = probe.load_model({self.model!r})",
                f"task = {task}",
                f"vector = probe.{self.kind}(model, task, {options})",
                f"result = probe.evaluate_vector(model, vector, task, randoms={RANDOMS})",
                "result.summary()",
            ]
        )

    def pair_task(self) -> probe.PairTask:
        """The pairs, parted."""
        return probe.icl_task(self.task) if self.task else probe.PairTask.of(self.pairs)


def job_of(wanted: Wanted) -> jobs.Job | None:
    """The job, if it was ever begun."""
    return jobs.manager().get(wanted.code)


def begin(wanted: Wanted) -> None:
    """Find the vector and judge it, in the background."""
    loaded = library.load(wanted.model)
    jobs.manager().submit(wanted.code, lambda job: _build(job, loaded, wanted))


def _build(job: jobs.Job, loaded: library.Loaded, wanted: Wanted) -> bool:
    """First the vector, then its accuracy beside controls; each step can be the last."""
    task = wanted.pair_task()
    make = {"task_vector": probe.task_vector, "function_vector": probe.function_vector}
    with probe.listening(lambda *_: None), loaded.turn:
        options: dict[str, Any] = {"shots": wanted.shots, "n": wanted.n, "least": wanted.least}
        if wanted.kind == "function_vector":
            dims = loaded.model.dims
            options["n_heads"] = min(10, dims.n_layers * dims.n_heads)
        vector = make[wanted.kind](loaded.model, task, **options)
        job.found[:] = [vector]
        job.share = 0.7
    if job.stopping:
        return False
    with probe.listening(lambda *_: None), loaded.turn:
        job.found.append(probe.evaluate_vector(loaded.model, vector, task, randoms=RANDOMS))
    job.share = 1.0
    return True
