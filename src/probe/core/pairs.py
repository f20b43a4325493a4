"""Tasks shown by example: pairs of input and output, and the n-shot prompts made of them."""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from probe.core.errors import OptionError, TaskError, nearest
from probe.core.task import Prompt, Task
from probe.core.tokens import Tokenizer

Split = Literal["train", "dev", "test"]
Labels = Literal["true", "shuffled", "both"]

SPLITS: dict[str, float] = {"train": 0.5, "dev": 0.15, "test": 0.35}
"""Part of the pairs → its share."""
FORMAT = "Q: {x}\nA: {y}"
_BETWEEN = "\n\n"
_FEWEST = 6


class FirstTokenTask(Task):
    """A task whose answers may be several tokens: the first decides whether it is right.

    Where a tokenizer gives the leading space a token of its own, as many do before digits, that
    token says nothing of the answer: it becomes the end of the prompt.
    """

    def fit(self, tokenizer: Tokenizer) -> Task:
        """The same prompts with the first token of each answer as the answer."""
        prompts = tuple(_first_token(prompt, tokenizer) for prompt in self.prompts)
        return Task(self.name, prompts, self.about, self.seed)


@dataclass(frozen=True)
class PairTask:
    """Inputs and outputs of one task, parted once into train, dev and test pairs.

    Demonstrations are train pairs. Vectors are made of train pairs, layers chosen on dev pairs,
    accuracy measured on test pairs; the seed alone decides which pair is which.

    Attributes:
        name: What it is called.
        pairs: Input and output of each.
        about: What the model must do, in a line.
        seed: Decides the split.
        format: One demonstration, with ``{x}`` for the input and ``{y}`` for the output. The
            query is what stands before ``{y}``, without the space it ends with.
    """

    name: str
    pairs: tuple[tuple[str, str], ...] = field(repr=False)
    about: str = ""
    seed: int = 0
    format: str = FORMAT

    @classmethod
    def of(
        cls,
        pairs: Iterable[Sequence[str]],
        *,
        name: str = "pairs",
        about: str = "",
        seed: int = 0,
        format: str = FORMAT,
    ) -> "PairTask":
        """One's own pairs.

        Raises:
            TaskError: Fewer than six pairs, an input with two outputs, an empty side, or a
                format without its two places.

        >>> PairTask.of([(c, c.upper()) for c in "abcdefgh"], name="upper")
        PairTask(upper: 8 pairs)
        """
        rows = [tuple(pair) for pair in pairs]
        for row, pair in enumerate(rows):
            if len(pair) != 2 or not all(isinstance(s, str) and s.strip() for s in pair):
                raise TaskError(f"pair {row} is {pair!r}", expected="an input and an output, texts")
        made = tuple(dict.fromkeys((str(x), str(y)) for x, y in rows))
        inputs = [x for x, _ in made]
        twice = sorted({x for x in inputs if inputs.count(x) > 1})
        if twice:
            raise TaskError(f"{name}: {twice[0]!r} has two outputs", expected="one for each input")
        if len(made) < _FEWEST:
            raise TaskError(
                f"{name}: {len(made)} different pairs",
                expected=f"at least {_FEWEST}, to be parted into train, dev and test",
            )
        if format.count("{x}") != 1 or format.count("{y}") != 1 or not format.endswith("{y}"):
            raise TaskError(f"the format {format!r}", expected="{x} once, then {y} at the end")
        return cls(name, made, about, seed, format)

    def split(self, which: Split) -> tuple[tuple[str, str], ...]:
        """The pairs of one part; the three parts share none."""
        if which not in SPLITS:
            raise OptionError(f"split={which!r}", remedy=nearest(str(which), SPLITS))
        order = list(self.pairs)
        random.Random(f"split {self.seed}").shuffle(order)
        dev = max(1, round(SPLITS["dev"] * len(order)))
        test = max(1, round(SPLITS["test"] * len(order)))
        ends = {"test": (0, test), "dev": (test, test + dev), "train": (test + dev, len(order))}
        return tuple(order[slice(*ends[which])])

    def prompts(
        self,
        split: Split = "test",
        *,
        shots: int = 0,
        n: int | None = None,
        labels: Labels = "true",
        seed: int = 0,
    ) -> Task:
        """Prompts of so many demonstrations and a query, whose first answer token is asked for.

        Args:
            split: Where the queries come from. Demonstrations are always train pairs, never the
                query.
            shots: Demonstrations before each query.
            n: Number of prompts; by default one for each pair. More than there are pairs repeats
                queries after other demonstrations.
            labels: ``shuffled`` moves the demonstrations' outputs round, so that none keeps its
                place; ``both`` puts that beside the true prompt, as its corrupted twin.
            seed: Chooses and orders queries and demonstrations.

        Raises:
            OptionError: A count out of range.

        >>> task = PairTask.of([(c, c.upper()) for c in "abcdefgh"])
        >>> task.prompts(shots=1, n=1).prompts[0].clean.splitlines()
        ['Q: f', 'A: F', '', 'Q: d', 'A:']
        """
        queries, train = self.split(split), self.split("train")
        self._check(split, shots, n, labels, len(queries), len(train))
        rng = random.Random(f"{split} {shots} {seed} {self.seed}")
        made: list[Prompt] = []
        while len(made) < (n or len(queries)):
            for query in rng.sample(queries, len(queries)):
                shown = rng.sample([pair for pair in train if pair != query], shots)
                made.append(self._prompt(query, shown, labels))
        return FirstTokenTask(self.name, tuple(made[: n or len(queries)]), self.about, seed)

    def query(self, x: str, shown: Sequence[tuple[str, str]] = ()) -> str:
        """The prompt for one input after these demonstrations."""
        blocks = [self._fill(*pair) for pair in shown]
        head = self.format[: self.format.index("{y}")].rstrip()
        return _BETWEEN.join([*blocks, head.replace("{x}", x)])

    def _check(
        self, split: str, shots: int, n: int | None, labels: str, queries: int, train: int
    ) -> None:
        most = train - (split == "train")
        if not 0 <= shots <= most:
            raise OptionError(
                f"{shots} demonstrations of {self.name}",
                expected=f"0 to {most}: it has {train} train pairs",
            )
        if labels != "true" and shots < 2:
            raise OptionError(
                f'labels="{labels}" with {shots} demonstrations', expected="at least 2 to shuffle"
            )
        if n is not None and (n < 1 or (shots == 0 and n > queries)):
            raise OptionError(
                f"{n} prompts of {shots} demonstrations from {queries} {split} pairs",
                expected="at least 1" + (f", at most {queries}" if shots == 0 else ""),
            )

    def _prompt(self, query: tuple[str, str], shown: list[tuple[str, str]], labels: str) -> Prompt:
        true = self.query(query[0], shown)
        moved = self.query(query[0], _moved_round(shown)) if labels != "true" else None
        head = self.format[: self.format.index("{y}")]
        return Prompt(
            clean=moved if labels == "shuffled" and moved is not None else true,
            corrupted=moved if labels == "both" else None,
            answer=head[len(head.rstrip()) :] + query[1],
            tags={"x": query[0], "y": query[1]},
        )

    def _fill(self, x: str, y: str) -> str:
        before, after = self.format.split("{y}")
        return before.replace("{x}", x) + y + after

    def __len__(self) -> int:
        return len(self.pairs)

    def __repr__(self) -> str:
        return f"PairTask({self.name}: {len(self)} pairs)"


