"""Which positions of each prompt are meant: numbers, a text that stands in it, or one of its tags.

Prompts may have different numbers of such positions, and an edit names one for each prompt: so they
are taken in turn.
"""

import re
from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from probe.core.errors import OptionError, TaskError, nearest
from probe.core.task import Encoded

Where = Sequence[int] | str
"""Positions (negative from each prompt's end), a text found in each prompt, or ``{tag}``."""


def positions_of(encoded: Encoded, where: Where) -> list[list[int]]:
    """The positions of each prompt, in order, each once.

    Args:
        encoded: The prompts.
        where: Positions; or a text, meaning every token that holds some of its first occurrence;
            or ``"{country}"``, the text that each prompt's tag ``country`` holds.

    Raises:
        OptionError: No position, or one that a prompt does not have.
        TaskError: A prompt without the text or the tag.
    """
    found = []
    for row, length in enumerate(encoded.lengths.tolist()):
        if isinstance(where, str):
            found.append(_of_text(encoded, row, _text(encoded, row, where)))
        else:
            found.append(_of_numbers(where, row, length))
    return found


def in_turn(positions: Sequence[Sequence[int]]) -> list[Int[Tensor, " batch"]]:
    """The first position of each prompt, then the second, ...; one with fewer repeats its first.

    >>> [turn.tolist() for turn in in_turn([[3, 4], [5]])]
    [[3, 5], [4, 5]]
    """
    turns = max(len(row) for row in positions)
    return [
        torch.tensor([row[turn] if turn < len(row) else row[0] for row in positions])
        for turn in range(turns)
    ]


def _of_numbers(where: Sequence[int], row: int, length: int) -> list[int]:
    outside = [pos for pos in where if not -length <= pos < length]
    if outside or not where:
        raise OptionError(
            f"positions {list(where)} of prompt {row}",
            expected=f"at least one from {-length} to {length - 1}",
        )
    return sorted({pos % length for pos in where})


def _text(encoded: Encoded, row: int, where: str) -> str:
    tag = re.fullmatch(r"\{(\w+)\}", where)
    if tag is None:
        return where
    tags = encoded.task.prompts[row].tags
    if tag[1] not in tags:
        raise TaskError(f"prompt {row} has no tag {tag[1]!r}", remedy=nearest(tag[1], sorted(tags)))
    return tags[tag[1]]


def _of_text(encoded: Encoded, row: int, text: str) -> list[int]:
    strings = encoded.str_tokens(row)
    ends = torch.tensor([len(string) for string in strings]).cumsum(0).tolist()
    begin = "".join(strings).find(text)
    if not text or begin < 0:
        raise TaskError(
            f"{text!r} does not stand in prompt {row}: {'|'.join(strings)}",
            expected="a text that each prompt holds, or {tag} for one that each prompt names",
        )
    last = begin + len(text)
    starts = [0, *ends[:-1]]
    return [
        pos
        for pos, (start, end) in enumerate(zip(starts, ends, strict=True))
        if start < last and end > begin
    ]
