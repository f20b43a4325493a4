"""Indirect object identification: who receives the gift?

"When Mary and John went to the store, John gave a drink to" calls for " Mary", the name that
occurs once. The task of Wang et al. (2022), "Interpretability in the Wild", arXiv 2211.00593.
"""

import random
from typing import Literal

from pydantic import Field

from probe.core.task import Prompt
from probe.core.tokens import Tokenizer
from probe.tasks.registry import NEUTRAL, Options, builder
from probe.tasks.words import NAMES, OBJECTS, PLACES, whole

TEMPLATES = (
    "When {first} and {second} went to the {place}, {giver} gave a {object} to",
    "After {first} and {second} met at the {place}, {giver} handed a {object} to",
    "While {first} and {second} were waiting at the {place}, {giver} passed a {object} to",
    "As {first} and {second} walked to the {place}, {giver} gave a {object} to",
    "Because {first} and {second} were friends from the {place}, {giver} sent a {object} to",
    "Then {first} and {second} had lunch at the {place}, and {giver} offered a {object} to",
    "Just before {first} and {second} left the {place}, {giver} gave a {object} to",
    "Last week {first} and {second} worked at the {place}, and {giver} brought a {object} to",
)
_CYCLE = ("ABBA", "BABA")


class IoiOptions(Options):
    """Choices of the task ``ioi``."""

    order: Literal["both", "ABBA", "BABA"] = Field(
        "both", description="ABBA: the receiver is named first; BABA: the giver; or both"
    )
    corruption: Literal["swap", "abc"] = Field(
        "swap",
        description="swap: the giver and the receiver change roles in the second clause, so the "
        "answer flips; abc: three names that do not occur in the clean prompt, so nobody is meant",
    )


@builder("ioi", "the name that occurs once receives the gift", IoiOptions)
def draw(rng: random.Random, tokenizer: Tokenizer | None, options: IoiOptions) -> Prompt:
    """One pair; the answer is the receiver, the wrong answer the giver.

    The swapped twin differs from the second mention of the giver on, in one name; the abc twin
    (the paper's p_ABC) in all three.
    """
    receiver, giver, *others = rng.sample(whole(NAMES, tokenizer, 5), 5)
    order = rng.choice(_CYCLE) if options.order == "both" else options.order
    number = rng.randrange(len(TEMPLATES))
    fixed = {
        "place": rng.choice(whole(PLACES, tokenizer)),
        "object": rng.choice(whole(OBJECTS, tokenizer)),
    }
    first, second = (receiver, giver) if order == "ABBA" else (giver, receiver)
    twin = (first, second, receiver) if options.corruption == "swap" else tuple(others)
    return Prompt(
        clean=_fill(number, (first, second, giver), fixed),
        corrupted=_fill(number, twin, fixed),
        answer=f" {receiver}",
        wrong_answer=f" {giver}",
        tags={"template": str(number), "order": order, **fixed}
        | (NEUTRAL if options.corruption == "abc" else {}),
    )


def _fill(number: int, names: tuple[str, ...], fixed: dict[str, str]) -> str:
    first, second, giver = names
    return TEMPLATES[number].format(first=first, second=second, giver=giver, **fixed)
