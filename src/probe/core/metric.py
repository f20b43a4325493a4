"""What counts as the behaviour: one number for each example, from logits.

Only numbers that a constant added to all logits cannot move, because normalising or folding
weights moves logits by such constants.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from probe.core.errors import OptionError, TaskError, nearest
from probe.core.task import Encoded

Reads = Literal["answers", "vocabulary"]


@dataclass(frozen=True)
class Metric:
    """A per-example number read from the logits at each prompt's last token.

    Attributes:
        name: How it is asked for.
        about: What it means, with unit and sign.
        unit: ``nats``, ``rank``, ...
        higher_is: What a larger value says about the answer.
        reads: ``answers``: the function receives only the columns (answer, wrong answer), which
            is all that need be unembedded; ``vocabulary``: it receives all logits.
        function: ``(logits, encoded, reference) -> [batch]``; the reference is the clean run's
            full logits, given where ``needs_reference``.
        needs_wrong: Whether each example must have a wrong answer.
        needs_reference: Whether the clean run's logits are needed.
    """

    name: str
    about: str
    unit: str
    higher_is: str
    reads: Reads
    function: Callable[[Tensor, Encoded, Tensor | None], Tensor]
    needs_wrong: bool = False
    needs_reference: bool = False

    def token_ids(self, encoded: Encoded) -> Int[Tensor, "batch read"] | None:
        """The only tokens whose logits are read, or None for the whole vocabulary."""
        if self.reads == "vocabulary":
            return None
        return torch.stack([encoded.need_answers(), encoded.need_wrong_answers()], dim=1)

    def check(self, encoded: Encoded) -> None:
        """Refuse a task that lacks what this metric reads."""
        if self.name != "kl":
            encoded.need_answers()
        if self.needs_wrong:
            encoded.need_wrong_answers()

    def __call__(
        self,
        logits: Float[Tensor, "batch read"],
        encoded: Encoded,
        reference: Float[Tensor, "batch d_vocab"] | None = None,
    ) -> Float[Tensor, " batch"]:
        """One number for each example."""
        if self.needs_reference and reference is None:
            raise TaskError(f"{self.name} compares with the clean run, and none was given")
        return self.function(logits, encoded, reference)


def _logit_diff(logits: Tensor, encoded: Encoded, _: Tensor | None) -> Tensor:
    return logits[:, 0] - logits[:, 1]


def _log_prob(logits: Tensor, encoded: Encoded, _: Tensor | None) -> Tensor:
    answers = encoded.need_answers().to(logits.device)
    return logits.log_softmax(-1).gather(1, answers[:, None])[:, 0]


def _prob(logits: Tensor, encoded: Encoded, _: Tensor | None) -> Tensor:
    return _log_prob(logits, encoded, None).exp()


def _rank(logits: Tensor, encoded: Encoded, _: Tensor | None) -> Tensor:
    answers = encoded.need_answers().to(logits.device)
    return (logits > logits.gather(1, answers[:, None])).sum(-1).to(logits.dtype)


def _loss(logits: Tensor, encoded: Encoded, _: Tensor | None) -> Tensor:
    return -_log_prob(logits, encoded, None)


def _kl(logits: Tensor, encoded: Encoded, reference: Tensor | None) -> Tensor:
    assert reference is not None  # __call__ checks
    clean = reference.log_softmax(-1)
    return (clean.exp() * (clean - logits.log_softmax(-1))).sum(-1)


METRICS: dict[str, Metric] = {
    m.name: m
    for m in (
        Metric(
            "logit_diff",
            "logit of the answer minus logit of the wrong answer",
            "nats",
            "answer preferred",
            "answers",
            _logit_diff,
            needs_wrong=True,
        ),
        Metric("log_prob", "log-probability of the answer", "nats", "answer likelier",
               "vocabulary", _log_prob),
        Metric("prob", "probability of the answer", "probability", "answer likelier",
               "vocabulary", _prob),
        Metric("rank", "tokens that score above the answer", "rank", "answer less likely",
               "vocabulary", _rank),
        Metric("loss", "minus the log-probability of the answer", "nats", "answer less likely",
               "vocabulary", _loss),
        Metric("kl", "KL from the clean run's next-token distribution", "nats",
               "further from the clean run", "vocabulary", _kl, needs_reference=True),
    )
}  # fmt: skip
"""Metric name → metric."""


def get_metric(metric: str | Metric) -> Metric:
    """The metric of that name.

    >>> get_metric("logit_diff").unit
    'nats'
    """
    if isinstance(metric, Metric):
        return metric
    if metric not in METRICS:
        raise OptionError(f'there is no metric "{metric}"', remedy=nearest(metric, METRICS))
    return METRICS[metric]
