"""Absorption on features that form a tree: does the parent's latent fall silent for its children?

Data: the tree of Nabeshima's toy model (github.com/noanabeshima/matryoshka-saes, tree.json): 20
orthogonal directions in 20 dimensions. Three are parents, each there with probability 0.15; each
has three children, and with probability 0.6 one of them, and no other, is there beside it. Eight
more stand alone, with probability 0.05. A feature that is there has size 1, give or take 0.05. On
average 1.12 are there. A dictionary of 20 features could name each of them.

Fixed before any measurement: the parent's latent is the one whose decoder row has the largest
cosine with the parent. Absorption is the share of inputs with a child on which that latent is
silent, a mean over the parents. Matryoshka's prefixes are Probe's default, halves of halves: 1, 2,
5, 10, 20. It is compared with batch top-k, on which it is built, at k = 1: the toy's authors, too,
aim at the number of features that are there. Of absorption as such, vanilla is ReLU with L1.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import torch
from dictionary_runs import array_store, trained

import probe

PARENTS, CHILDREN, ALONE = 3, 3, 8
D = PARENTS * (1 + CHILDREN) + ALONE
P_PARENT, P_CHILD, P_ALONE, SPREAD = 0.15, 0.6, 0.05, 0.05
N_TRAIN, N_TEST = 100_000, 20_000
PENALTIES = (0.25, 0.5, 1.0, 2.0, 3.0, 4.0)
"""λ of ReLU with L1, for activations of mean squared norm 20."""
COUNTS = (1, 2, 3)
"""k of batch top-k and of Matryoshka."""

LOWERED = probe.Claim(
    "Matryoshka lowers absorption and costs reconstruction",
    published="L0 40: absorption 0.05 against 0.49; variance explained 70 against 72 %; 1 against "
    "3 latents a letter; 50 % more time",
    source="Bussmann et al. 2025, Matryoshka SAEs, section 4.3, Gemma-2-2B", mark="read",
    rule="hierarchical toy (20-dim tree): R: absorption at most 1/3 of vanilla with at most 3 "
    "points less variance; P: at most 2/3",
    reproduced={
        "absorption, Matryoshka / vanilla": probe.at_most(1 / 3),
        "variance explained, points less": probe.at_most(3),
    },
    partly={"absorption, Matryoshka / vanilla": probe.at_most(2 / 3)},
    seeds=5,
)  # fmt: skip
ABSORBS = probe.Claim(
    "a plain dictionary absorbs hierarchical features, more so at lower L0",
    published="toy proof and curves; Gemma rates up to about 0.35",
    source="Chanin et al. 2024, A is for Absorption", mark="read",
    rule="R: the parent's latent silent on at least 50 % of inputs with a child in the vanilla "
    "toy; monotone in L0",
    reproduced={
        "absorption at the middle penalty": probe.at_least(0.5),
        "steps down in L0 at which it does not fall, share": probe.at_least(1),
    },
    seeds=5,
)  # fmt: skip
PROXIES = probe.Claim(
    "proxies mislead",
    published='"gains on proxy metrics do not reliably translate"',
    source="SAEBench, Karvonen et al. 2025, abstract", mark="second-hand",
    rule="rank correlation between explained variance and absorption or probing over at least 12 "
    "dictionaries: report only",
)  # fmt: skip

COLUMNS = {
    "seed": "seed of the data and the training",
    "architecture": "what was trained",
    "setting": "λ of standard, k of the others",
    "l0": "mean number of features that fire",
    "explained": "explained variance",
    "cosine": "of a parent with its latent's decoder row, mean over the parents",
    "value": "share of inputs with a child on which the parent's latent is silent",
}


@probe.study(
    paper="Chanin et al. 2024; Bussmann et al. 2025",
    full={"seeds": 5, "steps": 2000, "d_sae": D},
    quick={"seeds": 3, "steps": 300, "d_sae": D},
)
def sae_absorption(*, seed: int, seeds: int, steps: int, d_sae: int) -> Iterator[Any]:
    """Train on a tree of features, and see which latents fall silent."""
    table = pd.DataFrame(
        [row for s in range(seed, seed + seeds) for row in measured(s, d_sae, steps)]
    )
    yield judge_matryoshka(table)
    yield judge_vanilla(table)
    yield judge_proxies(table)
    view = probe.View(kind="scatter", x="l0", color="architecture", scale="share")
    yield probe.Exhibit("Absorption against L0", table[list(COLUMNS)], COLUMNS, view)


def tree(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Sizes of the features in n inputs, and the features' directions, a row each.

    Parents come first, then each one's children, then those that stand alone.
    """
    draw = torch.Generator().manual_seed(seed)
    directions = torch.linalg.qr(torch.randn(D, D, generator=draw)).Q
    parents = torch.rand(n, PARENTS, generator=draw) < P_PARENT
    which = torch.randint(CHILDREN, (n, PARENTS, 1), generator=draw)
    chosen = torch.zeros(n, PARENTS, CHILDREN, dtype=torch.bool).scatter(2, which, True)
    with_child = parents & (torch.rand(n, PARENTS, generator=draw) < P_CHILD)
    children = (chosen & with_child[..., None]).flatten(1)
    there = torch.cat([parents, children, torch.rand(n, ALONE, generator=draw) < P_ALONE], 1)
    sizes = there * (1 + SPREAD * torch.randn(n, D, generator=draw))
    return sizes, directions


