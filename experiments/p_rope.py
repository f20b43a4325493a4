"""What do rotary frequencies do for a model, when only a share p of them turns, or none?

Barbero et al. (2024) turn the share p of fastest rotary pairs and leave the others alone (p-RoPE;
1 is RoPE, 0 is NoPE), at the speeds that all pairs have. Models that are compared begin with the
same weights and see the same text in the same order. Fixed before any measurement:

- Previous-token copy. One attention layer with one head, trained by ``train_tiny`` for the steps
  of all tiny models (4000; 1000 were too few for RoPE, and told nothing of NoPE) on rows of
  quadruples *a b mark b*, where the symbols of a row are all different. So the token that follows a
  mark is the one before it, and the rest is chance. Measured at the marks of rows never met. NoPE
  fails where fewer than half of its answers are right. Blind to order, as one head without
  positions is to what came before, the n-th mark of a row leaves n + 1 symbols alike (each *a* so
  far and the last *b*, which stood there once): ``ceiling`` is the mean of 1 / (n + 1).
- Perplexity a token of documents never learnt from, of two layers with an MLP (``gelu-2l``, 1000
  steps, two million tokens; the paper: 2 billion parameters, 10,000 steps of 4 million). Gaps are
  taken seed by seed, and divided by the standard deviation over seeds, pooled over the two.

The context is 256 tokens, base 10,000, 16 pairs a head: the slowest quarter turns by 15 degrees or
less over the whole of it (over the 8192 tokens of the paper the fastest of them passes a full
turn). So here 0.75 and 1 can hardly differ. Tokens are of another vocabulary, so only the order of
perplexities compares.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from tiny_runs import text_of, token_losses, trained_folder

import probe

PAPER = "Barbero et al. (2024), Round and Round We Go! arXiv 2410.06205"
SHARES = (1.0, 0.75, 0.25, 0.0)
SYMBOLS, MARK = range(3, 67), 67
"""Tokens of the copying rows; the first three of the vocabulary are special."""
COPYING = {"n_heads": 1, "d_head": 32, "d_model": 64, "n_ctx": 64, "batch_size": 16}
HELD_OUT, MEASURED = 256, 320
"""Rows to measure on: of copying, of text."""

NOPE = probe.Claim(
    "NoPE cannot make positional heads in one head",
    published="proposition 5.2", source=PAPER, mark="second-hand",
    rule="1-layer toy on previous-token copy: R: RoPE at least 95 %, NoPE fails (below 50 %, a "
    "line set before measuring)",
    reproduced={
        "accuracy, RoPE": probe.at_least(0.95),
        "accuracy, NoPE": probe.at_most(0.5),
    }, seeds=5,
)  # fmt: skip
LESS, MORE, WORSE = (
    "RoPE less 0.75, in seed sds",
    "0.25 less RoPE, in seed sds",
    "NoPE less 0.25, in seed sds",
)
WORST = "NoPE less the worst of the others, perplexity"
P_ROPE = probe.Claim(
    "p-RoPE perplexity",
    published="Wiki / Flan: NoPE 4.8594 / 6.6429; RoPE (1e4) 4.4627 / 6.4429, (5e5) 4.4485 / "
    "6.4593; p = 0.25 4.5302 / 6.5111; p = 0.75 4.4414 / 6.4422",
    source=f"{PAPER}, table 2", mark="second-hand",
    rule="small model, at least 3 seeds: R: order 0.75 ≤ RoPE < 0.25 < NoPE with gaps > seed sd; "
    "P, equality: 0.75 within 1 sd of RoPE and NoPE worst",
    reproduced={LESS: probe.at_least(1), MORE: probe.at_least(1), WORSE: probe.at_least(1)},
    partly={LESS: probe.between(-1, 1), WORST: probe.at_least(0)},
)  # fmt: skip


@probe.study(
    paper=PAPER,
    full={
        "seeds": 3,
        "toys": 5,
        "documents": None,
        "copying": {"steps": 4000},
        "text": {"steps": 1000},
    },
    quick={
        "seeds": 2,
        "toys": 2,
        "documents": 500,
        "copying": {"steps": 50},
        "text": {"d_model": 32, "d_mlp": 128, "n_heads": 2, "d_head": 16, "steps": 10},
    },
)
def p_rope(
    *, seed: int, seeds: int, toys: int, documents: int | None, copying: dict, text: dict
) -> Iterator[Any]:
    """Train with a share of the frequencies, with all and with none; compare.

    ``seeds``: of the models of text; ``toys``: of those that copy.
    """
    rows = text_of(documents, False)
    yield copied(rows, range(seed, seed + toys), copying)
    frame = pd.DataFrame(
        {"p": p, "seed": one, **measured(rows, p, one, text)}
        for one in range(seed, seed + seeds)
        for p in SHARES
    )
    yield compared(frame)
    yield probe.Exhibit(
        "Perplexity by the share of frequencies that turn",
        frame,
        {
            "p": "share of rotary pairs, fastest first, that turn: 1 is RoPE, 0 is NoPE",
            "seed": "of first weights and order of text",
            "loss": "held-out loss, nats a token",
            "perplexity": "its exponential",
            "previous": "highest attention of a head to the previous token, on repeated random "
            "tokens",
        },
        probe.View(kind="line", x="p", y="perplexity", color="seed"),
    )


# --- previous-token copy -------------------------------------------------------------------------


def copied(rows: Any, seeds: range, changes: dict) -> Any:
    """Accuracy of a copying head with all frequencies, and with none."""
    right: dict[float, list[float]] = {1.0: [], 0.0: []}
    for seed in seeds:
        drills = copy_rows(rows, seed, changes["steps"])
        for p, found in right.items():
            made = COPYING | {"rotary_share": p, **changes}
            folder = trained_folder("attn-only-1l", drills, seed, made)
            found.append(accuracy(probe.load_model(folder), drills.held_out.long()))
    ceiling = blind(COPYING["n_ctx"] // 4)
    learnt = sum(found >= 0.95 for found in right[1.0])
    return NOPE.judge(
        {
            "accuracy, RoPE": probe.over_seeds(right[1.0]),
            "accuracy, NoPE": probe.over_seeds(right[0.0]),
            "ceiling of what is blind to order": probe.exactly(ceiling),
        },
        note=f"one head, {changes['steps']} steps of {COPYING['batch_size']} rows, no row twice; "
        f"{len(SYMBOLS)} symbols; RoPE learnt it from {learnt} of {len(right[1.0])} seeds, and a "
        "training in which it has not is too short to say what NoPE cannot do; first measured with "
        "1000 steps, after which RoPE had learnt it from 2 of 5",
    )


def copy_rows(rows: Any, seed: int, steps: int) -> Any:
    """Rows of quadruples: two symbols, the mark, the second symbol again."""
    generator = torch.Generator().manual_seed(seed)
    n, quadruples = steps * COPYING["batch_size"] + HELD_OUT, COPYING["n_ctx"] // 4
    drawn = torch.rand(n, len(SYMBOLS), generator=generator).argsort(1)[:, : 2 * quadruples]
    a, b = (drawn + SYMBOLS[0]).to(torch.int16).view(n, quadruples, 2).unbind(-1)
    tokens = torch.stack([a, b, torch.full_like(a, MARK), b], -1).flatten(1)
    digest = hashlib.sha256(tokens.numpy().tobytes()).hexdigest()[:16]
    train, held_out = tokens.split([n - HELD_OUT, HELD_OUT])
    return replace(rows, train=train, held_out=held_out, text_hash=digest)


def accuracy(model: probe.Model, tokens: torch.Tensor) -> float:
    """How often the likeliest token after a mark is the one before it."""
    said = model.forward(tokens)[:, 2::4].argmax(-1)
    return float((said == tokens[:, 1::4]).double().mean())


def blind(marks: int) -> float:
    """The best accuracy there is without knowing in which order the tokens before a mark came."""
    return float(np.mean([1 / (n + 1) for n in range(1, marks + 1)]))


# --- perplexity ----------------------------------------------------------------------------------


def measured(rows: Any, p: float, seed: int, changes: dict) -> dict[str, float]:
    """Held-out loss of a model in which the share p of the frequencies turns."""
    folder = trained_folder("gelu-2l", rows, seed, {"rotary_share": p, **changes})
    model = probe.load_model(folder)
    text = rows.held_out[:: max(1, len(rows.held_out) // MEASURED)].long()
    loss = float(token_losses(model, text).double().mean())
    scores = probe.run("head_scores", model=model, scores=["previous"]).frame
    previous = scores.groupby(["layer", "head"])["value"].mean().max()
    return {"loss": loss, "perplexity": float(np.exp(loss)), "previous": float(previous)}


def compared(frame: pd.DataFrame) -> Any:
    """The order of perplexities, seed by seed."""
    found = frame.pivot(index="seed", columns="p", values="perplexity")
    spread = found.std()

    def gap(high: float, low: float) -> Any:
        sd = ((spread[high] ** 2 + spread[low] ** 2) / 2) ** 0.5
        return probe.over_seeds((found[high] - found[low]) / sd)

    each = (f"{p:g}: {found[p].mean():.4f} ± {spread[p]:.4f}" for p in SHARES)
    return P_ROPE.judge(
        {
            LESS: gap(1.0, 0.75),
            MORE: gap(0.25, 1.0),
            WORSE: gap(0.0, 0.25),
            WORST: probe.over_seeds(found[0.0] - found.drop(columns=0.0).max(axis=1)),
            **{f"perplexity, p = {p:g}": probe.over_seeds(found[p]) for p in SHARES},
        },
        note=f"mean and sd over seeds: {'; '.join(each)}. Over 256 tokens the slowest quarter of "
        "pairs hardly turns, so 0.75 and 1 can hardly differ",
    )


if __name__ == "__main__":
    p_rope.main()
