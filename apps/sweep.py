"""Patching in the background: an estimate at once, then every cell measured, last layers first.

Layers are patched a few at a time: each call repeats the two recorded runs, and between two calls
other readers have their turn at the model. Later layers are cheaper, so cells appear early.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import streamlit as st

import probe
from apps import jobs, library, panels

GROUPS = 10
"""Calls a sweep is made in, where the model has as many layers."""

UNESTIMATED = (probe.EditError, probe.SiteError, probe.OptionError)
"""What an estimate may refuse although the cells can be patched."""


@dataclass(frozen=True)
class Request:
    """A map of cells.

    Attributes:
        model: The model's name.
        question: The pair and its answers.
        options: Of the methods, both of which take the same.
        n_layers: Of the model.
    """

    model: str
    question: library.Question
    options: Mapping[str, Any]
    n_layers: int

    @property
    def key(self) -> str:
        """The code that makes the map: what it is, in full."""
        return library.python("activation_patching", self.model, self.question, self.options)


@dataclass(frozen=True)
class Part:
    """Some layers, patched.

    Attributes:
        layers: Which.
        result: Their cells; of a call that was stopped those that were reached.
        whole: Whether all were.
    """

    layers: list[int]
    result: probe.Result
    whole: bool


@dataclass(frozen=True)
class Found:
    """What is known of a map.

    Attributes:
        estimate: First-order estimate of every cell, where there is one.
        exact: The cells patched so far.
        refusal: Why there is no estimate.
        code: What makes these numbers again.
    """

    estimate: probe.Result | None
    exact: probe.Result | None
    refusal: str
    code: str

    @property
    def shown(self) -> probe.Result | None:
        """The best there is: how the numbers shown came to be."""
        return self.exact or self.estimate


def job_of(request: Request) -> jobs.Job | None:
    """The sweep, if it was ever begun."""
    return jobs.manager().get(request.key)


def begin(request: Request) -> jobs.Job:
    """Patch every cell, or those that are left of a sweep that was stopped."""
    loaded = library.load(request.model)
    return jobs.manager().submit(request.key, lambda job: _patch(job, loaded, request))


def _patch(job: jobs.Job, loaded: library.Loaded, request: Request) -> bool:
    job.found[:] = [part for part in job.found if part.whole]
    known = {layer for part in job.found for layer in part.layers}
    groups = layer_groups(request.n_layers)
    for number, layers in enumerate(groups):
        if known.issuperset(layers):
            continue
        left: list[int] = [0]

        def hear(done: int, total: int, _: str, number: int = number, left: Any = left) -> bool:
            job.share = (number + done / total) / len(groups)
            left[0] = total - done
            return not job.stopping

        options = {**request.options, "layers": layers}
        result = library.run_heard("activation_patching", loaded, request.question, options, hear)
        job.found.append(Part(layers, result, whole=not left[0]))
        if job.stopping and (left[0] or number < len(groups) - 1):
            return False
    job.share = 1.0
    return True


def layer_groups(n_layers: int) -> list[list[int]]:
    """Neighbouring layers, the last ones first.

    >>> layer_groups(3), len(layer_groups(30)), layer_groups(30)[0]
    ([[2], [1], [0]], 10, [27, 28, 29])
    """
    size = -(-n_layers // GROUPS)
    ends = range(n_layers, 0, -size)
    return [list(range(max(0, end - size), end)) for end in ends]


def find(request: Request, parts: Sequence[Part]) -> Found:
    """The estimate and the cells patched so far; a mistake in the question itself is raised."""
    asked, refusal = None, ""
    try:
        asked = _estimate(request)
    except UNESTIMATED as error:
        refusal = error.what
    exact = library.joined([part.result for part in parts], request.options) if parts else None
    layers = sorted(layer for part in parts for layer in part.layers)
    if len(layers) == request.n_layers:
        code = request.key
    elif exact is None:
        code = asked.code if asked else request.key
    else:
        code = library.python_of_patching(
            request.model, request.question, request.options, layers, estimated=asked is not None
        )
    return Found(asked and asked.result, exact, refusal, code)


def _estimate(request: Request) -> panels.Asked:
    if request.options["metric"] == "rank":
        raise probe.OptionError("a rank is counted, so it has no gradient")
    return panels.ask("attribution_patching", request.model, request.question, **request.options)


def button(label: str, request: Request, *, first: bool) -> None:
    """Begin, or go on."""
    kind: Any = "primary" if first else "secondary"
    if st.button(label, key="patch-run", type=kind, icon=":material/play_arrow:"):
        begin(request)
        st.rerun()
