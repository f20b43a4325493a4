"""Means and intervals of a Result, against numbers by hand and another bootstrap."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from probe.core.errors import OptionError, ProbeError
from probe.core.provenance import Provenance
from probe.core.result import Result, View


def result_of(frame: pd.DataFrame, **view) -> Result:
    record = Provenance(
        run_id="r", started="", method="made_up", passed={}, defaulted={}, model={"name": "none"}
    )
    columns = {str(name): "what it means" for name in frame.columns}
    return Result(frame, columns, View(**view), record)


def draws(n: int, cells: int, seed: int = 0, mean: float = 2.0) -> pd.DataFrame:
    values = np.random.default_rng(seed).normal(mean, 1.0, (n, cells))
    batch, layer = np.mgrid[:n, :cells]
    return pd.DataFrame({"batch": batch.ravel(), "layer": layer.ravel(), "value": values.ravel()})


LINE = {"kind": "line", "x": "layer"}


def test_means_by_hand() -> None:
    frame = pd.DataFrame(
        {
            "batch": [0, 0, 1, 1, 2, 2],
            "layer": [0, 1, 0, 1, 0, 1],
            "head": [7, 7, 7, 7, 7, 7],
            "value": [1.0, 2.0, 3.0, 4.0, 8.0, 0.0],
        }
    )
    summary = result_of(frame, **LINE).summary()
    assert summary["layer"].tolist() == [0, 1]
    assert summary["value"].tolist() == [4.0, 2.0]
    assert summary["n"].tolist() == [3, 3]
    assert (summary["low"] <= summary["value"]).all()
    assert (summary["low"] >= [1.0, 0.0]).all()
    assert (summary["high"] <= [8.0, 4.0]).all()


def test_rows_of_one_example_are_averaged_before_examples_are() -> None:
    frame = pd.DataFrame(
        {"batch": [0, 0, 0, 1], "layer": [0, 0, 0, 0], "head": [0, 1, 2, 0],
         "value": [1.0, 2.0, 3.0, 10.0]}
    )  # fmt: skip
    summary = result_of(frame, **LINE).summary()
    assert summary["value"].tolist() == [6.0], "not 4, the mean over rows"
    assert summary["n"].tolist() == [2]


def test_missing_numbers_are_left_out() -> None:
    frame = pd.DataFrame(
        {"batch": [0, 0, 1, 1, 2, 2], "layer": [0, 1] * 3, "value": [1.0, 5.0, 3.0, np.nan, 2.0, 7]}
    )
    summary = result_of(frame, **LINE).summary()
    assert summary["value"].tolist() == [2.0, 6.0]
    assert summary["n"].tolist() == [3, 2]


def test_one_example_has_no_interval() -> None:
    summary = result_of(draws(1, 3), **LINE).summary()
    assert summary[["low", "high"]].isna().all(axis=None)


def test_a_cell_with_one_example_has_no_interval() -> None:
    frame = pd.DataFrame(
        {"batch": [0, 0, 1, 1], "layer": [0, 1, 0, 1], "value": [1.0, np.nan, 3.0, 4.0]}
    )
    summary = result_of(frame, **LINE).summary()
    assert summary["n"].tolist() == [2, 1]
    assert summary["low"].isna().tolist() == [False, True]


def test_without_examples_rows_stay_as_they_are() -> None:
    frame = pd.DataFrame({"layer": [2, 0], "value": [1.0, 5.0]})
    summary = result_of(frame, **LINE).summary()
    assert summary["value"].tolist() == [1.0, 5.0]
    assert summary["n"].tolist() == [1, 1]
    assert summary[["low", "high"]].isna().all(axis=None)


def test_intervals_cover_the_true_mean_about_as_often_as_they_say() -> None:
    # A 90 % interval would cover 0.88 here, one without the square root of n all of them.
    summary = result_of(draws(40, 1500), **LINE).summary()
    covered = ((summary["low"] < 2.0) & (summary["high"] > 2.0)).mean()
    assert 0.915 < covered < 0.965
    missed_low, missed_high = (summary["low"] > 2.0).mean(), (summary["high"] < 2.0).mean()
    assert abs(missed_low - missed_high) < 0.025, "one side is missed more often"


def test_the_interval_is_that_of_another_bootstrap() -> None:
    frame = draws(25, 1, seed=3)
    own = result_of(frame, **LINE).summary(n_boot=20_000).iloc[0]
    other = stats.bootstrap(
        (frame["value"].to_numpy(),), np.mean, method="percentile", n_resamples=20_000,
        rng=np.random.default_rng(1),
    ).confidence_interval  # fmt: skip
    error = frame["value"].std() / 5
    assert own["low"] == pytest.approx(other.low, abs=0.06 * error)
    assert own["high"] == pytest.approx(other.high, abs=0.06 * error)


def test_many_cells_are_treated_like_few() -> None:
    """Cells are worked through in blocks; a cell's interval may not depend on its block."""
    frame = draws(6, 4100)
    alone = result_of(frame[frame["layer"] == 4050], **LINE).summary()
    among = result_of(frame, **LINE).summary().query("layer == 4050")
    np.testing.assert_allclose(among.to_numpy(float), alone.to_numpy(float))


