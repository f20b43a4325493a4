"""A circuit on one prompt pair: chosen by size, changed node by node, drawn with its edges."""

from dataclasses import dataclass
from typing import Any

import probe
from apps.context import Context

RANKINGS = {
    "eap": "EAP: one gradient",
    "eap_ig": "EAP-IG: gradients between the runs",
    "information_flow": "information flow: no counterfactual",
}
"""What ranks the edges → what the reader chooses."""

SIZES = ("0.001", "0.002", "0.005", "0.01", "0.02", "0.05", "0.1", "0.2", "0.5", "1")
"""Shares of all edges offered: those of the MIB benchmark."""

_KEPT = "whether the edge is in the circuit"


@dataclass(frozen=True)
class Choice:
    """A circuit as the reader chose it.

    Attributes:
        ranking: What ranks the edges.
        size: Share of all edges.
        added: Nodes put in by hand.
        removed: Nodes taken out by hand.
    """

    ranking: str
    size: str
    added: tuple[str, ...]
    removed: tuple[str, ...]

    @classmethod
    def read(cls, here: Context) -> "Choice":
        """The choice in the state; what this model does not have is left out."""
        state, known = here.state, probe.Graph.of(here.model.dims).senders[1:]
        return cls(
            state.ranking if state.ranking in RANKINGS else "eap",
            state.size if state.size in SIZES else "0.02",
            tuple(name for name in state.added.split() if name in known),
            tuple(name for name in state.removed.split() if name in known),
        )

    def apply(self, ranked: probe.Circuit) -> probe.Circuit:
        """The circuit: grown back from the logits, then changed by hand."""
        return ranked.greedy(float(self.size)).adding(*self.added).without(*self.removed)

    @property
    def code(self) -> str:
        """What ``apply`` does, as code that follows the ranking's."""
        lines = [
            "circuit = probe.Circuit.from_frame(model, result.frame)",
            f"circuit = circuit.greedy({float(self.size)!r})",
        ]
        if self.added:
            lines.append(f"circuit = circuit.adding{_names(self.added)}")
        if self.removed:
            lines.append(f"circuit = circuit.without{_names(self.removed)}")
        judge = "probe.run('faithfulness', model=model, task=task, edges=circuit.edges)"
        return "\n".join([*lines, f"{judge}.summary()"])


def _names(nodes: tuple[str, ...]) -> str:
    return f"({', '.join(map(repr, nodes))})"


def drawn(ranked: probe.Result, circuit: probe.Circuit) -> probe.Result:
    """The ranking's table with the circuit's edges marked, which the figure draws alone."""
    kept = set(circuit.edges)
    names = ranked.frame["sender"] + "->" + ranked.frame["receiver"]
    frame = ranked.frame.assign(kept=names.isin(kept))
    return probe.Result(frame, {**ranked.columns, "kept": _KEPT}, ranked.view, ranked.provenance)


def picked(selection: Any) -> str | None:
    """The node that was clicked in the figure, if one was."""
    for point in selection.get("points", []):
        name = point.get("customdata")
        if name:
            return str(name[0] if isinstance(name, list) else name)
    return None


def head_of(node: str) -> tuple[int, int] | None:
    """Layer and head of a node that is a head.

    >>> head_of("a5.h3"), head_of("m5")
    ((5, 3), None)
    """
    if not node.startswith("a"):
        return None
    layer, head = node[1:].split(".h")
    return int(layer), int(head)
