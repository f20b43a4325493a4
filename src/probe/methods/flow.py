"""How much of what each receiver reads came from each sender, without any counterfactual."""

from collections.abc import Iterator
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from probe.core.decompose import written_by_heads
from probe.core.graph import Graph
from probe.core.model import Model
from probe.core.site import Site
from probe.core.task import Encoded
from probe.core.trace import Trace

Space = Literal["read", "stream"]

_BYTES_PER_CHUNK = 2**26


def proximity(
    parts: Float[Tensor, "sender token *any"], whole: Tensor
) -> Float[Tensor, "sender token *rest"]:
    """How much nearer each part brings the whole to nothing, as a share of what all parts do.

    (‖whole‖ - ‖whole - part‖)₊ in the 1-norm over the last axis, divided by its sum over parts; 0
    where no part does.
    """
    near = (whole.abs().sum(-1) - (whole - parts).abs().sum(-1)).clamp(min=0)
    total = near.sum(0)
    return torch.where(total > 0, near / total.clamp(min=torch.finfo(near.dtype).tiny), 0.0)


def flow_scores(
    model: Model, encoded: Encoded, *, corrupted: bool, space: Space
) -> Float[Tensor, "sender receiver"]:
    """Share of the logits that came along each edge.

    Cost: one forward pass, and products of every sender's output with every receiver's matrix.
    """
    shares = read_shares(model, encoded, corrupted=corrupted, space=space)
    graph = Graph.of(model.dims)
    scores = torch.zeros_like(shares)
    # From the logits back, so that what a node hands on is known when its inputs are reached.
    for place in reversed(range(len(graph.receivers))):
        reads = graph.receivers[place]
        through = 1.0 if reads.kind == "logits" else float(scores[graph.feeds[place]].sum())
        scores[:, place] = shares[:, place] * through
    return scores


def read_shares(
    model: Model, encoded: Encoded, *, corrupted: bool, space: Space
) -> Float[Tensor, "sender receiver"]:
    """Mean over tokens of each sender's share of what each receiver reads."""
    graph = Graph.of(model.dims)
    last = Site("resid_post", graph.n_layers - 1)
    scales = ["ln1_scale", "ln2_scale", "ln_final_scale"]
    trace = model.trace(
        encoded, ["resid_pre", "z", "mlp_out", "mlp_resid", last, *scales], corrupted=corrupted
    )
    total = torch.zeros(graph.edges.shape, dtype=torch.float64)
    tokens = int(encoded.lengths.sum())
    for rows, pos in _places(graph, encoded):
        wrote = _wrote(model, graph, trace, rows, pos)
        for layer in range(graph.n_layers):
            for kind in ("q", "k", "v", "mlp_resid"):
                place = graph.inputs(layer, kind)
                n = graph.read_by(graph.receivers[place][0])
                site = Site("mlp_resid" if kind == "mlp_resid" else "resid_pre", layer)
                both = torch.cat([wrote[:n], _at(trace, site, rows, pos)[None]])
                if space == "read":
                    both = _as_read(model, trace, layer, kind, both, rows, pos)
                share = proximity(both[:n], both[n])
                total[:n, place] += share.sum(1).reshape(n, -1).double().cpu()
    total /= tokens
    total[:, -1] = _at_the_end(model, graph, encoded, trace, space)
    return total


def _as_read(
    model: Model, trace: Trace, layer: int, kind: str, both: Tensor, rows: Tensor, pos: Tensor
) -> Float[Tensor, "part token *any"]:
    """Parts of the stream as a head's projection or an MLP's norm hands them on."""
    mlp = kind == "mlp_resid"
    norm = model.norm("mlp_in" if mlp else "attn_in", layer)
    normed = both
    if norm is not None:
        scale = _at(trace, Site("ln2_scale" if mlp else "ln1_scale", layer), rows, pos)
        normed = norm.apply(both, scale)
    if mlp:
        return normed
    matrix = {"q": model.weights.W_Q, "k": model.weights.W_K, "v": model.weights.W_V}[kind](layer)
    return torch.einsum("stm,hmd->sthd", normed, matrix.to(normed))


def _at_the_end(
    model: Model, graph: Graph, encoded: Encoded, trace: Trace, space: Space
) -> Float[Tensor, " sender"]:
    """Shares of the last token's logits: of the answers, or of the stream they are read from."""
    rows, pos = torch.arange(len(encoded)), encoded.last
    whole = _at(trace, Site("resid_post", graph.n_layers - 1), rows, pos)
    both = torch.cat([_wrote(model, graph, trace, rows, pos), whole[None]])
    if space == "read":
        scale = _at(trace, Site("ln_final_scale"), rows, pos)
        ids = torch.stack([encoded.need_answers(), encoded.need_wrong_answers()], 1)
        columns = model.weights.W_U[:, ids.to(model.device)].to(both)
        both = torch.einsum("stm,mtn->stn", model.read_out(both, scale), columns)
    return proximity(both[:-1], both[-1]).mean(1).double().cpu()


def _places(graph: Graph, encoded: Encoded) -> Iterator[tuple[Tensor, Tensor]]:
    real = torch.arange(encoded.clean.shape[1]) < encoded.lengths[:, None]
    rows, pos = real.nonzero().T
    size = max(1, _BYTES_PER_CHUNK // (8 * len(graph.senders) * graph.d_model))
    yield from zip(rows.split(size), pos.split(size), strict=True)


def _wrote(
    model: Model, graph: Graph, trace: Trace, rows: Tensor, pos: Tensor
) -> Float[Tensor, "sender token d_model"]:
    parts = [_at(trace, Site("resid_pre", 0), rows, pos)[None]]
    for layer in range(graph.n_layers):
        heads = written_by_heads(model, layer, _at(trace, Site("z", layer), rows, pos))
        parts += [heads.movedim(1, 0), _at(trace, Site("mlp_out", layer), rows, pos)[None]]
    return torch.cat(parts)


def _at(trace: Trace, site: Site, rows: Tensor, pos: Tensor) -> Tensor:
    value = trace[site]
    value = value[rows.to(value.device), pos.to(value.device)]
    return value.float() if value.dtype.itemsize < 4 else value
