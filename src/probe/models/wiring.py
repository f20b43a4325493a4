"""A model of which only some edges are left: every receiver reads its own mix of two runs.

Each receiver reads the residual stream as it is in this run, plus, for every sender it has lost
the edge from, what that sender wrote in the other run less what it writes now. Norms, attention
and everything after are recomputed from that. Edges are cut for many rows at once (a row is one
set of edges and one prompt); rows begin at the first block in which they lose an edge, and at the
first position at which the two runs differ.

It knows no architecture: blocks are called as ``replay`` calls them, and queries, keys and values
are put in their places by hooks. Where a receiver loses nothing, nothing is put in its place, so
that with all edges left the run is the plain one to the bit.

Source: the evaluation of Hanna et al. 2024 (EAP-IG) and of Mueller et al. 2025 (MIB).
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from probe.core.errors import ModelError, OptionError, nearest
from probe.core.graph import Graph
from probe.core.metric import Metric
from probe.core.progress import Report
from probe.core.site import Site
from probe.core.task import Encoded
from probe.core.trace import Trace
from probe.models import replay
from probe.models.recorded import Received, capture, record
from probe.models.wires import Row, Runs, Wires

if TYPE_CHECKING:
    from probe.models.bridge import BridgeModel

_BYTES_PER_CHUNK = 2**27
"""Of what senders wrote, for the rows that move together."""


def sweep_edges(
    model: "BridgeModel",
    encoded: Encoded,
    kept: Bool[Tensor, "sets sender receiver"],
    metric: Metric,
    *,
    base: str,
    other: Trace | None,
    report: Report | None = None,
    chunk_bytes: int = _BYTES_PER_CHUNK,
    resume: bool | None = None,
) -> Float[Tensor, "sets batch"]:
    """The metric with these edges left; cells not reached when stopped are NaN.

    Args:
        model: The model.
        encoded: The prompts.
        kept: For each set, the edges left.
        metric: What is read at each prompt's last token.
        base: Which prompts are run, ``clean`` or ``corrupted``.
        other: What is read along edges that are cut; None for zeros.
        report: Told how many rows are done; False from it stops the sweep.
        chunk_bytes: Memory for what senders wrote.
        resume: Whether rows start where they depart; None for what the check at load found right.
    """
    if base not in ("clean", "corrupted"):
        raise OptionError(f"base={base!r}", remedy=nearest(base, ("clean", "corrupted")))
    graph = _graph(model, kept)
    cut = graph.edges & ~kept.cpu()
    tokens = encoded.clean if base == "clean" else encoded.need_corrupted()
    resumed = model.resumes if resume is None else resume
    reader = replay.Reader(model, encoded, metric, by_head=False)
    resumed = resumed and not reader.from_logits
    run = record(model, tokens, encoded.lengths, with_cache=resumed)
    wrote = model.trace(encoded, SITES, corrupted=base == "corrupted")
    runs = Runs(run, wrote, other, _first_difference(wrote, other) if resumed else 0)
    unedited = reader.read(reader.ends(run), torch.arange(len(tokens)))
    values = unedited.expand(len(cut), len(tokens)).clone()
    rows = _rows(graph, cut, len(tokens), resumed)
    for row in rows:
        values[row.cell, row.example] = torch.nan
    done, received = 0, capture(model, run, runs.start) if resumed and rows else []
    per_row = len(graph.senders) * (tokens.shape[1] - runs.start) * graph.d_model
    size = max(1, chunk_bytes // (per_row * wrote["z", 0].element_size()))
    with replay.interruptible(len(rows), lambda: done):
        for first in range(0, len(rows), size):
            chunk = rows[first : first + size]
            wires = Wires(model, graph, runs, chunk, cut)
            final = _walk(wires, received) if resumed else _whole(wires, reader.from_logits)
            at = (encoded.last[wires.examples] - runs.start).to(final.device)
            ends = final[torch.arange(len(chunk), device=final.device), at]
            read = reader.read(ends, wires.examples)
            values[[row.cell for row in chunk], [row.example for row in chunk]] = read
            done += len(chunk)
            if report is not None and report(done, len(rows), "runs") is False:
                break
    return values


SITES = [Site("resid_pre", 0), "z", "mlp_out"]
"""What a trace must hold for senders' writing to be read from it."""


