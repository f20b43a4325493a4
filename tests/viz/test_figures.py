"""What figures show: the numbers of `summary`, every token, and text as it is."""

import json
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import pytest
from results import HOSTILE, grid, one_of_each, result_of, text, with_tokens

from probe.core.errors import OptionError
from probe.viz import theme
from probe.viz.figures import KINDS, draw
from probe.viz.tokens import label, visible

EACH = one_of_each()
# Everything plotly would read as markup beside what the figures themselves write.
OWN = re.compile(r"<br>|</?b>|<extra></extra>")


def strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            if key not in ("bdata", "colorscale", "gridcolor", "family"):
                yield from strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from strings(inner)


def bold(said: str) -> bool:
    """Whether the bold of a string is the figure's own: around the whole of it."""
    return re.fullmatch(r"<b>[^<]*</b>", said) is not None


def test_there_is_one_of_each() -> None:
    assert {result.view.kind for result in EACH.values()} == set(KINDS)


@pytest.mark.parametrize("name", EACH)
def test_no_text_of_the_model_is_markup(name: str) -> None:
    figure = json.loads(draw(EACH[name]).to_json())
    for said in strings(figure):
        assert "$" not in said, f"a formula: {said!r}"
        assert "<" not in OWN.sub("", said), f"markup: {said!r}"
        assert "<b>" not in said or bold(said), f"bold: {said!r}"
        assert not re.search("[\u202e\ud800-\udfff\n]", said)


@pytest.mark.parametrize("name", EACH)
def test_drawing_leaves_the_table_as_it_was(name: str) -> None:
    result = EACH[name]
    before = result.frame.copy(deep=True)
    draw(result)
    assert before.equals(result.frame)


@pytest.mark.parametrize("name", EACH)
def test_the_title_says_what_is_drawn(name: str) -> None:
    result, title = EACH[name], draw(EACH[name]).layout.title
    assert title.text == label(result.view.title or "made_up")
    assert f"what {result.view.number} means" in title.subtitle.text


def test_a_heatmap_holds_the_means_in_their_cells() -> None:
    result = result_of(grid(batch=5, layer=3, pos=4), kind="heatmap", x="pos", y="layer")
    z = np.array(draw(result).data[0].z)
    assert z.shape == (3, 4)
    for row in result.summary().itertuples():
        assert z[row.layer, row.pos] == row.value


def test_equal_tokens_stay_two_ticks() -> None:
    axis = draw(EACH["heatmap"]).layout.xaxis
    assert list(axis.tickvals) == list(range(len(HOSTILE)))
    assert list(axis.ticktext) == [label(token, theme.TICK_LETTERS) for token in HOSTILE]
    assert axis.ticktext[3] == axis.ticktext[4] == "·a"


def test_positions_of_different_prompts_carry_no_token() -> None:
    frame = with_tokens(grid(batch=2, layer=2, pos=3), ["a", "b", "c"])
    frame.loc[frame["batch"] == 1, "token"] = "other"
    axis = draw(result_of(frame, kind="heatmap", x="pos", y="layer")).layout.xaxis
    assert list(axis.ticktext) == ["0", "1", "2"]


def test_a_cell_says_where_it_is_and_how_sure() -> None:
    result = result_of(grid(batch=5, layer=2, pos=2), kind="heatmap", x="pos", y="layer")
    said = draw(result).data[0].hovertext[1][0]
    row = result.summary().query("layer == 1 and pos == 0").iloc[0]
    number = theme.number
    assert said == (
        f"pos 0<br>layer 1<br>value {number(row.value, sign=True)} "
        f"[{number(row.low)}, {number(row.high)}], n=5"
    )


def test_text_on_which_examples_disagree_is_not_shown() -> None:
    frame = grid(batch=2, layer=2, pos=2)
    frame["top"] = text(["same" if p == 0 else str(i) for i, p in enumerate(frame["pos"])])
    shown = draw(result_of(frame, kind="heatmap", x="pos", y="layer", text="top")).data[0].text
    assert np.array(shown).tolist() == [["same", ""], ["same", ""]]


