"""Nearly orthogonal directions: how many fit, at random, at best, and in SmolLM2's embeddings?

probe reproduce packing [--quick]
"""

import math
from collections.abc import Iterator
from typing import Any

import pandas as pd
import torch

import probe

IMPOSSIBLE = probe.Claim(
    "10,000 directions of R^100 within 89-91 degrees: impossible",
    published="a video shows them, apparently; Welch: some pair is at 84.3° or less",
    source="Welch 1974; the video by way of Yoder 2025", mark="derived",
    rule="R (of the correction): the optimiser never beats 84.3°, and its worst pair is at "
    "70 to 84.3°; also Yoder: 76.5° [second-hand]",
    reproduced={"worst pair, degrees": probe.between(70, 84.3)}, seeds=5,
)  # fmt: skip
TINY = probe.Claim(
    "the bound exp(dε²/4) is tiny at 1°, and random sets have max |cos| 2√(ln N/d)",
    published="d=12,288: 1° 2.6, 2° 42, 5° 1.4e10; d=576: 5° 3, 10° 77, 15° 1.6e4",
    source="union bound over pairs", mark="derived",
    rule="print the table; R: for N ≤ 1e4 the random maximum is within 15 % of the formula",
    reproduced={"largest departure": probe.at_most(0.15)}, seeds=5,
)  # fmt: skip
BASELINE = probe.Claim(
    "random baseline",
    published="N=2000, d=100: sd 0.100, max 0.514, 13.8 % of pairs within 1°; "
    "N=4096, d=576: sd 0.0417, max 0.233",
    source="measured for the list of claims", mark="measured",
    rule="R: agree within 5 % (sd) and 10 % (max)",
    reproduced={
        "sd, departure at 2000 in 100": probe.at_most(0.05),
        "max, departure at 2000 in 100": probe.at_most(0.10),
        "sd, departure at 4096 in 576": probe.at_most(0.05),
        "max, departure at 4096 in 576": probe.at_most(0.10),
    }, seeds=5,
)  # fmt: skip
OPTIMISED = probe.Claim(
    "optimised packing beats random, and never the Welch bound",
    published="—", source="Welch 1974", mark="derived",
    rule="R: optimised max |cos| < random max and ≥ Welch at every N/d in 1.5, 2, 7, 100",
    reproduced={
        "optimised / random max, worst": probe.at_most(0.999),
        "optimised / Welch, least": probe.at_least(1.0),
    }, seeds=5,
)  # fmt: skip
EMBEDDINGS = probe.Claim(
    "SmolLM2's embeddings (49,152 in 576)",
    published="Welch ≥ 0.041 (87.6°)", source="Welch 1974", mark="derived",
    rule="report the maximum and the sd against 1/√576 = 0.0417, mean subtracted and not",
)  # fmt: skip

PUBLISHED = {(2000, 100): (0.100, 0.514), (4096, 576): (0.0417, 0.233)}
RATIOS = (1.5, 2, 7, 100)
NAMED_DEGREES = (1, 2, 5, 10, 15)


@probe.study(
    paper="Elhage et al. 2022; Yoder 2025; Welch 1974",
    full={"seeds": 5, "steps": 300, "many": 10_000, "steps_many": 50, "model": "smollm2"},
    quick={"seeds": 3, "steps": 80, "many": 1000, "steps_many": 60, "model": "toy"},
)
def packing(
    *, seed: int, seeds: int, steps: int, many: int, steps_many: int, model: str
) -> Iterator[Any]:
    each = range(seed, seed + seeds)
    yield table_of_the_bound()
    yield judge_random(each, many)
    yield judge_baseline(each)
    yield from judge_optimised(each, steps)

    # at N = 100 d, the video's numbers: one optimisation takes 1e8 cosines a step
    dimensions = many // 100
    worst = [
        degrees(
            probe.pair_angles(probe.pack_directions(many, dimensions, steps=steps_many, seed=s))
        )
        for s in each
    ]
    limit = 90 - math.degrees(math.asin(welch(many, 100)))
    note = f"{many} in 100 dimensions; Welch {limit:.1f}°"
    yield IMPOSSIBLE.judge({"worst pair, degrees": probe.over_seeds(worst)}, note)

    loaded = probe.load_model(model)
    yield loaded
    yield judge_embeddings(loaded)


