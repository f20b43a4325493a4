"""Which heads carry what demonstrations say, for all heads at once."""

from typing import Annotated, Literal

import pandas as pd
from pydantic import Field

from probe.core.edit import patch
from probe.core.metric import get_metric
from probe.core.model import Model
from probe.core.progress import progress_bar
from probe.core.registry import method
from probe.core.result import View
from probe.core.site import Site
from probe.core.task import Encoded
from probe.methods.patching import cells, table
from probe.methods.shots import mean_heads

_COLUMNS = {
    "batch": "prompt pair",
    "layer": "layer of the head",
    "head": "query head",
    "value": "change of the metric in the corrupted run when the head's last token is set",
    "raw": "metric of the corrupted run with the head set",
    "corrupted": "metric of the corrupted run",
}


@method(
    needs="pairs",
    view=View(kind="heatmap", x="head", y="layer", color="value"),
    columns=_COLUMNS,
)
def head_effects(
    model: Model,
    encoded: Encoded,
    *,
    source: Annotated[
        Literal["mean", "own"],
        Field(
            description="What is set: the head's mean over all clean prompts, or its output in "
            "the pair's own clean prompt"
        ),
    ] = "mean",
    metric: Annotated[str, Field(description="What is read at the last token")] = "prob",
    layers: Annotated[list[int] | None, Field(description="Only these layers")] = None,
    heads: Annotated[list[int] | None, Field(description="Only these heads")] = None,
) -> pd.DataFrame:
    """Which heads bring back the answer when the demonstrations are shuffled?

    Given prompts with right demonstrations and their twins with shuffled ones
    (``icl_task("past_tense").prompts("train", shots=10, n=25, labels="both")``), each head's
    output at the last token of the twin is set to its mean over the right prompts: the mean
    carries the task, not any one answer. Averaged over prompts, ``value`` is the average indirect
    effect; above 0 the head makes the answer likelier (for metrics that are high for right
    answers). In the metric's unit, a probability by default.

    Raises:
        OptionError: A head or layer that is not there.

    Cost: one recorded pass over the clean and one over the corrupted prompts, and for each head
    and prompt one token through the layers after its own.

    Source: Todd et al. 2024, "Function Vectors in Large Language Models", section 2.3.

    >>> from probe.api import run
    >>> run("head_effects", model="toy", task="ioi").summary().shape
    (8, 6)
    """
    chosen = get_metric(metric)
    chosen.check(encoded)
    listed = cells(
        model, encoded, "z", "head", layers=layers, heads=heads, positions=None, neurons=None
    )
    depths = sorted({cell.layer for cell in listed})
    if source == "mean":
        means = mean_heads(model, encoded)
        values = {layer: means[layer] for layer in depths}
    else:
        there = model.trace(encoded, [("z", layer) for layer in depths])
        values = {layer: there["z", layer] for layer in depths}
    sets = [
        [patch(Site("z", cell.layer, cell.head), values[cell.layer], pos=-1)] for cell in listed
    ]
    with progress_bar("head effects") as report:
        before = model.sweep(encoded, [[]], chosen, base="corrupted")[0].cpu()
        raw = model.sweep(encoded, sets, chosen, base="corrupted", report=report).cpu()
    numbers = {"value": raw - before, "raw": raw, "corrupted": before}
    return table(listed, encoded, "head", numbers)
