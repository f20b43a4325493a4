"""Saved pages need nothing but themselves, and no text of a model becomes markup."""

import json
import re
from html.parser import HTMLParser

import pytest
from results import HOSTILE, grid, one_of_each, result_of, with_tokens

from probe.viz.figures import draw
from probe.viz.html import (
    PLOTLY_MIME,
    figure_html,
    notebook_outputs,
    page,
    provenance_line,
    result_html,
    table_html,
)
from probe.viz.tokens import visible

EACH = one_of_each()
LIBRARY = 4_000_000


class Reader(HTMLParser):
    """Tags with their attributes, and the text of table cells."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.cells: list[str] = []
        self._in_cell = False

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "td":
            self.cells.append("")
        self._in_cell = tag in ("td", "bdi")

    def handle_endtag(self, tag: str) -> None:
        self._in_cell = False

    def handle_data(self, data: str) -> None:
        if self._in_cell:
            self.cells[-1] += data


def read(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    return reader


@pytest.mark.parametrize("name", EACH)
def test_a_page_asks_for_nothing_from_elsewhere(name: str) -> None:
    reader = read(page(EACH[name]))
    for tag, attributes in reader.tags:
        assert not {"src", "href"} & set(attributes), (tag, attributes)
    expected = {"html", "head", "meta", "title", "body", "div", "table", "thead", "tbody", "tr",
                "th", "td", "bdi", "script"}  # fmt: skip
    assert {tag for tag, _ in reader.tags} <= expected


def test_the_library_is_carried_once_or_not_at_all() -> None:
    figure = draw(EACH["bar"])
    assert LIBRARY < len(figure_html(figure)) < 2 * LIBRARY
    assert len(figure_html(figure, library=False)) < 50_000
    assert len(result_html(EACH["bar"], library=False)) < 60_000
    assert '"typesetMath": false' in figure_html(figure, library=False)


def test_scripts_hold_no_text_that_ends_them() -> None:
    text = result_html(EACH["heatmap"], library=False)
    assert "alert(1)" in text
    assert "<script>alert" not in text
    assert len(re.findall("<script", text)) == len(re.findall("</script>", text))


def test_the_table_shows_every_token_as_it_is() -> None:
    frame = with_tokens(grid(pos=len(HOSTILE) - 1))
    reader = read(table_html(result_of(frame, kind="bar", x="pos")))
    assert reader.cells[2::3] == [visible(token, 60) for token in HOSTILE[:-1]]


def test_column_names_explain_themselves() -> None:
    heads = [a for tag, a in read(table_html(EACH["bar"])).tags if tag == "th"]
    assert [a["title"] for a in heads] == [f"what {c} means" for c in EACH["bar"].frame.columns]


def test_provenance_is_said_and_escaped() -> None:
    said = provenance_line(EACH["bar"].provenance)
    assert "&lt;i&gt;model&lt;/i&gt;" in said
    assert "kind=&lt;z&gt;" in said
    assert "run 20260101-000000-abcdef" in said
    assert "<" not in said


def test_a_notebook_gets_figure_and_table_without_the_library() -> None:
    figure, table = notebook_outputs(EACH["heatmap"])
    assert figure[PLOTLY_MIME]["config"]["typesetMath"] is False
    drawn = json.loads(draw(EACH["heatmap"]).to_json())
    assert figure[PLOTLY_MIME]["data"] == drawn["data"]
    assert "<table" in table["text/html"]
    assert len(json.dumps([figure, table])) < 100_000


def test_a_table_view_is_shown_as_one_table() -> None:
    outputs = notebook_outputs(EACH["table"])
    assert len(outputs) == 1
    assert len(read(outputs[0]["text/html"]).cells) == EACH["table"].frame.size
    assert "plotly" not in result_html(EACH["table"])
