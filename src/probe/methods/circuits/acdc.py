"""A circuit found by leaving out one edge after another for good, as long as little changes."""

from collections.abc import Iterator
from typing import Annotated

import pandas as pd
import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from probe.core.circuit import Circuit
from probe.core.graph import Graph
from probe.core.metric import Metric, get_metric
from probe.core.model import Model
from probe.core.progress import progress_bar
from probe.core.registry import method
from probe.core.task import Encoded
from probe.core.trace import Trace
from probe.methods.circuit_options import Ablated
from probe.methods.circuit_runs import replacement
from probe.methods.edges import COLUMNS, edge_table, view_of

_COLUMNS = {name: COLUMNS[name] for name in ("sender", "receiver", "into")} | {
    "value": "how much worse the metric got when the edge was left out, in its unit; 0 for edges "
    "into nodes that no longer reach the logits",
    "kept": "whether the edge is in the circuit",
}

_MOST_AT_ONCE = 64
_WORSE_IS_LARGER = ("kl", "loss", "rank")


@method(needs="pairs", view=view_of("edge"), columns=_COLUMNS)
def acdc(
    model: Model,
    encoded: Encoded,
    *,
    threshold: Annotated[
        float, Field(description="An edge is kept if the metric gets worse by this much without it")
    ] = 0.01,
    absolute: Annotated[
        bool, Field(description="Also keep an edge if the metric gets better by as much")
    ] = False,
    metric: Annotated[
        str, Field(description="What is read at the last token; kl compares with the whole model")
    ] = "kl",
    ablation: Ablated = "patching",
) -> pd.DataFrame:
    """Which edges cannot be left out, when those before them already have been?

    Receivers are taken from the logits back, and for each its senders from the last to the first.
    Each edge is left out of the circuit so far; if the metric's mean gets worse by less than
    ``threshold`` it stays out, else it comes back. Edges into nodes that nothing kept reads any
    more go without a run. Edges that are on no way from the input are left out at the end.

    It is the published search with its order and its verdicts, but not one run at a time: many
    next edges are left out together, each run one more than the run before it, and the verdicts
    hold up to the first edge that must stay. Runs begin at the block of the receiver.

    Raises:
        TaskError: Prompts without a corrupted twin.

    Cost: up to twice as many forward passes over the prompts as edges, each from the receiver's
    block on; far fewer products of separate matrices, as most edges go.

    Source: Conmy et al. 2023, "Towards Automated Circuit Discovery for Mechanistic
    Interpretability".

    >>> from probe.api import run
    >>> found = run("acdc", model="toy", task="ioi", threshold=10.0).frame
    >>> int(found["kept"].sum())
    0
    """
    chosen, graph = get_metric(metric), Graph.of(model.dims)
    chosen.check(encoded)
    search = _Search(model, encoded, chosen, replacement(model, encoded, ablation))
    changes = torch.zeros(graph.edges.shape, dtype=torch.float64)
    total, done = graph.n_edges, 0
    with progress_bar("acdc") as report:
        for place in reversed(range(len(graph.receivers))):
            for sender, change in search.at(place):
                changes[sender, place] = change
                stays = abs(change) if absolute else change
                if stays < threshold:
                    search.kept[sender, place] = False
            done += graph.read_by(graph.receivers[place])
            if report(done, total, "edges") is False:
                break
    found = Circuit(graph, search.kept, changes).pruned()
    frame = edge_table(graph, changes)
    places, senders = graph.edges.T.nonzero().T
    return frame.assign(kept=found.kept[senders, places].tolist())


class _Search:
    """The circuit so far, and what the metric does as its edges go."""

    def __init__(self, model: Model, encoded: Encoded, metric: Metric, other: Trace | None) -> None:
        self.model, self.encoded, self.metric, self.other = model, encoded, metric, other
        self.graph = Graph.of(model.dims)
        self.kept = self.graph.edges.clone()
        self.sign = 1.0 if metric.name in _WORSE_IS_LARGER else -1.0
        self.now = float(self._run(self.kept[None])[0])

    def at(self, place: int) -> Iterator[tuple[int, float]]:
        """Each edge into a receiver, and what changes without it; ``kept`` then holds the verdict.

        Guesses that the edges to come all go, and runs again from the first that does not.
        """
        receiver = self.graph.receivers[place]
        waiting = list(reversed(range(self.graph.read_by(receiver))))
        if receiver.kind != "logits" and not self.kept[self.graph.feeds[place]].any():
            self.kept[:, place] = False
            return
        size = 1
        while waiting:
            guess = self.kept.repeat(min(size, len(waiting)), 1, 1)
            for number, sender in enumerate(waiting[: len(guess)]):
                guess[number:, sender, place] = False
            for number, value in enumerate(self._run(guess).tolist()):
                yield waiting[0], self.sign * (value - self.now)
                waiting.pop(0)
                if self.kept[:, place].sum() != guess[number, :, place].sum():
                    size = max(1, size // 2)
                    break
                self.now = value
            else:
                size = min(2 * size, _MOST_AT_ONCE)

    def _run(self, kept: Bool[Tensor, "sets sender receiver"]) -> Float[Tensor, " sets"]:
        values = self.model.sweep_edges(self.encoded, kept, self.metric, other=self.other)
        return values.double().mean(1).cpu()
