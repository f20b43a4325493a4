"""Prompts with a counterfactual, and their tokenised form.

Everything about tokens is decided once, in ``Task.encode``: the token ids, the BOS policy, which
position differs first, and what a correct answer is.
"""

import hashlib
import itertools
import json
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from jaxtyping import Int
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from probe.core.errors import TaskError
from probe.core.slots import Slots, slots_of
from probe.core.tokens import Tokenizer

if TYPE_CHECKING:
    from probe.core.model import Model


class Prompt(BaseModel):
    """One clean prompt, its corrupted twin and the two answers between which it decides."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    clean: str = Field(description="The prompt as the model should see it")
    corrupted: str | None = Field(default=None, description="The counterfactual, as long in tokens")
    answer: str | None = Field(
        default=None, description="The right next token, with its leading space"
    )
    wrong_answer: str | None = Field(
        default=None, description="What the corrupted prompt calls for"
    )
    tags: dict[str, str] = Field(default_factory=dict, description="Template, order, ...")


Draw = Callable[[random.Random, Tokenizer | None], Prompt]
"""Makes one random prompt; the tokenizer, when known, lets it choose words of one token."""

_DRAWS_PER_PROMPT = 300


@dataclass(frozen=True)
class Task:
    """A list of prompts with answers.

    A built-in task also knows how to ``draw`` more, and draws its prompts anew for the tokenizer
    at hand, so that answers are single tokens and both prompts of a pair are equally long.
    """

    name: str
    prompts: tuple[Prompt, ...]
    about: str = ""
    seed: int = 0
    draw: Draw | None = field(default=None, repr=False, compare=False)

    checker: ClassVar[Callable[..., Any] | None] = None
    """What ``check`` calls; the api, which may import every room, provides it."""

    @classmethod
    def from_pairs(
        cls, pairs: Iterable[Mapping[str, Any] | Prompt], name: str = "pairs", about: str = ""
    ) -> "Task":
        """One's own prompts.

        >>> Task.from_pairs([{"clean": "a b", "corrupted": "a c", "answer": " d"}])
        Task(name='pairs', 1 prompt)
        """
        prompts = [_prompt(f"pair {row}", pair) for row, pair in enumerate(pairs)]
        if not prompts:
            raise TaskError("a task needs at least one prompt, and got none")
        return cls(name, tuple(prompts), about)

    @classmethod
    def from_prompts(cls, prompts: str | Sequence[str], name: str = "prompt") -> "Task":
        """Prompts alone, for methods that need no answer."""
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        return cls.from_pairs([{"clean": text} for text in texts], name)

    @classmethod
    def from_jsonl(cls, path: str | Path) -> "Task":
        """Read one prompt a line, with the fields of ``Prompt``."""
        path = Path(path)
        try:
            lines = path.read_text("utf-8-sig").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise TaskError(f"cannot read {path}: {error}", expected="a UTF-8 JSONL file") from None
        prompts = []
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    row = json.loads(line)
                except json.JSONDecodeError as error:
                    raise TaskError(f"{path}, line {number} is not JSON: {error}") from None
                prompts.append(_prompt(f"{path}, line {number}", row))
        return cls.from_pairs(prompts, name=path.stem)

    @classmethod
    def from_template(
        cls,
        template: str,
        slots: Mapping[str, Sequence[str]],
        *,
        answer: str,
        wrong_answer: str | None = None,
        corrupt: Mapping[str, str],
        n: int = 32,
        seed: int = 0,
        name: str = "template",
    ) -> "Task":
        """Fill a template; the counterfactual is named by slot.

        Args:
            template: Text with ``{slots}``. Slots that share a word list get different words.
            slots: Slot → its words. Several slots may share a list: ``{"A,B": [...]}``.
            answer: Template of the answer, like ``" {A}"``.
            wrong_answer: Template of the wrong answer.
            corrupt: Slot → what stands there in the corrupted prompt: another slot, or
                ``"{C}"``-style text. A slot used twice is renamed in one place by writing it
                ``{B2}`` with ``slots={"B2": "=B"}``.
            n: Number of prompts.
            seed: Random seed.
            name: The task's name.

        >>> task = Task.from_template(
        ...     "When {A} and {B} went out, {S} gave it to",
        ...     {"A,B": ["Mary", "John", "Tom"], "S": "=B"},
        ...     answer=" {A}", wrong_answer=" {B}", corrupt={"S": "{A}"}, n=2)
        >>> task.prompts[0].clean != task.prompts[0].corrupted
        True
        """
        filler = Slots(slots, slots_of(template))
        texts = [answer, wrong_answer or "", *corrupt.values()]
        named = {slot for text in texts for slot in slots_of(text)} | set(corrupt)
        if unknown := sorted(named - filler.names):
            raise TaskError(
                f"answers or corruptions name slots that have no words: {unknown}",
                expected=f"slots {sorted(filler.names)}",
            )

        def draw(rng: random.Random, tokenizer: Tokenizer | None) -> Prompt:
            words = filler.draw(rng)
            swapped = words | {slot: text.format(**words) for slot, text in corrupt.items()}
            return Prompt(
                clean=template.format(**words),
                corrupted=template.format(**swapped),
                answer=answer.format(**words),
                wrong_answer=wrong_answer.format(**words) if wrong_answer else None,
                tags=words,
            )

        return cls.drawn(name, draw, n=n, seed=seed, about=template)

    @classmethod
    def drawn(cls, name: str, draw: Draw, *, n: int, seed: int, about: str = "") -> "Task":
        """A task that makes its own prompts, here not yet for any tokenizer."""
        if n < 1:
            raise TaskError(f"n={n}", expected="at least one prompt")
        prompts = itertools.islice(_distinct_first(draw, seed, None, n), n)
        return cls(name, tuple(prompts), about, seed, draw)

    def fit(self, tokenizer: Tokenizer) -> "Task":
        """The same task drawn for one tokenizer; a task of fixed prompts stays as it is."""
        if self.draw is None:
            return self
        kept: list[Prompt] = []
        problem = ""
        for prompt in _distinct_first(self.draw, self.seed, tokenizer, len(self.prompts)):
            reason = misfit(prompt, tokenizer)
            problem = reason or problem
            if not reason:
                kept.append(prompt)
            if len(kept) == len(self.prompts):
                return replace(self, prompts=tuple(kept))
        raise TaskError(
            f"{self.name}: only {len(kept)} of {len(self.prompts)} prompts could be drawn for this "
            f"tokenizer; for instance {problem}",
            remedy="fewer prompts, or Task.from_pairs with words this tokenizer knows",
        )

    def encode(self, model: "Model") -> "Encoded":
        """Tokenise for a model; refuses ragged pairs and answers of several tokens."""
        if not model.dims.causal and self.prompts[0].answer is not None:
            raise TaskError(
                f"{model.name} is an encoder and predicts no next token",
                expected="prompts without answers",
                remedy="Task.from_prompts([...])",
            )
        return encode(self.fit(model.tokenizer), model.tokenizer, model.dims.n_ctx)

    def check(self, model: "Model", metric: str = "logit_diff") -> Any:
        """How well the model does it, example by example, clean and corrupted.

        The answer's ``correct`` is the task of only the pairs the model gets right. Two forward
        passes over the prompts.
        """
        if Task.checker is None:
            raise TaskError("nothing to check with yet", remedy="import probe.api")
        return Task.checker(self, model, metric)

    def to_jsonl(self, path: str | Path) -> Path:
        """Write one prompt a line."""
        path = Path(path)
        # ASCII JSON: every string survives, also one that is no valid Unicode
        rows = [p.model_dump(exclude_none=True, exclude_defaults=True) for p in self.prompts]
        lines = [json.dumps(row) for row in rows]
        part = path.with_suffix(path.suffix + ".part")
        part.write_text("\n".join(lines) + "\n", "utf-8")
        part.replace(path)
        return path

    def take(self, rows: Iterable[int]) -> "Task":
        """The task of these prompts only, as they are."""
        return replace(self, prompts=tuple(self.prompts[row] for row in rows), draw=None)

    def __len__(self) -> int:
        return len(self.prompts)

    def __repr__(self) -> str:
        count = f"{len(self)} prompt{'s' if len(self) != 1 else ''}"
        return f"Task(name={self.name!r}, {count})"


@dataclass(frozen=True, eq=False)
class Encoded:
    """A task as token ids, padded on the right, one row a prompt.

    Attributes:
        task: The task this came from, with the prompts actually encoded.
        clean: Clean token ids.
        corrupted: Corrupted token ids, as long row by row as the clean ones.
        lengths: Real tokens of each row.
        answers: Token id of each answer.
        wrong_answers: Token id of each wrong answer.
        first_difference: First position at which clean and corrupted differ.
        tokenizer: The tokenizer that made it.
    """

    task: Task
    clean: Int[Tensor, "batch pos"]
    lengths: Int[Tensor, " batch"]
    tokenizer: Tokenizer
    corrupted: Int[Tensor, "batch pos"] | None = None
    answers: Int[Tensor, " batch"] | None = None
    wrong_answers: Int[Tensor, " batch"] | None = None
    first_difference: Int[Tensor, " batch"] | None = None

    def __len__(self) -> int:
        return len(self.clean)

    @property
    def last(self) -> Int[Tensor, " batch"]:
        """Position of each row's last real token, where the answer is read."""
        return self.lengths - 1

    def need_corrupted(self) -> Int[Tensor, "batch pos"]:
        """The corrupted ids, or a clear refusal."""
        if self.corrupted is None:
            raise TaskError(
                f"the task {self.task.name!r} has no corrupted prompts",
                remedy='Task.from_pairs([{"clean": ..., "corrupted": ..., "answer": ...}])',
            )
        return self.corrupted

    def need_answers(self) -> Int[Tensor, " batch"]:
        """The answer ids, or a clear refusal."""
        return self._need(self.answers, "answer")

    def need_wrong_answers(self) -> Int[Tensor, " batch"]:
        """The wrong answers' ids, or a clear refusal."""
        return self._need(self.wrong_answers, "wrong_answer")

    def _need(self, ids: Tensor | None, what: str) -> Tensor:
        if ids is None:
            raise TaskError(
                f"the task {self.task.name!r} has no {what}",
                remedy=f'give each pair its "{what}", or choose a metric that needs none',
            )
        return ids

    def str_tokens(self, row: int, *, corrupted: bool = False) -> list[str]:
        """Token strings of one prompt, without padding."""
        ids = self.need_corrupted() if corrupted else self.clean
        return self.tokenizer.strings(ids[row, : int(self.lengths[row])].tolist())

    def rows(self, rows: Sequence[int]) -> "Encoded":
        """Only these prompts, padded no more than they need."""
        pick = torch.as_tensor(rows, dtype=torch.long)
        if not len(pick):
            raise TaskError("no prompt is left", expected="at least one")
        width = int(self.lengths[pick].max())

        def ids(tokens: Tensor | None) -> Tensor | None:
            return None if tokens is None else tokens[pick, :width]

        def some(values: Tensor | None) -> Tensor | None:
            return None if values is None else values[pick]

        return Encoded(
            task=self.task.take(pick.tolist()),
            clean=self.clean[pick, :width],
            lengths=self.lengths[pick],
            tokenizer=self.tokenizer,
            corrupted=ids(self.corrupted),
            answers=some(self.answers),
            wrong_answers=some(self.wrong_answers),
            first_difference=some(self.first_difference),
        )

    @property
    def hash(self) -> str:
        """Names the data: equal for equal prompts under an equal tokenizer."""
        digest = hashlib.sha256()
        ids = (self.clean, self.lengths, self.corrupted, self.answers, self.wrong_answers)
        for tensor in ids:
            digest.update(b"-" if tensor is None else str(tensor.tolist()).encode())
        return digest.hexdigest()[:16]


