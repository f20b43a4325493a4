"""Softmax Linear Units (Elhage et al. 2022), on one-layer models trained here.

GELU, SoLU with a norm on the neurons, SoLU without, and GELU with the norm: for each seed from the
same first weights and the same order of text. Fixed before any measurement:

- Loss: mean over tokens of documents that were never learnt from, nats a token.
- Seed sd: standard deviation of the loss over seeds, pooled over the two recipes compared.
- Equivalent size: by a line through the losses of GELU at three widths (d_mlp four times as wide)
  against the logarithm of the block's parameters, 12 width². The smaller two are from one seed.
- Looks interpretable: the proxy of ``tiny_neurons.py``, on neurons after the activation function
  and before the norm; like the loss, on every second held-out row.
- Low decile: tokens at which a neuron is above 10 % and up to 20 % of its largest value; up to
  10 % is nearly the whole text. Purity: the share of the commonest token or class among them,
  mean over neurons. Beside it stands the share that fits the neuron's rule, which is the token or
  class of its strongest contexts before the norm.

The authors later called ratings of top examples a poor guide to whether a neuron has one meaning;
the proxy inherits that. The norm here is RMSNorm (the paper: LayerNorm), and training is half as
long as the recipe's.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from tiny_neurons import SIDES, by_level, classes, fits, neurons, purity, rules, share, strongest
from tiny_runs import text_of, token_losses, trained_folder

import probe

SOURCE = "Elhage et al. 2022, transformer-circuits.pub/2022/solu"
LOW = 1
"""Of the tenths of a neuron's range, counted from 0: the one that is called the low decile."""
CAUTION = (
    "the authors later called ratings of top examples a poor guide to whether a neuron has one "
    "meaning; this proxy knows only tokens, and random directions of untrained models pass it too"
)
WITHIN = "|Δloss| / the larger of 0.02 nats and 1 % of the loss"
EQUAL = "equal to one of them within the interval"
POSITIVE = probe.at_least(1e-9)

COSTS = probe.Claim(
    "SoLU without a norm costs performance",
    published="like a model 30-50 % smaller", source=f"{SOURCE}, §4.3", mark="read",
    rule="R: loss above GELU's by at least 2 standard deviations over seeds, and above 0; "
    "equivalent size from a fit over three sizes reported",
    reproduced={"loss gap, seed sd": probe.at_least(2), "loss gap, nats": POSITIVE},
)  # fmt: skip
MATCHES = probe.Claim(
    "SoLU with a norm matches GELU",
    published="0.95-1.05 × model size, ±0.01 nats on 1.6-3", source=f"{SOURCE}, §5", mark="read",
    rule="R: |Δloss| ≤ 0.02 nats or ≤ 1 % of the loss; P: ≤ 3 %",
    reproduced={WITHIN: probe.at_most(1)},
    partly={"|Δloss| / loss": probe.at_most(0.03)},
)  # fmt: skip
MORE = probe.Claim(
    "More neurons look interpretable with SoLU",
    published="about 35 % → 60 % (1 to 40 layers), 1.7 ×", source=f"{SOURCE}, §6.2", mark="read",
    rule="share of neurons whose 20 strongest contexts are at least 80 % one token or class, SoLU "
    "with a norm / GELU, R: at least 1.4 and interval above 1; P: above 1.1",
    reproduced={"share, SoLU with a norm / GELU": probe.at_least(1.4)},
    partly={"share, SoLU with a norm / GELU": probe.at_least(1.1)},
)  # fmt: skip
SHRINKS = probe.Claim(
    "The benefit shrinks at 64 layers",
    published="33 % → 42 %", source=SOURCE, mark="read", rule="quoted only",
)  # fmt: skip
NORM_ALONE = probe.Claim(
    "A norm alone gives about half the gain",
    published='"about halfway" (16 layers)', source=SOURCE, mark="read",
    rule="share of neurons that look interpretable, R: GELU with a norm strictly between GELU and "
    "SoLU with a norm; P: equal to one of them within the interval",
    reproduced={"GELU with a norm - GELU": POSITIVE, "SoLU - GELU, both with a norm": POSITIVE},
    partly={EQUAL: probe.at_least(1)},
)  # fmt: skip
SMUGGLED = probe.Claim(
    "The norm smuggles small activations back",
    published="qualitative, about 1,000 examples labelled by hand", source=f"{SOURCE}, §6.4",
    mark="read",
    rule="R: low-decile activations are more specific before the norm than after it: gap of the "
    "proxy's purity at least 0.1",
    reproduced={"purity of the low decile, before - after": probe.at_least(0.1)},
)  # fmt: skip
NAMES = {
    "gelu-1l": "GELU",
    "gelu-1l-norm": "GELU with a norm",
    "solu-1l-bare": "SoLU",
    "solu-1l": "SoLU with a norm",
}