def test_layers_grow_upwards_and_queries_downwards() -> None:
    up = draw(result_of(grid(layer=3, head=2), kind="wall", x="head", y="layer"))
    down = draw(result_of(grid(query=3, key=3), kind="heatmap", x="key", y="query"))
    assert up.layout.yaxis.range == (-0.5, 2.5)
    assert down.layout.yaxis.range == (2.5, -0.5)


def test_axis_words_explain_themselves() -> None:
    words = {note.text: note.hovertext for note in draw(EACH["heatmap"]).layout.annotations}
    assert words == {"<b>pos</b>": "what pos means", "<b>layer</b>": "what layer means"}


def test_a_signed_scale_is_symmetric_and_says_where_it_ends() -> None:
    frame = grid(layer=20, pos=50).assign(value=lambda f: f.index * 1.0 - 100)
    axis = draw(result_of(frame, kind="heatmap", x="pos", y="layer")).layout.coloraxis
    end = np.quantile(np.abs(frame["value"]), 0.995)
    assert axis.cmax == -axis.cmin == pytest.approx(end)
    words = axis.colorbar.title.text
    assert words == f"value · colours end at ±{theme.number(end)}, the 99.5th percentile"
    middle = dict(axis.colorscale)[0.5]
    assert middle == "rgb(255,255,255)"


def test_panels_share_one_scale_and_one_legend() -> None:
    wall = draw(EACH["wall"])
    assert len(wall.data) == 2
    assert {trace.coloraxis for trace in wall.data} == {"coloraxis"}
    frame = grid(batch=3, layer=4, kind=2, pos=3)
    lines = draw(result_of(frame, kind="line", x="layer", color="kind", facet="pos"))
    named = [trace.name for trace in lines.data if trace.showlegend]
    assert named == ["0", "1"]


def test_a_line_and_its_band() -> None:
    result = result_of(grid(batch=6, layer=4), kind="line", x="layer")
    band, line = draw(result).data
    summary = result.summary()
    assert np.array_equal(line.y, summary["value"])
    assert np.array_equal(band.y, [*summary["high"], *summary["low"][::-1]])
    assert np.array_equal(band.x, [0, 1, 2, 3, 3, 2, 1, 0])


def test_lines_run_along_the_axis_whatever_the_order_of_rows() -> None:
    result = result_of(grid(layer=6).sample(frac=1, random_state=1), kind="line", x="layer")
    (line,) = draw(result).data
    assert np.array_equal(line.x, range(6))
    assert np.array_equal(line.y, result.frame.sort_values("layer")["value"])


def test_bars_and_their_intervals() -> None:
    result = result_of(grid(batch=6, layer=4), kind="bar", x="layer")
    (bars,) = draw(result).data
    summary = result.summary()
    assert np.array_equal(bars.y, summary["value"])
    np.testing.assert_allclose(bars.y + bars.error_y.array, summary["high"])
    np.testing.assert_allclose(bars.y - bars.error_y.arrayminus, summary["low"])
    by_sign = [theme.POSITIVE if value > 0 else theme.NEGATIVE for value in summary["value"]]
    assert list(bars.marker.color) == by_sign


def test_no_interval_is_drawn_where_there_is_none() -> None:
    (bars,) = draw(result_of(grid(layer=4), kind="bar", x="layer")).data
    assert bars.error_y.array is None
    (line,) = draw(result_of(grid(layer=4), kind="line", x="layer")).data
    assert line.mode == "lines+markers"


def test_points_are_rows() -> None:
    result = EACH["scatter"]
    traces = draw(result).data
    assert sum(len(trace.x) for trace in traces) == len(result.frame)
    second = result.frame[result.frame["head"] == 1]
    assert np.array_equal(traces[1].x, second["other"])
    assert np.array_equal(traces[1].y, second["value"])


def test_tokens_are_laid_out_in_lines_one_panel_a_prompt() -> None:
    figure = draw(EACH["tokens"])
    assert len(figure.data) == 2
    words = np.array(figure.data[1].text).ravel()[:15]
    assert words.tolist() == [
        label(HOSTILE[p % len(HOSTILE)], theme.TICK_LETTERS) for p in range(15)
    ]
    own = EACH["tokens"].frame.query("batch == 1")["value"]
    assert np.array_equal(np.array(figure.data[1].z).ravel()[:15], own)