def measured(seed: int, d_sae: int, steps: int) -> list[dict[str, Any]]:
    """A row for each dictionary of a seed."""
    sizes, directions = tree(N_TRAIN + N_TEST, seed)
    x = sizes @ directions
    store = array_store(x[:N_TRAIN], f"tree-{seed}")
    rows = []
    for architecture, name, values in (
        ("standard", "sparsity", PENALTIES),
        ("batchtopk", "k", COUNTS),
        ("matryoshka_batchtopk", "k", COUNTS),
    ):
        found = trained(
            store, seed, [{name: value} for value in values], architecture=architecture,
            d_sae=d_sae, n_tokens=512 * steps, batch_size=512, lr=3e-3,
        )  # fmt: skip
        for value, sae in zip(values, found, strict=True):
            about = {"seed": seed, "architecture": architecture, "setting": value}
            rows.append(about | absorbed(sae, sizes[N_TRAIN:], directions))
    return rows


def absorbed(
    sae: probe.SparseDictionary, sizes: torch.Tensor, directions: torch.Tensor
) -> dict[str, float]:
    """What a dictionary makes of held-out inputs."""
    x = sizes @ directions
    features = sae.encode(x)
    error = (x - sae.decode(features)).double().square().sum()
    found = probe.recovery(sae, directions[:PARENTS])
    children = sizes[:, PARENTS : PARENTS * (1 + CHILDREN)].unflatten(1, (PARENTS, CHILDREN))
    with_child = children.ne(0).any(-1)
    silent = [
        float((features[with_child[:, parent], latent] == 0).double().mean())
        for parent, latent in enumerate(found.feature)
    ]
    return {
        "l0": float((features > 0).double().sum(1).mean()),
        "explained": float(1 - error / (x - x.mean(0)).double().square().sum()),
        "cosine": float(found.value.mean()),
        "value": float(np.mean(silent)),
    }


def judge_matryoshka(table: pd.DataFrame) -> Any:
    """Against batch top-k with the same k."""
    at = table[table.setting == COUNTS[0]].set_index(["architecture", "seed"])
    nested, plain = at.loc["matryoshka_batchtopk"], at.loc["batchtopk"]
    return LOWERED.judge(
        {
            "absorption, Matryoshka / vanilla": probe.over_seeds(nested.value / plain.value),
            "variance explained, points less": probe.over_seeds(
                100 * (plain.explained - nested.explained)
            ),
            "absorption, Matryoshka": probe.over_seeds(nested.value),
            "absorption, vanilla": probe.over_seeds(plain.value),
            "L0, Matryoshka / vanilla": probe.over_seeds(nested.l0 / plain.l0),
        },
        f"batch top-k with and without nested prefixes, k = {COUNTS[0]}",
    )


def judge_vanilla(table: pd.DataFrame) -> Any:
    """ReLU with L1: how much at the middle penalty, and does it grow as L0 falls."""
    plain = table[table.architecture == "standard"]
    at = plain[plain.setting == PENALTIES[len(PENALTIES) // 2]]
    return ABSORBS.judge(
        {
            "absorption at the middle penalty": probe.over_seeds(at.value),
            "steps down in L0 at which it does not fall, share": probe.over_seeds(
                [not_falling(one.l0, one.value) for _, one in plain.groupby("seed")]
            ),
            "L0 at the middle penalty": probe.over_seeds(at.l0),
            "cosine of parents with their latents": probe.over_seeds(at.cosine),
        },
        f"penalties {', '.join(map(str, PENALTIES))}; the tree's own L0 is 1.12",
    )


def not_falling(l0: Any, absorption: Any) -> float:
    """Share of steps from one dictionary to the next sparser at which absorption does not fall."""
    order = np.argsort(-np.asarray(l0))
    return float((np.diff(np.asarray(absorption)[order]) >= 0).mean())


def judge_proxies(table: pd.DataFrame) -> Any:
    """Whether the better reconstruction absorbs less."""
    ranks = table.groupby("seed")[["explained", "value"]].corr("spearman").xs("value", level=1)
    return PROXIES.judge(
        {"rank correlation, explained variance and absorption": probe.over_seeds(ranks.explained)},
        f"over {len(table) // table.seed.nunique()} dictionaries of each seed, on the toy; probing "
        "is not measured",
    )


if __name__ == "__main__":
    sae_absorption.main()
