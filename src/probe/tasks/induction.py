"""Induction: repeat what followed last time.

A run of random words is said twice; after the second mention of a word comes the word that
followed its first. The behaviour of Olsson et al. (2022), "In-context Learning and Induction
Heads", arXiv 2209.11895.
"""

import random
import re

from pydantic import Field

from probe.core.task import Prompt
from probe.core.tokens import Tokenizer
from probe.tasks.registry import Options, builder
from probe.tasks.words import PLAIN, whole

_WORD = re.compile(r" ?[a-z]{3,}")
_TRIES_PER_WORD = 200


class InductionOptions(Options):
    """Choices of the task ``induction``."""

    length: int = Field(
        20, ge=2, le=100, description="words in the run; the prompt has this many and half again"
    )


@builder("induction", "after a repeated word comes what followed it before", InductionOptions)
def draw(rng: random.Random, tokenizer: Tokenizer | None, options: InductionOptions) -> Prompt:
    """One pair: a run of distinct random words, then its first half again.

    The answer is the next word of the run. In the twin another word stands there, the wrong
    answer, so the first difference is at the first mention. Every prompt has as many words.
    """
    *run, other = _words(rng, tokenizer, options.length + 1)
    half = options.length // 2
    twin = [*run[:half], other, *run[half + 1 :]]
    return Prompt(
        clean=_text(run, half),
        corrupted=_text(twin, half),
        answer=f" {run[half]}",
        wrong_answer=f" {other}",
    )


def _text(run: list[str], half: int) -> str:
    # Each word has a space before it, the first too, so that its two mentions are one token.
    return "".join(f" {word}" for word in [*run, *run[:half]])


def _words(rng: random.Random, tokenizer: Tokenizer | None, n: int) -> list[str]:
    """Distinct words, each one token: drawn from the whole vocabulary where it has enough."""
    if tokenizer is not None:
        found: dict[str, None] = {}
        for _ in range(_TRIES_PER_WORD * n):
            token = rng.randrange(tokenizer.n_vocab)
            text = tokenizer.string(token)
            if _WORD.fullmatch(text) and tokenizer.single(f" {text.strip()}") == token:
                found[text.strip()] = None
            if len(found) == n:
                return list(found)
    return rng.sample(whole(PLAIN, tokenizer, n), n)
