"""The exact effect of every edge, one at a time: what estimates are held against."""

from collections.abc import Iterator
from typing import Annotated

import pandas as pd
import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from probe.core.edit import Edit, patch
from probe.core.errors import OptionError, nearest
from probe.core.graph import Graph
from probe.core.metric import get_metric
from probe.core.model import Model
from probe.core.progress import progress_bar
from probe.core.registry import method
from probe.core.site import Site
from probe.core.task import Encoded
from probe.core.trace import Trace
from probe.methods.circuit_options import Directed, Signed
from probe.methods.edges import (
    COLUMNS,
    WRITES,
    Gap,
    edge_table,
    factor_of,
    slope_sites,
    view_of,
)

_COLUMNS = {name: COLUMNS[name] for name in ("sender", "receiver", "into")} | {
    "value": "score, mean over prompts, in the metric's unit; what its sign says is chosen by the "
    "option sign"
}

_EDGES_PER_SWEEP = 256


@method(needs="pairs", view=view_of("edge"), columns=_COLUMNS)
def edge_patching(
    model: Model,
    encoded: Encoded,
    *,
    receivers: Annotated[
        list[str] | None,
        Field(description='Only edges into these: "a1.h0<q>", "m1", "logits"', min_length=1),
    ] = None,
    metric: Annotated[str, Field(description="What is read at the last token")] = "logit_diff",
    direction: Directed = "noise",
    sign: Signed = "support",
) -> pd.DataFrame:
    """What does each edge do, run by run and exactly?

    For each edge the base run is run again while its receiver, and nothing else, reads what the
    sender wrote in the source run in place of what it wrote here. Norms and all that follows are
    computed from that. To first order this is ``eap``; where they differ, this is right.

    Raises:
        OptionError: A receiver that is not there.

    Cost: one forward pass for each edge and prompt, resumed at the receiver's block and at the
    first position at which the prompts differ. Memory of what every sender wrote at every token.

    >>> from probe.api import run
    >>> exact = run("edge_patching", model="toy", task="ioi", receivers=["logits"]).frame
    >>> len(exact)
    11
    """
    chosen, graph = get_metric(metric), Graph.of(model.dims)
    chosen.check(encoded)
    known = {receiver.name: place for place, receiver in enumerate(graph.receivers)}
    for name in receivers or ():
        if name not in known:
            raise OptionError(f'there is no receiver "{name}"', remedy=nearest(name, known))
    places = sorted({known[name] for name in receivers} if receivers else range(len(known)))
    base = "corrupted" if direction == "denoise" else "clean"
    here = model.trace(encoded, [*slope_sites(model), *WRITES], corrupted=direction == "denoise")
    there = model.trace(encoded, WRITES, corrupted=direction != "denoise")
    gap = Gap.of(model, encoded, here, there)
    (start,) = model.sweep(encoded, [[]], chosen, base=base).cpu()
    effects = torch.full(graph.edges.shape, torch.nan, dtype=torch.float64)
    total = int(graph.edges[:, places].sum())
    with progress_bar("edge patching") as report:
        done = 0
        for place, senders, edits in _patches(model, graph, gap, here, places):
            raw = model.sweep(encoded, edits, chosen, base=base).cpu()
            effects[senders, place] = (raw - start).double().sum(1)
            done += len(senders)
            if raw.isnan().any() or report(done, total, "edges") is False:
                break
    factor = factor_of(sign, denoise=direction == "denoise", n=len(encoded))
    frame = edge_table(graph, factor * effects)
    return frame[frame["value"].notna()].reset_index(drop=True)


def _patches(
    model: Model, graph: Graph, gap: Gap, here: Trace, places: list[int]
) -> Iterator[tuple[int, list[int], list[list[Edit]]]]:
    """For each receiver, a few senders at a time: the edit that makes it read the other run's."""
    batch, width = here.tokens.shape
    rows, pos = torch.arange(batch).repeat_interleave(width), torch.arange(width).repeat(batch)
    apart = gap.at(rows, pos).unflatten(1, (batch, width))
    same = torch.arange(width) < gap.begin[:, None]
    for place in places:
        receiver = graph.receivers[place]
        for senders in torch.arange(graph.read_by(receiver)).split(_EDGES_PER_SWEEP):
            site, values = _as_read(model, graph, place, here, apart[senders])
            base = here[site]
            keep = same.to(base.device).view(*same.shape, *[1] * (base.ndim - 2))
            # The base run's own bits where the prompts are still equal, so that runs start later.
            edits = [[patch(site, torch.where(keep, base, value))] for value in values]
            yield place, senders.tolist(), edits


def _as_read(
    model: Model, graph: Graph, place: int, here: Trace, apart: Float[Tensor, "sender ..."]
) -> tuple[Site, Iterator[Tensor]]:
    """Where a receiver's input is changed, and to what for each sender."""
    receiver = graph.receivers[place]
    if receiver.head is None:
        last = Site("resid_post", graph.n_layers - 1)
        site = last if receiver.kind == "logits" else Site("mlp_resid", receiver.layer)
        return site, (here[site] + one.to(here[site]) for one in apart)
    site, head = Site(receiver.kind, receiver.layer), receiver.head
    n_heads = here[site].shape[2]

    def read(one: Tensor) -> Tensor:
        stream = here["resid_pre", receiver.layer]
        mixed = (stream + one.to(stream))[:, :, None].expand(-1, -1, n_heads, -1)
        with torch.no_grad():
            new = model.read_in(receiver.layer, receiver.kind, mixed)
        value = here[site].clone()
        value[:, :, head] = new[:, :, head]
        return value

    return site, (read(one) for one in apart)