def encode(task: Task, tokenizer: Tokenizer, n_ctx: int) -> Encoded:
    """Tokenise prompts that are already drawn."""
    clean = _ids([p.clean for p in task.prompts], "clean", tokenizer, n_ctx)
    texts = _all_or_none([p.corrupted for p in task.prompts], "corrupted")
    corrupted = None if texts is None else _ids(texts, "corrupted", tokenizer, n_ctx)
    difference = None
    if corrupted is not None:
        pairs = list(zip(clean, corrupted, strict=True))
        difference = torch.tensor(
            [_first_difference(row, *pair, tokenizer) for row, pair in enumerate(pairs)]
        )
    answers = _answers(task, "answer", tokenizer)
    wrong_answers = _answers(task, "wrong_answer", tokenizer)
    _check_answers_differ(task, answers, wrong_answers)
    return Encoded(
        task=task,
        clean=pad(clean, tokenizer.pad_id),
        lengths=torch.tensor([len(ids) for ids in clean]),
        tokenizer=tokenizer,
        corrupted=None if corrupted is None else pad(corrupted, tokenizer.pad_id),
        answers=answers,
        wrong_answers=wrong_answers,
        first_difference=difference,
    )


def pad(rows: Sequence[Sequence[int]], pad_id: int) -> Int[Tensor, "batch pos"]:
    """Rows of ids as one tensor, padded on the right.

    >>> pad([[1, 2, 3], [4]], pad_id=0).tolist()
    [[1, 2, 3], [4, 0, 0]]
    """
    return torch.tensor(list(zip(*itertools.zip_longest(*rows, fillvalue=pad_id), strict=True)))