def _graph(model: "BridgeModel", kept: Tensor) -> Graph:
    graph = Graph.of(model.dims)
    missing = {"z", "q", "k", "v", "mlp_resid", "mlp_out"} - model.sites
    if missing or not model.dims.causal:
        raise ModelError(
            f"{model.name} is no graph of heads and MLPs on one stream: "
            + (f"it has no {', '.join(sorted(missing))}" if missing else "it is an encoder"),
            expected="a causal model whose blocks have heads and an MLP with a norm of its own",
        )
    if kept.shape[1:] != graph.edges.shape:
        raise OptionError(
            f"edges of shape {tuple(kept.shape[1:])}",
            expected=f"{tuple(graph.edges.shape)}: senders × receivers of {graph}",
        )
    return graph


def _first_difference(wrote: Trace, other: Trace | None) -> int:
    """The first position at which any sender wrote anything else in the other run."""
    if other is None:
        return 0
    differs = torch.zeros(wrote.tokens.shape[1], dtype=torch.bool)
    for site, value in wrote.items():
        apart = (value != other[site].to(value)).flatten(2).any(-1)
        real = torch.arange(apart.shape[1]) < wrote.lengths[:, None]
        differs |= (apart.cpu() & real).any(0)
    return int(differs.long().argmax()) if differs.any() else 0


def _rows(graph: Graph, cut: Tensor, n: int, resumed: bool) -> list[Row]:
    """A row for each set that loses an edge and each prompt, those that begin early first."""
    layers = torch.tensor([receiver.layer for receiver in graph.receivers])
    rows = []
    for cell, lost in enumerate(cut.any(1)):
        if not lost.any():
            continue
        layer = int(layers[lost].min()) if resumed else 0
        rows += [Row(cell, example, layer) for example in range(n)]
    return sorted(rows, key=lambda row: row.layer)


def _walk(wires: Wires, received: Sequence[Received]) -> Float[Tensor, "rows pos d_model"]:
    """Move rows through the blocks together; each joins at its own."""
    model, runs, joined = wires.model, wires.runs, 0
    width = runs.base.tokens.shape[1] - runs.start
    active = runs.base.resid[0].new_empty((0, width, model.dims.d_model))
    with torch.no_grad():
        for layer in range(model.dims.n_layers + 1):
            new = sum(row.layer == layer for row in wires.rows[joined:])
            if new:
                joining = wires.examples[joined : joined + new].to(active.device)
                active = torch.cat([active, runs.base.resid[layer][joining, runs.start :]])
                wires.join(slice(joined, joined + new), layer)
                joined += new
            if not joined:
                continue
            if layer == model.dims.n_layers:
                return wires.at_logits(active)
            args, kwargs = received[layer].for_rows(
                runs.base, wires.examples[:joined], runs.start, active
            )
            with model.hooked(list(wires.hooks(layer, joined)), (joined, width)):
                out = model.block(layer)(*args, **kwargs)
            active = out[0] if isinstance(out, tuple) else out
    return active


def _whole(wires: Wires, logits: bool) -> Float[Tensor, "rows pos last"]:
    """The fallback: every row from its first token. Returns the last residual, or the logits."""
    model, n = wires.model, len(wires.rows)
    last = Site("resid_post", model.dims.n_layers - 1)
    final: list[Tensor] = []

    def end(resid: Tensor) -> Tensor:
        final.append(wires.at_logits(resid))
        return final[0]

    wires.join(slice(0, n), 0)
    hooks = [hook for layer in range(model.dims.n_layers) for hook in wires.hooks(layer, n)]
    tokens, lengths = (x[wires.examples] for x in (wires.runs.base.tokens, wires.runs.base.lengths))
    out = model.run_raw(tokens, [*hooks, (last, end)], lengths=lengths)
    return out.logits if logits else final[0]
