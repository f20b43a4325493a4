"""Rankings of edges side by side: faithfulness over size, and the areas that MIB compares by."""

from collections.abc import Sequence
from typing import Annotated

import numpy as np
import pandas as pd
from pydantic import Field

from probe.core.circuit import Circuit, Select
from probe.core.model import Model
from probe.core.progress import progress_bar
from probe.core.registry import method
from probe.core.result import View
from probe.core.task import Encoded
from probe.methods.circuit_options import Ablated
from probe.methods.circuit_runs import MIB_SIZES, Bench
from probe.methods.curves import Axis, cmd, cpr, curves, resampled
from probe.methods.discovery import Ranking, ranked
from probe.methods.patching import Direction

_COLUMNS = {
    "ranking": "what ranked the edges",
    "measure": "CPR: area under faithfulness over circuit size, higher is better; CMD: area "
    "between faithfulness and 1, 0 is best; f and a size: faithfulness of that circuit",
    "size": "share of all edges in the circuit; missing for the areas",
    "value": "the number; a mean over draws for random",
    "low": "lower end of its 95 % bootstrap interval over prompts",
    "high": "upper end",
    "n": "number of prompts",
}


@method(
    needs="pairs",
    view=View(kind="bar", x="measure", y="value", color="ranking"),
    columns=_COLUMNS,
)
def circuit_benchmark(
    model: Model,
    encoded: Encoded,
    *,
    rankings: Annotated[
        Sequence[Ranking], Field(description="What ranks the edges", min_length=1)
    ] = ("eap", "random"),
    sizes: Annotated[
        Sequence[Annotated[float, Field(gt=0, le=1)]],
        Field(description="Shares of all edges, from small to large", min_length=2),
    ] = MIB_SIZES,
    select: Annotated[
        Select, Field(description="How edges are chosen: top, signed or greedy, as in faithfulness")
    ] = "top",
    ablation: Ablated = "patching",
    axis: Annotated[
        Axis, Field(description="Integrate over size (linear) or its logarithm (log)")
    ] = "linear",
    metric: Annotated[str, Field(description="What is read at the last token")] = "logit_diff",
    direction: Annotated[
        Direction, Field(description="Of the ranking: noise or denoise, as in eap")
    ] = "noise",
    steps: Annotated[int, Field(ge=1, description="Steps of eap_ig")] = 5,
    random_draws: Annotated[int, Field(ge=1, description="Random rankings drawn")] = 3,
    n_boot: Annotated[int, Field(ge=1, description="Bootstrap draws, over prompts")] = 1000,
    seed: Annotated[int, Field(description="Random seed of rankings and bootstrap")] = 0,
) -> pd.DataFrame:
    """Which way of ranking edges finds the better circuits, over all sizes?

    CPR = ∫ f dk and CMD = ∫ |1 - f| dk over the share k of edges asked for, by the trapezoid rule
    from the smallest size to the largest; f as in ``faithfulness``, a ratio of means. Intervals
    draw the prompts again and take the ratio anew in each draw; the circuits stay as they are.

    CPR is carried by the large sizes, at which all rankings keep nearly all edges: look at the
    curve, and at ``axis="log"``, too.

    Raises:
        OptionError: A ranking that is not there.
        TaskError: Prompts between which the metric does not differ.

    Cost: as ``faithfulness``.

    Source: Mueller et al. 2025, "MIB: A Mechanistic Interpretability Benchmark".

    >>> from probe.api import run
    >>> table = run("circuit_benchmark", model="toy", task="ioi", rankings=["eap"]).frame
    >>> table["measure"].tolist()[:3]
    ['CPR', 'CMD', 'f 0.001']
    """
    bench = Bench.of(model, encoded, metric, ablation)
    sizes = sorted(set(sizes))
    rows = []
    with progress_bar("circuits") as report:
        for ranking in dict.fromkeys(rankings):
            draws = range(seed, seed + random_draws) if ranking == "random" else (seed,)
            scored = [
                (ranking, draw, Circuit.scored(
                    bench.graph,
                    ranked(model, encoded, ranking, metric=metric, direction=direction,
                           steps=steps, seed=draw),
                ))
                for draw in draws
            ]  # fmt: skip
            found = curves(bench, scored, sizes, select, report)
            shares = [resampled(bench, curve.raw, n_boot, seed) for curve in found]
            points = np.mean(shares, axis=0)
            areas = {
                name: np.mean([area(sizes, share, axis) for share in shares], axis=0)
                for name, area in (("CPR", cpr), ("CMD", cmd))
            }
            rows += [_row(ranking, name, np.nan, draws) for name, draws in areas.items()]
            rows += [
                _row(ranking, f"f {size:g}", size, points[:, place])
                for place, size in enumerate(sizes)
            ]
    return pd.DataFrame(rows).assign(n=len(encoded))


def _row(ranking: str, measure: str, size: float, draws: np.ndarray) -> dict[str, object]:
    """One number, which the first draw holds, and the interval that the others give."""
    low, high = np.percentile(draws[1:], [2.5, 97.5])
    return {
        "ranking": ranking, "measure": measure, "size": size, "value": draws[0],
        "low": low, "high": high,
    }  # fmt: skip
