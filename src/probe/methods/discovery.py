"""Scores of every edge of a model, each by its way of finding them."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from probe.core.edit import patch
from probe.core.errors import OptionError, nearest
from probe.core.graph import Graph
from probe.core.metric import Metric, get_metric
from probe.core.model import Model
from probe.core.progress import Report, progress_bar
from probe.core.site import Site, SiteLike
from probe.core.task import Encoded
from probe.core.trace import Trace
from probe.methods.edges import (
    NEURONS,
    WRITES,
    Gap,
    Slopes,
    edge_scores,
    neuron_scores,
    slope_sites,
)
from probe.methods.flow import flow_scores
from probe.methods.patching import Direction

GradientAt = Literal["base", "source", "both"]
Variant = Literal["inputs", "activations"]
Ranking = Literal["eap", "eap_ig", "clean_corrupted", "information_flow", "random"]

Scores = Float[Tensor, "sender receiver"]

_RUNS_HELD = 8
"""Runs whose slopes are kept until they are multiplied, about four vectors a layer and token."""


def eap_runs(
    model: Model,
    encoded: Encoded,
    metric: Metric,
    direction: Direction,
    at: GradientAt,
    also: Sequence[SiteLike] = (),
) -> tuple[Gap, list[tuple[Trace, Trace]]]:
    """What senders wrote otherwise; values and slopes of the run ``at``, or of base and source.

    ``also``: sites recorded beside those that edges need.

    Cost: two forward passes and one backward pass; one more backward pass for ``both``.
    """
    base_corrupted = direction == "denoise"
    writes = [*WRITES, *also]
    runs: dict[str, tuple[Trace, Trace]] = {}
    wrote: dict[str, Trace] = {}
    for name, corrupted in (("base", base_corrupted), ("source", not base_corrupted)):
        if at in (name, "both"):
            sites = [*slope_sites(model), *writes]
            runs[name] = model.gradients(encoded, sites, metric, corrupted=corrupted)
            wrote[name] = runs[name][0]
        else:
            wrote[name] = model.trace(encoded, writes, corrupted=corrupted)
    return Gap.of(model, encoded, wrote["base"], wrote["source"]), list(runs.values())


def eap_scores(
    model: Model, encoded: Encoded, metric: Metric, direction: Direction, at: GradientAt
) -> Scores:
    """Effect on the metric of patching each edge, to first order, summed over prompts.

    Cost: as ``eap_runs``.
    """
    gap, runs = eap_runs(model, encoded, metric, direction, at)
    return edge_scores(gap, [Slopes.of(gap, *run) for run in runs]) / len(runs)


def ig_scores(
    model: Model,
    encoded: Encoded,
    metric: Metric,
    direction: Direction,
    variant: Variant,
    steps: int,
) -> Scores:
    """The same with slopes averaged on the way from the source run to the base run.

    Cost: for ``inputs`` that of ``ig_runs``; for ``activations`` two forward passes, and for each
    step but one a forward and a backward pass for each of the 2 · layers + 1 groups of senders.
    """
    if variant == "activations":
        return _along_activations(model, encoded, metric, direction, steps)
    runs = ig_runs(model, encoded, metric, direction, steps)
    held = ((gap, Slopes.of(gap, values, slopes)) for gap, values, slopes in runs)
    total, n = _added_up(Graph.of(model.dims), held)
    return total / n


def ig_neurons(
    model: Model, encoded: Encoded, metric: Metric, direction: Direction, steps: int
) -> dict[Site, Float[Tensor, "..."]]:
    """The same along the inputs, for each dimension of ``z`` and each neuron.

    Cost: as ``ig_runs``.
    """
    runs = ig_runs(model, encoded, metric, direction, steps, NEURONS)
    each = [neuron_scores(gap, slopes) for gap, _, slopes in runs]
    return {site: torch.stack([one[site] for one in each]).mean(0) for site in each[0]}


def ig_runs(
    model: Model,
    encoded: Encoded,
    metric: Metric,
    direction: Direction,
    steps: int,
    also: Sequence[SiteLike] = (),
) -> Iterator[tuple[Gap, Trace, Trace]]:
    """What senders wrote otherwise, and values and slopes on each step along the inputs.

    Cost: one forward pass, and a forward and a backward pass for each step.
    """
    corrupted, first = direction == "denoise", Site("resid_pre", 0)
    writes, sites = [*WRITES, *also], [*slope_sites(model), *also]
    base = model.trace(encoded, writes, corrupted=corrupted)
    start = model.trace(encoded, [first], corrupted=not corrupted)[first]
    gap = None
    with progress_bar("integrating gradients") as report:
        for step in range(steps):
            here = start + (step / steps) * (base[first] - start)
            values, slopes = model.gradients(
                encoded, [*sites, *(WRITES if gap is None else [])], metric,
                corrupted=corrupted, edits=[patch(first, here)],
            )  # fmt: skip
            # At step 0 the embeddings are the source run's, and so is the run.
            gap = gap or Gap.of(model, encoded, base, values)
            yield gap, values, slopes
            if report(step + 1, steps, "steps") is False:
                return


def _along_activations(
    model: Model, encoded: Encoded, metric: Metric, direction: Direction, steps: int
) -> Scores:
    corrupted, sites = direction == "denoise", slope_sites(model)
    groups = sender_groups(model)
    held = [site for site, _ in groups]
    values, slopes = model.gradients(encoded, [*sites, *WRITES, *held], metric, corrupted=corrupted)
    source = model.trace(encoded, [*WRITES, *held], corrupted=not corrupted)
    gap = Gap.of(model, encoded, values, source)
    # The last step is the base run, for every group.
    total = edge_scores(gap, [Slopes.of(gap, values, slopes)])
    done, n_runs = itertools.count(1), (steps - 1) * len(groups)

    def runs(site: Site, report: Report) -> Iterator[tuple[Gap, Slopes]]:
        for step in range(1, steps):
            mixed = source[site] + step / steps * (values[site] - source[site])
            run = model.gradients(
                encoded, sites, metric, corrupted=corrupted, edits=[patch(site, mixed)]
            )
            report(next(done), n_runs, "runs")
            yield gap, Slopes.of(gap, *run)

    with progress_bar("integrating gradients") as report:
        for site, senders in groups:
            total += _added_up(gap.graph, runs(site, report), senders)[0]
    return total / steps


def _added_up(
    graph: Graph, runs: Iterator[tuple[Gap, Slopes]], senders: slice = slice(None)
) -> tuple[Scores, int]:
    """Scores summed over runs, and how many there were.

    Senders wrote the same whatever the run, so one product serves as many as are held at once.
    """
    total, n = torch.zeros(graph.edges.shape, dtype=torch.float64), 0
    while held := list(itertools.islice(runs, _RUNS_HELD)):
        total += edge_scores(held[0][0], [slopes for _, slopes in held], senders)
        n += len(held)
    return total, n


def sender_groups(model: Model) -> list[tuple[Site, slice]]:
    """Senders that are moved together: the input, each block's heads, each MLP."""
    graph = Graph.of(model.dims)
    groups = [(Site("resid_pre", 0), slice(0, 1))]
    for layer in range(graph.n_layers):
        first = graph.first_sender(layer)
        groups += [
            (Site("attn_out", layer), slice(first, first + graph.n_heads)),
            (Site("mlp_out", layer), slice(first + graph.n_heads, first + graph.n_heads + 1)),
        ]
    return groups


def ranked(
    model: Model,
    encoded: Encoded,
    ranking: str,
    *,
    metric: str,
    direction: Direction,
    steps: int,
    seed: int = 0,
) -> Scores:
    """Scores that rank edges, by the name of what makes them.

    ``random`` draws them. All but ``random`` and ``information_flow`` have the sign of support.
    """
    known = ("eap", "eap_ig", "clean_corrupted", "information_flow", "random")
    chosen, graph = get_metric(metric), Graph.of(model.dims)
    if ranking not in known:
        raise OptionError(f'there is no ranking "{ranking}"', remedy=nearest(ranking, known))
    if ranking == "random":
        generator = torch.Generator().manual_seed(seed)
        return torch.rand(graph.edges.shape, generator=generator, dtype=torch.float64)
    if ranking == "information_flow":
        return flow_scores(model, encoded, corrupted=direction == "denoise", space="read")
    if ranking == "eap_ig":
        scores = ig_scores(model, encoded, chosen, direction, "inputs", steps)
    else:
        at: GradientAt = "base" if ranking == "eap" else "both"
        scores = eap_scores(model, encoded, chosen, direction, at)
    return scores * (1 if direction == "denoise" else -1) / len(encoded)
