"""First-order scores of every edge at once: what senders wrote otherwise, times receivers' slopes.

The score of an edge is Σ over prompts and positions of (what the sender wrote in the source run -
what it wrote in the base run) · (slope of the metric by what the receiver reads). Neither factor
is ever there for all edges: both are made for a few positions at a time from what was recorded,
which is a few vectors for each layer and token, and multiplied at once.

The slope by what a head reads is the recorded slope by its query, key or value, taken back through
the projection and the block's norm. What senders wrote is the same in every run whose slopes are
averaged, so slopes are added up first and multiplied once.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from probe.core.decompose import written_by_heads
from probe.core.errors import ModelError
from probe.core.graph import Graph
from probe.core.model import Model
from probe.core.result import View
from probe.core.site import Site, SiteLike, expand_sites
from probe.core.task import Encoded
from probe.core.trace import Trace

Level = Literal["edge", "node", "neuron"]
Sign = Literal["support", "effect"]

COLUMNS = {
    "sender": "what writes: input, a<layer>.h<head>, m<layer>",
    "receiver": "what reads: a head's <q>, <k> or <v> (of key/value head kv<n> where heads share "
    "one), m<layer>, logits",
    "into": "nodes that the receiver is an input of",
    "node": "what writes: input, a<layer>.h<head>, m<layer>",
    "layer": "layer of the node; missing for the input",
    "neuron": "dimension of a head's output (z), or neuron of an MLP",
}

_BYTES_PER_CHUNK = 2**26
_HEADS_READ = ("q", "k", "v")

SLOPES: list[SiteLike] = ["resid_pre", *_HEADS_READ, "mlp_resid"]
"""Sites whose values and slopes the receivers' slopes are made from, beside the last residual."""

WRITES: list[SiteLike] = [Site("resid_pre", 0), "z", "mlp_out"]
"""Sites that hold what senders wrote."""

NEURONS = ("z", "mlp_post")
"""Sites that hold the neurons of what senders wrote."""


def slope_sites(model: Model) -> list[SiteLike]:
    """``SLOPES`` and the last residual stream; refuses models that are no such graph."""
    missing = {"mlp_resid", "q", "k", "v", "z"} - model.sites
    if missing or not model.dims.causal:
        raise ModelError(
            f"{model.name} is no graph of heads and MLPs on one stream"
            + (f": it has no {', '.join(sorted(missing))}" if missing else ": it is an encoder"),
            expected="a causal model whose blocks have heads and an MLP with a norm of its own",
        )
    return [*SLOPES, Site("resid_post", model.dims.n_layers - 1)]


