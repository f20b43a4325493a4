"""Several checkpoints side by side, tensor by tensor; refused where they do not match."""

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from probe.core.errors import ModelError
from probe.models.checkpoints import FLOATS, Checkpoint, Make, Stored

Missing = Literal["refuse", "keep"]

_NAMED = 4


class Aligned:
    """Checkpoints of one architecture, the first of which says what the outcome looks like.

    Attributes:
        first: The checkpoint that gives formats, config and tokenizer.
        all: All of them.
        names: The tensors of the outcome. One that is tied in some checkpoints and apart in
            others is apart here, and read from what it is tied to.
        shared: The names that arithmetic is done on.
    """

    def __init__(self, checkpoints: Sequence[Checkpoint], missing: Missing = "refuse") -> None:
        self.first, self.all = checkpoints[0], list(checkpoints)
        self.names: dict[str, Stored] = {
            name: self.first.stored(name)
            for one in checkpoints
            for name in one.tensors
            if name in self.first
        }
        problems = [problem for one in self.all[1:] for problem in self._unequal(one)]
        if problems and missing == "refuse":
            raise ModelError(
                f"these checkpoints do not match {self.first.name}: {'; '.join(problems)}",
                expected="checkpoints of one architecture, with equal names and shapes",
                remedy='missing="keep" leaves such tensors as the first checkpoint has them',
            )
        self.shared = {name for name in self.names if self._everywhere(name)}
        self._check_whole_numbers()
        if not self.shared:
            raise ModelError(
                f"{' and '.join(one.name for one in self.all)} share no floating-point tensor",
                expected="checkpoints of one architecture",
            )

    def pieces(self) -> Iterator[tuple[str, slice]]:
        """Every slice of every shared tensor."""
        for name in self.names:
            if name in self.shared:
                for rows in self.first.slices(name):
                    yield name, rows

    def size(self) -> int:
        """Numbers in the shared tensors."""
        return sum(torch.Size(self.names[name].shape).numel() for name in self.shared)

    def keeping(self, make: Make) -> Make:
        """Numbers from ``make`` where all have the tensor, else those of the first."""

        def made(name: str, rows: slice) -> Tensor:
            return make(name, rows) if name in self.shared else self.first.numbers(name, rows)

        return made

    def _everywhere(self, name: str) -> bool:
        return self.names[name].dtype in FLOATS and all(
            name in one and one.stored(name).shape == self.names[name].shape for one in self.all
        )

    def _unequal(self, other: Checkpoint) -> Iterator[str]:
        """What stands in the way of arithmetic with another checkpoint, in words."""
        floats = [name for name, stored in self.names.items() if stored.dtype in FLOATS]
        absent = [name for name in floats if name not in other]
        extra = [name for name in other.floats() if name not in self.first]
        if absent:
            yield f"{other.name} lacks {_some(absent)}"
        if extra:
            yield f"only {other.name} has {_some(extra)}"
        shapes = [
            f"{name} {list(other.stored(name).shape)} (expected {list(self.names[name].shape)})"
            for name in floats
            if name in other and other.stored(name).shape != self.names[name].shape
        ]
        if shapes:
            yield f"{other.name} has other shapes: {_some(shapes)}"

    def _check_whole_numbers(self) -> None:
        """Masks and the like are copied; quantised weights that differ cannot be added."""
        for name, stored in self.names.items():
            if stored.dtype in FLOATS:
                continue
            for one in self.all[1:]:
                if name in one and not self._equal(name, one):
                    raise ModelError(
                        f"{name} is stored as {stored.dtype} and differs in {one.name}",
                        expected=f"weights stored as {', '.join(FLOATS)}",
                        remedy="convert quantised weights to floating point first",
                    )

    def _equal(self, name: str, other: Checkpoint) -> bool:
        return other.stored(name)[2:] == self.names[name][2:] and all(
            torch.equal(other.read(name, rows), self.first.read(name, rows))
            for rows in self.first.slices(name)
        )


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
