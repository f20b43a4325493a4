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
        shipped = {seed: name + (f"-seed{seed}" if seed else "") for seed in seeds}
        if absent := [seed for seed, one in shipped.items() if one not in probe.models()]:
            raise probe.OptionError(
                f"no {name} of seed {absent[0]} comes with Probe",
                expected="the small size from seed 0, or the full size, which trains its own",
            )
        return [probe.load_model(one) for one in shipped.values()]
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
    that the text never has. BOS begins every row, and is none of the text's.
    """
    counts = torch.bincount(rows[:, 1:].flatten().long())
    often = counts.argsort(descending=True)
    return often[10 : int((counts >= 100).sum())]


def prefix_matching(
    model: Any, tokens: torch.Tensor, *, score: str = "induction", first: bool = True
) -> torch.Tensor:
    """Score of each head, [layer, head]: BOS and 25 random tokens 4 times, mean of 10 draws.

    Args:
        model: The model.
        tokens: To draw from.
        score: Of ``head_scores``: attention to what followed the earlier occurrences of the present
            token (offset period - 1), to these themselves (``duplicate``), or to what preceded them
            (``preceding``, period + 1).
        first: Count attention to the first token, where heads rest.
    """
    frame = probe.run(
        "head_scores", model=model, scores=[score], repeats=4, drawn_from=tokens.tolist()
    ).frame
    means = frame.groupby(["layer", "head"])["value" if first else "without_first"].mean()
    return torch.tensor(means.unstack().to_numpy())