def table_of_the_bound() -> probe.Exhibit:
    """How many directions exp(dε²/4) promises."""
    rows = [
        {"d": d, "degrees": angle, "value": math.exp(d * math.sin(math.radians(angle)) ** 2 / 4)}
        for d in (100, 576, 12_288)
        for angle in NAMED_DEGREES
    ]
    columns = {
        "d": "dimensions", "degrees": "off 90", "value": "directions exp(dε²/4), ε = sin(degrees)"
    }  # fmt: skip
    view = probe.View(kind="table", x="degrees", facet="d")
    return probe.Exhibit(
        "How many directions the bound promises", pd.DataFrame(rows), columns, view
    )


def judge_random(each: range, many: int) -> Any:
    """The formula 2√(ln N/d) against random sets; its worst departure."""
    departures = []
    for s in each:
        found = [
            random_set(n, d, s).largest / (2 * math.sqrt(math.log(n) / d)) - 1
            for n in (many // 10, many)
            for d in (100, 576)
        ]
        departures.append(max(map(abs, found)))
    return TINY.judge({"largest departure": probe.over_seeds(departures)})


def judge_baseline(each: range) -> Any:
    """Our random sets against those of the list."""
    found = {}
    for (n, d), (sd, largest) in PUBLISHED.items():
        sets = [random_set(n, d, s) for s in each]
        found[f"sd, departure at {n} in {d}"] = [abs(one.sd / sd - 1) for one in sets]
        found[f"max, departure at {n} in {d}"] = [abs(one.largest / largest - 1) for one in sets]
    return BASELINE.judge({name: probe.over_seeds(values) for name, values in found.items()})


def judge_optimised(each: range, steps: int, d: int = 20) -> Iterator[Any]:
    """Random, optimised and the bound at several N/d."""
    rows = []
    for ratio in RATIOS:
        n = round(ratio * d)
        for s in each:
            best = probe.pair_angles(probe.pack_directions(n, d, steps=steps, seed=s)).largest
            for name, value in (
                ("random", random_set(n, d, s).largest), ("optimised", best), ("Welch", welch(n, d))
            ):  # fmt: skip
                rows.append({"seed": s, "ratio": ratio, "set": name, "value": value})
    frame = pd.DataFrame(rows)
    wide = frame.pivot(index=["seed", "ratio"], columns="set", values="value")
    worst = (wide["optimised"] / wide["random"]).groupby("seed").max()
    least = (wide["optimised"] / wide["Welch"]).groupby("seed").min()
    yield OPTIMISED.judge(
        {
            "optimised / random max, worst": probe.over_seeds(list(worst)),
            "optimised / Welch, least": probe.over_seeds(list(least)),
        },
        f"in {d} dimensions",
    )
    columns = {
        "seed": "seed", "ratio": "N/d", "set": "how the directions were chosen",
        "value": "largest |cosine| of a pair",
    }  # fmt: skip
    view = probe.View(kind="line", x="ratio", color="set", scale="share")
    yield probe.Exhibit("Largest cosine against N per dimension", frame, columns, view)


def judge_embeddings(model: probe.Model) -> Any:
    """All pairs of the model's token vectors."""
    words = model.weights.W_E.detach().float()
    n, d = words.shape
    found = {}
    for name, vectors in (("as they are", words), ("mean subtracted", words - words.mean(0))):
        angles = probe.pair_angles(vectors)
        found |= {f"max |cos|, {name}": angles.largest, f"mean, {name}": angles.mean}
        found |= {f"sd, {name}": angles.sd}
    note = f"{n} in {d}: Welch {welch(n, d):.3f}, random sd {d**-0.5:.4f}"
    return EMBEDDINGS.judge({k: probe.exactly(v) for k, v in found.items()}, note)


def random_set(n: int, d: int, seed: int) -> Any:
    return probe.pair_angles(torch.randn(n, d, generator=torch.Generator().manual_seed(seed)))


def degrees(angles: Any) -> float:
    return 90 - math.degrees(math.asin(angles.largest))


welch = probe.welch_bound

if __name__ == "__main__":
    packing.main()