def test_every_head_map_stands_in_its_place() -> None:
    result = EACH["maps"]
    figure = draw(result)
    assert "mean over 2 examples" in figure.layout.title.subtitle.text
    image, addresses = np.array(figure.data[0].z), np.array(figure.data[0].customdata)
    cells = result.summary(["layer", "head", "query", "key"])
    assert np.isfinite(image).sum() == len(cells)
    for cell in cells.itertuples():
        row, column = cell.layer * 5 + cell.query, cell.head * 5 + cell.key
        assert image[row, column] == np.float32(cell.value)
        assert addresses[row, column].tolist() == [cell.layer, cell.head, cell.query, cell.key]


def test_a_table_shows_numbers_and_visible_text() -> None:
    cells = draw(EACH["table"]).data[0].cells.values
    frame = EACH["table"].frame
    assert list(cells[frame.columns.get_loc("value")]) == [theme.number(v) for v in frame["value"]]
    assert list(cells[frame.columns.get_loc("token")]) == [label(t) for t in frame["token"]]


def test_what_is_left_out_is_said() -> None:
    many = draw(result_of(grid(head=30, layer=2, pos=2), kind="heatmap", x="pos", y="layer",
                          facet="head"))  # fmt: skip
    assert len(many.data) == theme.MAX_PANELS
    assert "the first 24 of 30 panels" in many.layout.title.subtitle.text
    long = draw(result_of(grid(layer=300), kind="table", x="layer"))
    assert "the first 200 of 300 rows" in long.layout.title.subtitle.text
    frame = grid(layer=3, pos=2).astype({"layer": float})
    frame.loc[0, "layer"] = np.nan
    some = draw(result_of(frame, kind="heatmap", x="pos", y="layer"))
    assert "1 rows without a layer are not drawn" in some.layout.title.subtitle.text


@pytest.mark.parametrize(
    ("frame", "view", "said"),
    [
        (grid(layer=2, head=2), {"kind": "line", "x": "layer"}, "name one of ['head', 'value']"),
        (grid(layer=2).head(0), {"kind": "bar", "x": "layer"}, "no rows"),
        (grid(layer=2).head(0), {"kind": "scatter", "x": "layer"}, "no rows"),
        (grid(layer=2), {"kind": "bar", "x": "lair"}, "['lair']"),
        (grid(layer=2), {"kind": "scatter", "x": "lair"}, "['lair']"),
        (grid(layer=501, pos=500), {"kind": "heatmap", "x": "pos", "y": "layer"}, "250,500 cells"),
    ],
)
def test_what_cannot_be_drawn_is_refused(frame: Any, view: dict, said: str) -> None:
    with pytest.raises(OptionError) as raised:
        draw(result_of(frame, **view))
    assert said in str(raised.value)


def test_visible_is_what_labels_show() -> None:
    assert [visible(token) for token in HOSTILE[:10]] == [
        "<b>x</b>", "$x$", "↵", "·a", "·a", "‹202E›abc", "&lt;", "%{x}", "∅", "‹D800›",
    ]  # fmt: skip


def test_a_circuit_has_a_column_a_head_and_a_place_for_every_node() -> None:
    edges = [
        ("input", "a0.h1"), ("input", "m0"), ("a0.h1", "m0"), ("m0", "a4.h1"), ("m0", "m4"),
        ("a0.h1", "a4.h1"), ("a4.h1", "logits"), ("m4", "logits"),
    ]  # fmt: skip
    frame = pd.DataFrame(edges, columns=["sender", "receiver"]).assign(value=1.0)
    figure = draw(result_of(frame, kind="graph", x="sender", y="receiver", color="value"))
    drawn = figure.data[-1]
    at = dict(zip(drawn.customdata, zip(drawn.x, drawn.y, strict=True), strict=True))
    assert len(set(at.values())) == len(at) == 6
    assert at["a0.h1"][0] == at["a4.h1"][0] == 1
    assert at["m0"][0] == at["m4"][0] > 1
    assert sorted(at, key=lambda node: at[node][1]) == [
        "input", "a0.h1", "m0", "a4.h1", "m4", "logits",
    ]  # fmt: skip
    inside = [line for line in figure.data[:-1] if line.x[0] == line.x[2]]
    assert inside and all(line.x[1] > line.x[0] for line in inside)