def misfit(prompt: Prompt, tokenizer: Tokenizer) -> str:
    """Why a prompt cannot be used with a tokenizer; empty when it can."""
    for text in (prompt.answer, prompt.wrong_answer):
        if text is not None and tokenizer.single(text) is None:
            return f"the answer {text!r} is several tokens"
    if prompt.answer is not None and prompt.answer == prompt.wrong_answer:
        return f"the answer {prompt.answer!r} is also the wrong answer"
    if prompt.corrupted is not None:
        clean, corrupted = tokenizer.encode(prompt.clean), tokenizer.encode(prompt.corrupted)
        if len(clean) != len(corrupted):
            return f"{prompt.clean!r} has {len(clean)} tokens, its twin {len(corrupted)}"
        if clean == corrupted:
            return f"{prompt.clean!r} equals its twin"
    return ""


def _distinct_first(draw: Draw, seed: int, tokenizer: Tokenizer | None, n: int) -> Iterator[Prompt]:
    """Draws from a seed; repeats are passed over until half of the draws are used up."""
    rng, seen = random.Random(seed), set()
    for number in range(_DRAWS_PER_PROMPT * n):
        prompt = draw(rng, tokenizer)
        if prompt.clean not in seen or 2 * number >= _DRAWS_PER_PROMPT * n:
            seen.add(prompt.clean)
            yield prompt


