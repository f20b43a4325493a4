"""Whether each node of a circuit earns its place."""

from typing import Annotated

import pandas as pd
from pydantic import Field

from probe.core.errors import OptionError
from probe.core.model import Model
from probe.core.progress import progress_bar
from probe.core.registry import method
from probe.core.result import View
from probe.core.task import Encoded
from probe.methods.circuit_options import Ablated, Edges, Ranked, Selected
from probe.methods.circuit_runs import Bench, chosen_circuit

_COLUMNS = {
    "batch": "prompt pair",
    "node": "the node left out of the circuit",
    "value": "faithfulness lost without it, in shares of what the whole model does: 0 for a node "
    "that does nothing here, below 0 for one that stands in the way",
    "raw": "metric of the circuit without the node",
    "circuit": "metric of the circuit",
}


@method(needs="pairs", view=View(kind="bar", x="node", y="value"), columns=_COLUMNS)
def minimality(
    model: Model,
    encoded: Encoded,
    *,
    edges: Edges = None,
    ranking: Ranked = "eap",
    size: Annotated[float, Field(gt=0, le=1, description="Share of all edges selected")] = 0.1,
    select: Selected = "greedy",
    without: Annotated[
        list[str] | None,
        Field(description="Nodes out from the start, such as what a node is a back-up of"),
    ] = None,
    ablation: Ablated = "patching",
    metric: Annotated[str, Field(description="What is read at the last token")] = "logit_diff",
    steps: Annotated[int, Field(ge=1, description="Steps of eap_ig")] = 5,
) -> pd.DataFrame:
    """What does the circuit lose with each of its nodes?

    For each head and MLP: faithfulness of the circuit less that of the circuit without it, the
    nodes ``without`` gone from both (a back-up does nothing until what it backs up is gone). The
    paper asks for at least 1 % of what the model does from each.

    Raises:
        OptionError: A circuit without edges, or without a head or an MLP.
        TaskError: Prompts between which the metric does not differ.

    Cost: one forward pass for each node, from its block on, and that of the ranking.

    Source: Wang et al. 2022, "Interpretability in the wild", section 4.2.

    >>> from probe.api import run
    >>> lost = run("minimality", model="toy", task="ioi", size=1.0).summary()
    >>> lost["node"].tolist()[0]
    'a0.h0'
    """
    circuit = chosen_circuit(
        model, encoded, edges=edges, ranking=ranking, size=size, select=select, metric=metric,
        steps=steps,
    )  # fmt: skip
    circuit = circuit.without(*(without or ()))
    nodes = [node for node in circuit.nodes if node not in ("input", "logits")]
    if not nodes:
        raise OptionError(f"{circuit} has no head and no MLP", expected="at least one")
    bench = Bench.of(model, encoded, metric, ablation)
    with progress_bar("minimality") as report:
        raw = bench.run([circuit, *(circuit.without(node) for node in nodes)], report)
    lost = bench.share(raw[:1]) - bench.share(raw[1:])
    parts = [
        pd.DataFrame(
            {
                "batch": range(len(encoded)), "node": node, "value": lost[place].tolist(),
                "raw": raw[place + 1].tolist(), "circuit": raw[0].tolist(),
            }
        )
        for place, node in enumerate(nodes)
    ]  # fmt: skip
    return pd.concat(parts, ignore_index=True).dropna(ignore_index=True)
