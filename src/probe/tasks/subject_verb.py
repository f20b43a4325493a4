"""Number agreement: the verb agrees with its subject, not with the noun beside it.

"The keys near the cabinet" calls for " are". The question of Linzen et al. (2016), "Assessing the
Ability of LSTMs to Learn Syntax-Sensitive Dependencies", arXiv 1611.01368.
"""

import random
from typing import Literal

from pydantic import Field

from probe.core.task import Prompt
from probe.core.tokens import Tokenizer
from probe.tasks.registry import Options, builder
from probe.tasks.words import NOUNS, plural, whole

TEMPLATES = (
    "The {subject} {link} the {attractor}",
    "I think that the {subject} {link} the {attractor}",
    "It seems that the {subject} {link} the {attractor}",
    "We noticed how the {subject} {link} the {attractor}",
)
LINKS = ("near", "behind", "beside", "next to", "in front of", "across from")
_PLURALS = tuple(plural(noun) for noun in NOUNS)
VERBS = ((" is", " are"), (" was", " were"), (" has", " have"))


class SubjectVerbOptions(Options):
    """Choices of the task ``subject_verb``."""

    attractor: Literal["opposite", "same", "any"] = Field(
        "opposite", description="number of the second noun: opposite to the subject's, same, or any"
    )


@builder("subject_verb", "the verb agrees with its subject in number", SubjectVerbOptions)
def draw(rng: random.Random, tokenizer: Tokenizer | None, options: SubjectVerbOptions) -> Prompt:
    """One pair; in the twin the subject alone changes its number, and the answer flips."""
    plurals = set(whole(_PLURALS, tokenizer))
    nouns = [noun for noun in whole(NOUNS, tokenizer) if plural(noun) in plurals]
    subject, attractor = rng.sample(nouns if len(nouns) > 1 else NOUNS, 2)
    singular, second = rng.random() < 0.5, rng.random() < 0.5
    if options.attractor != "any":
        second = singular == (options.attractor == "same")
    number, link = rng.randrange(len(TEMPLATES)), rng.choice(LINKS)
    verb = rng.choice(VERBS)

    def text(of_one: bool) -> str:
        return TEMPLATES[number].format(
            subject=subject if of_one else plural(subject),
            link=link,
            attractor=attractor if second else plural(attractor),
        )

    return Prompt(
        clean=text(singular),
        corrupted=text(not singular),
        answer=verb[0 if singular else 1],
        wrong_answer=verb[1 if singular else 0],
        tags={"template": str(number), "subject": "singular" if singular else "plural"}
        | {"attractor": "singular" if second else "plural"},
    )
