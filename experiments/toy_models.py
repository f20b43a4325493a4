"""Toy Models of Superposition: when do features share dimensions?

Two- and three-feature models are trained on the expected loss (quadrature), the others on drawn
examples. The shapes of many equal features are in ``toy_geometry``; what needs unequal features,
sets of features or a hidden layer in ``toy_structure``.

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


@probe.study(
    paper="Elhage et al. 2022, Toy Models of Superposition: basic results, phases",
    full={"seeds": 5, "grid": 12, "best_of": 8, "phase_steps": 200, "steps": 2000, "batch": 512},
    quick={"seeds": 2, "grid": 6, "best_of": 4, "phase_steps": 100, "steps": 400, "batch": 256},
)  # fmt: skip
def toy_models(
    *, seed: int, seeds: int, grid: int, best_of: int, phase_steps: int, steps: int, batch: int
) -> Iterator[Any]:
    yield basic(seed, seeds, steps, batch)
    for n in PHASE:
        yield from phases(n, seed, seeds, grid, best_of, phase_steps)


def basic(seed: int, seeds: int, steps: int, batch: int) -> Any:
    """Twenty features in five dimensions, from dense to sparse."""
    n, m = 20, 5
    levels = torch.logspace(0, -2, 10)
    density = levels.repeat(seeds)[:, None].expand(-1, n).contiguous()
    toys = probe.train_toys(
        density, hidden=m, importance=0.7 ** torch.arange(n)[None].float(), steps=steps,
        batch=batch, lr=0.01, seed=seed, judged_on=500,
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
            "the same, the middle of an odd number counted as upper half": probe.over_seeds(
                [lower_half(learnt[s], shares[s], middle=True) for s in range(seeds)]
            ),
        },
        f"represented at densities 1 ... 0.01, first seed: {counts[0].tolist()}",
    )


def lower_half(learnt: Tensor, shares: Tensor, middle: bool = False) -> float:
    """Of the features superposed at the densest level that has any: share in the lower half.

    Of an odd number of features the middle one is in neither half, and is counted only if asked.
    """
    for here, mixed in zip(learnt, shares & learnt, strict=True):
        if mixed.any():
            order = here.nonzero()[:, 0]
            rank = torch.searchsorted(order, mixed.nonzero()[:, 0]) - (len(order) - 1) / 2
            return float((rank[(rank != 0) | middle] > 0).double().mean())
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


if __name__ == "__main__":
    toy_models.main()
