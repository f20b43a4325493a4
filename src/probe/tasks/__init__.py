"""Builders of clean/corrupted prompt pairs, by name; each file holds one task.

``load_task`` makes a task, ``TASKS`` lists them, and ``probe.tasks.check`` says how well a model
does one.
"""

from probe.tasks import (
    capital_of,
    docstring,
    gendered_pronoun,
    greater_than,
    induction,
    ioi,
    subject_verb,
)
from probe.tasks.registry import TASKS, Builder, builder, load_task

__all__ = [
    "TASKS",
    "Builder",
    "builder",
    "capital_of",
    "docstring",
    "gendered_pronoun",
    "greater_than",
    "induction",
    "ioi",
    "load_task",
    "subject_verb",
]
