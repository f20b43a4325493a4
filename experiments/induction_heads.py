"""In-context Learning and Induction Heads (Olsson et al. 2022), on tiny models trained here.

Attention-only models of one and two layers, and of one layer with smeared keys, are trained from
three seeds with checkpoints along the way. Fixed before any measurement: the context is 256
tokens, so the in-context-learning score is the loss at token 244 less that at token 50 (the paper:
500 and 50 of 512), each a mean over the 17 positions around, of rows of documents that were never
learnt from. Window: the shortest run of checkpoints over which 70 % of the final score arises.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tiny_runs import models, prefix_matching, prefix_tokens, text_of, trained_folder

import probe

SOURCE = "Olsson et al. 2022, transformer-circuits.pub/2022/in-context-learning-and-induction-heads"
EARLY, LATE, AROUND = 50, 244, 8
IS_INDUCTION = 0.4
MEASURED = 100
"""Held-out rows, evenly spread over the documents."""
EVERY = 100
"""Steps between the checkpoints that are measured, after the first hundred."""

ABRUPT = probe.Claim(
    "In-context learning comes abruptly, and in one layer hardly",
    published="2.5e9 to 5e9 tokens: from under 0.15 to about 0.4 nats, then constant",
    source=f"{SOURCE}, Argument 1", mark="read",
    rule="R: 70 % of the final |ICL score| within a window of at most 25 % of training, and one "
    "layer ends at 50 % of two layers or less; P: 50 % within 40 %",
    reproduced={
        "window of 70 %, share of training": probe.at_most(0.25),
        "final ICL, one layer / two": probe.at_most(0.5),
    },
    partly={"window of 50 %, share of training": probe.at_most(0.4)},
)  # fmt: skip
TOGETHER = probe.Claim(
    "Induction heads form in the same window",
    published="qualitative", source=f"{SOURCE}, Argument 1", mark="read",
    rule="R: step of half-maximum of the best prefix-matching score inside the window; P: within "
    "one width of it",
    reproduced={"distance from the window, widths": probe.at_most(0)},
    partly={"distance from the window, widths": probe.at_most(1)},
)  # fmt: skip
BUMP = probe.Claim(
    "The loss curve has a bump there, and none in one layer",
    published="qualitative", source=f"{SOURCE}, Argument 1", mark="read",
    rule="smoothed slope of the loss, R: a local steepening of at least 20 % inside the window "
    "in two thirds of the seeds, in no seed of one layer",
    reproduced={
        "seeds of two layers that steepen, share": probe.at_least(2 / 3),
        "seeds of one layer that steepen, share": probe.at_most(0),
    },
)  # fmt: skip
SMEARED = probe.Claim(
    "Smeared keys give one layer what takes two",
    published="qualitative", source=f"{SOURCE}, Argument 2", mark="read",
    rule="R: final ICL of one layer with smeared keys at least 70 % of two plain layers; P: 40 %",
    reproduced={"final ICL, smeared one layer / two": probe.at_least(0.7)},
    partly={"final ICL, smeared one layer / two": probe.at_least(0.4)},
)  # fmt: skip
ABLATED = probe.Claim(
    "Without its induction heads a small attention-only model loses almost all of its ICL",
    published='"almost all", qualitative', source=f"{SOURCE}, Argument 3", mark="read",
    rule="all heads with a prefix-matching score above 0.4 together, patterns frozen, R: at least "
    "80 % of |ICL| lost, and at most 20 % for equally many other heads; P: at least 50 %",
    reproduced={
        "ICL lost without induction heads, share": probe.at_least(0.8),
        "ICL lost without as many others, share": probe.at_most(0.2),
    },
    partly={"ICL lost without induction heads, share": probe.at_least(0.5)},
)  # fmt: skip
WHERE = probe.Claim(
    "Induction heads of small attention-only models are in the last layer",
    published="last layer", source=f'{SOURCE}, "Where induction heads form"', mark="read",
    rule="R: the three highest prefix-matching scores are all in the last layer",
    reproduced={"of the top three, in the last layer": probe.at_least(3)},
)  # fmt: skip
ABSTRACT = probe.Claim(
    "One head matches prefixes and copies abstractly (translation, patterns)",
    published="pattern head: about 65 % of attention on the right rows",
    source=f"{SOURCE}, Argument 4", mark="read",
    rule="R: a head with prefix score 0.5 puts half its attention on the right class; P: 35 %",
)  # fmt: skip
IDEAL = probe.Claim(
    "Idealised patterns recover the circuit",
    published="previous-token head 99 % of the loss gap, induction head about 65 %",
    source="Redwood Research, comment on the article", mark="read",
    rule="R: at least 90 % and 50 %; P: 70 % and 30 %",
)  # fmt: skip


@probe.study(
    paper="Olsson et al. 2022",
    full={"seeds": 3, "changes": {}, "documents": None, "smeared": False},
    quick={"seeds": 3, "changes": None, "documents": 1500, "smeared": False},
)
def induction_heads(
    *, seed: int, seeds: int, changes: dict | None, documents: int | None, smeared: bool
) -> Iterator:
    """Train and follow (full size only), then ablate."""
    rows = text_of(documents, shipped=changes is None)
    text = rows.held_out[:: max(1, len(rows.held_out) // MEASURED)].long()
    which = range(seed, seed + seeds)
    if changes is None:
        for claim in (ABRUPT, TOGETHER, BUMP, SMEARED):
            yield claim.leave_out("needs the checkpoints of a training; see the full size")
    else:
        yield from phases(rows, text, which, changes, smeared)
    two = models("attn-only-2l", rows, which, changes)
    yield from two
    yield from ablation(rows, text, two, seed)
    yield ABSTRACT.leave_out("tiny models know no months or translations; of SmolLM2 not done here")
    yield IDEAL.leave_out("not done here: patterns would be set by hand in both layers")


def phases(rows, text: torch.Tensor, seeds: range, changes: dict, smeared: bool) -> Iterator:
    """What happens along the trainings of one layer, two, and one with smeared keys."""
    names = ("attn-only-1l", "attn-only-2l", *(["attn-only-1l-smeared"] if smeared else []))
    runs = {name: [follow(name, rows, text, seed, changes) for seed in seeds] for name in names}
    one, two = runs["attn-only-1l"], runs["attn-only-2l"]
    yield shown(runs)
    final = {name: np.array([-curve.icl.iloc[-1] for curve in all_]) for name, all_ in runs.items()}
    windows = {share: [window(curve, share) for curve in two] for share in (0.5, 0.7)}
    lengths = {
        share: [width(*found, curve) for found, curve in zip(windows[share], two, strict=True)]
        for share in windows
    }
    yield ABRUPT.judge(
        {
            "window of 70 %, share of training": probe.over_seeds(lengths[0.7]),
            "window of 50 %, share of training": probe.over_seeds(lengths[0.5]),
            "final ICL, one layer / two": probe.over_seeds(
                final["attn-only-1l"] / final["attn-only-2l"]
            ),
            "final |ICL| of two layers, nats": probe.over_seeds(final["attn-only-2l"]),
        },
        note="token counts are not expected to transfer",
    )
    away = [outside(half_maximum(c), *w) for c, w in zip(two, windows[0.7], strict=True)]
    yield TOGETHER.judge(
        {
            "distance from the window, widths": probe.over_seeds(away),
            "best prefix-matching score": probe.over_seeds([c.induction.iloc[-1] for c in two]),
            "best prefix-matching score, one layer": probe.over_seeds(
                [c.induction.iloc[-1] for c in one]
            ),
        }
    )
    bumps = {
        "seeds of two layers that steepen, share": [steepens(c, *w) for c, w in
                                                    zip(two, windows[0.7], strict=True)],
        "seeds of one layer that steepen, share": [steepens(c, *w) for c, w in
                                                   zip(one, windows[0.7], strict=True)],
    }  # fmt: skip
    yield BUMP.judge({name: probe.exactly(np.mean(found)) for name, found in bumps.items()})
    if not smeared:
        yield SMEARED.leave_out("three more trainings; set smeared to true")
        return
    yield SMEARED.judge(
        {
            "final ICL, smeared one layer / two": probe.over_seeds(
                final["attn-only-1l-smeared"] / final["attn-only-2l"]
            )
        }
    )


# --- following a training ------------------------------------------------------------------------


def follow(name: str, rows, text: torch.Tensor, seed: int, changes: dict) -> pd.DataFrame:
    """A training, and at each of its checkpoints the loss, the ICL score and the head scores.

    What was measured by this very script is kept beside the checkpoints.
    """
    done = trained_folder(name, rows, seed, changes)
    kept = done.parent / f"followed-{len(text)}-{scripts()}.parquet"
    if kept.is_file():
        return pd.read_parquet(kept)
    curve, tokens = [], prefix_tokens(rows.train)
    for folder in sorted(done.parent.glob("step-*")):
        step = int(folder.name.removeprefix("step-"))
        if step > EVERY and step % EVERY:
            continue
        model = probe.load_model(folder)
        losses = token_losses(model, text)
        scores = prefix_matching(model, tokens)
        curve.append(
            {
                "model": name,
                "seed": seed,
                "step": step,
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


def token_losses(model, rows: torch.Tensor, edits=()) -> torch.Tensor:
    """Loss of each row's tokens 1, 2, ..., in nats."""
    parts = []
    for chunk in rows.split(64):
        logits = model.forward(chunk, edits).log_softmax(-1)
        parts.append(-logits[:, :-1].gather(-1, chunk[:, 1:, None])[..., 0])
    return torch.cat(parts)


