"""Made-up results, one of each kind of view."""

from typing import Any

import numpy as np
import pandas as pd

from probe.core.provenance import Provenance
from probe.core.result import Result, View

HOSTILE = ["<b>x</b>", "$x$", "\n", " a", " a", "\u202eabc", "&lt;", "%{x}", "", "\ud800",
           "</script><script>alert(1)</script>"]  # fmt: skip


def text(values: list[str]) -> pd.Series:
    """A column that may hold lone surrogates, which pandas' own text type cannot."""
    return pd.Series(values, dtype=object)


def result_of(frame: pd.DataFrame, **view: Any) -> Result:
    record = Provenance(
        run_id="20260101-000000-abcdef", started="2026-01-01T00:00:00+00:00", method="made_up",
        passed={"kind": "<z>"}, defaulted={}, model={"name": "<i>model</i>"}, task={"name": "ioi"},
    )  # fmt: skip
    columns = {str(name): f"what {name} means" for name in frame.columns}
    return Result(frame, columns, View(**view), record)


def grid(seed: int = 0, **sizes: int) -> pd.DataFrame:
    """One random number for each combination of these axes."""
    places = np.indices(list(sizes.values())).reshape(len(sizes), -1)
    frame = pd.DataFrame(dict(zip(sizes, places, strict=True)))
    return frame.assign(value=np.random.default_rng(seed).normal(size=len(frame)))


def with_tokens(frame: pd.DataFrame, words: list[str] = HOSTILE) -> pd.DataFrame:
    return frame.assign(token=text([words[p % len(words)] for p in frame["pos"]]))


def one_of_each() -> dict[str, Result]:
    lens = with_tokens(grid(batch=1, layer=3, pos=len(HOSTILE)))
    lens["top"] = text([HOSTILE[(p + n) % len(HOSTILE)] for n, p in enumerate(lens["pos"])])
    scores = grid(batch=4, layer=3, head=2, kind=2)
    scores["kind"] = np.where(scores["kind"] == 0, "<b>previous", "$induction$")
    words = [word for word in dict.fromkeys(HOSTILE) if word != "\ud800"]
    parts = grid(batch=5, part=len(words))
    parts = parts.assign(part=text([words[p] for p in parts["part"]]))
    line = grid(batch=6, layer=4, kind=2)
    line["kind"] = np.where(line["kind"] == 0, "<b>one", "$two$")
    points = grid(layer=5, head=3).assign(other=lambda f: f["value"] ** 2)
    points["name"] = text([HOSTILE[i % len(HOSTILE)] for i in range(len(points))])
    edges = pd.DataFrame(
        {"sender": text([*HOSTILE[:3], "a"]), "receiver": text(["end"] * 3 + ["b"])}
    )
    maps = grid(batch=2, layer=2, head=3, query=4, key=4).query("key <= query")
    return {
        "heatmap": result_of(lens, kind="heatmap", x="pos", y="layer", color="value", text="top",
                             title="<b>t</b> $x$"),
        "line": result_of(line, kind="line", x="layer", color="kind"),
        "bar": result_of(parts, kind="bar", x="part"),
        "scatter": result_of(points, kind="scatter", x="other", color="head", text="name"),
        "tokens": result_of(with_tokens(grid(batch=2, pos=15)), kind="tokens", x="pos",
                            text="token", scale="activation"),
        "table": result_of(lens, kind="table", x="pos"),
        "wall": result_of(scores, kind="wall", x="head", y="layer", color="value", facet="kind",
                          scale="attention"),
        "graph": result_of(edges.assign(value=[1.0, -2.0, 0.5, 3.0]), kind="graph", x="sender",
                           y="receiver", color="value"),
        "maps": result_of(maps, kind="wall", x="key", y="query", color="value", scale="attention"),
    }  # fmt: skip
