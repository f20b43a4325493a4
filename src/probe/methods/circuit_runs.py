"""Running circuits: what fills in for the edges left out, and the metric that is left."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from probe.core.circuit import Circuit, Select
from probe.core.errors import OptionError
from probe.core.graph import Graph
from probe.core.metric import Metric, get_metric
from probe.core.model import Model
from probe.core.progress import Report
from probe.core.task import Encoded
from probe.core.trace import Trace
from probe.methods.discovery import ranked
from probe.methods.edges import WRITES
from probe.methods.patching import Direction, check_gap

Ablation = Literal["patching", "zero", "mean", "mean_by_position"]

MIB_SIZES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Circuit sizes of the MIB benchmark, as shares of all edges."""


@dataclass(frozen=True, eq=False)
class Bench:
    """Circuits of one model on one set of prompts are all judged in the same way.

    Attributes:
        model: The model.
        encoded: The prompts.
        metric: What is read.
        other: What senders wrote in the run that fills in; None for zeros.
        full: Metric of the model, every edge left.
        empty: Metric with no edge left.
    """

    model: Model
    encoded: Encoded
    metric: Metric
    other: Trace | None
    full: Float[Tensor, " batch"]
    empty: Float[Tensor, " batch"]

    @classmethod
    def of(cls, model: Model, encoded: Encoded, metric: str, ablation: Ablation) -> "Bench":
        """Record what fills in, and run the two ends.

        Raises:
            TaskError: The metric is the same with and without all edges.
        """
        chosen = get_metric(metric)
        chosen.check(encoded)
        other = replacement(model, encoded, ablation)
        graph = Graph.of(model.dims)
        ends = torch.stack([graph.edges, torch.zeros_like(graph.edges)])
        full, empty = model.sweep_edges(encoded, ends, chosen, other=other).cpu()
        check_gap(metric, full, empty)
        return cls(model, encoded, chosen, other, full, empty)

    @property
    def graph(self) -> Graph:
        """The model's graph."""
        return Graph.of(self.model.dims)

    def run(
        self, circuits: Sequence[Circuit], report: Report | None = None
    ) -> Float[Tensor, "circuits batch"]:
        """The metric of each circuit; NaN where stopped before."""
        kept = torch.stack([circuit.kept for circuit in circuits])
        values = self.model.sweep_edges(
            self.encoded, kept, self.metric, other=self.other, report=report
        )
        return values.cpu()

    def share(self, raw: Float[Tensor, "*any batch"]) -> Float[Tensor, "*any batch"]:
        """0 with no edge left, 1 for the model: each example's distance by the mean distance.

        The mean over examples is the ratio of means, m(C) - m(∅) by m(M) - m(∅).
        """
        gap = (self.full.double() - self.empty.double()).mean()
        return (raw.double() - self.empty.double()) / gap


def replacement(model: Model, encoded: Encoded, ablation: Ablation) -> Trace | None:
    """What senders wrote in the run that fills in for edges left out of the clean run.

    ``patching``: in each prompt's corrupted twin; ``mean``: on average over all positions of the
    corrupted prompts; ``mean_by_position``: over the prompts at each position; ``zero``: nothing.
    """
    if ablation == "zero":
        return None
    wrote = model.trace(encoded, WRITES, corrupted=True)
    if ablation == "patching":
        return wrote
    real = (torch.arange(wrote.tokens.shape[1]) < wrote.lengths[:, None]).to(model.device)
    means = {}
    for site, value in wrote.items():
        weight = real.view(*real.shape, *[1] * (value.ndim - 2)).to(value)
        over = (0,) if ablation == "mean_by_position" else (0, 1)
        mean = (value * weight).sum(over, keepdim=True) / weight.sum(over, keepdim=True)
        means[site] = mean.expand_as(value)
    return Trace(means, wrote.tokens, wrote.lengths, None, wrote.str_tokens)


def chosen_circuit(
    model: Model,
    encoded: Encoded,
    *,
    edges: Sequence[str] | None,
    ranking: str,
    size: float,
    select: Select,
    metric: str,
    steps: int,
    direction: Direction = "noise",
) -> Circuit:
    """The circuit of the edges given, or the one of a size that a ranking selects.

    Raises:
        OptionError: A circuit without edges.
    """
    graph = Graph.of(model.dims)
    if edges is not None:
        found = Circuit.of_edges(graph, edges)
    else:
        scores = ranked(model, encoded, ranking, metric=metric, direction=direction, steps=steps)
        found = Circuit.scored(graph, scores).select(size, select)
    if not found.n_edges:
        raise OptionError(
            f"no edge is on a way from the input to the logits at size={size}",
            expected="a larger share of the edges, or edges of one's own",
            remedy='select="greedy" spends all of its edges on such ways',
        )
    return found