def icl(losses: torch.Tensor) -> float:
    """Loss late in the context less loss early in it; negative is learning in context."""
    late, early = (losses[:, at - 1 - AROUND : at + AROUND].mean() for at in (LATE, EARLY))
    return (late - early).item()


def shown(runs: dict) -> probe.Exhibit:
    """The curves."""
    frame = pd.concat([curve for all_ in runs.values() for curve in all_])
    columns = {
        "model": "which model",
        "seed": "of the training",
        "step": "training step of the checkpoint",
        "loss": "held-out loss, nats a token",
        "icl": f"loss around token {LATE} less loss around token {EARLY}, nats",
        "induction": "highest prefix-matching score of a head",
    }
    view = probe.View(kind="line", x="step", y="icl", color="model")
    return probe.Exhibit("In-context learning along training", frame, columns, view)


# --- reading the curves --------------------------------------------------------------------------


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

    Slopes a step, of the loss smoothed over three checkpoints, where these are evenly spaced.
    """
    late = curve[(curve.step >= EVERY) & (curve.step % EVERY == 0)]
    if len(late) < 2:
        return False
    slope = -np.gradient(late.loss.rolling(3, center=True, min_periods=1).mean(), late.step)
    inside = slope[(late.step >= begin) & (late.step <= end)]
    before = slope[late.step < begin][-3:]
    return bool(len(before) and len(inside) and inside.max() >= 1.2 * before.min())


# --- ablation ------------------------------------------------------------------------------------


def ablation(rows, text: torch.Tensor, trained: list, seed: int) -> Iterator:
    """Heads' outputs to zero, with every pattern as it was in the clean run."""
    lost, others, placed = [], [], []
    for model in trained:
        scores = prefix_matching(model, prefix_tokens(rows.train))
        order = [divmod(int(i), model.dims.n_heads) for i in scores.flatten().argsort().flip(0)]
        placed.append(sum(layer == model.dims.n_layers - 1 for layer, _ in order[:3]))
        heads = [head for head in order if scores[head] > IS_INDUCTION]
        rest = [head for head in order if head not in heads]
        chosen = np.random.default_rng(seed).permutation(len(rest))[: len(heads)]
        whole = icl(token_losses(model, text))
        lost.append(1 - frozen_icl(model, text, heads) / whole)
        others.append(1 - frozen_icl(model, text, [rest[i] for i in chosen]) / whole)
    yield ABLATED.judge(
        {
            "ICL lost without induction heads, share": probe.over_seeds(lost),
            "ICL lost without as many others, share": probe.over_seeds(others),
        }
    )
    yield WHERE.judge({"of the top three, in the last layer": probe.over_seeds(placed)})


def frozen_icl(model, rows: torch.Tensor, heads: list[tuple[int, int]]) -> float:
    """The ICL score without these heads, all patterns frozen to the clean run's."""
    parts = []
    for chunk in rows.split(64):
        trace = model.trace(chunk, ["pattern"])
        edits = [probe.patch(f"pattern.{layer}", trace["pattern", layer])
                 for layer in range(model.dims.n_layers)]  # fmt: skip
        edits += [probe.ablate(f"z.{layer}.{head}") for layer, head in heads]
        logits = model.forward(chunk, edits, quiet=True).log_softmax(-1)
        parts.append(-logits[:, :-1].gather(-1, chunk[:, 1:, None])[..., 0])
    return icl(torch.cat(parts))


if __name__ == "__main__":
    induction_heads.main()
