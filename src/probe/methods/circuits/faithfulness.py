"""How much of the behaviour a circuit of each size keeps."""

from collections.abc import Sequence
from typing import Annotated

import pandas as pd
from pydantic import Field

from probe.core.circuit import Circuit, Select
from probe.core.model import Model
from probe.core.progress import progress_bar
from probe.core.registry import method
from probe.core.result import View
from probe.core.task import Encoded
from probe.methods.circuit_runs import MIB_SIZES, Ablation, Bench
from probe.methods.curves import Curve, curves
from probe.methods.discovery import Ranking, ranked
from probe.methods.patching import Direction

_COLUMNS = {
    "batch": "prompt pair",
    "ranking": "what ranked the edges; given for edges of one's own",
    "seed": "seed of a random ranking, 0 for the others",
    "point": "place of the size among those asked for",
    "size": "share of all edges asked for",
    "edges": "edges left after pruning those on no way from the input to the logits",
    "value": "faithfulness: 0 with no edge left, 1 for the whole model (not clipped)",
    "raw": "metric of the circuit, in its own unit",
    "full": "metric of the whole model",
    "empty": "metric with no edge left",
}

_SELECT = (
    "top: largest scores whatever their sign; signed: most positive; greedy: grown back from the "
    "logits"
)


@method(needs="pairs", view=View(kind="line", x="size", color="ranking"), columns=_COLUMNS)
def faithfulness(
    model: Model,
    encoded: Encoded,
    *,
    rankings: Annotated[
        Sequence[Ranking],
        Field(description="What ranks the edges; each gives a curve", min_length=1),
    ] = ("eap", "random"),
    sizes: Annotated[
        Sequence[Annotated[float, Field(ge=0, le=1)]],
        Field(
            description="Shares of all edges; by default those of the MIB benchmark", min_length=1
        ),
    ] = MIB_SIZES,
    edges: Annotated[
        list[str] | None,
        Field(description="Judge these edges, such as a0.h1->m0, instead of ranking any"),
    ] = None,
    select: Annotated[Select, Field(description=_SELECT)] = "top",
    ablation: Annotated[
        Ablation,
        Field(
            description="What is read along edges left out: patching (the corrupted run), zero, "
            "mean or mean_by_position (over the corrupted prompts)"
        ),
    ] = "patching",
    metric: Annotated[str, Field(description="What is read at the last token")] = "logit_diff",
    direction: Annotated[
        Direction, Field(description="Of the ranking: noise or denoise, as in eap")
    ] = "noise",
    steps: Annotated[int, Field(ge=1, description="Steps of eap_ig")] = 5,
    random_draws: Annotated[int, Field(ge=1, description="Random rankings drawn")] = 3,
    seed: Annotated[int, Field(description="First seed of the random rankings")] = 0,
) -> pd.DataFrame:
    """How much of the behaviour is left when only a circuit's edges are?

    The clean run is run again while every receiver reads, along each edge that is not in the
    circuit, what the sender wrote in the other run (``ablation``); norms, attention and all that
    follows are computed from what is read. Faithfulness is f = (m(C) - m(∅)) / (m(M) - m(∅)), means
    over prompts taken before dividing: ``value`` is each prompt's m(C) - m(∅) by the mean of
    m(M) - m(∅), so that its mean is f. No edge left gives 0 and all edges 1, exactly. Above 1 the
    circuit does more than the model, below 0 the opposite.

    Of n edges asked for, those on no way from the input to the logits are pruned (``edges`` counts
    the rest). Compare with ``random`` rankings of the same size.

    Raises:
        OptionError: A ranking or an edge that is not there.
        TaskError: Prompts between which the metric does not differ.

    Cost: that of the rankings, and for each circuit one forward pass that begins at the first
    block it lacks an edge of.

    Source: Hanna et al. 2024; Mueller et al. 2025, "MIB" (sizes, ratio of means).

    >>> from probe.api import run
    >>> curve = run("faithfulness", model="toy", task="ioi", rankings=["eap"], sizes=[0.0, 1.0])
    >>> curve.summary()["value"].tolist()
    [0.0, 1.0]
    """
    bench = Bench.of(model, encoded, metric, ablation)
    with progress_bar("faithfulness") as report:
        if edges is not None:
            circuit = Circuit.of_edges(bench.graph, edges)
            size = circuit.n_edges / bench.graph.n_edges
            found = [Curve("given", 0, (size,), (circuit,), bench.run([circuit], report))]
        else:
            scored = [
                (ranking, draw, Circuit.scored(
                    bench.graph,
                    ranked(model, encoded, ranking, metric=metric, direction=direction,
                           steps=steps, seed=draw),
                ))
                for ranking in dict.fromkeys(rankings)
                for draw in (range(seed, seed + random_draws) if ranking == "random" else (0,))
            ]  # fmt: skip
            found = curves(bench, scored, list(dict.fromkeys(sizes)), select, report)
    return _table(bench, found)


def _table(bench: Bench, found: Sequence[Curve]) -> pd.DataFrame:
    parts = []
    for curve in found:
        shares = bench.share(curve.raw)
        for point, (size, circuit, raw, share) in enumerate(
            zip(curve.sizes, curve.circuits, curve.raw, shares, strict=True)
        ):
            parts.append(
                pd.DataFrame(
                    {
                        "batch": range(len(raw)),
                        "ranking": curve.ranking,
                        "seed": curve.seed,
                        "point": point,
                        "size": size,
                        "edges": circuit.n_edges,
                        "value": share.tolist(),
                        "raw": raw.tolist(),
                        "full": bench.full.tolist(),
                        "empty": bench.empty.tolist(),
                    }
                )
            )
    frame = pd.concat(parts, ignore_index=True)
    return frame[frame["raw"].notna()].reset_index(drop=True)
