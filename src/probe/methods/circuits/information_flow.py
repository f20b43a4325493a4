"""Where the logits' information came from, edge by edge, in a single run."""

from typing import Annotated, Literal

import pandas as pd
from pydantic import Field

from probe.core.graph import Graph
from probe.core.model import Model
from probe.core.registry import method
from probe.core.task import Encoded
from probe.methods.edges import COLUMNS, edge_table, view_of
from probe.methods.flow import Space, flow_scores, read_shares

_COLUMNS = {name: COLUMNS[name] for name in ("sender", "receiver", "into")} | {
    "value": "share: of what the receiver reads that its sender accounts for, times (weigh=flow) "
    "the share of the logits that went through the receiver; from 0"
}


@method(needs="answers", view=view_of("edge"), columns=_COLUMNS)
def information_flow(
    model: Model,
    encoded: Encoded,
    *,
    space: Annotated[
        Space,
        Field(
            description="Where nearness is measured: read (in the query, key, value, normed MLP "
            "input or answers' logits), or stream (in the residual stream, as published)"
        ),
    ] = "read",
    weigh: Annotated[
        Literal["flow", "local"],
        Field(
            description="flow: by how much of the logits went through the receiver; local: each "
            "receiver alone, as published"
        ),
    ] = "flow",
) -> pd.DataFrame:
    """Which edges carried what the model wrote, judged from one run alone?

    The share of sender u in receiver v is (‖x_v‖ - ‖x_v - a_u‖)₊, where x_v is what v reads, a_u
    what u wrote and ‖·‖ the 1-norm, divided by the sum over senders; a mean over tokens, for the
    logits at the last token. ``read`` takes both through the receiver's norm (its denominator held)
    and matrix, so the inputs of a block differ; under ``stream`` all inputs of a block have the
    same shares. ``flow`` multiplies by what goes on from the receiver: from the logits back, the
    sum over the edges of the nodes it feeds.

    There is no counterfactual: edges that carry what all prompts have in common score too, such as
    positions.

    Raises:
        TaskError: Prompts without answers.

    Cost: one forward pass, and under ``read`` the product of each sender's output with each
    receiver's matrix.

    Source: Ferrando and Voita 2024, "Information flow routes"; ``stream`` and ``local`` as in
    Hanna et al. 2024.

    >>> from probe.api import run
    >>> flow = run("information_flow", model="toy", task="ioi").frame
    >>> len(flow), bool(flow["value"].between(0, 3).all())
    (82, True)
    """
    found = flow_scores if weigh == "flow" else read_shares
    return edge_table(Graph.of(model.dims), found(model, encoded, corrupted=False, space=space))
