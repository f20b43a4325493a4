"""Who sends to whom: nodes in layers, from the input at the bottom to the logits at the top."""

import re
from collections.abc import Hashable, Mapping, Sequence

import networkx as nx
import numpy as np
import pandas as pd
import plotly.graph_objects as go

from probe.core.errors import OptionError
from probe.core.result import Result
from probe.viz import theme
from probe.viz.canvas import finish, sheet
from probe.viz.sketch import panels
from probe.viz.tokens import label

_BLOCK = re.compile(r"a(?P<attn>\d+)\.h(?P<head>\d+)|m(?P<mlp>\d+)|input|logits")

Spots = dict[Hashable, tuple[float, float]]
"""Node → where it stands."""


def graph(result: Result) -> go.Figure:
    """The strongest edges: wider for larger, blue above zero and orange below.

    ``x`` sends, ``y`` receives; ``text``, where given, names the nodes that ``y`` is an input of.
    Where the table says which edges are ``kept``, only those are drawn.
    """
    view = result.view
    (panel,) = panels(result, [view.x, view.y, *([view.text] if view.text else [])])
    cells, note = _strongest(result, panel.cells)
    net = _network(result, cells)
    spots = _spots(net)
    rows = 1 + max(height for _, height in spots.values()) if spots else 0
    figure = sheet([panel], round(max(theme.GRAPH_HEIGHT, theme.GRAPH_ROW * rows)))
    for trace in _edges(net, spots):
        figure.add_trace(trace)
    figure.add_trace(_nodes(net, spots))
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False)
    figure.update_layout(showlegend=False)
    return finish(figure, result, note=note)


def _strongest(result: Result, cells: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    number, total = result.view.number, len(cells)
    if "kept" in result.frame:
        kept = result.frame.loc[result.frame["kept"].astype(bool), [result.view.x, result.view.y]]
        cells = cells.merge(kept.drop_duplicates())
    best = cells.loc[cells[number].abs().sort_values(ascending=False).index[: theme.MAX_EDGES]]
    best = best[best[number] != 0] if "kept" not in result.frame else best
    left_out = f"the {len(best)} strongest of {total} edges" if len(best) < total else ""
    return best, left_out


def _network(result: Result, cells: pd.DataFrame) -> nx.DiGraph:
    view, net = result.view, nx.DiGraph()
    senders = set(cells[view.x])
    for row in cells.to_dict("records"):
        named = str(row[view.text]).split() if view.text else [str(row[view.y])]
        # An input shared by several nodes is drawn to those of them that are in the picture.
        for node in [name for name in named if name in senders] or named[:1]:
            known = net.get_edge_data(row[view.x], node, default={"parts": []})["parts"]
            part = (row[view.y], float(row[view.number]))
            net.add_edge(row[view.x], node, parts=[*known, part])
    if not nx.is_directed_acyclic_graph(net):
        raise OptionError("these edges run in a circle", expected="a graph that has a direction")
    return net


def _spots(net: nx.DiGraph) -> Spots:
    """Where every node stands: heads and MLPs at their own place, others level by level."""
    found = {node: _BLOCK.fullmatch(str(node)) for node in net}
    matches = {node: match for node, match in found.items() if match}
    return _by_head(matches) if len(matches) == len(found) else _by_level(net)


def _by_head(nodes: Mapping[Hashable, re.Match[str]]) -> Spots:
    """A row a layer that is there, a column a head; MLPs have the last column, half a row up."""
    layer = {node: int(m["attn"] or m["mlp"]) for node, m in nodes.items() if m["attn"] or m["mlp"]}
    rows = {number: row for row, number in enumerate(sorted(set(layer.values())), 1)}
    last = max((int(match["head"]) for match in nodes.values() if match["head"]), default=-1) + 1.0
    ends = {"input": (last / 2, 0.0), "logits": (last / 2, len(rows) + 1.5)}
    return {
        node: ends[str(node)]
        if node not in layer
        else (float(match["head"]), float(rows[layer[node]]))
        if match["head"]
        else (last, rows[layer[node]] + 0.5)
        for node, match in nodes.items()
    }


def _by_level(net: nx.DiGraph) -> Spots:
    """By the longest way from a first node; each level centred, ordered by its senders' places."""
    spots: Spots = {}
    for height, level in enumerate(nx.topological_generations(net)):
        nodes = sorted(level, key=lambda node: (_pull(net, node, spots), str(node)))
        width = (len(nodes) - 1) / 2
        spots |= {node: (place - width, float(height)) for place, node in enumerate(nodes)}
    return spots


def _pull(net: nx.DiGraph, node: Hashable, spots: Spots) -> float:
    placed = [spots[sender][0] for sender in net.predecessors(node) if sender in spots]
    return float(np.mean(placed)) if placed else 0.0


def _edges(net: nx.DiGraph, spots: Spots) -> Sequence[go.Scatter]:
    sizes = {(s, r): max((v for _, v in d["parts"]), key=abs) for s, r, d in net.edges(data=True)}
    largest = max((abs(size) for size in sizes.values()), default=1.0) or 1.0
    made = []
    for sender, receiver, data in net.edges(data=True):
        (x0, y0), (x1, y1), size = spots[sender], spots[receiver], sizes[sender, receiver]
        lines = [
            f"{label(sender)} → {label(part)} {theme.number(v, sign=True)}"
            for part, v in data["parts"]
        ]
        share = abs(size) / largest
        made.append(
            go.Scatter(
                # Three points, so that the edge can be pointed at in its middle. One that stays
                # in its column bows out of it, the more the longer it is.
                x=[x0, (x0 + x1) / 2 + (x0 == x1) * theme.EDGE_BOW * (y1 - y0), x1],
                y=[y0, (y0 + y1) / 2, y1],
                mode="lines",
                line={
                    "shape": "spline",
                    "color": theme.POSITIVE if size >= 0 else theme.NEGATIVE,
                    "width": theme.EDGE_WIDTHS[0] + share * np.ptp(theme.EDGE_WIDTHS),
                },
                opacity=theme.POINT_OPACITY,
                hovertext="<br>".join(lines),
                hoverinfo="text",
            )
        )
    return made


def _nodes(net: nx.DiGraph, spots: Spots) -> go.Scatter:
    names = list(spots)
    return go.Scatter(
        x=[spots[name][0] for name in names],
        y=[spots[name][1] for name in names],
        mode="markers+text",
        text=[label(name, theme.TICK_LETTERS) for name in names],
        textposition="middle center",
        customdata=[label(name) for name in names],
        marker={
            "size": theme.NODE_SIZE,
            "color": theme.PAPER,
            "line": {"color": theme.FAINT, "width": 1},
            "symbol": "square",
        },
        hovertext=[f"{label(n)}: {net.in_degree(n)} in, {net.out_degree(n)} out" for n in names],
        hoverinfo="text",
    )
