"""A circuit of features over several dictionaries: what each adds, and which feeds which."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Annotated

import pandas as pd
import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from probe.core.edit import Edit
from probe.core.errors import OptionError
from probe.core.metric import Metric, get_metric
from probe.core.model import Model
from probe.core.progress import progress_bar
from probe.core.registry import method
from probe.core.result import View
from probe.core.task import Encoded
from probe.dictionaries.feature_edits import Encoding, of_trace
from probe.dictionaries.named import named

_COLUMNS = {
    "kind": "node, or edge from one node to a node of the next dictionary",
    "site": "site of the node; of an edge, of the node it leads to",
    "feature": "feature of the dictionary there; missing for the error node",
    "from_site": "site an edge leaves; missing for nodes",
    "from_feature": "feature an edge leaves; missing for nodes, and for the error node",
    "name": "what it is, in words",
    "value": "node: change of the metric when it is set to 0, to first order, mean over prompts; "
    "edge: the part of what is lost by setting the first node to 0 that goes through the second, "
    "to first order in the second",
}
_ERROR = -1
"""The number of the error node."""


@dataclass(frozen=True, eq=False)
class Level:
    """One dictionary's part of the circuit.

    Attributes:
        there: The prompts as its features.
        gradient: Of the metric by the site it writes, clean run.
        effect: What setting each feature, and last the error, to 0 does to first order.
        nodes: The features kept, and the error node.
    """

    there: Encoding
    gradient: Float[Tensor, "batch pos d_out"] = field(repr=False)
    effect: Float[Tensor, " node"] = field(repr=False)
    nodes: Sequence[int]

    @property
    def site(self) -> str:
        """Where it writes."""
        return str(self.there.sae.writes[0])

    def removed(self, node: int) -> Edit:
        """The edit that sets a node to 0."""
        if node == _ERROR:
            return Edit(self.there.sae.writes[0], "add", -self.there.error, {}, "error")
        return self.there.change(node, 0.0)

    def through(self, changed: Encoding) -> list[float]:
        """What another run's values of the nodes do to the metric, to first order."""
        features = changed.features - self.there.features
        slope = self.gradient @ self.there.sae.W_dec.to(self.gradient).T
        each = (features * slope).sum(1).mean(0)
        error = ((changed.error - self.there.error) * self.gradient).sum((1, 2)).mean()
        return [float(error if node == _ERROR else each[node]) for node in self.nodes]


@method(
    needs="answers",
    view=View(kind="bar", x="name", color="kind"),
    columns=_COLUMNS,
)
def feature_circuit(
    model: Model,
    encoded: Encoded,
    *,
    dictionaries: Annotated[
        list[str],
        Field(description="Names or folders of dictionaries at different layers", min_length=1),
    ],
    metric: Annotated[str, Field(description="What is read at the last token")] = "logit_diff",
    top: Annotated[int, Field(description="Features kept of each dictionary", ge=1)] = 8,
    edges: Annotated[bool, Field(description="Also measure which node feeds which")] = True,
) -> pd.DataFrame:
    """Through which features does the answer travel, and which of them feed which?

    Nodes are features of each dictionary, and what it leaves out as one error node, so the nodes
    of a site make up its activation and nothing is unaccounted for. A node's value is the change
    of the metric when it is set to 0 at all positions, to first order at the clean run: negative
    for the logit difference where the answer needs it. An edge is measured in its first half: the
    model is run without the first node and the second's change recorded exactly, through every
    path there is; its second half is the second node's gradient. Edges join dictionaries that
    follow one another.

    The gradient is the plain one of the clean run, not integrated along a path: small features are
    estimated well, an error node, which is no small change, is not. ``feature_attribution``
    measures both.

    Raises:
        DictionaryError: No such dictionary, or one of another model.
        OptionError: Two dictionaries that write at one site.

    Cost: one forward and one backward pass for the nodes; for the edges one forward pass a node,
    stopped at the next dictionary.

    Source: Marks et al. 2024, "Sparse feature circuits". There edges are products of Jacobians,
    which leave out other paths, and nodes are scored by integrated gradients.

    >>> from probe.api import run
    >>> circuit = run("feature_circuit", model="toy", task="ioi", dictionaries=["toy.0", "toy.1"])
    >>> circuit.frame.groupby("kind").size().to_dict()
    {'edge': 81, 'node': 18}
    """
    levels = _levels(model, encoded, dictionaries, get_metric(metric), top)
    rows = [row for level in levels for row in _nodes(level)]
    if edges:
        with progress_bar("edges") as report:
            for number, (first, second) in enumerate(pairwise(levels)):
                rows += _edges(model, encoded, first, second)
                report(number + 1, len(levels) - 1, "dictionaries")
    frame = pd.DataFrame(rows, columns=list(_COLUMNS))
    return frame.astype({"feature": "Int64", "from_feature": "Int64"})


def _levels(
    model: Model, encoded: Encoded, names: Sequence[str], metric: Metric, top: int
) -> list[Level]:
    saes = sorted((named(name, model) for name in names), key=lambda sae: sae.writes[0].order)
    places = [str(sae.writes[0]) for sae in saes]
    if len(set(places)) < len(places):
        raise OptionError(
            f"dictionaries that write at {', '.join(places)}", expected="one dictionary a site"
        )
    sites = list(dict.fromkeys(site for sae in saes for site in (*sae.reads, *sae.writes)))
    values, gradients = model.gradients(encoded, sites, metric)
    levels = []
    for sae in saes:
        there = of_trace(values, sae)
        gradient = gradients[sae.writes[0]].flatten(2) * there.real[..., None]
        slope = gradient @ sae.W_dec.to(gradient).T
        effect = -(there.features * slope).sum(1).mean(0)
        error = -(there.error * gradient).sum((1, 2)).mean()
        order = torch.argsort(effect.abs(), descending=True, stable=True)[:top]
        nodes = [*order.tolist(), _ERROR]
        levels.append(Level(there, gradient, torch.cat([effect, error[None]]), nodes))
    return levels


def _nodes(level: Level) -> list[tuple]:
    return [
        (
            "node", level.site, _or_missing(node), None, None, _name(level, node),
            float(level.effect[node]),
        )
        for node in level.nodes
    ]  # fmt: skip


def _edges(model: Model, encoded: Encoded, first: Level, second: Level) -> list[tuple]:
    sae = second.there.sae
    sites = list(dict.fromkeys([*sae.reads, *sae.writes]))
    rows = []
    for node in first.nodes:
        edit = first.removed(node)
        trace = model.trace(encoded, sites, edits=[edit], batch_size=len(encoded))
        values = second.through(of_trace(trace, sae))
        rows += [
            (
                "edge", second.site, _or_missing(to), first.site, _or_missing(node),
                f"{_name(first, node)} → {_name(second, to)}", value,
            )
            for to, value in zip(second.nodes, values, strict=True)
        ]  # fmt: skip
    return rows


def _or_missing(node: int) -> int | None:
    return None if node == _ERROR else node


def _name(level: Level, node: int) -> str:
    return f"{level.site} {'error' if node == _ERROR else node}"