def test_seed_decides_the_interval() -> None:
    result = result_of(draws(9, 2), **LINE)
    pd.testing.assert_frame_equal(result.summary(seed=1), result.summary(seed=1))
    assert (result.summary(seed=1)["low"] != result.summary(seed=2)["low"]).any()


def test_other_columns_can_be_kept_apart() -> None:
    frame = draws(4, 6).assign(head=lambda f: f["layer"] % 2, layer=lambda f: f["layer"] // 2)
    result = result_of(frame, kind="heatmap", x="head", y="layer", color="value")
    assert len(result.summary()) == 6
    by_batch = result.summary(["batch", "layer", "head"])
    merged = by_batch.merge(frame, on=["batch", "layer", "head"])
    assert len(merged) == 24
    assert (merged["value_x"] == merged["value_y"]).all()


def test_the_overall_mean() -> None:
    frame = draws(5, 3)
    summary = result_of(frame, **LINE).summary([])
    assert len(summary) == 1
    assert summary["value"].iloc[0] == pytest.approx(frame["value"].mean())


def test_rows_without_an_axis_value_are_kept() -> None:
    frame = pd.DataFrame(
        {"batch": [0, 0, 1, 1], "layer": [0.0, np.nan, 0.0, np.nan], "value": [1.0, 2, 3, 4]}
    )
    summary = result_of(frame, **LINE).summary()
    assert summary["value"].tolist() == [2.0, 3.0]


def test_an_unknown_column_is_named() -> None:
    with pytest.raises(OptionError, match=r"no column 'lair'\n.*did you mean \"layer\""):
        result_of(draws(2, 2), **LINE).summary(["lair"])


def test_a_column_without_a_description_is_refused() -> None:
    result = result_of(draws(2, 2), **LINE)
    with pytest.raises(ProbeError, match="columns without description \\['batch'\\]"):
        Result(result.frame, {"layer": "", "value": ""}, result.view, result.provenance)
    with pytest.raises(ProbeError, match="descriptions without column \\['head'\\]"):
        Result(result.frame, {**result.columns, "head": ""}, result.view, result.provenance)


@pytest.mark.parametrize(
    ("view", "number", "axes"),
    [
        (View(kind="heatmap", x="pos", y="layer", color="value"), "value", ["pos", "layer"]),
        (View(kind="wall", x="head", y="layer"), "value", ["head", "layer"]),
        (View(kind="line", x="layer", color="head"), "value", ["layer", "head"]),
        (View(kind="bar", x="component", y="share", facet="pos"), "share", ["component", "pos"]),
        (View(kind="tokens", x="pos"), "value", ["pos"]),
    ],
)
def test_views_know_their_number_and_axes(view: View, number: str, axes: list[str]) -> None:
    assert view.number == number
    assert view.axes == axes
