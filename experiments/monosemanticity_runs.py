"""One seed of the monosemanticity study: its model, its dictionaries, what is measured of them."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import units
from tiny_runs import trained_folder

import probe

L0 = (10, 20)
RARE = (0.003, 0.04)
TIMES = (1, 4, 8)
"""Features a neuron, of the dictionaries."""
CONTEXTS = {
    "ledger": r"^[A-Z][a-z]+ owes \d+ [a-z]+ to the [a-z]+\.$",
    "talk": r'^[A-Z][a-z]+: ".*"$',
    "recital": r"^[A-Z][a-z]+: [a-z]+( [a-z]+){8,}\.?$",
    "refrain": r"^[a-z]+( [a-z]+){4,7}$",
    "comment": r"^ *#.*$",
    "import": r"^ *(from \S+ )?import .*$",
    "header": r"^ *(async )?(def|class) .*:$",
    "doctest": r"^ *(>>>|\.\.\.) .*$",
}
"""Kinds of line; the first four are of generated text, the others of Python."""


@dataclass
class Seed:
    """One trained model and its dictionaries, which are trained when first asked for.

    Attributes:
        model: The model.
        blank: The same before its first step.
        held_out: Token rows to measure on.
        text: Of the stores.
        folder: Where stores and dictionaries are found again.
        size: Options of the study.
        seed: Of the dictionaries.
        sparsity: Their penalty, once it is chosen.
    """

    model: Any
    blank: Any
    held_out: torch.Tensor
    text: list[str]
    folder: Path
    size: dict[str, Any]
    seed: int
    sparsity: float = 0.0

    def dictionary(self, times: int, revive: str = "resample", blank: bool = False) -> Any:
        """A dictionary so many times as wide as the MLP; of the blank model if asked."""
        model, kind = (self.blank, "blank") if blank else (self.model, "trained")
        store = probe.harvest(
            model, self.text, site="mlp_post", layer=0, out=self.folder / f"{kind}-store",
            n_pos=self.held_out.shape[1], pack=False, dtype="float16",
        )  # fmt: skip
        n, width = self.size["n_tokens"], times * model.dims.d_mlp
        return probe.train_sae(
            store, out=self.folder / f"{kind}-{width}-{revive}-{self.sparsity:g}",
            architecture="standard", unit_decoder=True, d_sae=width, sparsity=self.sparsity,
            n_tokens=n, batch_size=self.size["batch_size"], lr=self.size["lr"], seed=self.seed,
            revive=revive, resample_every=n * 3 // 20, dead_after=n * 3 // 40,
        )  # fmt: skip

    def evaluated(self, sae: Any) -> dict[str, float]:
        """L0, and loss recovered by each baseline, on the held-out rows."""
        length, tokens = self.held_out.shape[1], min(20_000, self.held_out.numel())
        texts = [self.model.tokenizer.hf.decode(row[1:].tolist()) for row in self.held_out]
        frame = probe.evaluate_sae(
            sae, self.model, texts, n_tokens=tokens, ce_tokens=tokens, n_pos=length
        ).frame
        recovered = frame[frame.metric == "cross_entropy_recovered"].set_index("baseline").value
        return {"l0": frame[frame.metric == "l0"].value.item(), **recovered}

    def neurons(self, blank: bool = False) -> torch.Tensor:
        """Their activations on the held-out rows, [token, neuron]; BOS left out."""
        model = self.blank if blank else self.model
        traced = (model.trace(rows, ["mlp_post"]) for rows in self.held_out.split(16))
        return torch.cat([trace["mlp_post", 0][:, 1:].flatten(0, 1).half() for trace in traced])


def prepared(rows: Any, seed: int, size: dict[str, Any]) -> Seed:
    """The model of a seed, and the text for its stores and its measurements."""
    trained = trained_folder("relu-1l", rows, seed, size["changes"])
    home = Path(os.environ.get("PROBE_RUNS", "runs")) / "monosemanticity"
    made = "-".join(str(size[name]) for name in ("store", "n_tokens", "batch_size", "lr"))
    model = probe.load_model(trained)
    length = rows.train.shape[1] - 1
    return Seed(
        model,
        probe.load_model(trained.parent / "step-000000"),
        spread(rows.held_out, size["rows"]).long(),
        [model.tokenizer.hf.decode(row[1:].tolist())
         for row in spread(rows.train, size["store"] // length)],
        home / f"{trained.parent.name}-{made}",
        size,
        seed,
    )  # fmt: skip


def spread(rows: torch.Tensor, n: int) -> torch.Tensor:
    """So many rows, evenly spread; all where there are fewer."""
    return rows[np.linspace(0, len(rows) - 1, min(n, len(rows))).astype(int)]


def choose(run: Seed) -> tuple[float, str]:
    """The penalty by the study's rule, and what L0 each one tried gave."""
    tried: dict[float, float] = {}
    for value in run.size["grid"]:
        run.sparsity = value
        tried[value] = run.evaluated(run.dictionary(TIMES[-1]))["l0"]
        if L0[0] <= tried[value] <= L0[1]:
            break
    else:
        run.sparsity = min(tried, key=lambda value: abs(tried[value] - sum(L0) / 2))
    return run.sparsity, ", ".join(f"{value:g}: {l0:.1f}" for value, l0 in tried.items())


