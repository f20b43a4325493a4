"""One question asked again otherwise: with another option, or of a part of the prompts."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from probe.core.errors import TaskError, nearest
from probe.core.task import Encoded


@dataclass(frozen=True)
class Variant:
    """One run: what is varied in it, the options that say so, and which prompts."""

    varied: str
    options: Mapping[str, Any] = field(default_factory=dict)
    rows: Sequence[int] | None = None

    def of(self, encoded: Encoded) -> Encoded:
        """The prompts it is asked of."""
        return encoded if self.rows is None else encoded.rows(self.rows)


def by_tag(encoded: Encoded, tag: str) -> Iterator[Variant]:
    """A run for the prompts of each value of a tag."""
    values: dict[str, list[int]] = {}
    for row, prompt in enumerate(encoded.task.prompts):
        if tag not in prompt.tags:
            raise TaskError(f"prompt {row} has no tag {tag!r}", remedy=nearest(tag, prompt.tags))
        values.setdefault(prompt.tags[tag], []).append(row)
    for rows in values.values():
        yield Variant(tag, rows=rows)
