"""Where two runs differ, in what was asked and in what came out."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up import result_of

from probe.core.errors import RunError
from probe.runs import diff


def grid(seed: int = 0, n: int = 3, layers: int = 4) -> pd.DataFrame:
    batch, layer = np.mgrid[:n, :layers].reshape(2, -1)
    value = np.random.default_rng(seed).normal(size=n * layers)
    word = [f"w{i}" for i in range(n * layers)]
    return pd.DataFrame({"batch": batch, "layer": layer, "word": word, "value": value})


def test_equal_runs() -> None:
    found = diff(result_of(grid()), result_of(grid(), run_id="other", wall_seconds=9.0))
    assert found.same
    assert found.max_difference == 0.0
    assert found.where == ""
    assert found.fields.empty
    assert str(found).endswith("hold the same numbers")


@settings(max_examples=40)
@given(st.integers(0, 11), st.floats(1e-6, 1e6), st.randoms(use_true_random=False))
def test_one_changed_number_is_found_whatever_the_order_of_rows(row, size, random) -> None:
    changed = grid()
    changed.loc[row, "value"] += size
    where = f"batch {changed.batch[row]}, layer {changed.layer[row]}"
    gap = abs(changed.value[row] - grid().value[row])
    shuffled = changed.sample(frac=1, random_state=random.randint(0, 999))
    found = diff(result_of(grid()), result_of(shuffled))
    assert not found.same
    assert found.same_rows
    assert found.on == ("batch", "layer")
    assert found.max_difference == gap
    assert found.where == where
    numbers = found.numbers.set_index("column")
    assert numbers.loc["value", "changed"] == 1
    assert numbers.loc["word", "changed"] == 0


def test_the_largest_of_several_differences_is_named() -> None:
    changed = grid()
    changed.loc[2, "value"] += 1.0
    changed.loc[7, "value"] -= 5.0
    found = diff(result_of(grid()), result_of(changed))
    assert found.max_difference == pytest.approx(5.0)
    assert found.where == "batch 1, layer 3"
    assert "value: 2 of 12 rows differ, by up to 5 at batch 1, layer 3" in str(found)


def test_changed_words_are_differences_too() -> None:
    changed = grid()
    changed.loc[5, "word"] = "else"
    found = diff(result_of(grid()), result_of(changed))
    assert not found.same
    assert found.max_difference == 0.0
    assert "word: 1 of 12 rows differ" in str(found)
    assert "nan" not in str(found)


def test_rows_only_one_run_has() -> None:
    found = diff(result_of(grid(layers=4)), result_of(grid(layers=5)))
    assert (found.only_a, found.only_b) == (0, 3)
    assert not found.same
    assert not found.same_rows
    assert found.numbers.set_index("column").loc["value", "rows"] == 12


def test_missing_numbers() -> None:
    both, one = grid(), grid()
    both.loc[3, "value"] = np.nan
    assert diff(result_of(both), result_of(both.copy())).same
    found = diff(result_of(one), result_of(both))
    assert found.max_difference == np.inf
    assert found.where == "batch 0, layer 3"


def test_rows_that_share_a_place_are_paired_in_order() -> None:
    twice = pd.concat([grid(), grid(1)], ignore_index=True).drop(columns="word")
    assert diff(result_of(twice), result_of(twice.copy())).same
    changed = twice.copy()
    changed.loc[14, "value"] += 3.0
    found = diff(result_of(twice), result_of(changed))
    assert found.max_difference == pytest.approx(3.0)
    assert found.numbers.set_index("column").loc["value", "changed"] == 1


def test_a_word_tells_rows_apart_where_no_axis_does() -> None:
    frame = pd.DataFrame({"layer": [0, 0], "part": ["attn", "mlp"], "value": [1.0, 2.0]})
    found = diff(result_of(frame), result_of(frame[::-1]))
    assert found.on == ("layer", "part")
    assert found.same


def test_what_was_asked_differently() -> None:
    one = result_of(passed={"kind": "z", "layers": [1, 2]}, defaulted={"top": 5})
    other = result_of(
        passed={"kind": "q", "layers": [1, 2], "top": 5}, defaulted={}, dtype="bfloat16",
        versions={"torch": "2.12.0"}, started="later", wall_seconds=3.0,
    )  # fmt: skip
    fields = diff(one, other).fields.set_index("field")
    assert fields.to_dict("index") == {
        "options.kind": {"a": "z", "b": "q"},
        "dtype": {"a": "", "b": "bfloat16"},
        "versions.torch": {"a": "2.13.0", "b": "2.12.0"},
    }
    assert "options.kind: 'z' / 'q'" in str(diff(one, other))


def test_an_option_only_one_run_had() -> None:
    fields = diff(result_of(passed={"kind": "z"}), result_of(passed={})).fields
    assert fields.to_dict("records") == [{"field": "options.kind", "a": "z", "b": None}]


def test_tables_with_nothing_in_common() -> None:
    one = pd.DataFrame({"layer": [0.5, 1.5], "value": [1.0, 2.0]})
    found = diff(result_of(one), result_of(one.copy()))
    assert found.same, "paired by order where no axis is shared"
    with pytest.raises(RunError, match="share no axis and have 2 and 1 rows"):
        diff(result_of(one), result_of(one[:1]))


def test_a_verdict_that_changed_is_a_difference_and_no_other_row() -> None:
    """Claim and measure say which row is which; what stands between them is compared."""

    def findings(verdict: str, value: float) -> pd.DataFrame:
        return pd.DataFrame(
            {"claim": ["a", "a", "b"], "verdict": [verdict, verdict, "reported"],
             "note": [f"seed 0: {value}"] * 2 + [""], "measure": ["x", "y", "x"],
             "value": [value, 1.0, np.nan]}
        )  # fmt: skip

    found = diff(result_of(findings("partly", 0.4)), result_of(findings("reproduced", 0.6)))
    assert found.same_rows
    assert found.on == ("claim", "measure")
    said = str(found)
    assert "verdict: 2 of 3 rows differ" in said
    assert "value: 1 of 3 rows differ, by up to 0.2 at claim a, measure x" in said
