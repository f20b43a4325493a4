"""Edge attribution with gradients averaged on the way from one run to the other."""

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
from probe.methods.discovery import Variant, ig_neurons, ig_scores
from probe.methods.edges import (
    COLUMNS,
    Level,
    edge_table,
    factor_of,
    neuron_table,
    node_table,
    view_of,
)

_COLUMNS = COLUMNS | {
    "value": "score with averaged slopes, mean over prompts, in the metric's unit; what its sign "
    "says is chosen by the option sign"
}


def _view(options: BaseModel) -> View:
    return view_of(getattr(options, "level", "edge"))


@method(needs="pairs", view=_view, columns=_COLUMNS)
def eap_ig(
    model: Model,
    encoded: Encoded,
    *,
    variant: Annotated[
        Variant,
        Field(
            description="What moves between the runs: inputs (the embeddings, all follows), or "
            "activations (one block's heads or one MLP at a time, the rest held)"
        ),
    ] = "inputs",
    steps: Annotated[
        int, Field(ge=1, description="Points on the way at which slopes are taken")
    ] = 5,
    level: Annotated[
        Level, Field(description="What is scored: edges, nodes, or neurons and head dimensions")
    ] = "edge",
    metric: Annotated[str, Field(description="What is read at the last token")] = "logit_diff",
    direction: Directed = "noise",
    sign: Signed = "support",
) -> pd.DataFrame:
    """How much does each edge matter, with slopes averaged between the two runs?

    As ``eap``, but the slope is a mean over points between the runs, so that a receiver that is
    saturated in one of them is still seen. ``inputs``: the base prompts are run on embeddings
    source + (k/m) · (base - source), k = 0 … m-1. ``activations``: the output of each group of
    senders in turn (input, a block's heads, an MLP) is put at source + (k/m) · (base - source),
    k = 1 … m, and gives the slopes for that group's edges.

    With many steps the edges that leave the input (``inputs``), or a group (``activations``), add
    up to the exact effect of patching it. One step of ``activations`` is ``eap``. Neurons, as in
    ``eap``, are scored along the inputs.

    Raises:
        ModelError: An encoder, or blocks whose MLP reads no stream of its own.
        OptionError: Neurons with ``variant="activations"``, which holds what neurons write.

    Cost: one forward pass, and a forward and a backward pass for each step; for ``activations``
    two forward passes, and for each step but one a forward and a backward pass for each of
    2 · layers + 1 groups. Memory as ``eap``, and four vectors for each layer and token that may
    differ, for each of at most eight steps.

    Source: Hanna et al. 2024, "Have Faith in Faithfulness".

    >>> from probe.api import run
    >>> edges = run("eap_ig", model="toy", task="ioi", steps=2).frame
    >>> len(edges)
    82
    """
    if level == "neuron" and variant == "activations":
        raise OptionError(
            'neurons with variant="activations", where no slope reaches them',
            expected='variant="inputs", or level="edge" or "node"',
        )
    chosen = get_metric(metric)
    chosen.check(encoded)
    factor = factor_of(sign, denoise=direction == "denoise", n=len(encoded))
    graph = Graph.of(model.dims)
    if level == "neuron":
        found = ig_neurons(model, encoded, chosen, direction, steps)
        return neuron_table(graph, found, factor)
    table = edge_table if level == "edge" else node_table
    return table(graph, factor * ig_scores(model, encoded, chosen, direction, variant, steps))