# --- what is measured ----------------------------------------------------------------------------


@dataclass
class Found:
    """What is measured of one seed.

    Attributes:
        seed: Which.
        numbers: Name → number.
        features: Activations of the widest dictionary's features, to compare with other seeds'.
        neurons: Activations of the neurons.
        densities: log10, of the features that fire.
        contexts: Two rows, feature and neuron, for each rare context.
    """

    seed: int
    numbers: dict[str, float]
    features: units.Acts
    neurons: units.Acts
    densities: np.ndarray
    contexts: pd.DataFrame


def measure(run: Seed) -> Found:
    """Everything of one seed."""
    x, (tokens, before, contexts) = run.neurons(), labels(run)
    saes = {times: run.dictionary(times) for times in TIMES}
    acts = {times: units.activations(sae.encode, x) for times, sae in saes.items()}
    features, neurons = acts[TIMES[-1]], units.activations(torch.relu, x)
    plain = units.activations(run.dictionary(TIMES[-1], "none").encode, x)
    blank_sae = run.dictionary(TIMES[1], blank=True)
    blank = units.activations(blank_sae.encode, run.neurons(blank=True))
    density = log_densities(features, run.seed)
    numbers = {
        "dead": np.mean(units.counts(features) == 0),
        "dead, plain": np.mean(units.counts(plain) == 0),
        "dip": units.dip_test(density, seed=run.seed),
        "modes": units.between_modes(density),
        "single": np.mean(units.in_one(acts[TIMES[1]], tokens) >= units.ENOUGH),
        "single, blank": np.mean(units.in_one(blank, tokens) >= units.ENOUGH),
        "l0, blank": blank.nnz / len(tokens),
    }
    for times in TIMES:
        of_one = units.in_one(acts[times], contexts) >= units.ENOUGH
        numbers[f"split {times * run.model.dims.d_mlp}"] = np.sum(of_one)
    for name, of in (("features", features), ("neurons", neurons)):
        pure = units.purity(of, (tokens, before, contexts))
        numbers[f"{name}, median"], numbers[f"{name}, 90 %"] = np.quantile(pure, [0.5, 0.9])
        numbers[f"{name}, of 50"] = np.median(units.purity(of, (tokens, before, contexts), n=50))
        numbers[f"{name}, judged"] = len(pure)
    numbers |= run.evaluated(saes[TIMES[-1]])
    return Found(
        run.seed, numbers, features, neurons, density, specific(features, neurons, contexts, run)
    )


def labels(run: Seed) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The kinds of rule: of each held-out token itself, the one before it, its context."""
    tokens, before = run.held_out[:, 1:], run.held_out[:, :-1]
    contexts = units.contexts(run.held_out, run.model.tokenizer.hf, CONTEXTS)
    return tokens.flatten().numpy(), before.flatten().numpy(), contexts


def log_densities(acts: units.Acts, seed: int) -> np.ndarray:
    """log10 of each firing unit's density, counts spread over their unit."""
    fired = units.counts(acts)[units.counts(acts) > 0]
    return np.log10((fired + np.random.default_rng(seed).uniform(-0.5, 0.5, len(fired)))
                    / acts.shape[0])  # fmt: skip


def specific(
    features: units.Acts, neurons: units.Acts, contexts: np.ndarray, run: Seed
) -> pd.DataFrame:
    """Of each rare context the best feature and neuron, chosen on even rows, measured on odd."""
    odd = (np.arange(len(contexts)) // (run.held_out.shape[1] - 1)) % 2 == 1
    halves = {name: (acts[~odd], acts[odd])
              for name, acts in (("feature", features), ("neuron", neurons))}  # fmt: skip
    found = []
    for number, context in enumerate(CONTEXTS):
        inside = contexts == number
        if not RARE[0] <= inside.mean() <= RARE[1]:
            continue
        proxies = [units.Acts(inside[half, None].astype(float)) for half in (~odd, odd)]
        for name, (even_acts, odd_acts) in halves.items():
            best = int(units.correlations(even_acts, proxies[0]).argmax())
            found.append(
                {
                    "seed": run.seed, "context": context, "share": inside.mean(), "unit": name,
                    "in_context": inside[odd][units.strongest(odd_acts, best)].mean(),
                    "value": units.correlations(odd_acts[:, [best]], proxies[1]).item(),
                }
            )  # fmt: skip
    return pd.DataFrame(found)
