"""Several fine-tuned models into one folder: linear, SLERP, task arithmetic, TIES, DARE."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from probe.core.errors import OptionError, nearest
from probe.core.options import read_options
from probe.models.aligned import Aligned, Missing
from probe.models.checkpoints import Checkpoint, Make, open_checkpoint, write_checkpoint
from probe.models.merging import agree, drop, linear, nth_largest, slerp_weights, trim

Delta = Callable[[int, str, slice], Tensor]
"""Some rows of the task vector of the model of that number."""


def merge(
    models: "Sequence[str | Path | Checkpoint]",
    *,
    out: str | Path,
    how: str = "linear",
    base: "str | Path | Checkpoint | None" = None,
    missing: Missing = "refuse",
    **options: Any,
) -> Path:
    """Merge checkpoints of one architecture into a folder that transformers and Probe open.

    ``linear`` Σ w_i θ_i and ``slerp`` (two models) need no base. The others add task vectors
    τ_i = θ_i - θ_base to the base: ``arithmetic`` θ_base + λ Σ w_i τ_i; ``ties`` trims each τ_i
    to its largest entries over the whole model, elects a sign for each entry and averages those
    that agree, λ times; ``dare`` drops entries at random, rescales, and adds; ``dare_ties`` drops,
    rescales, and then merges as ``ties``.

    Weights are streamed: memory is a few slices of two million numbers, whatever the models' size.
    Arithmetic is in double precision, rounded once to the format of the base (or the first model),
    whose config and tokenizer are copied. ``merge.json`` in the folder says how it was made.

    Args:
        models: Folders, hub ids, .gguf files, or ``smollm2``; with a base, one is enough.
        out: The new folder; one that is there is not written over.
        how: The rule: linear, slerp, arithmetic, ties, dare or dare_ties.
        base: The checkpoint all models were tuned from.
        missing: ``refuse`` checkpoints that do not match; ``keep`` the first's tensor where another
            lacks it or has another shape.
        **options: Of the rule: ``weights`` (linear, arithmetic, dare), ``t`` (slerp), ``scale`` λ
            (all with a base), ``keep`` (ties, dare_ties), ``drop``, ``rescale``, ``seed`` (dare,
            dare_ties).

    Raises:
        ModelError: Checkpoints that do not match, named by tensor and shape.
        OptionError: A rule or option that is not there, or a folder that is there already.
        SizeError: A disk that is too full.

    Sources: Ilharco et al. 2023 (arithmetic); Yadav et al. 2023 (TIES); Yu et al. 2024 (DARE).
    """
    recipe = _recipe(how, options)
    opened = [open_checkpoint(model) for model in models]
    if recipe.needs_base and base is None:
        raise OptionError(f"{how} adds what tuning changed", remedy="base=... the model before")
    if not recipe.needs_base and base is not None:
        raise OptionError(f"{how} takes no base", remedy='how="arithmetic"')
    start = [] if base is None else [open_checkpoint(base)]
    if len(start) + len(opened) < 2:
        raise OptionError(
            f"merge was given {len(opened)} models", expected="two, or a base and one or more"
        )
    aligned = Aligned([*start, *opened], missing)
    record = {
        "how": how,
        "options": recipe.model_dump(mode="json"),
        "base": str(start[0].folder) if start else None,
        "models": [str(one.folder) for one in opened],
    }
    return write_checkpoint(
        aligned.first, out, aligned.keeping(recipe.maker(aligned)), record, names=aligned.names
    )


# --- the rules -----------------------------------------------------------------------------------


class _Recipe(BaseModel, ABC):
    """The options of one rule, and how it makes a slice of the outcome."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @property
    def needs_base(self) -> bool:
        return True

    @abstractmethod
    def maker(self, aligned: Aligned) -> Make:
        """How a slice of a tensor is made of those of the models."""


class _Linear(_Recipe):
    weights: list[float] | None = Field(default=None, description="One a model; by default 1/n")

    @property
    def needs_base(self) -> bool:
        return False

    def maker(self, aligned: Aligned) -> Make:
        n = len(aligned.all)
        weights = _weights(self.weights, n, default=1 / n)

        def make(name: str, rows: slice) -> Tensor:
            return linear([one.numbers(name, rows) for one in aligned.all], weights)

        return make


class _Slerp(_Recipe):
    t: float = Field(default=0.5, description="0 is the first model, 1 the second")

    @property
    def needs_base(self) -> bool:
        return False

    def maker(self, aligned: Aligned) -> Make:
        if len(aligned.all) != 2:
            raise OptionError(f"slerp of {len(aligned.all)} models", expected="two")
        a, b = aligned.all
        factors: dict[str, tuple[float, float]] = {}

        def make(name: str, rows: slice) -> Tensor:
            if name not in factors:
                factors[name] = _along_the_circle(aligned, name, self.t)
            return linear([a.numbers(name, rows), b.numbers(name, rows)], factors[name])

        return make


