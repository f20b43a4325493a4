"""Toy Models of Superposition, continued: features that differ, come in sets, or are computed with.

Declared before measuring, where the text gives no number: features that come in sets have density
0.1 (0.03 to 0.35 where density is varied); a set is collapsed if its two features have a cosine
above 0.9; a pentagon is five learnt features no two of which lie on one line (|cosine| below 0.9);
a neuron is polysemantic if its second-largest input weight is above a quarter of its
largest. Pentagon against digons is trained on the expected loss (quadrature), the others on drawn
examples. Smaller than published: best of 50 runs for the hidden layer (1000).

probe reproduce toy_structure [--quick]
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

import probe

SOURCE = "Elhage et al. 2022"
LEARNT = 0.5
PENTAGON = probe.Claim(
    "pentagon → two digons when one feature is sparser",
    published="about 2.5 × sparser; loss curves cross", source=f"{SOURCE}, Non-uniform",
    mark="read",
    rule="R: best losses of the two geometries cross in 1.8 to 3.5 ×; P: in 1.3 to 5",
    reproduced={"crossing, × sparser": probe.between(1.8, 3.5)},
    partly={"crossing, × sparser": probe.between(1.3, 5)}, seeds=5,
)  # fmt: skip
PAIRS = probe.Claim(
    "correlated pairs orthogonal, else side by side; anticorrelated antipodal",
    published="qualitative (n=4, m=2; n=6, m=2)", source=SOURCE, mark="read",
    rule="R: |cos| < 0.1 within correlated pairs, cos < -0.9 within anticorrelated pairs, in ≥80 % "
    "of best-of-5 runs",
    reproduced={
        "correlated, orthogonal, share": probe.at_least(0.8),
        "anticorrelated, antipodal, share": probe.at_least(0.8),
    }, seeds=5,
)  # fmt: skip
BASES = probe.Claim(
    "local almost-orthogonal bases", published="2 sets of 10, m = 10", source=SOURCE, mark="read",
    rule="R: mean |cos| within sets ≤ 1/3 of mean |cos| across sets",
    reproduced={"|cos| within / across": probe.at_most(1 / 3)}, seeds=5,
)  # fmt: skip
COLLAPSE = probe.Claim(
    "collapse to principal components as density grows",
    published="PCA ≥ 0.5; sets collapsed: 3 at 0.25-0.5, 2 at 0.15-0.2, 1 at 0.05-0.15, "
    "none ≤ 0.05",
    source=SOURCE, mark="read",
    rule="R: collapsed sets are monotone in density and within ±1 of 0, 1, 2, 3 at 0.03, 0.1, "
    "0.18, 0.35",
    reproduced={"falls with density": probe.at_most(0), "largest departure": probe.at_most(1)},
    seeds=5,
)  # fmt: skip
HIDDEN = probe.Claim(
    "ReLU hidden layer: mono- to polysemantic",
    published="density ≥ 0.5 all dedicated; 0.2-0.5 three features in two neurons; further changes "
    "at 0.15 and 0.12; 0.05-0.08 all polysemantic; ≤ 0.04 pairs",
    source=SOURCE, mark="read",
    rule="R: polysemantic neurons monotone in sparsity, none at density 0.7, all at 0.05",
    reproduced={
        "falls with sparsity": probe.at_most(0),
        "polysemantic at 0.7": probe.at_most(0),
        "monosemantic at 0.05": probe.at_most(0),
    }, seeds=5,
)  # fmt: skip
ABS = probe.Claim(
    "abs computed in superposition",
    published="density 1, 0.3 monosemantic; 0.1 slightly; 0.03 few; 0.01, 0.003 more polysemantic; "
    "0.001 all",
    source=SOURCE, mark="read",
    rule="R: share of polysemantic neurons ≤5 % at 1 and 0.3, ≥80 % at 0.001, monotone",
    reproduced={
        "share at 1": probe.at_most(0.05), "share at 0.3": probe.at_most(0.05),
        "share at 0.001": probe.at_least(0.80), "falls with sparsity": probe.at_most(0),
    }, seeds=5,
)  # fmt: skip
TRAINED_AGAINST = probe.Claim(
    "training against attacks removes superposition only at huge attacks",
    published="80 % of input norm", source=SOURCE, mark="read", rule="report only",
)  # fmt: skip

RARE, SETS = 0.05, 0.1
SHAPES = ("pentagon", "digons")
COLLAPSED = {0.03: 0, 0.10: 1, 0.18: 2, 0.35: 3}
HIDDEN_DENSITIES = (0.7, 0.5, 0.3, 0.2, 0.15, 0.12, 0.08, 0.05)
ABS_DENSITIES = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)


@probe.study(
    paper="Elhage et al. 2022, Toy Models of Superposition: unequal features, sets, computation",
    full={"seeds": 5, "ratios": 21, "restarts": 16, "runs": 10, "steps": 1500, "hidden_best_of": 50,
          "abs_steps": 5000},
    quick={"seeds": 2, "ratios": 7, "restarts": 6, "runs": 3, "steps": 300, "hidden_best_of": 4,
           "abs_steps": 200},
)  # fmt: skip
def toy_structure(
    *, seed: int, seeds: int, ratios: int, restarts: int, runs: int, steps: int,
    hidden_best_of: int, abs_steps: int,
) -> Iterator[Any]:  # fmt: skip
    yield from pentagon(seed, seeds, ratios, restarts, steps)
    yield pairs(seed, seeds, runs, steps)
    yield bases(seed, seeds, steps)
    yield collapse(seed, seeds, steps)
    yield hidden_layer(seed, seeds, hidden_best_of, steps)
    yield absolute(seed, seeds, abs_steps)
    yield TRAINED_AGAINST.leave_out("report only, and our toys are not trained against attacks")


# --- one feature sparser than the others ---------------------------------------------------------


def pentagon(seed: int, seeds: int, ratios: int, restarts: int, steps: int) -> Iterator[Any]:
    """Five features in two dimensions, the last rarer by a ratio: which shape costs less?"""
    ratio = torch.linspace(1, 6, ratios)
    density = torch.full((seeds, ratios, restarts, 5), RARE)
    density[..., -1] = RARE / ratio[:, None]
    toys = probe.train_toys(
        density.flatten(0, 2), hidden=2, steps=steps, lr=0.03, nodes=3, seed=seed
    )
    shapes = np.array([shape(W) for W in toys.W]).reshape(seeds, ratios, restarts)
    losses = toys.loss.view(seeds, ratios, restarts).numpy() / RARE
    best = {
        name: np.where(shapes == name, losses, np.inf).min(2) for name in ("pentagon", "digons")
    }
    yield PENTAGON.judge(
        {
            "crossing, × sparser": probe.over_seeds(
                [crossing(ratio.numpy(), *(best[name][s] for name in SHAPES))
                 for s in range(seeds)]
            )
        },
        f"ratios {5 / max(ratios - 1, 1):.2g} apart, best of {restarts}",
    )  # fmt: skip
    frame = pd.DataFrame(
        [
            {"ratio": float(at), "shape": name, "value": float(loss)}
            for name, table in best.items()
            for at, loss in zip(ratio, table.min(0), strict=True)
            if np.isfinite(loss)
        ],
        columns=["ratio", "shape", "value"],
    )
    columns = {
        "ratio": "how many times rarer the fifth feature is", "shape": "geometry",
        "value": f"least loss over seeds, in units of the density {RARE}",
    }  # fmt: skip
    view = probe.View(kind="line", x="ratio", color="shape")
    yield probe.Exhibit("Pentagon against two digons", frame, columns, view)


def shape(W: Tensor) -> str:
    """Two antipodal pairs of the four usual features, or all five spread out."""
    cosine = probe.feature_cosines(W[None])[0].triu(1)
    learnt = W.norm(dim=0) > LEARNT
    if int((cosine[:4, :4] < -0.9).sum()) == 2 and not learnt[4]:
        return "digons"
    return "pentagon" if bool(learnt.all() and (cosine.abs() < 0.9).all()) else "other"


def crossing(ratio: np.ndarray, first: np.ndarray, then: np.ndarray) -> float:
    """Half-way between the ratios where the second shape first becomes the better; NaN: never."""
    better = then < first
    found = [(a + b) / 2 for (a, b), (was, now) in
             zip(pairwise(ratio), pairwise(better), strict=True) if now and not was]  # fmt: skip
    return float(found[0]) if found else float("nan")


# --- features in sets ----------------------------------------------------------------------------


def in_sets(
    n: int, hidden: int, sets: list[list[int]], *, seed: int, how_many: int, best_of: int,
    steps: int, joint: str = "together", density: float = SETS,
) -> Tensor:  # fmt: skip
    """W of ``how_many`` models, each the best of some."""
    levels = torch.full((how_many * best_of, n), density)
    toys = probe.train_toys(
        levels, hidden=hidden, sets=sets, joint=joint, steps=steps, batch=256, lr=0.01, seed=seed,
        judged_on=5000,
    )  # fmt: skip
    return toys.best_of(best_of).W


def within(W: Tensor, sets: list[list[int]]) -> Tensor:
    """Cosine of each pair; [toy, pair]."""
    cosine = probe.feature_cosines(W)
    return torch.stack([cosine[:, one, other] for one, other in sets], 1)


def pairs(seed: int, seeds: int, runs: int, steps: int) -> Any:
    """Two pairs in two dimensions, correlated or anticorrelated; three where room is short."""
    two, three = [[0, 1], [2, 3]], [[0, 1], [2, 3], [4, 5]]
    how = {"seed": seed, "how_many": seeds * runs, "best_of": 5, "steps": steps}
    together = within(in_sets(4, 2, two, **how), two)
    apart = within(in_sets(4, 2, two, **how, joint="apart"), two)
    crowded = within(in_sets(6, 2, three, **how), three)

    def share(hit: Tensor) -> Any:
        return probe.over_seeds(hit.double().view(seeds, -1).mean(1).tolist())

    return PAIRS.judge(
        {
            "correlated, orthogonal, share": share((together.abs() < 0.1).all(1)),
            "anticorrelated, antipodal, share": share((apart < -0.9).all(1)),
            "pairs side by side, three in two dimensions": share(crowded > 0.9),
        }
    )


def bases(seed: int, seeds: int, steps: int) -> Any:
    """Two sets of ten in ten dimensions."""
    sets = [list(range(10)), list(range(10, 20))]
    W = in_sets(20, 10, sets, seed=seed, how_many=seeds, best_of=5, steps=steps)
    cosine = probe.feature_cosines(W).abs()
    of = torch.arange(20) // 10
    same = (of[:, None] == of) & ~torch.eye(20, dtype=torch.bool)
    inside = cosine[:, same].mean(1)
    across = cosine[:, of[:, None] != of].mean(1)
    return BASES.judge(
        {
            "|cos| within / across": probe.over_seeds((inside / across).tolist()),
            "|cos| within": probe.over_seeds(inside.tolist()),
            "|cos| across": probe.over_seeds(across.tolist()),
        }
    )


def collapse(seed: int, seeds: int, steps: int) -> Any:
    """Three pairs in two dimensions: how many have both features on one direction?"""
    three = [[0, 1], [2, 3], [4, 5]]
    counts = torch.stack(
        [
            (within(in_sets(6, 2, three, seed=seed, how_many=seeds, best_of=10, steps=steps,
                            density=density), three) > 0.9).sum(1)
            for density in COLLAPSED
        ], 1,
    )  # fmt: skip
    away = abs(counts - torch.tensor(list(COLLAPSED.values())))
    return COLLAPSE.judge(
        {
            "falls with density": probe.over_seeds((counts.diff(dim=1) < 0).sum(1).tolist()),
            "largest departure": probe.over_seeds(away.amax(1).tolist()),
        },
        f"collapsed at {', '.join(map(str, COLLAPSED))}: {counts.tolist()}",
    )


# --- neurons -------------------------------------------------------------------------------------


def polysemantic(W: Tensor) -> Tensor:
    """Whether each neuron reads a second feature with a quarter of the first's weight."""
    first, second = W.abs().topk(2, dim=2).values.unbind(2)
    return second > 0.25 * first


