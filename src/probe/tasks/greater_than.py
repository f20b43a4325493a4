"""Greater than: a span of years ends after it began.

"The war lasted from the year 1732 to the year 17" calls for a number above 32. The task of Hanna
et al. (2023), "How does GPT-2 compute greater-than?", arXiv 2305.00586.

Tokenizers cut years differently, so the question is put in the first of these forms whose answer
is exactly the next token:

==========  ======================  ======  =========================================
form        prompt ends in          answer  tokenizers
==========  ======================  ======  =========================================
``two``     ``to the year 17``      ``60``  pairs of digits (GPT-2)
``one``     ``to the year 17``      ``6``   single digits (SmolLM2, Llama 2, Gemma)
``three``   ``to the year`` + space  ``760`` groups of three (Llama 3); years 100 to 999
==========  ======================  ======  =========================================

In form ``one`` the answer is a decade above that of the first year, so any last digit will do.
"""

import random
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from probe.core.errors import TaskError
from probe.core.task import Prompt
from probe.core.tokens import Tokenizer
from probe.tasks.registry import NEUTRAL, Options, builder

EVENTS = (
    "war", "siege", "journey", "project", "famine", "plague", "expedition", "reign", "strike",
    "truce", "voyage", "drought", "trial", "construction", "rebellion", "alliance", "campaign",
    "dispute", "occupation", "mission",
)  # fmt: skip
_TEXT = "The {event} lasted from the year {start} to the year {stem}"
_TRIES = 200
_PROBES = 20


@dataclass(frozen=True)
class _Form:
    """How a year is asked for.

    Attributes:
        name: As in the table above.
        stem: Digits of the last year that stand in the prompt.
        asked: Digits of the answer.
        rest: Digits after it, which nobody asks for.
        earliest: What stands in place of the answer's digits in the twin's first year.
    """

    name: str
    stem: int
    asked: int
    rest: int
    earliest: int

    def draw(self, rng: random.Random) -> tuple[str, str, str, str]:
        """First year, the twin's first year, right answer, wrong answer; all digits."""
        end = 10**self.asked - 1
        start = rng.randint(self.earliest + 2, end - 1)
        above, below = rng.randint(start + 1, end), rng.randint(self.earliest + 1, start - 1)
        stem = str(rng.randint(11, 18)) if self.stem else ""
        rest = str(rng.randint(1, 9)) if self.rest else ""
        digits = [f"{value:0{self.asked}}" for value in (start, self.earliest, above, below)]
        return f"{stem}{digits[0]}{rest}", f"{stem}{digits[1]}{rest}", digits[2], digits[3]


_FORMS = (
    _Form("two", stem=2, asked=2, rest=0, earliest=1),
    _Form("one", stem=2, asked=1, rest=1, earliest=0),
    _Form("three", stem=0, asked=3, rest=0, earliest=100),
)
_chosen: WeakKeyDictionary[Tokenizer, _Form] = WeakKeyDictionary()


@builder("greater_than", "a span of years ends after it began")
def draw(rng: random.Random, tokenizer: Tokenizer | None, options: Options) -> Prompt:
    """One pair; the answer is above the first year, the wrong answer below it.

    The twin begins so early that both answers are possible (the paper's "01" prompts): it is
    neutral, because no first year makes the right answer wrong and the wrong one right.
    """
    if tokenizer is None:
        return _prompt(rng, _FORMS[0])
    form = _form(tokenizer)
    for _ in range(_TRIES):
        prompt = _prompt(rng, form)
        if _natural(prompt, tokenizer):
            return prompt
    return _prompt(rng, form)


def _form(tokenizer: Tokenizer) -> _Form:
    """The first form that suits most years, the same for every prompt."""
    if tokenizer not in _chosen:
        rng = random.Random(0)
        shares = {
            form: sum(_natural(_prompt(rng, form), tokenizer) for _ in range(_PROBES))
            for form in _FORMS
        }
        best = max(shares, key=lambda form: shares[form])
        if not shares[best]:
            raise TaskError(
                f"greater_than cannot be asked of this tokenizer: it cuts 1732 into "
                f"{tokenizer.strings(tokenizer.encode(' 1732', special=False))}",
                expected="one, two or three digits a token",
                remedy="Task.from_pairs with numbers this tokenizer knows",
            )
        good = [form for form, share in shares.items() if share >= _PROBES / 2]
        _chosen[tokenizer] = good[0] if good else best
    return _chosen[tokenizer]


def _natural(prompt: Prompt, tokenizer: Tokenizer) -> bool:
    """Whether the whole sentence is tokenised as prompt, then answer."""
    tokens = tokenizer.encode(prompt.clean, special=False)
    for answer in (prompt.answer, prompt.wrong_answer):
        token = tokenizer.single(answer or "")
        if token is None:
            return False
        if tokenizer.encode(prompt.clean + (answer or ""), special=False) != [*tokens, token]:
            return False
    twin = tokenizer.encode(prompt.corrupted or "", special=False)
    return len(twin) == len(tokens) and twin != tokens


def _prompt(rng: random.Random, form: _Form) -> Prompt:
    event = rng.choice(EVENTS)
    first, earliest, above, below = form.draw(rng)
    stem = first[: form.stem]
    return Prompt(
        clean=_TEXT.format(event=event, start=first, stem=stem),
        corrupted=_TEXT.format(event=event, start=earliest, stem=stem),
        answer=above,
        wrong_answer=below,
        tags={"form": form.name, "event": event, "start": first, **NEUTRAL},
    )