class _Arithmetic(_Recipe):
    weights: list[float] | None = Field(default=None, description="One a model; by default 1")
    scale: float = Field(default=1.0, description="λ")

    def delta(self, aligned: Aligned) -> Delta:
        """The task vectors, slice by slice, as this rule changes them one by one."""
        return _plain(aligned)

    def maker(self, aligned: Aligned) -> Make:
        weights = _weights(self.weights, len(aligned.all) - 1, default=1.0)
        delta = self.delta(aligned)

        def make(name: str, rows: slice) -> Tensor:
            deltas = [delta(i, name, rows) for i in range(len(weights))]
            return aligned.first.numbers(name, rows) + self.scale * linear(deltas, weights)

        return make


class _Ties(_Recipe):
    keep: float = Field(default=0.2, gt=0, le=1, description="Share of entries kept by trimming")
    scale: float = Field(default=1.0, description="λ")

    def delta(self, aligned: Aligned) -> Delta:
        return _plain(aligned)

    def maker(self, aligned: Aligned) -> Make:
        delta = self.delta(aligned)
        n = max(1, round(self.keep * aligned.size()))
        thresholds = [
            0.0 if self.keep == 1 else nth_largest(_stream(aligned, delta, i), n)
            for i in range(len(aligned.all) - 1)
        ]

        def make(name: str, rows: slice) -> Tensor:
            merged = agree([trim(delta(i, name, rows), t) for i, t in enumerate(thresholds)])
            return aligned.first.numbers(name, rows) + self.scale * merged

        return make


class _Dropping(_Recipe):
    drop: float = Field(default=0.9, ge=0, lt=1, description="Probability that an entry is dropped")
    rescale: bool = Field(default=True, description="Multiply what is left by 1 / (1 - drop)")
    seed: int = Field(default=0, description="Random seed")

    def delta(self, aligned: Aligned) -> Delta:
        plain = _plain(aligned)

        def delta(i: int, name: str, rows: slice) -> Tensor:
            generator = _generator(self.seed, i, name, rows)
            return drop(plain(i, name, rows), self.drop, generator, rescale=self.rescale)

        return delta


class _Dare(_Dropping, _Arithmetic):
    pass


class _DareTies(_Dropping, _Ties):
    keep: float = Field(default=1.0, gt=0, le=1, description="Share of entries kept by trimming")


RULES: Mapping[str, type[_Recipe]] = {
    "linear": _Linear, "slerp": _Slerp, "arithmetic": _Arithmetic, "ties": _Ties, "dare": _Dare,
    "dare_ties": _DareTies,
}  # fmt: skip
"""Rule → its options."""


def _recipe(how: str, options: Mapping[str, Any]) -> _Recipe:
    if how not in RULES:
        raise OptionError(f'there is no way to merge called "{how}"', remedy=nearest(how, RULES))
    return read_options(RULES[how], options, how)


def _weights(given: Sequence[float] | None, n: int, default: float) -> Sequence[float]:
    if given is not None and len(given) != n:
        raise OptionError(f"{len(given)} weights for {n} models", expected="one for each")
    return [default] * n if given is None else given


def _plain(aligned: Aligned) -> Delta:
    def delta(i: int, name: str, rows: slice) -> Tensor:
        return aligned.all[1 + i].numbers(name, rows) - aligned.first.numbers(name, rows)

    return delta


def _stream(aligned: Aligned, delta: Delta, i: int) -> Callable[[], Iterable[Tensor]]:
    return lambda: (delta(i, name, rows) for name, rows in aligned.pieces())


def _generator(seed: int, model: int, name: str, rows: slice) -> torch.Generator:
    """A random stream of its own for each slice, so that no order of work can change the draws."""
    words = f"{seed} {model} {name} {rows.start}".encode()
    number = int.from_bytes(hashlib.sha256(words).digest()[:7], "big")
    return torch.Generator().manual_seed(number)


def _along_the_circle(aligned: Aligned, name: str, t: float) -> tuple[float, float]:
    dot = square_a = square_b = 0.0
    for rows in aligned.first.slices(name):
        a, b = (one.numbers(name, rows).flatten() for one in aligned.all)
        dot, square_a, square_b = (
            total + float(more)
            for total, more in ((dot, a @ b), (square_a, a @ a), (square_b, b @ b))
        )
    return slerp_weights(dot, square_a**0.5, square_b**0.5, t)