def hidden_layer(seed: int, seeds: int, best_of: int, steps: int) -> Any:
    """Ten features through five ReLU neurons, from dense to sparse."""
    levels = torch.tensor(HIDDEN_DENSITIES).repeat(seeds)
    density = levels.repeat_interleave(best_of)[:, None].expand(-1, 10).contiguous()
    toys = probe.train_toys(
        density, hidden=5, kind="hidden_relu", importance=0.75 ** torch.arange(10)[None].float(),
        steps=steps, batch=256, lr=0.01, seed=seed, judged_on=2000,
    ).best_of(best_of)  # fmt: skip
    mixed = polysemantic(toys.W).sum(1).view(seeds, -1)
    return HIDDEN.judge(
        {
            "falls with sparsity": probe.over_seeds((mixed.diff(dim=1) < 0).sum(1).tolist()),
            "polysemantic at 0.7": probe.over_seeds(mixed[:, 0].tolist()),
            "monosemantic at 0.05": probe.over_seeds((5 - mixed[:, -1]).tolist()),
        },
        f"polysemantic of 5 at {', '.join(map(str, HIDDEN_DENSITIES))}: {mixed.tolist()}",
    )


def absolute(seed: int, seeds: int, steps: int) -> Any:
    """|x| of a hundred features by forty neurons, from dense to sparse."""
    density = torch.tensor(ABS_DENSITIES).repeat(seeds)[:, None].expand(-1, 100).contiguous()
    toys = probe.train_toys(
        density, hidden=40, kind="abs", importance=0.8 ** torch.arange(100)[None].float(),
        steps=steps, batch=512, lr=3e-3, seed=seed, judged_on=1000,
    )  # fmt: skip
    share = polysemantic(toys.W).double().mean(1).view(seeds, -1)
    return ABS.judge(
        {
            "share at 1": probe.over_seeds(share[:, 0].tolist()),
            "share at 0.3": probe.over_seeds(share[:, 1].tolist()),
            "share at 0.001": probe.over_seeds(share[:, -1].tolist()),
            "falls with sparsity": probe.over_seeds((share.diff(dim=1) < 0).sum(1).tolist()),
        },
        f"shares at {', '.join(map(str, ABS_DENSITIES))}, first seed: "
        f"{[round(value, 3) for value in share[0].tolist()]}",
    )


if __name__ == "__main__":
    toy_structure.main()
