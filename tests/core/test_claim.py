"""The verdict on constructed measurements: what must fail fails, and no spread is overlooked."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from probe.core.claim import (
    FINDING_COLUMNS,
    Claim,
    Line,
    at_least,
    at_most,
    between,
    exactly,
    over_examples,
    over_seeds,
)
from probe.core.errors import OptionError

TWO_LINES = Claim(
    "a", "b", "c", "read", "d",
    reproduced={"share": at_least(0.8)}, partly={"share": at_least(0.5)},
)  # fmt: skip

VERDICTS = {
    "all seeds above": ([0.9, 0.85, 0.95], "reproduced"),
    "on the line": ([0.8, 0.8, 0.8], "reproduced"),
    "median above, interval across": ([0.9, 0.85, 0.1], "partly"),
    "two seeds are too few": ([0.9, 0.95], "partly"),
    "between the lines": ([0.6, 0.7, 0.6], "partly"),
    "one lucky seed": ([0.9, 0.4, 0.3], "not reproduced"),
    "below both": ([0.1, 0.2, 0.1], "not reproduced"),
    "nothing found": ([math.nan] * 3, "not reproduced"),
}


@pytest.mark.parametrize("case", VERDICTS)
def test_verdict_over_seeds(case: str) -> None:
    values, expected = VERDICTS[case]
    assert TWO_LINES.judge({"share": over_seeds(values)}).verdict == expected


def test_all_numbers_of_a_rule_must_hold() -> None:
    both = Claim("a", "b", "c", "read", "d", {"x": at_least(1), "y": at_most(0)})
    held, missed = over_seeds([1.0, 2.0, 3.0]), over_seeds([0.0, 0.0, 0.5])
    assert both.judge({"x": held, "y": exactly(0)}).verdict == "reproduced"
    assert both.judge({"x": held, "y": missed}).verdict == "partly"
    assert both.judge({"x": held, "y": exactly(0.1)}).verdict == "not reproduced"


def test_the_weaker_rule_asks_only_what_it_names() -> None:
    lines = {"x": at_least(1), "y": at_least(1)}
    claim = Claim("a", "b", "c", "read", "d", lines, partly={"x": at_least(0.5)})
    assert claim.judge({"x": exactly(0.6), "y": exactly(-9)}).verdict == "partly"
    assert claim.judge({"x": exactly(0.4), "y": exactly(2)}).verdict == "not reproduced"


def test_a_number_without_spread_needs_no_seeds() -> None:
    assert TWO_LINES.judge({"share": exactly(0.8)}).verdict == "reproduced"
    assert TWO_LINES.judge({"share": exactly(0.79)}).verdict == "partly"


def test_one_example_has_no_interval_and_so_no_full_verdict() -> None:
    assert TWO_LINES.judge({"share": over_examples([0.9], of="facts")}).verdict == "partly"


def test_between_refuses_both_sides() -> None:
    claim = Claim("a", "b", "c", "read", "d", {"x": between(2, 3)})
    verdicts = [claim.judge({"x": exactly(x)}).verdict for x in (1.9, 2, 3, 3.1)]
    assert verdicts == ["not reproduced", "reproduced", "reproduced", "not reproduced"]


def test_no_line_no_verdict() -> None:
    claim = Claim("a", "b", "c", "read", "report only")
    assert claim.judge({"x": exactly(1)}).verdict == "reported"
    left = claim.leave_out("needs raters")
    assert (left.verdict, left.note, len(left.rows())) == ("left out", "needs raters", 1)


def test_a_line_without_its_number_is_refused() -> None:
    with pytest.raises(OptionError, match=r'"a" was judged without \[\'share\'\]'):
        TWO_LINES.judge({"shares": exactly(1)})


def test_a_line_has_its_lower_end_first() -> None:
    with pytest.raises(OptionError, match="from 5 to 1"):
        between(5, 1)


def test_no_interval_is_told_where_there_is_none() -> None:
    assert str(TWO_LINES.judge({"share": over_seeds([0.9])})).endswith("share 0.9")
    assert str(TWO_LINES.judge({"share": over_seeds([0.9, 0.8])})).endswith("share 0.85 [0.8, 0.9]")


def test_nothing_measured_is_refused() -> None:
    with pytest.raises(OptionError, match="no prompts"):
        over_examples([], of="prompts")


@settings(max_examples=20)
@given(st.lists(st.floats(-10, 10), min_size=2, max_size=9))
def test_interval_holds_the_median_and_stays_in_the_range(values: list[float]) -> None:
    found = over_seeds(values)
    assert min(values) <= found.low <= found.value <= found.high <= max(values)


def test_interval_of_a_mean_is_the_normal_one() -> None:
    values = np.random.default_rng(0).normal(size=400)
    found = over_examples(values, of="draws")
    assert found.high - found.low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)


def test_rows_have_the_described_columns_and_say_the_lines() -> None:
    row = TWO_LINES.judge({"share": over_seeds([0.9, 0.8, 0.7])}, note="n").rows()[0]
    assert set(row) == set(FINDING_COLUMNS)
    assert (row["line"], row["line_partly"], row["each"]) == ("≥ 0.8", "≥ 0.5", "0.9 0.8 0.7")
    assert [str(line) for line in (Line(high=2.0), Line(1.0, 2.0))] == ["≤ 2", "1 to 2"]
