"""What studies of tiny models share: trainings, losses on text, and the prefix-matching score."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import probe

AT_ONCE = 4
"""Rows read at once: of 64, half of the time goes into fresh memory."""

Edits = Callable[[torch.Tensor], list[probe.Edit]]
"""Token rows → what is changed while they are read."""


def text_of(documents: int | None, shipped: bool) -> Any:
    """Token rows of the everyday text; for shipped models in their own tokens."""
    tokenizer = probe.load_model("attn-only-2l").tokenizer.hf if shipped else None
    return probe.tiny_rows(probe.everyday_corpus(limit=documents), tokenizer=tokenizer)


def trained_folder(name: str, rows: Any, seed: int, changes: dict[str, Any]) -> Path:
    """The folder of a trained model; a training that is there is not made again."""
    root = Path(os.environ.get("PROBE_RUNS", "runs")) / "tiny"
    tag = "".join(f"-{key}-{value}" for key, value in changes.items())
    out = root / f"{name}-{seed}-{rows.text_hash}{tag}"
    return probe.train_tiny(name, rows, seed=seed, out=out, **changes)


def models(name: str, rows: Any, seeds: range, changes: dict[str, Any] | None) -> list[Any]:
    """Trained here, a seed each; or, without changes to make, those that come with Probe."""
    if changes is None:
        shipped = [one for one in probe.models() if one.split("-seed")[0] == name]
        return [probe.load_model(one) for one in shipped[: len(seeds)]]
    return [probe.load_model(trained_folder(name, rows, seed, changes)) for seed in seeds]


def token_losses(model: Any, rows: torch.Tensor, edits: Edits = lambda rows: []) -> torch.Tensor:
    """Loss of each row's tokens 1, 2, ..., in nats."""
    parts = []
    for chunk in rows.split(AT_ONCE):
        logits = model.forward(chunk, edits(chunk), quiet=True).log_softmax(-1)
        parts.append(-logits[:, :-1].gather(-1, chunk[:, 1:, None])[..., 0])
    return torch.cat(parts)


def prefix_tokens(rows: torch.Tensor) -> torch.Tensor:
    """Tokens to draw from: seen a hundred times in the training text, less the ten commonest.

    The paper, too, leaves out the rarest and the commonest; an eighth of this vocabulary are bytes
    that the text never has.
    """
    counts = torch.bincount(rows.flatten().long())
    often = counts.argsort(descending=True)
    return often[10 : int((counts >= 100).sum())]


def prefix_matching(
    model,
    tokens: torch.Tensor,
    n: int = 10,
    period: int = 25,
    *,
    ahead: int = 1,
    first: bool = True,
) -> torch.Tensor:
    """Score of each head, [layer, head]: BOS and 25 random tokens 4 times, mean of 10 draws.

    Attention to the tokens that followed the present one before (offsets period - 1, ...), where
    there are any: from the second time on.

    Args:
        model: The model.
        tokens: To draw from.
        n: Draws.
        period: Tokens before they repeat.
        ahead: Of the earlier occurrence: 1 what followed it, 0 itself, -1 what was before it.
        first: Count attention to the first token, where heads rest; without, what is elsewhere is
            scaled to sum to 1, and positions weigh as much as they attend elsewhere.
    """
    draw = torch.Generator().manual_seed(0)
    once = torch.stack([tokens[torch.randperm(len(tokens), generator=draw)[:period]]
                        for _ in range(n)])  # fmt: skip
    bos = torch.full((n, 1), model.tokenizer.hf.bos_token_id)
    repeated = torch.cat([bos, once.repeat(1, 4)], 1)
    trace = model.trace(repeated, ["pattern"])
    query, key = torch.meshgrid(*[torch.arange(repeated.shape[1])] * 2, indexing="ij")
    back = query - key
    meant = (key > 0) & (back >= period - 1) & ((back + ahead) % period == 0)
    found = []
    for layer in range(model.dims.n_layers):
        pattern = trace["pattern", layer][..., period + 1 :, :]
        score = (pattern * meant[period + 1 :]).sum(-1).mean((0, 2))
        elsewhere = (1 - pattern[..., 0]).mean((0, 2))
        found.append(score if first else score / elsewhere.clamp(min=1e-9))
    return torch.stack(found)
