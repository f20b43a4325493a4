"""Figures and results as HTML that needs no network.

plotly.js is 4.8 MB. A saved page carries it once. A notebook must not carry it in every cell, nor
in the cell that happened to run first (run that one again and the saved notebook is blank), so
`notebook_outputs` gives the figure as plotly's own notebook format, which JupyterLab and VS Code
draw with the plotly.js they have. plotly's default notebook output is not used: it loads MathJax
from another host.
"""

import html
import json
from typing import Any

import plotly.graph_objects as go

from probe.core.provenance import Provenance
from probe.core.result import Result
from probe.viz import theme
from probe.viz.figures import draw
from probe.viz.tokens import visible

CONFIG: dict[str, Any] = {"displaylogo": False, "responsive": True, "typesetMath": False}
"""How figures behave: no logo, no formulas (a token ``$x$`` is no formula)."""

PLOTLY_MIME = "application/vnd.plotly.v1+json"
_HEAD_ROWS = 10


def figure_html(figure: go.Figure, *, library: bool = True) -> str:
    """A figure as a page fragment.

    Args:
        figure: What to show.
        library: Whether to carry plotly.js (4.8 MB). Without it the page must already have it:
            give it to the first figure of a page.
    """
    return figure.to_html(
        full_html=False, include_plotlyjs=library, include_mathjax=False, config=CONFIG
    )


def result_html(result: Result, *, library: bool = True) -> str:
    """Figure, head of the table and provenance as a page fragment; all text is escaped."""
    figure = "" if result.view.kind == "table" else figure_html(draw(result), library=library)
    return f'<div style="{theme.RESULT_CSS}">{figure}{table_html(result)}</div>'


def page(result: Result) -> str:
    """A whole page to save: opens in any browser with no network."""
    title = html.escape(visible(result.view.title or result.provenance.method))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f"<title>{title}</title></head><body>{result_html(result)}</body></html>"
    )


def notebook_outputs(result: Result) -> list[dict[str, Any]]:
    """What a notebook cell displays, as MIME bundles: the figure, then table and provenance.

    Each is for ``IPython.display.display(bundle, raw=True)``.
    """
    below = {"text/html": table_html(result), "text/plain": repr(result)}
    if result.view.kind == "table":
        return [below]
    figure = json.loads(draw(result).to_json() or "{}") | {"config": CONFIG}
    return [{PLOTLY_MIME: figure, "text/plain": repr(result)}, below]


def table_html(result: Result) -> str:
    """The first rows, each column's meaning shown on its name, and how the numbers came to be."""
    frame = result.frame
    rows = theme.MAX_TABLE_ROWS if result.view.kind == "table" else _HEAD_ROWS
    names = "".join(
        f'<th style="{theme.CELL_CSS}" title="{_text(result.columns[str(name)], None)}">'
        f"{_text(name)}</th>"
        for name in frame.columns
    )
    body = "".join(
        f"<tr>{''.join(_cell(value) for value in row)}</tr>"
        for row in frame.head(rows).itertuples(index=False, name=None)
    )
    more = f"{min(rows, len(frame))} of {len(frame)} rows"
    return (
        f'<table style="{theme.TABLE_CSS}"><thead><tr>{names}</tr></thead>'
        f'<tbody>{body}</tbody></table><div style="{theme.NOTE_CSS}">{more}</div>'
        f'<div style="{theme.NOTE_CSS}">{provenance_line(result.provenance)}</div>'
    )


def provenance_line(provenance: Provenance) -> str:
    """Method, model, prompts, options, versions and notes in one escaped line."""
    model, task = provenance.model, provenance.task
    parts = [
        provenance.method,
        str(model.get("name", "")),
        str(task.get("name", "")),
        ", ".join(f"{name}={value}" for name, value in provenance.passed.items()),
        f"seed {provenance.seed}" if provenance.seed is not None else "",
        f"{provenance.dtype} on {provenance.device}" if provenance.device else "",
        f"{provenance.wall_seconds:.1f} s" if provenance.wall_seconds else "",
        f"run {provenance.run_id}",
        *provenance.notes,
    ]
    return " · ".join(_text(part, 4 * theme.HOVER_LETTERS) for part in parts if part)


def _cell(value: object) -> str:
    shown = theme.number(value) if isinstance(value, float) else _text(value, theme.TABLE_LETTERS)
    return f'<td style="{theme.CELL_CSS}"><bdi>{shown}</bdi></td>'


def _text(value: object, longest: int | None = theme.HOVER_LETTERS) -> str:
    text = str(value)
    return html.escape(visible(text, len(text) if longest is None else longest))
