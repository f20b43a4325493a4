"""Tasks by name, with their options."""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict

from probe.core.options import read_options
from probe.core.registry import Registry
from probe.core.task import Prompt, Task
from probe.core.tokens import Tokenizer

MakePrompt = Callable[[random.Random, Tokenizer | None, Any], Prompt]

NEUTRAL = {"twin": "neutral"}
"""The tag of a pair whose corrupted prompt calls for neither answer, rather than the wrong one."""


class Options(BaseModel):
    """What a task lets one choose; a task with options adds fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True)
class Builder:
    """A task that can be drawn for any tokenizer.

    Attributes:
        name: How it is asked for.
        about: What the model must do, in a line.
        draw: ``(rng, tokenizer or None, options) -> Prompt``.
        options: What can be chosen, with descriptions.
    """

    name: str
    about: str
    draw: MakePrompt
    options: type[Options]

    @property
    def question(self) -> str:
        """What the model must do, as methods call it."""
        return self.about

    def parse(self, given: Mapping[str, Any]) -> Options:
        """Check options, naming the nearest right word for a wrong one."""
        return read_options(self.options, given, f"the task {self.name}")


TASKS: Registry[Builder] = Registry("task")


def builder(
    name: str, about: str, options: type[Options] = Options
) -> Callable[[MakePrompt], MakePrompt]:
    """Register a draw function as a task."""

    def register(draw: MakePrompt) -> MakePrompt:
        TASKS.add(name, Builder(name, about, draw, options))
        return draw

    return register


def load_task(name: str, *, n: int = 32, seed: int = 0, **options: Any) -> Task:
    """A built-in task of n prompt pairs.

    Drawn anew for the model's tokenizer when it is encoded, from the same seed.

    Args:
        name: One of ``TASKS``.
        n: Number of pairs.
        seed: Random seed; equal seeds give equal prompts for equal tokenizers.
        **options: The task's own, see ``TASKS.get(name).options``.

    Raises:
        OptionError: An unknown task or option, or a value it cannot have.
        TaskError: ``n`` below one.

    >>> load_task("ioi", n=4)
    Task(name='ioi', 4 prompts)
    """
    found = TASKS.get(name)
    chosen = found.parse(options)

    def draw(rng: random.Random, tokenizer: Tokenizer | None) -> Prompt:
        return found.draw(rng, tokenizer, chosen)

    return Task.drawn(name, draw, n=n, seed=seed, about=found.about)
