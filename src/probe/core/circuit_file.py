"""Circuits as JSON, in the graph format of EAP-IG and the MIB benchmark.

``cfg`` (n_layers, n_heads, parallel_attn_mlp, d_model), ``nodes`` (name → in_graph) and ``edges``
(name → score, in_graph), every edge of the graph listed. There each query head has a key and a
value of its own, so an edge to a key that a group of heads shares is listed once for each of them,
with the same score and the same verdict; ``n_kv_heads`` is added to ``cfg`` to tell. Scores are
written with all their digits: a circuit that is read back is equal to the bit.
"""

import json
import os
from pathlib import Path
from typing import Any

import torch

from probe.core.circuit import Circuit
from probe.core.errors import OptionError
from probe.core.graph import Graph, Receiver


def write(circuit: Circuit, path: Path) -> Path:
    """Write a circuit; the file appears whole or not at all."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_text(json.dumps(as_dict(circuit)), "utf-8")
    part.replace(path)
    return path


def read(path: Path) -> Circuit:
    """Read a circuit, and say what is wrong with a file that is none."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise OptionError(
            f"there is no circuit to read at {path}: {error.strerror}",
            remedy="circuit.to_json(path) writes one",
        ) from None
    except ValueError as error:
        raise OptionError(
            f"{path} is not JSON: {error}", expected="a graph as EAP-IG writes it"
        ) from None
    try:
        return from_dict(dict(content))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise OptionError(
            f"{path} is no circuit: {type(error).__name__} {error}",
            expected="cfg with n_layers, n_heads, parallel_attn_mlp and d_model; nodes; edges with "
            "score and in_graph",
        ) from None


def as_dict(circuit: Circuit) -> dict[str, Any]:
    """The content of the file."""
    graph = circuit.graph
    inside = {*circuit.nodes, "logits"}
    edges = {}
    for sender, place in graph.edges.nonzero().tolist():
        entry = {
            "score": float(circuit.scores[sender, place]),
            "in_graph": bool(circuit.kept[sender, place]),
        }
        for name in _spelt(graph.receivers[place]):
            edges[f"{graph.senders[sender]}->{name}"] = entry
    return {
        "cfg": {
            "n_layers": graph.n_layers,
            "n_heads": graph.n_heads,
            "n_kv_heads": graph.n_kv_heads,
            "parallel_attn_mlp": graph.parallel,
            "d_model": graph.d_model,
        },
        "nodes": {name: {"in_graph": name in inside} for name in (*graph.senders, "logits")},
        "edges": edges,
    }


def from_dict(content: dict[str, Any]) -> Circuit:
    """The circuit of a file's content."""
    cfg = content["cfg"]
    graph = Graph(
        int(cfg["n_layers"]), int(cfg["n_heads"]), int(cfg.get("n_kv_heads", cfg["n_heads"])),
        int(cfg["d_model"]), bool(cfg["parallel_attn_mlp"]),
    )  # fmt: skip
    if any("neurons" in node for node in content["nodes"].values()):
        raise OptionError(
            "this circuit leaves out single neurons of its nodes",
            expected="a circuit of whole nodes and edges",
        )
    kept = torch.zeros_like(graph.edges)
    scores = torch.zeros(kept.shape, dtype=torch.float64)
    listed = content["edges"]
    for sender, place in graph.edges.nonzero().tolist():
        names = [f"{graph.senders[sender]}->{name}" for name in _spelt(graph.receivers[place])]
        entries = [listed[name] for name in names if name in listed]
        if not entries:
            continue
        if any(entry != entries[0] for entry in entries) or len(entries) < len(names):
            raise OptionError(
                f"{' and '.join(names)} differ, but these heads share one "
                f"{graph.receivers[place].kind}",
                expected="the same score and in_graph for each, or cfg without n_kv_heads",
            )
        scores[sender, place] = entries[0]["score"]
        kept[sender, place] = entries[0]["in_graph"]
    made = Circuit(graph, kept, scores)
    unknown = set(listed) - set(as_dict(made)["edges"])
    if unknown:
        raise OptionError(
            f"{len(unknown)} edges of a graph that this is not, such as {min(unknown)}",
            expected=f"edges of {graph}",
        )
    return made


def _spelt(receiver: Receiver) -> list[str]:
    """The names under which the format knows a receiver."""
    if receiver.head is None:
        return [receiver.name]
    return [f"{node}<{receiver.kind}>" for node in receiver.feeds]
