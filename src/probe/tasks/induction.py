"""Induction: repeat what followed last time.

A run of random words is said twice; after the second mention of a word comes the word that
followed its first. The behaviour of Olsson et al. (2022), "In-context Learning and Induction
Heads", arXiv 2209.11895.
"""

import random
import re
from weakref import WeakKeyDictionary

from pydantic import Field

from probe.core.task import Prompt
from probe.core.tokens import Tokenizer
from probe.tasks.registry import Options, builder
from probe.tasks.words import PLAIN, whole

_WORD = re.compile(r" ?[a-z]{3,}")
_LOOKED_AT = 8000

_pools: WeakKeyDictionary[Tokenizer, list[str]] = WeakKeyDictionary()


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
    """Distinct words, each one token: from the vocabulary where it has enough."""
    pool = [] if tokenizer is None else _vocabulary(tokenizer)
    return rng.sample(pool if len(pool) >= n else whole(PLAIN, tokenizer, n), n)


def _vocabulary(tokenizer: Tokenizer) -> list[str]:
    """Words of lower-case letters among a few thousand random tokens, the same each time."""
    if tokenizer not in _pools:
        size = tokenizer.n_vocab
        tokens = random.Random(0).sample(range(size), min(size, _LOOKED_AT))
        texts = {token: tokenizer.string(token) for token in tokens}
        words = {token: text.strip() for token, text in texts.items() if _WORD.fullmatch(text)}
        _pools[tokenizer] = [w for token, w in words.items() if tokenizer.single(f" {w}") == token]
    return _pools[tokenizer]
