"""Does the model do the task at all? Nothing can be localised in a model that does not."""

import html
import unicodedata
from dataclasses import dataclass, field

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from probe.core.errors import TaskError
from probe.core.metric import Metric, get_metric
from probe.core.model import Model
from probe.core.task import Encoded, Task
from probe.tasks.registry import NEUTRAL

_BATCH = 32
_SHOWN = 120
_LOOK_RIGHT = {True: "yes", False: "no", None: "-"}


@dataclass(frozen=True, eq=False)
class TaskCheck:
    """How well a model does a task, example by example.

    Attributes:
        task: The prompts as encoded for the model, rows in the order of ``batch``.
        metric: The metric whose values stand in ``value``.
        frame: One row for each prompt and run, with columns ``batch`` (number of the pair),
            ``run`` (clean or corrupted), ``prompt``, ``answer``, ``wrong_answer``, ``top`` (the
            likeliest token), ``value`` (the metric, in its unit; in both runs of the same sign)
            and ``right``: in the clean run, whether the answer scores above the wrong answer; in
            the corrupted run, whether it scores below; missing where the corrupted prompt calls
            for neither (tag ``twin: neutral``). Without wrong answers a clean run is right when
            the answer is the top token, and a corrupted one counts neither way.
    """

    task: Task
    metric: Metric
    frame: pd.DataFrame = field(repr=False)

    @property
    def accuracy(self) -> float:
        """Share of clean prompts the model gets right."""
        return float(self._right("clean").mean())

    @property
    def correct(self) -> Task:
        """Only the pairs the model gets right, clean and corrupted, as fixed prompts."""
        wrong = self.frame[self.frame.right.eq(False).fillna(False)].batch
        rows = [row for row in range(len(self.task)) if row not in set(wrong)]
        if not rows:
            raise TaskError(
                f"the model gets none of the {len(self.task)} pairs of {self.task.name} right",
                expected="at least one pair to keep",
                remedy="another task or model, or more prompts (n=...)",
            )
        return self.task.take(rows)

    def _right(self, run: str) -> pd.Series:
        return self.frame[self.frame.run == run].right.dropna().astype(float)

    def __str__(self) -> str:
        """Accuracy and mean metric of both runs, in a few lines."""
        lines = [f"{self.task.name}: {len(self.task)} prompts"]
        for run, rows in self.frame.groupby("run", sort=False):
            right = self._right(str(run))
            share = f"{right.mean():.0%} right, " if len(right) else ""
            mean = f"{rows.value.mean():.2f} {self.metric.unit}"
            lines.append(f"  {run}: {share}mean {self.metric.name} {mean}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """The summary and the table; prompts are shown as text, whatever they contain."""
        shown = self.frame.assign(
            value=[f"{value:.2f}" for value in self.frame.value],
            right=[_LOOK_RIGHT[None if pd.isna(r) else bool(r)] for r in self.frame.right],
        )
        head = "".join(f"<th>{name}</th>" for name in shown.columns)
        body = "".join(
            "<tr>" + "".join(f"<td><bdi>{_safe(cell)}</bdi></td>" for cell in row) + "</tr>"
            for row in shown.itertuples(index=False)
        )
        return (
            f"<pre>{_safe(str(self))}</pre>"
            # Both classes keep a notebook from reading $...$ as mathematics.
            '<table class="tex2jax_ignore mathjax_ignore">'
            f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        )


def check(task: Task, model: Model, metric: str | Metric = "logit_diff") -> TaskCheck:
    """Does the model prefer the answer, and the wrong answer in the corrupted twin?

    Args:
        task: The task; each prompt needs an answer.
        model: Any causal model.
        metric: What to report for each prompt. Whether a prompt is right does not depend on it.

    Returns:
        The table and what follows from it.

    Raises:
        TaskError: No answers, prompts that cannot be encoded, or a metric the task cannot feed.

    Cost: one forward pass of the clean prompts and one of the corrupted ones.
    """
    found, encoded = get_metric(metric), task.encode(model)
    encoded.need_answers()
    found.check(encoded)
    frames = []
    for start in range(0, len(encoded), _BATCH):
        part = encoded.rows(range(start, min(start + _BATCH, len(encoded))))
        clean = _last_logits(model, part, part.clean)
        frames.append(_rows(part, found, "clean", clean, clean, start))
        if part.corrupted is not None:
            corrupted = _last_logits(model, part, part.corrupted)
            frames.append(_rows(part, found, "corrupted", corrupted, clean, start))
    frame = pd.concat(frames).sort_values(["batch", "run"], ignore_index=True)
    return TaskCheck(encoded.task, found, frame)


def _last_logits(model: Model, part: Encoded, tokens: Tensor) -> Float[Tensor, "batch d_vocab"]:
    return model.forward(tokens, lengths=part.lengths, last_only=True).detach().float().cpu()


def _rows(
    part: Encoded,
    metric: Metric,
    run: str,
    logits: Float[Tensor, "batch d_vocab"],
    clean: Float[Tensor, "batch d_vocab"],
    start: int,
) -> pd.DataFrame:
    read = metric.token_ids(part)
    value = metric(logits if read is None else logits.gather(1, read), part, clean)
    prompts = part.task.prompts
    texts = [p.clean if run == "clean" else p.corrupted for p in prompts]
    return pd.DataFrame(
        {
            "batch": range(start, start + len(part)),
            "run": run,
            "prompt": texts,
            "answer": [p.answer for p in prompts],
            "wrong_answer": [p.wrong_answer for p in prompts],
            "top": part.tokenizer.strings(logits.argmax(1).tolist()),
            "value": value.tolist(),
            "right": pd.array(_right(part, run, logits), dtype="boolean"),
        }
    )


def _right(part: Encoded, run: str, logits: Float[Tensor, "batch d_vocab"]) -> list[bool | None]:
    answers = part.need_answers()
    if part.wrong_answers is None:
        return (logits.argmax(1) == answers).tolist() if run == "clean" else [None] * len(part)
    difference = logits.gather(1, torch.stack([answers, part.wrong_answers], 1)).diff()[:, 0]
    if run == "clean":
        return (difference < 0).tolist()
    neutral = [prompt.tags.items() >= NEUTRAL.items() for prompt in part.task.prompts]
    flipped = (difference > 0).tolist()
    return [None if skip else flip for skip, flip in zip(neutral, flipped, strict=True)]


def _safe(cell: object) -> str:
    """A cell as HTML text: markup escaped, control characters spelled out, long text cut."""
    text = str(cell)
    text = text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"
    visible = (
        char if char == "\n" or unicodedata.category(char) != "Cc" else f"\\x{ord(char):02x}"
        for char in text
    )
    return html.escape("".join(visible))