def _moved_round(shown: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Each input with the output of the one after it; equal outputs are kept apart if they can be.

    The demonstrations stand in random order, so this is a random cycle.
    """
    apart = sorted(range(len(shown)), key=lambda i: shown[i][1])
    outputs = [shown[i][1] for i in apart]
    most = max(outputs.count(y) for y in outputs)
    step = most if 2 * most <= len(outputs) else 1
    moved = outputs[step:] + outputs[:step]
    by_place = dict(zip(apart, moved, strict=True))
    return [(x, by_place[i]) for i, (x, _) in enumerate(shown)]


def _first_token(prompt: Prompt, tokenizer: Tokenizer) -> Prompt:
    if prompt.answer is None:
        return prompt
    ids = tokenizer.encode(prompt.answer, special=False)
    texts = tokenizer.strings(ids)
    blank = next((i for i, text in enumerate(texts) if text.strip()), 0)
    space = "".join(texts[:blank])
    if tokenizer.single(texts[blank]) is None:
        raise TaskError(
            f"the first token of {prompt.answer!r} is no text by itself: {texts[blank]}",
            expected="an output whose first token is",
            remedy="leave the pair out",
        )
    return prompt.model_copy(
        update={
            "clean": prompt.clean + space,
            "corrupted": None if prompt.corrupted is None else prompt.corrupted + space,
            "answer": texts[blank],
        }
    )
