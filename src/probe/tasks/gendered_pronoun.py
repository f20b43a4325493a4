"""Gendered pronouns: refer to a person by the pronoun usual for the name.

The task of Mathwin et al. (2023), "Identifying a Preliminary Circuit for Predicting Gendered
Pronouns in GPT-2 Small".
"""

import random

from probe.core.task import Prompt
from probe.core.tokens import Tokenizer
from probe.tasks.registry import Options, builder
from probe.tasks.words import MEN, PLACES, WOMEN, whole

TEMPLATES = (
    "So {name} went to the {place} today, didn't",
    "Everyone at the {place} likes {name}, because",
    "My friend {name} came back from the {place}, and then",
    "We asked {name} about the {place}, but",
    "When {name} left the {place},",
    "Nobody saw {name} at the {place} before",
    "Once {name} reached the {place},",
)


@builder("gendered_pronoun", "the pronoun usual for a name")
def draw(rng: random.Random, tokenizer: Tokenizer | None, options: Options) -> Prompt:
    """One pair; the twin has a name of the other gender, so the answer flips."""
    man, woman = rng.choice(whole(MEN, tokenizer)), rng.choice(whole(WOMEN, tokenizer))
    sides = [(man, " he"), (woman, " she")]
    rng.shuffle(sides)
    (name, answer), (other, wrong) = sides
    number, place = rng.randrange(len(TEMPLATES)), rng.choice(whole(PLACES, tokenizer))
    return Prompt(
        clean=TEMPLATES[number].format(name=name, place=place),
        corrupted=TEMPLATES[number].format(name=other, place=place),
        answer=answer,
        wrong_answer=wrong,
        tags={"template": str(number), "name": name, "place": place},
    )
