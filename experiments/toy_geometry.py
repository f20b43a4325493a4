"""Toy Models of Superposition: which shapes do many equal features make?

As published: 400 features of equal importance in 30 dimensions, here at twenty densities from 1 to
1/20, for ten thousand steps; after two thousand the shapes are still blurred. At many of these
densities a feature has less room than 3/8, the least of the fractions that the paper names, so what
clusters where they have room (D* from 3/8 to 3/4) is told apart, beside the same vectors in random
directions.

probe reproduce toy_geometry [--quick]
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
ROOM = "D* from 3/8 to 3/4"
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
    paper="Elhage et al. 2022, Toy Models of Superposition: geometry of equal features",
    full={"seeds": 5, "densities": 20, "features": 400, "hidden": 30, "steps": 10_000,
          "batch": 256},
    quick={"seeds": 2, "densities": 8, "features": 20, "hidden": 5, "steps": 400, "batch": 128},
)  # fmt: skip
def toy_geometry(
    *, seed: int, seeds: int, densities: int, features: int, hidden: int, steps: int, batch: int
) -> Iterator[Any]:
    levels = torch.logspace(0, np.log10(1 / 20), densities)
    density = levels.repeat(seeds)[:, None].expand(-1, features).contiguous()
    toys = probe.train_toys(
        density, hidden=hidden, steps=steps, batch=batch, seed=seed, judged_on=500
    )
    yield room(toys.W, seeds)
    yield from clusters(toys.W, density[:, 0], seeds)
    yield tegum(toys.W, seeds)
    yield filled(toys.W, density[:, 0], seeds)
    yield attack(toys, density, seeds, seed)


def room(W: Tensor, seeds: int) -> Any:
    """Dimensions for each feature, along the densities."""
    per = probe.dimensions_per_feature(W).view(seeds, -1)
    near = {c: (abs(per - c) <= 0.05).double().mean(1) for c in (0.5, 1.0)}
    plateaus = (near[0.5] >= 0.30).int() + (near[1.0] >= 0.10).int()
    return STICKY.judge(
        {
            "near 1/2": probe.over_seeds(near[0.5].tolist()),
            "near 1": probe.over_seeds(near[1.0].tolist()),
            "plateaus": probe.over_seeds(plateaus.tolist()),
        }
    )


def clusters(W: Tensor, density: Tensor, seeds: int) -> Iterator[Any]:
    """Are dimensionalities where the named shapes have theirs, more than by chance?"""
    per, learnt = probe.dimensions_per_feature(W), W.norm(dim=1) > LEARNT
    roomy = (per >= min(FRACTIONS.values())) & (per <= max(FRACTIONS.values()))
    where = learnt & roomy[:, None]
    found, chance = distance(W), distance(scattered(W))

    def near(off: Tensor, which: Tensor) -> Any:
        parts = zip(off.chunk(seeds), which.chunk(seeds), strict=True)
        return probe.over_seeds([float((some[mask] <= 0.03).double().mean())
                                 for some, mask in parts])  # fmt: skip

    chosen = density.view(seeds, -1)[0][roomy.view(seeds, -1).double().mean(0) >= 0.5]
    yield CLUSTER.judge(
        {
            "within 0.03": near(found, learnt),
            "within 0.03, D* from 3/8 to 3/4": near(found, where),
            "the same lengths in random directions": near(chance, where),
            "models with D* from 3/8 to 3/4, share": probe.over_seeds(
                roomy.view(seeds, -1).double().mean(1).tolist()
            ),
        },
        "D* from 3/8 to 3/4 at 1/density "
        + ", ".join(f"{1 / value:.2f}" for value in chosen.tolist()),
    )
    yield histogram(probe.dimensionality(W), found, learnt, roomy)


def distance(W: Tensor) -> Tensor:
    """Of each feature's dimensionality to the nearest of the fractions."""
    D = probe.dimensionality(W)
    return torch.stack([abs(D - value) for value in FRACTIONS.values()]).amin(0)


def scattered(W: Tensor) -> Tensor:
    """Vectors as long as these, in random directions."""
    draw = torch.randn(W.shape, generator=torch.Generator().manual_seed(0))
    return draw * (W.norm(dim=1, keepdim=True) / draw.norm(dim=1, keepdim=True))