@probe.study(
    paper="Elhage et al. 2022, Softmax Linear Units",
    full={"seeds": 3, "steps": 2000, "widths": [64, 96, 128], "documents": None, "every": 2},
    quick={"seeds": 3, "steps": 30, "widths": [32, 48, 64], "documents": 500, "every": 1},
)
def solu(
    *, seed: int, seeds: int, steps: int, widths: list[int], documents: int | None, every: int
) -> Iterator:
    """Train four recipes from each seed, and GELU at two smaller widths; read them."""
    rows = text_of(documents, shipped=False)
    text, kinds = rows.held_out[::every], classes(rows.tokenizer)
    plan = [(name, seed + number, widths[-1]) for number in range(seeds) for name in NAMES]
    plan += [("gelu-1l", seed, width) for width in widths[:-1]]
    read = []
    for name, of, width in plan:
        changes = {"steps": steps, "d_model": width, "d_head": width // 4, "d_mlp": 4 * width}
        folder = trained_folder(name, rows, of, changes)
        model = probe.load_model(folder)
        untrained = probe.load_model(folder.with_name("step-000000"))
        read.append(Reading(name, of, width, **measure(name, model, untrained, text, kinds)))
        yield model
    losses, shares, first = (columns(read, widths[-1], key) for key in ("loss", "share", "first"))
    sizes = {one.width: one.loss for one in read if one.width < widths[-1]}
    slope = slope_of(sizes | {widths[-1]: float(np.median(losses["gelu-1l"]))})
    yield models_table(read)
    yield levels_table(read)
    yield on_loss(COSTS, losses["solu-1l-bare"], losses["gelu-1l"], slope)
    yield on_loss(MATCHES, losses["solu-1l"], losses["gelu-1l"], slope)
    yield more(shares, first)
    yield SHRINKS.leave_out("out of reach; quoted only")
    yield norm_alone(shares)
    yield smuggled(np.stack([one.levels for one in read if one.levels is not None]))


# --- reading -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reading:
    """What is measured of a trained model.

    Attributes:
        loss: Held-out, nats a token.
        share: Of neurons that look interpretable, before the norm.
        after: The same after it.
        first: The same before it, and before training.
        levels: Purity and fit to the rule, [which, side of the norm, tenth of the level]; of SoLU
            with a norm.
    """

    name: str
    seed: int
    width: int
    loss: float
    share: float
    after: float
    first: float
    levels: np.ndarray | None


def measure(name: str, model, untrained, text: torch.Tensor, kinds: torch.Tensor) -> dict:
    """The numbers of a reading."""
    activation = name.split("-")[0]
    sides = strongest(neurons(model, activation, text))
    before, after = (rules(side.tokens, kinds) for side in sides)
    first = rules(strongest(neurons(untrained, activation, text))[0].tokens, kinds)
    levels = None
    if name == "solu-1l":
        parts = neurons(model, activation, text)
        counts = by_level(parts, [side.peak for side in sides], len(kinds))
        levels = torch.stack([purity(counts, kinds), fits(counts, before)]).numpy()
    found = {"share": share(before), "after": share(after), "first": share(first)}
    loss = token_losses(model, text.long()).double().mean().item()
    return {"loss": loss, **found, "levels": levels}


def columns(read: list[Reading], width: int, key: str) -> dict[str, np.ndarray]:
    """A number of all models of that width: recipe → one value a seed."""
    return {
        name: np.array(
            [getattr(one, key) for one in read if (one.name, one.width) == (name, width)]
        )
        for name in NAMES
    }


def models_table(read: list[Reading]) -> probe.Exhibit:
    """All models."""
    frame = pd.DataFrame(
        {
            "model": NAMES[one.name], "seed": one.seed, "width": one.width, "loss": one.loss,
            "value": one.share, "after": one.after, "untrained": one.first,
        }
        for one in read
    )  # fmt: skip
    about = {
        "model": "activation function of the neurons",
        "seed": "of the training",
        "width": "of the residual stream; a quarter of the neurons",
        "loss": "held-out loss, nats a token",
        "value": "share of neurons that look interpretable, before the norm",
        "after": "the same after the norm",
        "untrained": "the same before the norm, before training",
    }
    view = probe.View(kind="scatter", x="loss", y="value", color="model", scale="share")
    return probe.Exhibit("Loss and neurons that look interpretable", frame, about, view)


def levels_table(read: list[Reading]) -> probe.Exhibit:
    """Purity by level, of SoLU with a norm."""
    frame = pd.DataFrame(
        {"seed": one.seed, "side": side, "level": (tenth + 1) / 10, "value": pure, "fits": fit}
        for one in read
        if one.levels is not None
        for side, *both in zip(SIDES, *one.levels, strict=True)
        for tenth, (pure, fit) in enumerate(zip(*both, strict=True))
    )
    about = {
        "seed": "of the training",
        "side": "neurons before or after the norm",
        "level": "upper end of a tenth of the neuron's largest value",
        "value": "share of the commonest token or class there, mean over neurons",
        "fits": "share of the tokens there that fit the neuron's rule, mean over neurons",
    }
    view = probe.View(kind="line", x="level", color="side", scale="share")
    return probe.Exhibit("Purity of neurons by level, SoLU with a norm", frame, about, view)


# --- judging: one value a seed ------------------------------------------------------------------


def on_loss(claim, losses: np.ndarray, gelu: np.ndarray, slope: float):
    """What an activation function costs against GELU."""
    gap = losses - gelu
    same = np.exp(gap / slope) if slope < 0 else np.full(len(gap), np.nan)
    return claim.judge(
        {
            "loss gap, nats": probe.over_seeds(gap),
            "loss gap, seed sd": probe.over_seeds(gap / pooled_sd(losses, gelu)),
            WITHIN: probe.over_seeds(abs(gap) / np.maximum(0.02, 0.01 * gelu)),
            "|Δloss| / loss": probe.over_seeds(abs(gap) / gelu),
            "equivalent size, share": probe.over_seeds(same),
        },
        note=which_way(gap) if claim is MATCHES else "",
    )


def which_way(gap: np.ndarray) -> str:
    """Of the two ways to match, whether the stricter one holds."""
    holds = "holds" if np.median(abs(gap)) <= 0.02 else "does not hold"
    return (
        f"0.02 nats alone {holds} at the median; the published range of sizes, 0.95 to 1.05, is no "
        "part of the rule"
    )


def pooled_sd(*groups: np.ndarray) -> float:
    """Standard deviation within groups of equal size; NaN of single values."""
    if len(groups[0]) < 2:
        return float("nan")
    return float(np.sqrt(np.mean([group.var(ddof=1) for group in groups])))


def slope_of(losses: dict[int, float]) -> float:
    """Nats for each e-fold of the block's parameters, by least squares; from width → loss."""
    parameters = [12 * width**2 for width in losses]
    return float(np.polyfit(np.log(parameters), list(losses.values()), 1)[0])


def more(shares: dict[str, np.ndarray], first: dict[str, np.ndarray]):
    """How many neurons look interpretable."""
    ratio = shares["solu-1l"] / np.maximum(shares["gelu-1l"], 1e-9)
    note = CAUTION
    if np.median(first["solu-1l"]) > np.median(shares["solu-1l"]):
        note += "; here they pass it more often than trained ones, so the ratio says little"
    return MORE.judge(
        {"share, SoLU with a norm / GELU": probe.over_seeds(ratio)}
        | {f"share, {NAMES[name]}": probe.over_seeds(each) for name, each in shares.items()}
        | {f"share, {NAMES[name]}, untrained": probe.over_seeds(first[name])
           for name in ("gelu-1l", "solu-1l")},
        note=note,
    )  # fmt: skip


def norm_alone(shares: dict[str, np.ndarray]):
    """What of the gain the norm alone gives."""
    gelu, alone, both = (shares[name] for name in ("gelu-1l", "gelu-1l-norm", "solu-1l"))
    steps = [probe.over_seeds(alone - gelu), probe.over_seeds(both - alone)]
    equal = any(step.low <= 0 <= step.high for step in steps)
    names = ("GELU with a norm - GELU", "SoLU - GELU, both with a norm")
    found = {**dict(zip(names, steps, strict=True)), EQUAL: probe.exactly(equal)}
    return NORM_ALONE.judge(found, note=CAUTION)


def smuggled(levels: np.ndarray):
    """Whether small activations tell less after the norm; from [seed, which, side, tenth]."""
    pure, fit = levels[..., LOW].swapaxes(0, 1)
    return SMUGGLED.judge(
        {
            "purity of the low decile, before - after": probe.over_seeds(pure[:, 0] - pure[:, 1]),
            "purity of the low decile before the norm": probe.over_seeds(pure[:, 0]),
            "share that fits the rule, before - after": probe.over_seeds(fit[:, 0] - fit[:, 1]),
            "share that fits the rule before the norm": probe.over_seeds(fit[:, 0]),
        },
        note="all tenths are in the exhibit",
    )


if __name__ == "__main__":
    solu.main()
