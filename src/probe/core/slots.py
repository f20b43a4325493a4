"""The slots of a template and the words that may stand in them."""

import random
import string
from collections.abc import Mapping, Sequence

from probe.core.errors import TaskError


def slots_of(template: str) -> set[str]:
    """The slots of a template, all of them named."""
    try:
        found = [slot for _, slot, _, _ in string.Formatter().parse(template) if slot is not None]
    except ValueError as error:
        raise TaskError(
            f"{template!r} is no template: {error}", remedy="write {{ for a brace"
        ) from None
    if any(not slot.isidentifier() for slot in found):
        raise TaskError(f"{template!r} has a slot without a plain name", expected="{A}, {place}")
    return set(found)


class Slots:
    """Words for the slots of a template; slots that share a list get different words."""

    def __init__(self, slots: Mapping[str, Sequence[str]], known: set[str]) -> None:
        self.groups: list[tuple[list[str], list[str]]] = []
        self.same: dict[str, str] = {}
        for names, words in slots.items():
            if isinstance(words, str):
                if not words.startswith("="):
                    raise TaskError(f"slot {names!r} got the string {words!r}", expected="a list")
                self.same[names] = words[1:]
                continue
            group = [name.strip() for name in names.split(",")]
            distinct = list(dict.fromkeys(words))
            if len(distinct) < len(group):
                raise TaskError(
                    f"slots {group} share {len(distinct)} words", expected="a word for each"
                )
            self.groups.append((group, distinct))
        own = {n for group, _ in self.groups for n in group}
        self.names = own | set(self.same)
        missing = (known - self.names) | (set(self.same.values()) - own)
        if missing:
            raise TaskError(f"no words for slots {sorted(missing)}", remedy="name them in slots=")

    def draw(self, rng: random.Random) -> dict[str, str]:
        """A word for every slot."""
        words: dict[str, str] = {}
        for group, choices in self.groups:
            words |= dict(zip(group, rng.sample(choices, len(group)), strict=True))
        for slot, other in self.same.items():
            words[slot] = words[other]
        return words
