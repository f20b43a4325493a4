"""What heads attend to, as one number a prompt: targets, and means over the rows that have them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probe.core.model import Model
from probe.core.result import View
from probe.core.tokens import Tokenizer
from probe.core.trace import Trace

Score = Literal[
    "previous", "duplicate", "induction", "preceding", "current", "first_token", "entropy",
    "entropy_share", "mean_distance",
]  # fmt: skip

ABOUT: dict[str, str] = {
    "previous": "attention to the position before",
    "duplicate": "attention to earlier occurrences of the current token (offset: the period)",
    "induction": "attention to what followed earlier occurrences of the current token (offset: "
    "the period minus 1)",
    "preceding": "attention to what preceded earlier occurrences of the current token (offset: "
    "the period plus 1)",
    "current": "attention to the position itself",
    "first_token": "attention to position 0",
    "entropy": "entropy of the attention, in nats",
    "entropy_share": "entropy over the logarithm of the number of positions in reach, 0 to 1",
    "mean_distance": "mean distance attended over, in tokens",
}
"""Score → what it measures."""

SHARES: tuple[Score, ...] = ("previous", "duplicate", "induction", "current", "first_token")
"""The scores that are shares of attention, 0 to 1, and so can share a colour scale."""

COLUMNS = {
    "layer": "block, counted from 0",
    "head": "query head",
    "score": "; ".join(f"{name}: {about}" for name, about in ABOUT.items()),
    "value": "the score, mean over the positions that have what it asks for",
    "without_first": "the same with position 0 taken out and the rest of each row's attention "
    "scaled to sum to 1; rows weigh as much as they attend elsewhere",
}
"""What the columns mean, but for ``batch``."""


def view(options: Any) -> View:
    """Layer × head, a panel for each score."""
    return View(
        kind="heatmap",
        x="head",
        y="layer",
        color="value",
        facet="score" if len(options.scores) > 1 else None,
        scale="attention" if set(options.scores) <= {*SHARES, "preceding"} else "activation",
        title="Head scores",
    )


@dataclass(frozen=True)
class Rows:
    """Facts about the positions of a batch that scores are computed from.

    Attributes:
        real: Positions that are no padding.
        earlier: ``[query, key]``: an earlier occurrence of the query's token.
        ordinary: Positions that hold no special token and no padding.
        reach: How many positions a query can attend to.
    """

    real: Bool[Tensor, "batch pos"]
    earlier: Bool[Tensor, "batch query key"]
    ordinary: Bool[Tensor, "batch pos"]
    reach: Int[Tensor, "batch query"]

    @classmethod
    def of(
        cls,
        tokens: Int[Tensor, "batch pos"],
        lengths: Int[Tensor, " batch"],
        tokenizer: Tokenizer,
        *,
        causal: bool,
    ) -> "Rows":
        """Find repetitions. Special tokens do not count as repeated, nor as what follows one."""
        n = tokens.shape[1]
        real = torch.arange(n) < lengths[:, None]
        special = [token for token in tokens.unique().tolist() if tokenizer.is_special(token)]
        ordinary = real & ~torch.isin(tokens, torch.tensor(special, dtype=tokens.dtype))
        same = tokens[:, :, None] == tokens[:, None, :]
        pairs = ordinary[:, :, None] & ordinary[:, None, :]
        reach = torch.arange(1, n + 1).expand(len(tokens), n) if causal else lengths[:, None]
        return cls(real, (same & pairs).tril(-1), ordinary, reach.expand(len(tokens), n))

    def target(self, score: str) -> Bool[Tensor, "batch query key"] | None:
        """The keys a score counts attention to, or None for a score that is no such share.

        With tokens repeated at one period, ``induction`` is offset period - 1, ``duplicate`` the
        period, ``preceding`` period + 1, on exactly the rows that have an earlier occurrence.
        """
        batch, n = self.real.shape
        if score in ("duplicate", "induction", "preceding"):
            shift = {"duplicate": 0, "induction": 1, "preceding": -1}[score]
            moved = torch.zeros_like(self.earlier)
            moved[..., max(shift, 0) : n + min(shift, 0)] = self.earlier[
                ..., max(-shift, 0) : n - max(shift, 0)
            ]
            # What follows may be the query itself ("a a"): that is attention to the current token.
            return (moved & self.ordinary[:, None]).tril(-1)
        if score in ("previous", "current"):
            back = int(score == "previous")
            return torch.ones(n, n).tril(-back).triu(-back).bool().expand(batch, n, n)
        if score == "first_token":
            return (torch.arange(n) == 0).expand(batch, n, n)
        return None

    def rows(self, score: str) -> Bool[Tensor, "batch query"]:
        """The queries a score is a mean over. Query 0 sees only itself, and is never one."""
        rows = self.real & (torch.arange(self.real.shape[1]) > 0)
        if score in ("duplicate", "induction", "preceding"):
            target = self.target(score)
            assert target is not None
            rows = rows & target.any(-1)
        return rows


def measure(
    pattern: Float[Tensor, "batch head query key"], score: str, rows: Rows, *, sink: bool
) -> Float[Tensor, "batch head"]:
    """One score of each head: a mean over rows, NaN where no row counts.

    Args:
        pattern: Attention probabilities.
        score: One of ABOUT.
        rows: What the positions hold.
        sink: Whether position 0 counts. If not, each row's remaining attention is scaled to sum
            to 1, and the row's weight in the mean is what remained: the mean of a share becomes
            (attention to the target) / (attention to anything but position 0).
    """
    counted = rows.rows(score)[:, None].to(pattern)
    reach = rows.reach
    if not sink:
        rest = pattern[..., 1:].sum(-1)
        counted = counted * rest
        safe = torch.where(rest > 0, rest, 1.0)[..., None]
        pattern = torch.cat([torch.zeros_like(pattern[..., :1]), pattern[..., 1:] / safe], dim=-1)
        reach = reach - 1
    if score == "entropy_share":
        counted = counted * (reach > 1)[:, None].to(pattern)
    values = _values(pattern, score, rows, reach)
    total = counted.sum(-1)
    return torch.where(total > 0, (counted * values).sum(-1) / total, torch.nan)


def _values(
    pattern: Float[Tensor, "batch head query key"],
    score: str,
    rows: Rows,
    reach: Int[Tensor, "batch query"],
) -> Float[Tensor, "batch head query"]:
    target = rows.target(score)
    if target is not None:
        return (pattern * target[:, None].to(pattern)).sum(-1)
    if score == "mean_distance":
        place = torch.arange(pattern.shape[-1]).to(pattern)
        return (pattern * (place[:, None] - place).abs()).sum(-1)
    entropy = torch.special.entr(pattern).sum(-1)
    if score == "entropy":
        return entropy
    return entropy / reach.clamp(min=2).to(pattern).log()[:, None]


def score_frame(
    model: Model, trace: Trace, layers: Sequence[int], scores: Sequence[Score]
) -> pd.DataFrame:
    """Scores of all heads from recorded patterns: one row a prompt, layer, head and score.

    A prompt in which no row counts for a score (no repeated token) has no row for it.
    """
    rows = Rows.of(trace.tokens.cpu(), trace.lengths, model.tokenizer, causal=model.dims.causal)
    parts = []
    for layer in layers:
        pattern = trace["pattern", layer].float().cpu()
        for score in scores:
            whole = measure(pattern, score, rows, sink=True)
            without = measure(pattern, score, rows, sink=False)
            batch, head = (axis.flatten() for axis in _grid(whole.shape))
            parts.append(
                pd.DataFrame(
                    {
                        "batch": batch,
                        "layer": layer,
                        "head": head,
                        "score": score,
                        "value": whole.flatten().numpy(),
                        "without_first": without.flatten().numpy(),
                    }
                )
            )
    return pd.concat(parts).dropna(subset="value").reset_index(drop=True)


def _grid(shape: Sequence[int]) -> tuple[Tensor, ...]:
    return torch.meshgrid(*(torch.arange(size) for size in shape), indexing="ij")
