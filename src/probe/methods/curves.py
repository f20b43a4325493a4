"""Faithfulness over circuit size, and the two areas by which MIB ranks what ranks edges."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float
from torch import Tensor

from probe.core.circuit import Circuit, Select
from probe.core.progress import Report
from probe.methods.circuit_runs import Bench

Axis = Literal["linear", "log"]


@dataclass(frozen=True, eq=False)
class Curve:
    """One ranking's circuits, small to large.

    Attributes:
        ranking: What ranked the edges.
        seed: Of a random ranking, its seed.
        sizes: Shares of all edges asked for.
        circuits: What was left of them after pruning.
        raw: Metric of each on each prompt.
    """

    ranking: str
    seed: int
    sizes: tuple[float, ...]
    circuits: tuple[Circuit, ...]
    raw: Float[Tensor, "size batch"]


def curves(
    bench: Bench,
    scored: Sequence[tuple[str, int, Circuit]],
    sizes: Sequence[float],
    select: Select,
    report: Report | None = None,
) -> list[Curve]:
    """Each ranking's circuits at these sizes, all run together."""
    chosen = [[circuit.select(float(size), select) for size in sizes] for _, _, circuit in scored]
    raw = bench.run([circuit for row in chosen for circuit in row], report)
    each = raw.view(len(scored), len(sizes), -1)
    return [
        Curve(ranking, seed, tuple(sizes), tuple(row), values)
        for (ranking, seed, _), row, values in zip(scored, chosen, each, strict=True)
    ]


def area(
    sizes: Sequence[float], shares: Float[np.ndarray, "*any size"], axis: Axis
) -> Float[np.ndarray, "*any"]:
    """∫ share d size by the trapezoid rule, over the sizes as asked for.

    ``log`` integrates over the logarithm of the size, divided by its whole range.
    """
    x = np.asarray(sizes, dtype=float)
    if axis == "log":
        x = np.log(x) / np.ptp(np.log(x))
    return np.asarray(np.trapezoid(shares, x, axis=-1))


def cpr(
    sizes: Sequence[float], shares: Float[np.ndarray, "*any size"], axis: Axis = "linear"
) -> Float[np.ndarray, "*any"]:
    """Circuit performance ratio: area under faithfulness; higher is better, not bounded by 1.

    >>> float(cpr([0.0, 1.0], np.array([0.0, 1.0])))
    0.5
    """
    return area(sizes, shares, axis)


def cmd(
    sizes: Sequence[float], shares: Float[np.ndarray, "*any size"], axis: Axis = "linear"
) -> Float[np.ndarray, "*any"]:
    """Circuit-model distance: area between faithfulness and 1; 0 is best.

    >>> float(cmd([0.0, 1.0], np.array([0.0, 2.0])))
    1.0
    """
    return area(sizes, np.abs(1 - shares), axis)


def resampled(bench: Bench, raw: Float[Tensor, "*any batch"], n_boot: int, seed: int) -> np.ndarray:
    """Faithfulness [draw, *any] in bootstrap samples of the prompts; the first is all of them."""
    n, rng = raw.shape[-1], np.random.default_rng(seed)
    weights = np.vstack([np.ones(n), rng.multinomial(n, np.full(n, 1 / n), size=n_boot)])
    above = np.tensordot(weights, (raw - bench.empty).double().numpy(), axes=(1, -1))
    gap = weights @ (bench.full - bench.empty).double().numpy()
    return above / gap.reshape(-1, *[1] * (above.ndim - 1))
