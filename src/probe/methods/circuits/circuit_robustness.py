"""Whether another choice would have found another circuit."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
from pydantic import Field

from probe.core.circuit import Circuit, Select, mean_jaccard
from probe.core.errors import OptionError
from probe.core.graph import Graph
from probe.core.model import Model
from probe.core.progress import progress_bar
from probe.core.registry import method
from probe.core.result import View
from probe.core.task import Encoded
from probe.methods.circuit_options import Ranked, Selected
from probe.methods.circuit_runs import MIB_SIZES, Ablation, Bench
from probe.methods.curves import cpr, curves
from probe.methods.discovery import ranked
from probe.methods.patching import Direction
from probe.methods.variants import Variant, by_tag

_COLUMNS = {
    "varied": "what was chosen otherwise; all counts every run once",
    "edge": "the edge, of those that at least one run includes",
    "value": "share of these runs whose circuit includes the edge",
    "overlap": "mean Jaccard overlap of these runs' circuits: edges in both by edges in either",
    "cpr": "mean of these runs' CPR, each judged on its own prompts and metric",
    "cpr_low": "lowest of them",
    "cpr_high": "highest of them",
    "n": "number of runs",
}


@method(
    needs="pairs",
    view=View(kind="bar", x="edge", y="value", color="varied", scale="share"),
    columns=_COLUMNS,
)
def circuit_robustness(
    model: Model,
    encoded: Encoded,
    *,
    ranking: Ranked = "eap",
    size: Annotated[float, Field(gt=0, le=1, description="Share of all edges selected")] = 0.05,
    select: Selected = "greedy",
    metrics: Annotated[
        Sequence[str],
        Field(description="Metrics to try; the first is used when others vary", min_length=1),
    ] = ("logit_diff", "log_prob"),
    directions: Annotated[
        Sequence[Direction], Field(description="Directions to try, likewise", min_length=1)
    ] = ("noise", "denoise"),
    ablations: Annotated[
        Sequence[Ablation], Field(description="Ways to judge CPR by, likewise", min_length=1)
    ] = ("patching",),
    steps: Annotated[
        Sequence[int], Field(description="Steps of eap_ig to try, likewise", min_length=1)
    ] = (5,),
    template: Annotated[
        str | None, Field(description="Tag by which prompts are split, such as template")
    ] = None,
    resamples: Annotated[int, Field(ge=0, description="Prompts drawn anew, so many times")] = 4,
    seed: Annotated[int, Field(description="Random seed of the draws")] = 0,
) -> pd.DataFrame:
    """Is it the same circuit with other prompts, another metric or another direction?

    One thing is varied at a time; each run ranks the edges and selects a circuit of the same size.
    ``resamples``: the prompts are drawn with replacement, as a bootstrap does. ``value`` is how
    often an edge is in, ``overlap`` how alike the circuits are pair by pair; for circuits of n of N
    edges drawn blindly it is about n / (2N - n). CPR tells whether circuits that differ are any
    worse.

    Raises:
        OptionError: Nothing to vary, or circuits that are all empty.
        TaskError: A tag that a prompt does not have.

    Cost: that of the ranking and of ``circuit_benchmark``, for each choice.

    Source: Hanna et al. 2024 (overlap is no measure of faithfulness); Mueller et al. 2025.

    >>> from probe.api import run
    >>> found = run("circuit_robustness", model="toy", task="ioi", resamples=2).frame
    >>> sorted(found["varied"].unique())
    ['all', 'direction', 'metric', 'prompts']
    """
    usual = {
        "metric": metrics[0],
        "direction": directions[0],
        "ablation": ablations[0],
        "steps": steps[0],
    }
    tried = {"metric": metrics, "direction": directions, "ablation": ablations, "steps": steps}
    choices = [
        *(Variant(name, {name: value}) for name, values in tried.items() if len(values) > 1
          for value in values),
        *(by_tag(encoded, template) if template else ()),
        *_resampled(encoded, resamples, seed),
    ]  # fmt: skip
    if len(choices) < 2:
        raise OptionError("fewer than two runs to compare", remedy="resamples=4")
    found = []
    with progress_bar("robustness") as report:
        for done, choice in enumerate(choices, 1):
            part = choice.of(encoded)
            found.append(_one(model, part, ranking, size, select, {**usual, **choice.options}))
            if report(done, len(choices), "runs") is False:
                break
    if not any(circuit.n_edges for circuit, _ in found):
        raise OptionError(
            f"no edge is on a way from the input to the logits in any of {len(found)} circuits",
            expected=f"a share of the edges larger than size={size}",
        )
    names = [choice.varied for choice in choices[: len(found)]]
    parts = [_shares("all", found)]
    for name in dict.fromkeys(names):
        parts.append(
            _shares(name, [run for run, of in zip(found, names, strict=True) if of == name])
        )
    return pd.concat(parts, ignore_index=True)


def _one(
    model: Model,
    encoded: Encoded,
    ranking: str,
    size: float,
    select: Select,
    how: Mapping[str, Any],
) -> tuple[Circuit, float]:
    """One run's circuit, and the CPR of its ranking."""
    scores = ranked(
        model, encoded, ranking, metric=how["metric"], direction=how["direction"],
        steps=how["steps"],
    )  # fmt: skip
    circuit = Circuit.scored(Graph.of(model.dims), scores)
    bench = Bench.of(model, encoded, how["metric"], how["ablation"])
    (curve,) = curves(bench, [(ranking, 0, circuit)], MIB_SIZES, select)
    shares = bench.share(curve.raw).mean(1).double().numpy()
    return circuit.select(size, select), float(cpr(MIB_SIZES, shares))


def _resampled(encoded: Encoded, n: int, seed: int) -> Iterator[Variant]:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(n):
        rows = torch.randint(len(encoded), (len(encoded),), generator=generator)
        yield Variant("prompts", rows=sorted(rows.tolist()))


def _shares(varied: str, runs: Sequence[tuple[Circuit, float]]) -> pd.DataFrame:
    """How often each edge is in; those that no run includes are left out."""
    circuits, areas = [circuit for circuit, _ in runs], np.array([area for _, area in runs])
    share = torch.stack([circuit.kept for circuit in circuits]).double().mean(0)
    graph, places = circuits[0].graph, share.nonzero().tolist()
    frame = pd.DataFrame(
        {
            "varied": varied,
            "edge": [graph.edge_name(sender, receiver) for sender, receiver in places],
            "value": [float(share[sender, receiver]) for sender, receiver in places],
            "overlap": mean_jaccard(circuits),
            "cpr": areas.mean(),
            "cpr_low": areas.min(),
            "cpr_high": areas.max(),
            "n": len(runs),
        }
    )
    return frame.sort_values("value", ascending=False, ignore_index=True)
