"""Docstring: which argument does the documentation name next?

The order is that of the definition. The task of Heimersheim and Janiak (2023), "A circuit for
Python docstrings in a 4-layer attention-only transformer".
"""

import random

from probe.core.task import Prompt
from probe.core.tokens import Tokenizer
from probe.tasks.registry import Options, builder
from probe.tasks.words import ARGUMENTS, NOUNS, whole

FUNCTIONS = ("load", "update", "check", "read", "write", "send", "find", "open", "build", "move")
_LEADING = 2
_DESCRIBED = 2
_TRAILING = 1


@builder("docstring", "the docstring names the arguments in the order of the definition")
def draw(rng: random.Random, tokenizer: Tokenizer | None, options: Options) -> Prompt:
    """One pair: six arguments, of which the third and fourth are described and the fifth is next.

    In the twin the fifth and the last argument have changed places in the definition, so the
    wrong answer, the last argument, is next there. Both prompts hold the same words.
    """
    count = _LEADING + _DESCRIBED + 1 + _TRAILING
    names = rng.sample(whole(ARGUMENTS, tokenizer, count), count)
    described = names[_LEADING : _LEADING + _DESCRIBED]
    answer, last = names[_LEADING + _DESCRIBED], names[-1]
    swapped = [*names[: _LEADING + _DESCRIBED], last, answer]
    nouns = rng.sample(whole(NOUNS, tokenizer, 6), 6)
    function = rng.choice(FUNCTIONS)

    def text(order: list[str]) -> str:
        lines = [
            f"def {function}(self, {', '.join(order)}):",
            f'    """{function.capitalize()} the {nouns[0]} of the {nouns[1]}.',
            "",
            *(
                f"    :param {name}: {nouns[2 + i]} of the {nouns[4 + i]}"
                for i, name in enumerate(described)
            ),
            "    :param",
        ]
        return "\n".join(lines)

    return Prompt(
        clean=text(names),
        corrupted=text(swapped),
        answer=f" {answer}",
        wrong_answer=f" {last}",
        tags={"function": function},
    )
