"""What vectors of in-context tasks are made of and judged by: last tokens, and right answers."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from probe.core.errors import OptionError, TaskError
from probe.core.metric import Metric, get_metric
from probe.core.model import Model
from probe.core.pairs import PairTask
from probe.core.progress import Report
from probe.core.provenance import hash_text
from probe.core.task import Encoded
from probe.core.vector import VectorResult

_NO_NUMBER = -1.0


def _right(logits: Tensor, encoded: Encoded, _: Tensor | None) -> Tensor:
    answers = encoded.need_answers().to(logits.device)
    right = (logits.argmax(-1) == answers).to(logits.dtype)
    return torch.where(logits.isfinite().all(-1), right, _NO_NUMBER)


RIGHT = Metric(
    "right", "1 where the answer is the likeliest token", "share", "answer preferred",
    "vocabulary", _right,
)  # fmt: skip
"""Whether the first answer token is the top token."""


def accuracy(
    model: Model,
    encoded: Encoded,
    vectors: Sequence[VectorResult | None],
    *,
    report: Report | None = None,
) -> Float[Tensor, "vectors batch"]:
    """1 where the clean prompt is answered right with this vector in the model, 0 where not.

    None stands for no vector. Refuses a strength under which the logits are no numbers.
    """
    for vector in vectors:
        if vector is not None:
            vector.check(model)
    sets = [[] if vector is None else vector.edits() for vector in vectors]
    right = model.sweep(encoded, sets, RIGHT, base="clean", report=report).cpu()
    for vector, row in zip(vectors, right, strict=True):
        if vector is not None and (row == _NO_NUMBER).any():
            raise OptionError(
                f"the model's logits are no longer numbers under {vector.name} at strength "
                f"{vector.strength:g} (norm {vector.norm:.3g})",
                expected="a strength at which the model still computes",
                remedy="a smaller strength",
            )
    return right


def by_layer(
    model: Model, encoded: Encoded, vectors: Sequence[VectorResult]
) -> tuple[int, pd.DataFrame]:
    """The layer at which these prompts go best, and the curve: accuracy and probability.

    Most answers right, then the highest mean probability of the answer.
    """
    right = accuracy(model, encoded, vectors).mean(1)
    sets = [vector.edits() for vector in vectors]
    prob = model.sweep(encoded, sets, get_metric("prob"), base="clean").cpu().mean(1)
    layers = [vector.layer for vector in vectors]
    curve = pd.DataFrame({"layer": layers, "accuracy": right.tolist(), "prob": prob.tolist()})
    best = curve.sort_values(["accuracy", "prob"], ascending=False).iloc[0]
    return int(best.layer), curve


def mean_heads(
    model: Model, encoded: Encoded, *, corrupted: bool = False
) -> Float[Tensor, "layer head d_head"]:
    """Mean over prompts of every head's output at the last token, before the output matrix."""
    trace = model.trace(encoded, ["z"], positions=[-1], corrupted=corrupted)
    return trace["z"][:, :, 0].float().mean(1)


def need_skill(model: Model, encoded: Encoded, name: str, least: float) -> float:
    """The share of these prompts the model gets right; refuses one below ``least``."""
    share = float(accuracy(model, encoded, [None]).mean())
    if share < least:
        raise TaskError(
            f"{model.name} gets {share:.0%} of {len(encoded)} prompts of {name} right, with all "
            "their demonstrations",
            expected=f"at least {least:.0%}: what a model cannot do has no vector in it",
            remedy="another task or model, more shots, or least=0 to go on all the same",
        )
    return share


def told(task: PairTask, **more: Any) -> dict[str, Any]:
    """A task of pairs as a record keeps it."""
    text = "\n".join(f"{x}\t{y}" for x, y in task.pairs)
    return {
        "name": task.name,
        "n": len(task),
        "seed": task.seed,
        "hash": hash_text(text + task.format),
        **more,
    }
