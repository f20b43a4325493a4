"""Toy Models of Superposition: when do features share dimensions, and in which shapes?

Uniform geometry as published: 400 features of equal importance in 30 dimensions, here at twenty
densities from 1 to 1/20. Two- and three-feature models are trained on the expected loss
(quadrature), the others on drawn examples. What needs unequal features, sets of features or a
hidden layer is in ``toy_structure``.

probe reproduce toy_models [--quick]
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

import probe

SOURCE = "Elhage et al. 2022"
LEARNT = 0.5
FRACTIONS = {"3/4": 3 / 4, "2/3": 2 / 3, "1/2": 1 / 2, "2/5": 2 / 5, "3/8": 3 / 8}
BASIC = probe.Claim(
    "dense: the top m features alone; sparse: more, the least important first",
    published="qualitative (n=20, m=5, importance 0.7^i)", source=f"{SOURCE}, Basic Results",
    mark="read",
    rule="R: at density 1 exactly m (±1) norms > 0.5; count rises monotonically with sparsity; "
    "first superposed features from the lower half of importance (of those represented)",
    reproduced={
        "|represented - m| at density 1": probe.at_most(1),
        "falls of the count": probe.at_most(0),
        "first superposed in the lower half, share": probe.at_least(1),
    }, seeds=5,
)  # fmt: skip
PHASE = {
    n: probe.Claim(
        f"phase boundary, n={n} m={n - 1}" + (" (first-order)" if n == 2 else ""),
        published="closed form: " + what, source="companion notebook (Wattenberg)", mark=mark,
        rule="12×12 log grid, best of 8 seeds: R: ≥85 % of cells agree with the closed form, "
        "excluding cells where the two losses differ < 5 %; P: ≥70 %",
        reproduced={"cells that agree": probe.at_least(0.85)},
        partly={"cells that agree": probe.at_least(0.70)}, seeds=5,
    )
    for n, what, mark in (
        (2, "superposition where s < 4r/(2+5r) and s < 4/(5+2r)", "read"),
        (3, "extra ignored above s = 4r/(2+5r), in a pair below; dedicated for r > 1", "derived"),
    )
}  # fmt: skip
STICKY = probe.Claim(
    "D* is sticky at 1 and 1/2", published="visual", source=f"{SOURCE}, Geometry", mark="read",
    rule="R: ≥30 % of ≥20 densities within ±0.05 of 1/2 and ≥10 % within ±0.05 of 1; "
    "P: one plateau",
    reproduced={"near 1/2": probe.at_least(0.30), "near 1": probe.at_least(0.10)},
    partly={"plateaus": probe.at_least(1)}, seeds=5,
)  # fmt: skip
CLUSTER = probe.Claim(
    "D_i cluster at 3/4, 2/3, 1/2, 2/5, 3/8",
    published="tetrahedron, triangle, digon, pentagon, square antiprism", source=SOURCE,
    mark="read",
    rule="R: ≥70 % of learnt features within ±0.03 of a listed value (chance ≈ 27 %); P: ≥50 %",
    reproduced={"within 0.03": probe.at_least(0.70)},
    partly={"within 0.03": probe.at_least(0.50)}, seeds=5,
)  # fmt: skip
TEGUM = probe.Claim(
    "features split in tegum factors", published="bipyramid: 3 × 2/3 + 2 × 1/2, exact",
    source=SOURCE, mark="read",
    rule="R: |cos| < 0.05 across components of the feature graph in ≥90 % of such pairs "
    "(an edge: |cos| ≥ 0.2)",
    reproduced={"orthogonal pairs": probe.at_least(0.90)}, seeds=5,
)  # fmt: skip
FILLED = probe.Claim(
    "Σ D_i ≈ m when packed well", published="equality", source=SOURCE, mark="read",
    rule="R: within 3 % for runs in the sparse regime (density ≤ 0.2)",
    reproduced={"largest |Σ D_i / m - 1|": probe.at_most(0.03)}, seeds=5,
)  # fmt: skip
ATTACK = probe.Claim(
    "adversarial vulnerability rises with features per dimension",
    published="> 3 ×; L2 attack of 0.1 × mean input norm along (WᵀW)_i", source=SOURCE,
    mark="read",
    rule="R: ratio > 3 and Spearman ≥ 0.9 with 1/D*; P: > 1.5 and ≥ 0.7",
    reproduced={"ratio": probe.at_least(3), "Spearman with 1/D*": probe.at_least(0.9)},
    partly={"ratio": probe.at_least(1.5), "Spearman with 1/D*": probe.at_least(0.7)}, seeds=5,
)  # fmt: skip


@probe.study(
    paper="Elhage et al. 2022, Toy Models of Superposition: basic results, phases, geometry",
    full={"seeds": 5, "grid": 12, "best_of": 8, "phase_steps": 200, "densities": 20,
          "features": 400, "hidden": 30, "steps": 2000, "batch": 256},
    quick={"seeds": 2, "grid": 6, "best_of": 4, "phase_steps": 100, "densities": 8,
           "features": 20, "hidden": 5, "steps": 400, "batch": 128},
)  # fmt: skip
def toy_models(
    *, seed: int, seeds: int, grid: int, best_of: int, phase_steps: int, densities: int,
    features: int, hidden: int, steps: int, batch: int,
) -> Iterator[Any]:  # fmt: skip
    yield basic(seed, seeds, steps, batch)
    for n in PHASE:
        yield from phases(n, seed, seeds, grid, best_of, phase_steps)
    steps_of = torch.logspace(0, np.log10(1 / 20), densities)
    density = steps_of.repeat(seeds)[:, None].expand(-1, features).contiguous()
    toys = probe.train_toys(
        density, hidden=hidden, steps=steps, batch=batch, lr=0.01, seed=seed, judged_on=500
    )
    yield from geometry(toys, density[:, 0], seeds)
    yield attack(toys, density, seeds, seed)


def basic(seed: int, seeds: int, steps: int, batch: int) -> Any:
    """Twenty features in five dimensions, from dense to sparse."""
    n, m = 20, 5
    levels = torch.logspace(0, -2, 10)
    density = levels.repeat(seeds)[:, None].expand(-1, n).contiguous()
    toys = probe.train_toys(
        density, hidden=m, importance=0.7 ** torch.arange(n)[None].float(), steps=steps,
        batch=2 * batch, lr=0.01, seed=seed, judged_on=500,
    )  # fmt: skip
    learnt = (toys.W.norm(dim=1) > LEARNT).view(seeds, len(levels), n)
    cosine = probe.feature_cosines(toys.W).square() * toys.W.norm(dim=1).square()[:, None]
    shares = (cosine.sum(2) - cosine.diagonal(dim1=1, dim2=2) > 0.1).view(seeds, len(levels), n)
    counts = learnt.sum(2)
    return BASIC.judge(
        {
            "|represented - m| at density 1": probe.over_seeds(abs(counts[:, 0] - m).tolist()),
            "falls of the count": probe.over_seeds((counts.diff(dim=1) < 0).sum(1).tolist()),
            "first superposed in the lower half, share": probe.over_seeds(
                [lower_half(learnt[s], shares[s]) for s in range(seeds)]
            ),
        },
        f"represented at densities 1 ... 0.01, first seed: {counts[0].tolist()}",
    )


def lower_half(learnt: Tensor, shares: Tensor) -> float:
    """Of the features superposed at the densest level that has any: share in the lower half."""
    for here, mixed in zip(learnt, shares & learnt, strict=True):
        if mixed.any():
            order = here.nonzero()[:, 0]
            rank = torch.searchsorted(order, mixed.nonzero()[:, 0])
            return float((rank >= len(order) / 2).double().mean())
    return float("nan")


# --- phases --------------------------------------------------------------------------------------


def phases(n: int, seed: int, seeds: int, grid: int, best_of: int, steps: int) -> Iterator[Any]:
    """What becomes of the extra feature, at each density s and importance r."""
    s, r = torch.meshgrid(torch.logspace(-2, 0, grid), torch.logspace(-1, 1, grid), indexing="ij")
    s, r = s.flatten(), r.flatten()
    density = s.repeat(seeds).repeat_interleave(best_of)[:, None].expand(-1, n).contiguous()
    importance = torch.ones_like(density)
    importance[:, -1] = r.repeat(seeds).repeat_interleave(best_of)
    toys = probe.train_toys(
        density, hidden=n - 1, importance=importance, steps=steps, lr=0.03, nodes=4, seed=seed
    ).best_of(best_of)
    found = np.array([outcome(W) for W in toys.W]).reshape(seeds, -1)
    losses = closed_forms(n, s.numpy(), r.numpy())
    names, table = np.array(list(losses)), np.stack(list(losses.values()))
    ordered = np.sort(table, 0)
    clear = ordered[1] > 1.05 * ordered[0]
    predicted = names[table.argmin(0)]
    counts = clear & (found != "all three")
    agree = [
        float((row == predicted)[keep].mean()) for row, keep in zip(found, counts, strict=True)
    ]
    triples = [int((row == "all three").sum()) for row in found]
    yield PHASE[n].judge(
        {"cells that agree": probe.over_seeds(agree), "W⊥(1,1,1)-like": probe.over_seeds(triples)},
        f"{int(clear.sum())} of {len(clear)} cells are clear",
    )
    frame = pd.DataFrame(
        {
            "density": np.tile(s.numpy().round(4), 2), "importance": np.tile(r.numpy().round(3), 2),
            "by": np.repeat(["trained", "closed form"], len(s)),
            "outcome": np.concatenate([found[0], predicted]),
        }
    )  # fmt: skip
    frame["value"] = frame["outcome"].map({name: place for place, name in enumerate(OUTCOMES)})
    columns = {
        "density": "1 - S", "importance": "of the extra feature", "by": "trained or predicted",
        "outcome": "what becomes of it", "value": f"the outcome by number: {', '.join(OUTCOMES)}",
    }  # fmt: skip
    view = probe.View(
        kind="heatmap", x="density", y="importance", color="value", facet="by", text="outcome"
    )
    yield probe.Exhibit(f"Phase diagram, {n} features in {n - 1}", frame, columns, view)


OUTCOMES = ("ignored", "dedicated", "pair", "all three")


def outcome(W: Tensor) -> str:
    """What became of the last feature."""
    learnt = W.norm(dim=0) > LEARNT
    cosine = probe.feature_cosines(W[None])[0]
    others = cosine[-1, :-1][learnt[:-1]]
    if W.shape[1] == 3 and bool(learnt.all()) and bool((cosine[~torch.eye(3).bool()] < -0.3).all()):
        return "all three"
    if not learnt[-1]:
        return "ignored"
    return "pair" if len(others) and float(others.min()) < -0.7 else "dedicated"


def closed_forms(n: int, s: np.ndarray, r: np.ndarray) -> dict[str, np.ndarray]:
    """Loss of each outcome with unit features (companion notebook): n features in n - 1."""
    alone, pair = s / 3 - s**2 / 4, (1 + r) * s**2 / 6
    dedicated = alone if n == 2 else np.minimum(alone, s**2 / 3)
    return {"ignored": r * alone, "pair": pair, "dedicated": dedicated}


# --- geometry ------------------------------------------------------------------------------------


def geometry(toys: Any, density: Tensor, seeds: int) -> Iterator[Any]:
    """Equally important features: the room each has, and who shares it with whom."""
    D, per = probe.dimensionality(toys.W), probe.dimensions_per_feature(toys.W)
    learnt, hidden = toys.W.norm(dim=1) > LEARNT, toys.W.shape[1]
    near = {c: (abs(per.view(seeds, -1) - c) <= 0.05).double().mean(1) for c in (0.5, 1.0)}
    plateaus = (near[0.5] >= 0.30).int() + (near[1.0] >= 0.10).int()
    yield STICKY.judge(
        {
            "near 1/2": probe.over_seeds(near[0.5].tolist()),
            "near 1": probe.over_seeds(near[1.0].tolist()),
            "plateaus": probe.over_seeds(plateaus.tolist()),
        }
    )
    off = torch.stack([abs(D - value) for value in FRACTIONS.values()]).amin(0)
    by_seed = [chunk.reshape(-1) for chunk in (off <= 0.03).double().chunk(seeds)]
    known = [chunk.reshape(-1) for chunk in learnt.chunk(seeds)]
    yield CLUSTER.judge(
        {
            "within 0.03": probe.over_seeds(
                [float(hit[mask].mean()) for hit, mask in zip(by_seed, known, strict=True)]
            )
        }
    )
    yield histogram(D[learnt], off[learnt])

    across = [between_groups(W) for W in toys.W]
    rows = len(across) // seeds
    yield TEGUM.judge(
        {
            "orthogonal pairs": probe.over_seeds(
                [
                    float((torch.cat(across[k * rows : (k + 1) * rows]) < 0.05).double().mean())
                    for k in range(seeds)
                ]
            )
        }
    )
    filled = abs((D.sum(1) / hidden - 1).view(seeds, -1)[:, (density <= 0.2)[:rows]])
    yield FILLED.judge(
        {
            "largest |Σ D_i / m - 1|": probe.over_seeds(filled.amax(1).tolist()),
            "mean |Σ D_i / m - 1|": probe.over_seeds(filled.mean(1).tolist()),
        }
    )


def between_groups(W: Tensor) -> Tensor:
    """The |cosine| of each pair of learnt features in different components."""
    groups = probe.feature_groups(W)
    of = torch.full((W.shape[1],), -1)
    for number, members in enumerate(groups):
        of[members] = number
    apart = (of[:, None] != of) & (of[:, None] >= 0) & (of >= 0)
    return probe.feature_cosines(W[None])[0].abs()[apart.triu(1)]


def histogram(D: Tensor, off: Tensor) -> probe.Exhibit:
    """How many learnt features have each dimensionality, and how far that is from a fraction."""
    edges = np.linspace(0, 1.05, 43)
    which = np.digitize(D.numpy(), edges) - 1
    frame = pd.DataFrame({"bin": edges[which].round(3), "distance": off.numpy()})
    frame = frame.groupby("bin").agg(value=("distance", "size"), distance=("distance", "mean"))
    columns = {
        "bin": "dimensionality D_i, lower edge of a bin of 0.025", "value": "learnt features",
        "distance": "mean distance to the nearest of 3/4, 2/3, 1/2, 2/5, 3/8",
    }  # fmt: skip
    view = probe.View(kind="bar", x="bin", text="distance", scale="activation")
    return probe.Exhibit("Dimensionalities of learnt features", frame.reset_index(), columns, view)


def attack(toys: Any, density: Tensor, seeds: int, seed: int, n: int = 200) -> Any:
    """Loss an attack adds, in units of its own square: 1 where features do not interfere."""
    x = probe.draw_features(density, n, torch.Generator().manual_seed(seed + 7))
    size = 0.1 * x.norm(dim=2).mean(1)
    direction = torch.nn.functional.normalize(toys.W.mT @ toys.W, dim=2)
    clean = (toys(x) - x).square().sum(2)
    worst = torch.zeros_like(clean)
    for i in range(direction.shape[1]):
        moved = x + size[:, None, None] * direction[:, i, None]
        worst = torch.maximum(worst, (toys(moved) - x).square().sum(2) - clean)
    harm = (worst.mean(1) / size**2).view(seeds, -1)
    packed = (1 / probe.dimensions_per_feature(toys.W)).view(seeds, -1)
    ranks = [
        pd.Series(h.tolist()).corr(pd.Series(p.tolist()), method="spearman")
        for h, p in zip(harm, packed, strict=True)
    ]
    return ATTACK.judge(
        {
            "ratio": probe.over_seeds((harm.amax(1) / harm[:, 0]).tolist()),
            "Spearman with 1/D*": probe.over_seeds(ranks),
        }
    )


if __name__ == "__main__":
    toy_models.main()
