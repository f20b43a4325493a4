"""Grokking modular addition: is the circuit that generalises a Fourier transform?

Declared before measuring, from trial runs of another seed: p = 59 instead of 113 (29 frequencies,
not 56), 4000 epochs and, as the paper found for small p, weight decay 5 (with 1 it groks at about
18,000); the rest as published (30 % of pairs, d 128, 4 heads of 32, 512 neurons).
"Chance" is ln p. Key frequencies are the fewest that hold 90 % of the power of W_L = W_out W_U.
Clean-up, which the paper ends where test loss does, lasts from the epoch at which the log of the
test loss has fallen a tenth of its range to that at nine tenths. A seed that does not grok shows no
hidden progress: it leads by 0, and its Gini coefficient rises by 0.
Trained runs are kept under runs/grokking, so that a stopped study goes on where it was; the wall
time in the record leaves out what was trained before.

probe reproduce grokking [--quick]
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import probe

SOURCE = "Nanda et al. 2023"
GROKS = probe.Claim(
    "grokking", published="memorises to epoch 1.4k, forms the circuit to 9.4k, cleans up to 14k; "
    "generalises around 10k, to about 100 %",
    source=f"{SOURCE}, §3, §5.2", mark="second-hand",
    rule="R: train accuracy > 99 % at least 5 times earlier than test accuracy, in ≥3 of 5 seeds; "
    "P: 2 times",
    reproduced={"seeds that test 5 times later": probe.at_least(3)},
    partly={"seeds that test twice later": probe.at_least(3)}, seeds=5,
)  # fmt: skip
FEW = probe.Claim(
    "few key frequencies",
    published="5 of 56 ({14, 35, 41, 42, 52}), 6 in W_E; other seeds 3-4 ({2, 9, 19, 31}, {40, 44, "
    "53}, {31, 45, 49, 52})",
    source=f"{SOURCE}, §4.1, App. C.2.1", mark="second-hand",
    rule="R: 3-6 frequencies hold ≥90 % of the power of W_L; P: ≤10",
    reproduced={"frequencies": probe.between(3, 6)}, partly={"frequencies": probe.at_most(10)},
    seeds=5,
)  # fmt: skip
LOGITS = probe.Claim(
    "logits ≈ Σ α_k cos(w_k(a+b-c))", published="95 % of variance; loss 2.4e-7 → 4.7e-8",
    source=f"{SOURCE}, §4.2", mark="second-hand", rule="R: ≥90 %; P: ≥75 %",
    reproduced={"variance explained": probe.at_least(0.90)},
    partly={"variance explained": probe.at_least(0.75)}, seeds=5,
)  # fmt: skip
NEURON_SUMS = probe.Claim(
    "u_k·MLP and v_k·MLP are cos and sin of w_k(a+b)", published="93.2-98.2 %",
    source=f"{SOURCE}, Table 1", mark="second-hand", rule="R: all ≥85 %",
    reproduced={"least variance explained": probe.at_least(0.85)}, seeds=5,
)  # fmt: skip
NEURONS = probe.Claim(
    "neurons are quadratics of one frequency", published="433 of 512 (84.6 %), > 85 % explained",
    source=f"{SOURCE}, §4.3", mark="second-hand", rule="R: ≥70 % of neurons; P: ≥50 %",
    reproduced={"share of neurons": probe.at_least(0.70)},
    partly={"share of neurons": probe.at_least(0.50)}, seeds=5,
)  # fmt: skip
ABLATION = probe.Claim(
    "keeping only the key terms keeps it, removing them destroys it",
    published="loss -77 % (5.54e-8); without them 5.27", source=f"{SOURCE}, §4.4",
    mark="second-hand",
    rule="R: keeping costs ≤ +10 % loss, removing gives a loss above chance (ln p)",
    reproduced={
        "loss kept / loss": probe.at_most(1.10), "loss removed / ln p": probe.at_least(1.0)
    }, seeds=5,
)  # fmt: skip
PROGRESS = probe.Claim(
    "hidden progress: restricted loss falls before test loss, excluded rises, Gini jumps",
    published="curves", source=f"{SOURCE}, §5.2, Fig. 7", mark="second-hand",
    rule="R: restricted reaches half its log-range ≥10 % of epochs before test does; the excluded "
    "minimum lies before the test drop; Gini of W_E rises ≥0.1 across clean-up",
    reproduced={
        "restricted leads by, share of epochs": probe.at_least(0.10),
        "excluded minimum leads by, epochs": probe.at_least(1),
        "Gini rises by": probe.at_least(0.1),
    }, seeds=5,
)  # fmt: skip
FRACTION = probe.Claim(
    "share of pairs decides", published="30-50 % grok, ≥60 % immediate, 10-20 % not in 40k",
    source=f"{SOURCE}, App. C.2.2", mark="second-hand",
    rule="R: the same three classes at 0.1, 0.3, 0.7 (grok: test 5 times later than train)",
    reproduced={"classes as published": probe.at_least(3)}, seeds=5,
)  # fmt: skip
DECAY = probe.Claim(
    "weight decay sets the time to grok", published="0.3: 3k, 1: 5-10k, 3: 20k epochs",
    source=f"{SOURCE}, App. D.1", mark="second-hand", rule="not to be used as a claim",
)  # fmt: skip

SHARE = 0.3
CLASSES = {0.1: "never", 0.3: "grok", 0.7: "immediate"}


@probe.study(
    paper="Nanda et al. 2023, Progress measures for grokking via mechanistic interpretability",
    full={"seeds": 5, "seeds_fraction": 5, "p": 59, "epochs": 4000, "weight_decay": 5.0,
          "d_mlp": 512, "keep": True},
    quick={"seeds": 1, "seeds_fraction": 0, "p": 59, "epochs": 3000, "weight_decay": 5.0,
           "d_mlp": 256, "keep": False},
)  # fmt: skip
def grokking(
    *, seed: int, seeds: int, seeds_fraction: int, p: int, epochs: int, weight_decay: float,
    d_mlp: int, keep: bool,
) -> Iterator[Any]:  # fmt: skip
    how = {"p": p, "epochs": epochs, "weight_decay": weight_decay, "d_mlp": d_mlp}
    numbers, curves = [], []
    for s in range(seed, seed + seeds):
        run = trained(s, SHARE, how, keep)
        curve = progress(run)
        curves.append(curve.assign(seed=s))
        numbers.append(circuit(run[epochs]) | leads(curve))
    each = pd.DataFrame(numbers)
    found = {name: probe.over_seeds(each[name]) for name in each if name != "test epoch"}
    reached = each["test epoch"][np.isfinite(each["test epoch"])]
    found["test epoch"] = probe.over_seeds(reached) if len(reached) else probe.exactly(math.nan)
    later = np.array([row["test epoch / train epoch"] for row in numbers])
    found["seeds that test 5 times later"] = probe.exactly(int((later >= 5).sum()))
    found["seeds that test twice later"] = probe.exactly(int((later >= 2).sum()))
    about = f"{np.isfinite(later).sum()} of {seeds} seeds have grokked; all are counted"

    def of(claim: probe.Claim, *more: str, note: str = "") -> Any:
        numbers = {name: found[name] for name in (*claim.reproduced, *claim.partly, *more)}
        return claim.judge(numbers, f"{note}; {about}" if note else about)

    yield of(GROKS, "train epoch", "test epoch", "test accuracy")
    yield of(FEW, note=f"of {(p - 1) // 2} frequencies")
    yield of(LOGITS, "loss", "loss of the formula")
    yield of(NEURON_SUMS)
    yield of(NEURONS, "share of live neurons")
    yield of(
        ABLATION, "loss", "loss removed", "accuracy kept", "accuracy removed",
        note=f"ln p = {math.log(p):.2f}; accuracy over all pairs, guessing gives {1 / p:.3f}",
    )  # fmt: skip
    yield of(PROGRESS)
    yield fraction(seed, seeds_fraction, how, keep)
    yield DECAY.leave_out("the paper contradicts itself on the direction")
    yield exhibit(pd.concat(curves))


# --- training ------------------------------------------------------------------------------------


def trained(
    seed: int, share: float, how: Mapping[str, Any], keep: bool
) -> dict[int, probe.Modular]:
    """The model at each epoch looked at; from the disk where it was trained before."""
    name = "-".join(f"{k}{v}" for k, v in how.items())
    file = Path("runs/grokking") / f"{name}-share{share}-seed{seed}.safetensors"
    if keep and file.is_file():
        return unpacked(load_file(file), how["p"])
    epochs, seen = how["epochs"], {}

    def look(epoch: int, model: probe.Modular) -> bool:
        weights = {name: part.detach().clone() for name, part in model.weights.items()}
        seen[epoch] = replace(model, weights=weights)
        if share == SHARE:
            return True
        right = (model.logits().argmax(1) == model.answers)[model.test]
        return float(right.double().mean()) < 0.99  # only the class is asked for

    at = sorted({*range(0, min(epochs, 500), 20), *range(0, epochs, 100), epochs})
    probe.train_modular(share=share, seed=seed, at=at, watch=look, **how)
    if keep:
        file.parent.mkdir(parents=True, exist_ok=True)
        parts = {f"{e}/{k}": part for e, model in seen.items() for k, part in model.weights.items()}
        save_file({**parts, "train": seen[0].train}, file.with_suffix(".partial"))
        file.with_suffix(".partial").rename(file)
    return seen


def unpacked(parts: dict[str, Tensor], p: int) -> dict[int, probe.Modular]:
    train, weights = parts.pop("train"), {}
    for name, part in parts.items():
        epoch, _, what = name.partition("/")
        weights.setdefault(int(epoch), {})[what] = part
    return {epoch: probe.Modular(p, weights[epoch], train) for epoch in sorted(weights)}


def fraction(seed: int, seeds: int, how: Mapping[str, Any], keep: bool) -> Any:
    """Which class each share of training pairs falls into."""
    if not seeds:
        return FRACTION.leave_out("ten more trainings; see the full size")
    right = []
    for s in range(seed, seed + seeds):
        classes = {share: kind(progress(trained(s, share, how, keep))) for share in CLASSES}
        right.append(sum(classes[share] == name for share, name in CLASSES.items()))
    return FRACTION.judge({"classes as published": probe.over_seeds(right)})


def kind(curve: pd.DataFrame) -> str:
    train, test = (first(curve, f"{part} accuracy", 0.99) for part in ("train", "test"))
    if math.isinf(test):
        return "never"
    return "grok" if test >= 5 * train else "immediate"


# --- the circuit ---------------------------------------------------------------------------------


def waves(p: int) -> Tensor:
    """Cos and sin of w_k x for k = 1 ... (p-1)/2, orthonormal over x; [p, frequency, 2]."""
    angle = 2 * math.pi / p * torch.outer(torch.arange(p), torch.arange(1, (p + 1) // 2)).double()
    return torch.stack([angle.cos(), angle.sin()], -1) * (2 / p) ** 0.5


def power(W: Tensor) -> Tensor:
    """Power of each frequency in the columns of W [word, any]."""
    return torch.einsum("xkc,xd->kcd", waves(len(W)), W.double()).square().sum((1, 2))


def key_frequencies(model: probe.Modular) -> Tensor:
    """Indices (0 is frequency 1) of the fewest frequencies with 90 % of the power of W_L."""
    strength = power((model.weights["W_out"] @ model.weights["W_U"]).T)
    order = strength.argsort(descending=True)
    share = strength[order].cumsum(0) / strength.sum()
    return order[: int((share < 0.9).sum()) + 1]


def sums(p: int, keys: Tensor) -> Tensor:
    """Cos and sin of w_k(a+b) over all pairs, orthonormal; [pair, 2 · key]."""
    every = torch.arange(p**2)
    return waves(p)[(every // p + every % p) % p][:, keys].flatten(1) / p**0.5


def loss(model: probe.Modular, logits: Tensor, which: Tensor | None = None) -> float:
    each = torch.nn.functional.cross_entropy(logits.double(), model.answers, reduction="none")
    return float((each if which is None else each[which]).mean())


def kept(logits: Tensor, along: Tensor) -> Tensor:
    """What of the logits lies along these directions of pairs, and their mean."""
    return along @ (along.T @ logits) + logits.mean(0)


def circuit(model: probe.Modular) -> dict[str, float]:
    """What the trained model is made of."""
    p, keys, logits = model.p, key_frequencies(model), model.logits().double()
    along, neurons = sums(p, keys), model.mlp().double()
    W_L = (model.weights["W_out"] @ model.weights["W_U"]).detach().double()
    whole = loss(model, logits)

    centred = logits - logits.mean(1, keepdim=True)
    shape = torch.einsum("nkc,xkc->knx", along.view(p**2, -1, 2), waves(p)[:, keys])
    shape /= shape.flatten(1).norm(dim=1)[:, None, None]  # cos(w_k(a+b-c)), of norm 1
    formula = torch.einsum("k,knx->nx", (shape * centred).sum((1, 2)), shape)
    spread = (centred - centred.mean()).square().sum()

    reads = torch.einsum("nx,xkc->nkc", W_L, waves(p)[:, keys]).flatten(1)
    seen = neurons @ reads
    seen = seen - seen.mean(0)
    explained = (seen * along).sum(0).square() / seen.square().sum(0)

    basis = torch.linalg.qr(reads).Q
    without = model.unembed((neurons - neurons @ basis @ basis.T).float())
    keeping = kept(logits, along)
    removed, restricted = loss(model, without), loss(model, keeping)
    single = single_frequency(neurons.view(p, p, -1))
    return {
        "frequencies": float(len(keys)),
        "variance explained": float(1 - (centred - formula).square().sum() / spread),
        "loss": whole,
        "loss of the formula": loss(model, formula),
        "least variance explained": float(explained.min()),
        "share of neurons": float((single > 0.85).double().mean()),
        "share of live neurons": float((single[single > 0] > 0.85).double().mean()),
        "loss kept / loss": restricted / whole,
        "loss removed": removed,
        "loss removed / ln p": removed / math.log(p),
        "accuracy kept": accuracy(model, keeping),
        "accuracy removed": accuracy(model, without),
    }


def accuracy(model: probe.Modular, logits: Tensor) -> float:
    return float((logits.argmax(1) == model.answers).double().mean())


def single_frequency(neurons: Tensor) -> Tensor:
    """Of each neuron over (a, b), the share of variance in products of one frequency; 0 if dead."""
    p = len(neurons)
    wave = torch.cat([torch.full((p, 1), p**-0.5).double(), waves(p).flatten(1)], 1)
    parts = torch.einsum("abn,ai,bj->ijn", neurons, wave, wave).square()
    parts[0, 0] = 0
    total = parts.sum((0, 1))
    of_one = []
    for k in range((p - 1) // 2):
        mine = [0, 2 * k + 1, 2 * k + 2]
        of_one.append(parts[mine][:, mine].sum((0, 1)))
    return torch.where(total > 1e-12, torch.stack(of_one).amax(0) / total.clamp(min=1e-12), 0.0)


# --- the way there -------------------------------------------------------------------------------


def progress(run: Mapping[int, probe.Modular]) -> pd.DataFrame:
    """Every measure at every epoch looked at; key frequencies are those of the end."""
    last = run[max(run)]
    along, rows = sums(last.p, key_frequencies(last)), []
    for epoch, model in run.items():
        logits = model.logits().double()
        right = (logits.argmax(1) == model.answers).double()
        key_part = along @ (along.T @ logits)
        weights = {name: w.detach() for name, w in model.weights.items()}
        rows.append(
            {
                "epoch": epoch,
                "train accuracy": float(right[model.train].mean()),
                "test accuracy": float(right[model.test].mean()),
                "train loss": loss(model, logits, model.train),
                "test loss": loss(model, logits, model.test),
                "restricted loss": loss(model, key_part + logits.mean(0)),
                "excluded loss": loss(model, logits - key_part, model.train),
                "Gini of W_E": gini(power(weights["W_E"][:-1]).sqrt()),
                "Gini of W_L": gini(power((weights["W_out"] @ weights["W_U"]).T).sqrt()),
                "weights squared": float(sum(w.square().sum() for w in weights.values())),
            }
        )
    return pd.DataFrame(rows)


def leads(curve: pd.DataFrame) -> dict[str, float]:
    """What comes before what."""
    train, test = (first(curve, f"{part} accuracy", 0.99) for part in ("train", "test"))
    groks = math.isfinite(test)
    drop, formed = fallen(curve, "test loss", 0.5), fallen(curve, "restricted loss", 0.5)
    clean_up = [fallen(curve, "test loss", share) for share in (0.1, 0.9)]
    rises = {
        name: float(np.diff(np.interp(clean_up, curve["epoch"], curve[f"Gini of {name}"]))[0])
        for name in ("W_E", "W_L")
    }
    lowest = curve["epoch"][curve["excluded loss"].idxmin()]
    return {
        "train epoch": train,
        "test epoch": test,
        "test epoch / train epoch": test / train if groks else math.nan,
        "test accuracy": float(curve["test accuracy"].iloc[-1]),
        "restricted leads by, share of epochs": (
            (drop - formed) / curve["epoch"].max() if groks else 0.0
        ),
        "excluded minimum leads by, epochs": float(drop - lowest) if groks else 0.0,
        "Gini rises by": rises["W_E"] if groks else 0.0,
        "Gini of W_L rises by": rises["W_L"] if groks else 0.0,
    }


def first(curve: pd.DataFrame, what: str, level: float) -> float:
    reached = curve["epoch"][curve[what] > level]
    return float(reached.min()) if len(reached) else math.inf


def fallen(curve: pd.DataFrame, what: str, share: float) -> float:
    """First epoch after its maximum at which the log of a loss has fallen this share of its range.

    NaN if it never has: its least comes before its maximum.
    """
    log = np.log(curve[what].to_numpy())
    after = np.arange(len(log)) >= log.argmax()
    low = log <= log.max() - share * (log.max() - log.min())
    return float(curve["epoch"][after & low].min())


def gini(values: Tensor) -> float:
    """0: all equal; 1: one has all."""
    n, ordered = len(values), values.sort().values
    rank = torch.arange(1, n + 1, dtype=torch.float64)
    return float((2 * rank - n - 1) @ ordered / (n * ordered.sum()))


def exhibit(curves: pd.DataFrame) -> probe.Exhibit:
    kept = ["train loss", "test loss", "restricted loss", "excluded loss"]
    long = curves.melt(["seed", "epoch"], kept, "measure", "value")
    long["value"] = np.log10(long["value"])
    columns = {
        "seed": "seed", "epoch": "full-batch steps", "measure": "which loss",
        "value": "log10 of the loss in nats",
    }  # fmt: skip
    view = probe.View(kind="line", x="epoch", color="measure")
    return probe.Exhibit("Losses on the way to grokking", long, columns, view)


if __name__ == "__main__":
    grokking.main()
