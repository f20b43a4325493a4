"""Scores of every edge of a model, each by its way of finding them."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from probe.core.edit import patch
from probe.core.errors import OptionError, nearest
from probe.core.graph import Graph
from probe.core.metric import Metric, get_metric
from probe.core.model import Model
from probe.core.progress import progress_bar
from probe.core.site import Site
from probe.core.task import Encoded
from probe.core.trace import Trace
from probe.methods.edges import WRITES, Gap, edge_scores, slope_sites
from probe.methods.flow import flow_scores
from probe.methods.patching import Direction

GradientAt = Literal["base", "source", "both"]
Variant = Literal["inputs", "activations"]
Ranking = Literal["eap", "eap_ig", "clean_corrupted", "information_flow", "random"]

Scores = Float[Tensor, "sender receiver"]


def eap_scores(
    model: Model, encoded: Encoded, metric: Metric, direction: Direction, at: GradientAt
) -> tuple[Scores, Gap, Trace]:
    """Effect on the metric of patching each edge, to first order, summed over prompts.

    Returns:
        The scores, what they were made from, and the slopes of the run ``at`` (the base run's
        for ``both``).

    Cost: two forward passes and one backward pass; one more backward pass for ``both``.
    """
    base_corrupted = direction == "denoise"
    sites = [*slope_sites(model), *WRITES, *_neurons(model)]
    runs: dict[str, tuple[Trace, Trace]] = {}
    for name, corrupted in (("base", base_corrupted), ("source", not base_corrupted)):
        if at in (name, "both"):
            runs[name] = model.gradients(encoded, sites, metric, corrupted=corrupted)
    wrote = {
        name: runs[name][0]
        if name in runs
        else model.trace(encoded, [*WRITES, *_neurons(model)], corrupted=corrupted)
        for name, corrupted in (("base", base_corrupted), ("source", not base_corrupted))
    }
    gap = Gap.of(model, encoded, wrote["base"], wrote["source"])
    scores = [edge_scores(gap, values, slopes) for values, slopes in runs.values()]
    slopes = next(iter(runs.values()))[1]
    return torch.stack(scores).mean(0), gap, slopes


def _neurons(model: Model) -> list[str]:
    return [kind for kind in ("mlp_post",) if kind in model.sites]


def ig_scores(
    model: Model,
    encoded: Encoded,
    metric: Metric,
    direction: Direction,
    variant: Variant,
    steps: int,
) -> Scores:
    """The same with slopes averaged on the way from the source run to the base run.

    Cost: for ``inputs`` one forward pass, and a forward and a backward pass for each step; for
    ``activations`` two forward passes, and for each step but one a forward and a backward pass for
    each of the 2 · layers + 1 groups of senders.
    """
    if variant == "inputs":
        return _along_inputs(model, encoded, metric, direction, steps)
    return _along_activations(model, encoded, metric, direction, steps)


def _along_inputs(
    model: Model, encoded: Encoded, metric: Metric, direction: Direction, steps: int
) -> Scores:
    corrupted, first = direction == "denoise", Site("resid_pre", 0)
    base = model.trace(encoded, WRITES, corrupted=corrupted)
    start = model.trace(encoded, [first], corrupted=not corrupted)[first]
    total, gap = torch.zeros(Graph.of(model.dims).edges.shape, dtype=torch.float64), None
    with progress_bar("integrating gradients") as report:
        for step in range(steps):
            here = start + (step / steps) * (base[first] - start)
            values, slopes = model.gradients(
                encoded, [*slope_sites(model), *(WRITES if step == 0 else [])], metric,
                corrupted=corrupted, edits=[patch(first, here)],
            )  # fmt: skip
            # At step 0 the embeddings are the source run's, and so is the run.
            gap = gap or Gap.of(model, encoded, base, values)
            total += edge_scores(gap, values, slopes)
            if report(step + 1, steps, "steps") is False:
                return total / (step + 1)
    return total / steps


def _along_activations(
    model: Model, encoded: Encoded, metric: Metric, direction: Direction, steps: int
) -> Scores:
    corrupted, sites = direction == "denoise", slope_sites(model)
    groups = sender_groups(model)
    held = [site for site, _ in groups]
    values, slopes = model.gradients(encoded, [*sites, *WRITES, *held], metric, corrupted=corrupted)
    source = model.trace(encoded, [*WRITES, *held], corrupted=not corrupted)
    gap = Gap.of(model, encoded, values, source)
    total = edge_scores(gap, values, slopes)  # the last step is the base run, for every group
    work = [(step / steps, *group) for step in range(1, steps) for group in groups]
    with progress_bar("integrating gradients") as report:
        for done, (share, site, senders) in enumerate(work, 1):
            mixed = source[site] + share * (values[site] - source[site])
            here, there = model.gradients(
                encoded, sites, metric, corrupted=corrupted, edits=[patch(site, mixed)]
            )
            total += edge_scores(gap, here, there, senders)
            report(done, len(work), "runs")
    return total / steps


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
        scores = eap_scores(model, encoded, chosen, direction, at)[0]
    return scores * (1 if direction == "denoise" else -1) / len(encoded)
