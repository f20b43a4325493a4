"""Tiny models along their training: loss, in-context learning, prefix matching, and their curves.

In-context learning (ICL) is the loss late in the context less the loss early in it, each a mean
over the positions around. A curve has a row for each checkpoint. They are fifty steps apart; read
every hundred, a window is two or three of them long, and heads form "at its last" from most seeds.
"""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tiny_runs import prefix_matching, prefix_tokens, token_losses, trained_folder

import probe

EARLY, LATE, AROUND = 50, 244, 8
SLOPE = 100
"""Steps between the losses whose slope is taken, evenly spaced and not so close as to be noise."""


def follow(
    name: str, rows: Any, text: torch.Tensor, seed: int, changes: dict[str, Any]
) -> pd.DataFrame:
    """A training, and at each of its checkpoints the loss, the ICL score and the head scores.

    What was measured by this very script is kept beside the checkpoints.
    """
    done = trained_folder(name, rows, seed, changes)
    kept = done.parent / f"followed-{len(text)}-{scripts()}.parquet"
    if kept.is_file():
        return pd.read_parquet(kept)
    curve, tokens = [], prefix_tokens(rows.train)
    for folder in sorted(done.parent.glob("step-*")):
        model = probe.load_model(folder)
        losses = token_losses(model, text)
        scores = prefix_matching(model, tokens)
        curve.append(
            {
                "model": name,
                "seed": seed,
                "step": int(folder.name.removeprefix("step-")),
                "loss": losses.mean().item(),
                "icl": icl(losses),
                "induction": scores.max().item(),
            }
        )
    frame = pd.DataFrame(curve)
    frame.to_parquet(kept.with_suffix(".partial"))
    kept.with_suffix(".partial").rename(kept)
    return frame


def scripts() -> str:
    """Names the text of this script and of what it shares with others."""
    here = Path(__file__)
    texts = (path.read_bytes() for path in (here, here.with_name("tiny_runs.py")))
    return hashlib.sha256(b"".join(texts)).hexdigest()[:12]


def icl(losses: torch.Tensor) -> float:
    """Loss late in the context less loss early in it; negative is learning in context."""
    late, early = (losses[:, at - 1 - AROUND : at + AROUND].mean() for at in (LATE, EARLY))
    return (late - early).item()


# --- reading curves ------------------------------------------------------------------------------


def window(curve: pd.DataFrame, share: float) -> tuple[int, int]:
    """First and last step of the shortest stretch over which this share of the final score came."""
    icl, steps = -curve.icl.to_numpy(), curve.step.to_numpy()
    need = share * icl[-1]
    found = [
        (steps[end] - steps[begin], steps[begin], steps[end])
        for begin in range(len(icl))
        for end in range(begin + 1, len(icl))
        if icl[end] - icl[begin] >= need > 0
    ]
    return min(found)[1:] if found else (steps[0], steps[-1])


def width(begin: int, end: int, curve: pd.DataFrame) -> float:
    """The window as a share of training."""
    return (end - begin) / curve.step.iloc[-1]


def half_maximum(curve: pd.DataFrame) -> int:
    """The first step at which the best prefix-matching score is half of its highest."""
    return curve.step[curve.induction >= curve.induction.max() / 2].iloc[0]


def outside(step: int, begin: int, end: int) -> float:
    """How far the step is from the window, in widths of it; 0 inside."""
    return max(0, begin - step, step - end) / (end - begin)


def steepens(curve: pd.DataFrame, begin: int, end: int) -> bool:
    """Whether the loss falls at least 20 % faster somewhere inside the window than just before.

    Slopes a step, of the loss every hundred steps, smoothed over three of them.
    """
    late = curve[(curve.step >= SLOPE) & (curve.step % SLOPE == 0)]
    if len(late) < 2:
        return False
    slope = -np.gradient(late.loss.rolling(3, center=True, min_periods=1).mean(), late.step)
    inside = slope[(late.step >= begin) & (late.step <= end)]
    before = slope[late.step < begin][-3:]
    return bool(len(before) and len(inside) and inside.max() >= 1.2 * before.min())
