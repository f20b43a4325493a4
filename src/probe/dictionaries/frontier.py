"""Dictionaries side by side: what each keeps of the model, and how many features it needs."""

from collections.abc import Sequence

import pandas as pd

from probe.core import provenance
from probe.core.errors import OptionError
from probe.core.result import Result, View

_COLUMNS = {
    "dictionary": "name of the dictionary",
    "architecture": "what it was trained as",
    "d_sae": "number of features",
    "l0": "mean number of features that fire on a token",
    "metric": "what the value is",
    "value": "explained variance, or share of cross-entropy or KL recovered; 1 is perfect",
}
_SHOWN = ("explained_variance", "cross_entropy_recovered", "kl_recovered")


def frontier(
    evaluations: Sequence[Result],
    *,
    metric: str = "cross_entropy_recovered",
    baseline: str = "zero",
) -> Result:
    """Sparsity against faithfulness, one point a dictionary: which gives more for fewer features?

    Args:
        evaluations: What ``evaluate_sae`` gave, on the same text.
        metric: ``explained_variance``, ``cross_entropy_recovered`` or ``kl_recovered``.
        baseline: ``zero`` or ``mean``, for those that are compared with one.

    Raises:
        OptionError: No evaluations, results of something else, or a metric they do not hold;
            evaluations on other text, which cannot be compared.
    """
    if metric not in _SHOWN:
        raise OptionError(f"metric={metric!r}", expected=f"one of {', '.join(_SHOWN)}")
    other = [r.provenance.method for r in evaluations if r.provenance.method != "evaluate_sae"]
    if other or not evaluations:
        raise OptionError(
            f"a frontier of {', '.join(other) or 'nothing'}", expected="results of evaluate_sae"
        )
    texts = {r.provenance.passed["corpus"] for r in evaluations}
    if len(texts) > 1:
        raise OptionError(
            f"these were evaluated on {len(texts)} texts: {', '.join(sorted(texts))}",
            expected="one text for all",
        )
    rows = [_row(result, metric, baseline) for result in evaluations]
    first = evaluations[0].provenance
    record = first.model_copy(
        update={
            "run_id": provenance.new_run_id(),
            "method": "frontier",
            "passed": {"metric": metric, "baseline": baseline, "of": [r.id for r in evaluations]},
        }
    )
    view = View(kind="scatter", x="l0", y="value", color="architecture", text="dictionary")
    return Result(pd.DataFrame(rows, columns=list(_COLUMNS)), _COLUMNS, view, record)


def _row(result: Result, metric: str, baseline: str) -> tuple[str, str, int, float, str, float]:
    frame, about = result.frame, result.provenance.passed
    found = frame[frame["metric"] == metric]
    if metric != "explained_variance":
        found = found[found["baseline"] == baseline]
    if found.empty:
        raise OptionError(
            f"{result.id} holds no {metric} against {baseline!r}",
            remedy="evaluate_sae(..., ce_tokens=20_000)",
        )
    l0 = float(frame.loc[frame["metric"] == "l0", "value"].iloc[0])
    value = float(found["value"].iloc[0])
    return about["dictionary"], about["architecture"], about["d_sae"], l0, metric, value