def _prompt(where: str, pair: Any) -> Prompt:
    if isinstance(pair, Prompt):
        return pair
    fields = "clean, and optionally corrupted, answer, wrong_answer, tags"
    if not isinstance(pair, Mapping):
        raise TaskError(f"{where} is a {type(pair).__name__}: {str(pair)[:60]}", expected=fields)
    try:
        return Prompt.model_validate(dict(pair))
    except ValidationError as error:
        problems = [f"{'.'.join(str(x) for x in p['loc'])}: {p['msg']}" for p in error.errors()]
        raise TaskError(
            f"{where} is not a prompt: {'; '.join(problems)}", expected=fields
        ) from None


def _all_or_none(texts: list[str | None], what: str) -> list[str] | None:
    given = [text for text in texts if text is not None]
    if not given:
        return None
    if len(given) < len(texts):
        row = texts.index(None)
        raise TaskError(f"prompt {row} has no {what} and others do", expected="all or none")
    return given


def _answers(task: Task, which: str, tokenizer: Tokenizer) -> Tensor | None:
    texts = _all_or_none([getattr(p, which) for p in task.prompts], which)
    return None if texts is None else torch.tensor([tokenizer.need_single(t) for t in texts])


def _ids(texts: Sequence[str], which: str, tokenizer: Tokenizer, n_ctx: int) -> list[list[int]]:
    rows = []
    for row, text in enumerate(texts):
        try:
            rows.append(tokenizer.prompt(text, n_ctx))
        except TaskError as error:
            if len(texts) == 1 and which == "clean":
                raise
            raise TaskError(
                f"{which} prompt {row}: {error.what}", expected=error.expected, remedy=error.remedy
            ) from None
    return rows


def _check_answers_differ(task: Task, right: Tensor | None, wrong: Tensor | None) -> None:
    if right is not None and wrong is not None and (right == wrong).any():
        row = int((right == wrong).nonzero()[0])
        raise TaskError(
            f"prompt {row}: {task.prompts[row].answer!r} is the answer and the wrong answer",
            expected="two different tokens",
        )


def _first_difference(row: int, clean: list[int], corrupted: list[int], tok: Tokenizer) -> int:
    if len(clean) != len(corrupted):
        raise TaskError(
            f"pair {row} is ragged: {len(clean)} clean tokens, {len(corrupted)} corrupted\n"
            f"  clean     {_bars(tok.strings(clean))}\n"
            f"  corrupted {_bars(tok.strings(corrupted))}",
            expected="prompts of equal length in tokens",
            remedy="replace the longer word by one of as many tokens",
        )
    pairs = enumerate(zip(clean, corrupted, strict=True))
    first = next((i for i, (a, b) in pairs if a != b), None)
    if first is None:
        raise TaskError(f"pair {row}: clean and corrupted are the same tokens")
    return first


def _bars(strings: Sequence[str]) -> str:
    return "|".join(strings)
