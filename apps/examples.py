"""Questions that work at once: the gallery on Home and the button of every empty page."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Example:
    """A question with its two candidate answers.

    Attributes:
        title: What the field calls it.
        about: What there is to see.
        prompt: The prompt.
        prompt_b: The same with the deciding word changed.
        target: The right next token.
        distractor: What prompt B calls for.
    """

    title: str
    about: str
    prompt: str
    prompt_b: str
    target: str
    distractor: str

    def changes(self) -> dict[str, Any]:
        """The selection that opens it."""
        return {
            "prompt": self.prompt,
            "prompt_b": self.prompt_b,
            "target": self.target,
            "distractor": self.distractor,
            "position": None,
        }


EXAMPLES = (
    Example(
        "Indirect object",
        "Who gets the drink? Heads that move names, and heads that hold one back.",
        "When Mary and John went to the store, John gave a drink to",
        "When Mary and John went to the store, Mary gave a drink to",
        " Mary",
        " John",
    ),
    Example(
        "Induction",
        "A pattern seen once is continued: look for stripes off the diagonal.",
        "blue fish, green bird, red stone, blue fish, green bird, red",
        "blue fish, green bird, red stone, blue fish, red stone, green",
        " stone",
        " bird",
    ),
    Example(
        "Capital",
        "A fact recalled: see at which layer the city overtakes its rivals.",
        "The capital of France is the city of",
        "The capital of Italy is the city of",
        " Paris",
        " Rome",
    ),
    Example(
        "Subject and verb",
        "The verb agrees with the far noun, not with the near one.",
        "The keys to the cabinet",
        "The key to the cabinet",
        " are",
        " is",
    ),
    Example(
        "Gendered pronoun",
        "Which earlier word decides between he and she?",
        "The king was tired because",
        "The queen was tired because",
        " he",
        " she",
    ),
)
