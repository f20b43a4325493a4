"""Whether a circuit leaves out anything that does the same work."""

from typing import Annotated, Literal

import numpy as np
import pandas as pd
import torch
from pydantic import Field

from probe.core.circuit import Circuit
from probe.core.errors import OptionError
from probe.core.model import Model
from probe.core.progress import Report, progress_bar
from probe.core.registry import method
from probe.core.result import View
from probe.core.task import Encoded
from probe.methods.circuit_options import Ablated, Edges, Ranked, Selected
from probe.methods.circuit_runs import Bench, chosen_circuit

_COLUMNS = {
    "batch": "prompt pair",
    "draw": "number of the set of nodes knocked out",
    "search": "how the set was found: random, or greedy for the largest gap",
    "nodes": "the nodes knocked out, of the circuit and of the model",
    "value": "what the circuit keeps without them, less what the model keeps: 0 for a complete "
    "circuit, in shares of what the whole model does",
    "circuit": "faithfulness of the circuit without these nodes",
    "model": "the same of the model without them",
}

_CANDIDATES = 8


@method(
    needs="pairs",
    view=View(kind="scatter", x="model", y="circuit", color="search", text="nodes"),
    columns=_COLUMNS,
)
def completeness(
    model: Model,
    encoded: Encoded,
    *,
    edges: Edges = None,
    ranking: Ranked = "eap",
    size: Annotated[float, Field(gt=0, le=1, description="Share of all edges selected")] = 0.1,
    select: Selected = "greedy",
    search: Annotated[
        Literal["random", "greedy"],
        Field(description="Sets of nodes: drawn, or grown by the node that widens the gap most"),
    ] = "random",
    draws: Annotated[int, Field(ge=1, description="Sets drawn, or nodes of the largest set")] = 8,
    ablation: Ablated = "patching",
    metric: Annotated[str, Field(description="What is read at the last token")] = "logit_diff",
    steps: Annotated[int, Field(ge=1, description="Steps of eap_ig")] = 5,
    seed: Annotated[int, Field(description="Random seed of the sets")] = 0,
) -> pd.DataFrame:
    """Does the circuit fall as the model does when the same nodes are knocked out of both?

    For sets K of the circuit's nodes: faithfulness of C without K beside that of M without K, the
    same edges cut in both. A circuit that has everything falls with the model; one that lacks a
    back-up falls further. ``random`` keeps each node with chance one half; ``greedy`` adds, of a
    few nodes drawn, the one that widens the mean gap most: the worst case found, not a typical one.

    Raises:
        OptionError: A circuit without a head or an MLP to knock out, or without edges.
        TaskError: Prompts between which the metric does not differ.

    Cost: two forward passes for each set, and that of the ranking; ``greedy`` eight times as many.

    Source: Wang et al. 2022, "Interpretability in the wild", section 4.1.

    >>> from probe.api import run
    >>> all_of_it = run("completeness", model="toy", task="ioi", size=1.0, draws=2).frame
    >>> float(all_of_it["value"].abs().max())
    0.0
    """
    circuit = chosen_circuit(
        model, encoded, edges=edges, ranking=ranking, size=size, select=select, metric=metric,
        steps=steps,
    )  # fmt: skip
    bench = Bench.of(model, encoded, metric, ablation)
    with progress_bar("completeness") as report:
        if search == "random":
            sets = random_sets(circuit, draws, seed)
            raw = _gaps(bench, circuit, sets, report)
        else:
            sets, raw = _worst(bench, circuit, draws, seed, report)
    parts = []
    for draw, (names, (own, whole)) in enumerate(zip(sets, raw, strict=True)):
        part = {
            "batch": range(len(own)), "draw": draw, "search": search, "nodes": " ".join(names),
            "value": (own - whole).tolist(), "circuit": own.tolist(), "model": whole.tolist(),
        }  # fmt: skip
        parts.append(pd.DataFrame(part))
    return pd.concat(parts, ignore_index=True).dropna(ignore_index=True)


def random_sets(circuit: Circuit, draws: int, seed: int) -> list[list[str]]:
    """Sets of a circuit's heads and MLPs, each in with chance one half; never empty."""
    nodes, rng = inner_nodes(circuit), np.random.default_rng(seed)
    sets = [[node for node in nodes if rng.random() < 0.5] for _ in range(draws)]
    return [names or [nodes[int(rng.integers(len(nodes)))]] for names in sets]


def inner_nodes(circuit: Circuit) -> list[str]:
    """Heads and MLPs of a circuit, or a refusal where there are none."""
    nodes = [node for node in circuit.nodes if node not in ("input", "logits")]
    if not nodes:
        raise OptionError(f"{circuit} has no head and no MLP", expected="at least one")
    return nodes


def _gaps(
    bench: Bench, circuit: Circuit, sets: list[list[str]], report: Report | None
) -> torch.Tensor:
    """Faithfulness [set, (circuit, model), batch] without each set of nodes."""
    whole = Circuit.full(bench.graph)
    both = [each.without(*names) for names in sets for each in (circuit, whole)]
    return bench.share(bench.run(both, report)).unflatten(0, (len(sets), 2))


def _worst(
    bench: Bench, circuit: Circuit, n: int, seed: int, report: Report
) -> tuple[list[list[str]], torch.Tensor]:
    """Sets that each add one node to the one before."""
    rest, rng = inner_nodes(circuit), np.random.default_rng(seed)
    chosen: list[list[str]] = []
    raw = []
    for step in range(min(n, len(rest))):
        before = chosen[-1] if chosen else []
        tried = rng.permutation(rest)[:_CANDIDATES].tolist()
        gaps = _gaps(bench, circuit, [[*before, node] for node in tried], None)
        best = int((gaps[:, 0] - gaps[:, 1]).mean(-1).abs().argmax())
        chosen.append([*before, tried[best]])
        raw.append(gaps[best])
        rest.remove(tried[best])
        if report(step + 1, n, "nodes") is False:
            break
    return chosen, torch.stack(raw)
