"""Attention patterns as a table."""

from typing import Annotated, Any

import pandas as pd
import torch
from pydantic import Field

from probe.core.model import Model
from probe.core.registry import method
from probe.core.result import View
from probe.core.task import Encoded
from probe.methods.squares import COLUMNS, Squares


def _view(options: Any) -> View:
    single = all(
        chosen is not None and len(chosen) == 1 for chosen in (options.layers, options.heads)
    )
    return View(
        kind="heatmap" if single else "wall",
        x="key",
        y="query",
        color="value",
        scale="attention",
        title="Attention",
    )


@method(
    needs="prompts",
    view=_view,
    columns=COLUMNS
    | {"value": "attention probability, 0 to 1; over the keys of a query sums to 1"},
)
def attention_patterns(
    model: Model,
    encoded: Encoded,
    *,
    layers: Annotated[
        list[int] | None, Field(description="Blocks; none for all", min_length=1)
    ] = None,
    heads: Annotated[
        list[int] | None, Field(description="Query heads; none for all", min_length=1)
    ] = None,
    queries: Annotated[
        list[int] | None,
        Field(description="Positions attended from, -1 being the last; none for all", min_length=1),
    ] = None,
) -> pd.DataFrame:
    """Where does each head look?

    Value: the probability with which a head at position ``query`` attends to position ``key``,
    0 to 1, without unit. Of a causal model keys after the query are left out, being out of reach;
    an encoder attends to all. Attention says where information may come from; what is moved, and
    whether it matters, is another question (``attention_contribution``, interventions).

    Raises:
        OptionError: A layer, head or position that is not there.
        SizeError: A table of more than two million rows; nothing is run.

    Cost: one forward pass, stopped after the last layer asked for.

    Source: Vaswani et al. 2017, equation 1: softmax(QKᵀ/√d) before it weights V.

    >>> from probe.core.task import Task
    >>> from probe.models.load import load_model
    >>> model = load_model("toy")
    >>> task = Task.from_prompts("Mary gave John a book").encode(model)
    >>> frame = attention_patterns(model, task, layers=[1], queries=[-1])
    >>> frame.groupby("head").value.sum().round(4).tolist()
    [1.0, 1.0, 1.0, 1.0]
    """
    squares = Squares.choose(model.dims, layers, heads, queries)
    squares.check_fits(encoded)
    sites = [("pattern", layer) for layer in squares.layers]
    trace = model.trace(encoded, sites, positions=squares.queries)
    values = [trace["pattern", layer][:, list(squares.heads)] for layer in squares.layers]
    return squares.frame(torch.stack(values), encoded)
