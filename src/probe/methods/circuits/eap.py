"""Edge attribution patching: what every edge carries of the answer, from one gradient."""

from typing import Annotated

import pandas as pd
from pydantic import BaseModel, Field

from probe.core.errors import OptionError
from probe.core.graph import Graph
from probe.core.metric import get_metric
from probe.core.model import Model
from probe.core.registry import method
from probe.core.result import View
from probe.core.task import Encoded
from probe.methods.circuit_options import Directed, Signed
from probe.methods.discovery import GradientAt, eap_runs, eap_scores
from probe.methods.edges import (
    COLUMNS,
    NEURONS,
    Level,
    edge_table,
    factor_of,
    neuron_scores,
    neuron_table,
    node_table,
    view_of,
)

_COLUMNS = COLUMNS | {
    "value": "first-order score, mean over prompts, in the metric's unit; what its sign says is "
    "chosen by the option sign"
}


def _view(options: BaseModel) -> View:
    return view_of(getattr(options, "level", "edge"))


@method(needs="pairs", view=_view, columns=_COLUMNS)
def eap(
    model: Model,
    encoded: Encoded,
    *,
    level: Annotated[
        Level, Field(description="What is scored: edges, nodes, or neurons and head dimensions")
    ] = "edge",
    metric: Annotated[str, Field(description="What is read at the last token")] = "logit_diff",
    direction: Directed = "noise",
    gradient: Annotated[
        GradientAt,
        Field(
            description="Run at which the slope is taken: base (the run patched into), source, or "
            "both (their mean, called clean-corrupted)"
        ),
    ] = "base",
    sign: Signed = "support",
) -> pd.DataFrame:
    """How much does each edge between components matter, to first order?

    For each edge: (what its sender writes in the source run - in the base run) · (slope of the
    metric by what its receiver reads, the block's norm included), summed over positions, a mean
    over prompts. By default as published: source corrupted, base clean, slope on the clean run,
    and the sign that of minus the metric (``support``). Scores with another ``direction`` or
    ``gradient`` are other numbers.

    Nodes: the sum over a sender's edges, its own effect. Neurons: the same product at a head's
    output and at an MLP's neurons; they add up to their node unless a norm follows what the block
    writes. Edges to keys and values belong to key/value heads (see ``probe.Graph``).

    Raises:
        ModelError: An encoder, or blocks whose MLP reads no stream of its own.
        OptionError: Neurons at ``gradient="both"``.

    Cost: two forward passes and one backward pass, and products of senders with receivers; one
    backward pass more for ``both``. Memory of about 25 vectors for each layer and token, most of
    them the backward pass's, whatever the number of edges.

    Source: Syed et al. 2023, "Attribution patching outperforms automated circuit discovery"; Hanna
    et al. 2024 (``both``).

    >>> from probe.api import run
    >>> edges = run("eap", model="toy", task="ioi").frame
    >>> len(edges), edges["receiver"].iloc[-1]
    (82, 'logits')
    """
    if level == "neuron" and gradient == "both":
        raise OptionError(
            "neurons at two slopes", expected='gradient="base" or "source"', remedy="two runs"
        )
    chosen = get_metric(metric)
    chosen.check(encoded)
    factor = factor_of(sign, denoise=direction == "denoise", n=len(encoded))
    graph = Graph.of(model.dims)
    if level == "neuron":
        gap, [(_, slopes)] = eap_runs(model, encoded, chosen, direction, gradient, NEURONS)
        return neuron_table(graph, neuron_scores(gap, slopes), factor)
    table = edge_table if level == "edge" else node_table
    return table(graph, factor * eap_scores(model, encoded, chosen, direction, gradient))