def histogram(D: Tensor, off: Tensor, learnt: Tensor, roomy: Tensor) -> probe.Exhibit:
    """How many learnt features have each dimensionality, and how far that is from a fraction."""
    edges = np.linspace(0, 1.05, 43)
    frame = pd.DataFrame(
        {
            "bin": edges[np.digitize(D[learnt].numpy(), edges) - 1].round(3),
            "models": np.where(roomy[:, None].expand_as(D)[learnt], ROOM, "others"),
            "distance": off[learnt].numpy(),
        }
    )
    frame = frame.groupby(["models", "bin"])["distance"].agg(value="size", distance="mean")
    columns = {
        "models": "whether a feature has the room of one of the shapes",
        "bin": "dimensionality D_i, lower edge of a bin of 0.025", "value": "learnt features",
        "distance": "mean distance to the nearest of 3/4, 2/3, 1/2, 2/5, 3/8",
    }  # fmt: skip
    view = probe.View(kind="bar", x="bin", color="models", text="distance", scale="activation")
    return probe.Exhibit("Dimensionalities of learnt features", frame.reset_index(), columns, view)


def tegum(W: Tensor, seeds: int) -> Any:
    """Are the shapes orthogonal to one another?"""
    across = [between_groups(one) for one in W]
    rows = len(across) // seeds
    by_seed = [torch.cat(across[k : k + rows]) for k in range(0, len(across), rows)]
    shares = [float((cosines < 0.05).double().mean()) for cosines in by_seed]
    return TEGUM.judge({"orthogonal pairs": probe.over_seeds(shares)})


def between_groups(W: Tensor) -> Tensor:
    """The |cosine| of each pair of learnt features in different components."""
    groups = probe.feature_groups(W)
    of = torch.full((W.shape[1],), -1)
    for number, members in enumerate(groups):
        of[members] = number
    apart = (of[:, None] != of) & (of[:, None] >= 0) & (of >= 0)
    return probe.feature_cosines(W[None])[0].abs()[apart.triu(1)]


def filled(W: Tensor, density: Tensor, seeds: int) -> Any:
    """Does the room of all features add up to the dimensions there are?"""
    used = probe.dimensionality(W).sum(1) / W.shape[1]
    off = abs(used - 1).view(seeds, -1)[:, density.view(seeds, -1)[0] <= 0.2]
    return FILLED.judge(
        {
            "largest |Σ D_i / m - 1|": probe.over_seeds(off.amax(1).tolist()),
            "mean |Σ D_i / m - 1|": probe.over_seeds(off.mean(1).tolist()),
        }
    )


def attack(toys: Any, density: Tensor, seeds: int, seed: int, n: int = 200) -> Any:
    """Loss an attack adds, by its square (1 where features do not interfere) and as it is.

    The attack is as long as a tenth of the mean input, and so shorter where features are sparser.
    """
    x = probe.draw_features(density, n, torch.Generator().manual_seed(seed + 7))
    size = 0.1 * x.norm(dim=2).mean(1)
    direction = torch.nn.functional.normalize(toys.W.mT @ toys.W, dim=2)
    clean = (toys(x) - x).square().sum(2)
    worst = torch.zeros_like(clean)
    for i in range(direction.shape[1]):
        moved = x + size[:, None, None] * direction[:, i, None]
        worst = torch.maximum(worst, (toys(moved) - x).square().sum(2) - clean)
    packed = (1 / probe.dimensions_per_feature(toys.W)).view(seeds, -1)
    found = {}
    for harm, how in ((worst.mean(1) / size**2, ""), (worst.mean(1), ", added loss as it is")):
        each = harm.view(seeds, -1)
        ranks = [
            pd.Series(h.tolist()).corr(pd.Series(p.tolist()), method="spearman")
            for h, p in zip(each, packed, strict=True)
        ]
        found[f"ratio{how}"] = probe.over_seeds((each.amax(1) / each[:, 0]).tolist())
        found[f"Spearman with 1/D*{how}"] = probe.over_seeds(ranks)
    return ATTACK.judge(
        found,
        "vulnerability is the loss added for each unit of the attack's square; the rule does not "
        "say of what the ratio is",
    )


if __name__ == "__main__":
    toy_geometry.main()