@dataclass(frozen=True, eq=False)
class Gap:
    """What every sender wrote in the source run, less what it wrote in the base run.

    Attributes:
        model: The model.
        graph: Its graph.
        base: A trace of ``WRITES``.
        source: Another.
        begin: First position of each prompt at which they differ.
    """

    model: Model
    graph: Graph
    base: Trace
    source: Trace
    begin: Int[Tensor, " batch"]

    @classmethod
    def of(cls, model: Model, encoded: Encoded, base: Trace, source: Trace) -> "Gap":
        """Of the two runs of prompt pairs."""
        begin = encoded.first_difference
        assert begin is not None  # pairs have one
        return cls(model, Graph.of(model.dims), base, source, begin)

    @cached_property
    def places(self) -> tuple[Int[Tensor, " place"], Int[Tensor, " place"]]:
        """Prompts and positions at which the runs may differ."""
        pos = torch.arange(self.base.tokens.shape[1])
        rows, at = ((pos >= self.begin[:, None]) & (pos < self.base.lengths[:, None])).nonzero().T
        return rows, at

    def chunks(self) -> Iterator[slice]:
        """A few of the places at a time."""
        each = len(self.graph.senders) * self.graph.d_model * 4
        size = max(1, _BYTES_PER_CHUNK // each)
        yield from (slice(n, n + size) for n in range(0, len(self.places[0]), size))

    def at(self, rows: Tensor, pos: Tensor) -> Float[Tensor, "sender token d_model"]:
        """The difference at these places, for every sender."""
        first = Site("resid_pre", 0)
        parts = [(_at(self.source, first, rows, pos) - _at(self.base, first, rows, pos))[None]]
        for layer in range(self.graph.n_layers):
            z, mlp = (
                [_at(trace, Site(kind, layer), rows, pos) for trace in (self.source, self.base)]
                for kind in ("z", "mlp_out")
            )
            if self.model.norm("attn_out", layer) is None:
                heads = self.model.head_outputs(layer, z[0] - z[1])
            else:  # which has another denominator in each run
                wrote = [written_by_heads(self.model, layer, each) for each in z]
                heads = wrote[0] - wrote[1]
            parts += [heads.movedim(1, 0), (mlp[0] - mlp[1])[None]]
        return torch.cat(parts)


@dataclass(frozen=True, eq=False)
class Slopes:
    """Of one run, what the slopes by all that is read are made from.

    Attributes:
        at: At each of the gap's places what blocks read, ``resid_pre``, and the slopes by queries,
            keys, values, by what MLPs read, and by the last residual stream.
    """

    at: dict[Site, Float[Tensor, "place ..."]]

    @classmethod
    def of(cls, gap: Gap, values: Trace, slopes: Trace) -> "Slopes":
        """Of values and slopes at ``slope_sites``, which may be forgotten then."""
        wanted = expand_sites(slope_sites(gap.model), gap.graph.n_layers)
        return cls(
            {
                site: _at(values if site.kind == "resid_pre" else slopes, site, *gap.places)
                for site in wanted
            }
        )


def edge_scores(
    gap: Gap, runs: Sequence[Slopes], senders: slice = slice(None)
) -> Float[Tensor, "sender receiver"]:
    """Difference times slope of each edge, summed over prompts, positions and runs.

    Args:
        gap: What senders wrote otherwise.
        runs: Runs whose slopes are added up.
        senders: Only these; the others are left at 0.
    """
    graph, first = gap.graph, senders.indices(len(gap.graph.senders))[0]
    total = torch.zeros(graph.edges.shape, dtype=torch.float64)
    rows, pos = gap.places
    for chunk in gap.chunks():
        apart = gap.at(rows[chunk], pos[chunk])[senders].flatten(1)
        for layer in range(graph.n_layers + 1):
            # One product for all that a block reads: what senders wrote is large, and read once.
            place, n_read = graph.block(layer)
            n = min(max(0, n_read - first), len(apart))
            slope = _read_by(gap.model, runs, layer, chunk)
            product = apart[:n] @ slope.flatten(1).T
            total[first : first + n, place] += product.double().cpu()
    return total.where(graph.edges, 0.0)


def _read_by(
    model: Model, runs: Sequence[Slopes], layer: int, places: slice
) -> Float[Tensor, "receiver token d_model"]:
    """The slope by what each receiver of a block reads, after the last block by what logits do."""

    def recorded(kind: str, layer: int) -> Float[Tensor, "run token ..."]:
        return torch.stack([run.at[Site(kind, layer)][places] for run in runs])

    if layer == model.dims.n_layers:
        return recorded("resid_post", layer - 1).sum(0)[None]
    stream = recorded("resid_pre", layer)
    parts, norm = [], model.norm("attn_in", layer)
    for kind in _HEADS_READ:
        slopes = recorded(kind, layer)
        weight = getattr(model.weights, f"W_{kind.upper()}")(layer).to(slopes)
        if norm is None:
            parts.append(torch.einsum("rtho,hmo->htm", slopes, weight))
        else:
            parts.append(norm.taken_back(stream, slopes, weight))
    return torch.cat([*parts, recorded("mlp_resid", layer).sum(0)[None]])


def neuron_scores(gap: Gap, slopes: Trace) -> dict[Site, Float[Tensor, "..."]]:
    """Difference times slope of each dimension of ``z`` and ``mlp_post``, summed over places."""
    made = {}
    real = torch.arange(gap.base.tokens.shape[1]) < gap.base.lengths[:, None]
    for layer in range(gap.graph.n_layers):
        for kind in NEURONS:
            site = Site(kind, layer)
            change = _wide(gap.source[site]) - _wide(gap.base[site])
            product = (change * _wide(slopes[site]))[real.to(change.device)]
            made[site] = product.double().sum(0).cpu()
    return made


def edge_table(graph: Graph, scores: Float[Tensor, "sender receiver"]) -> pd.DataFrame:
    """One row an edge, in the model's order."""
    places, senders = graph.edges.T.nonzero().T
    return pd.DataFrame(
        {
            "sender": [graph.senders[s] for s in senders.tolist()],
            "receiver": [graph.receivers[r].name for r in places.tolist()],
            "into": [" ".join(graph.receivers[r].feeds) for r in places.tolist()],
            "value": scores[senders, places].tolist(),
        }
    )


def node_table(graph: Graph, scores: Float[Tensor, "sender receiver"]) -> pd.DataFrame:
    """One row a sender: the sum over its edges, which is its own first-order effect."""
    frame = pd.DataFrame({"node": list(graph.senders), "layer": _layers(graph)})
    frame["value"] = torch.where(graph.edges, scores, 0.0).sum(1).tolist()
    return frame


def neuron_table(
    graph: Graph, scores: dict[Site, Float[Tensor, "..."]], factor: float
) -> pd.DataFrame:
    """One row a dimension of a head's output or a neuron of an MLP."""
    parts = []
    for site, value in scores.items():
        layer = site.layer or 0
        heads = [f"a{layer}.h{head}" for head in range(graph.n_heads)]
        names = heads if site.kind == "z" else [f"m{layer}"]
        for name, row in zip(names, value.reshape(len(names), -1), strict=True):
            neurons = range(len(row))
            part = {"node": name, "layer": layer, "neuron": neurons, "value": factor * row.numpy()}
            parts.append(pd.DataFrame(part))
    return pd.concat(parts, ignore_index=True)


def _layers(graph: Graph) -> "pd.Series[int]":
    each = [layer for layer in range(graph.n_layers) for _ in range(graph.n_heads + 1)]
    return pd.Series([None, *each], dtype="Int64")


def view_of(level: Level) -> View:
    """How a table of scores is drawn."""
    if level == "edge":
        return View(kind="graph", x="sender", y="receiver", color="value", text="into")
    if level == "node":
        return View(kind="bar", x="node", y="value")
    return View(kind="scatter", x="layer", y="value", text="node")


def factor_of(sign: Sign, *, denoise: bool, n: int) -> float:
    """What the summed effect of patching is multiplied by to give a score.

    ``effect``: the change of the metric when the edge is patched, a mean over prompts.
    ``support``: how much the edge supports the clean behaviour: what is gained when it is restored
    to clean, what is lost when it is corrupted.
    """
    return (1.0 if sign == "effect" or denoise else -1.0) / n


def _at(trace: Trace, site: Site, rows: Tensor, pos: Tensor) -> Tensor:
    value = trace[site]
    return _wide(value[rows.to(value.device), pos.to(value.device)])


def _wide(x: Tensor) -> Tensor:
    """Half precision is summed in float32."""
    return x.float() if x.dtype.itemsize < 4 else x
