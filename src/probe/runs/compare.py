"""Two results side by side: what was asked differently, and which numbers moved."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from probe.core.errors import RunError
from probe.core.result import Result
from probe.core.site import AXES

_ALWAYS_DIFFERENT = frozenset({"run_id", "started", "wall_seconds", "peak_bytes"})
_EXAMPLES = ("batch", "seed")
_NTH, _SIDE = "_nth", "_side"


@dataclass(frozen=True)
class RunDiff:
    """How two runs differ.

    Attributes:
        a: Id of the one run.
        b: Id of the other.
        fields: Options and provenance that differ: columns field, a, b.
        numbers: One row for each column both tables have beside their axes: column, rows
            compared, how many changed, ``max_abs`` (largest absolute difference, missing for
            text, infinite where one side alone is missing) and ``where`` it is.
        on: The axis columns by which rows were paired.
        only_a: Rows whose place only the one has.
        only_b: Rows whose place only the other has.
    """

    a: str
    b: str
    fields: pd.DataFrame = field(repr=False)
    numbers: pd.DataFrame = field(repr=False)
    on: tuple[str, ...]
    only_a: int
    only_b: int

    @property
    def max_difference(self) -> float:
        """The largest difference of any number; 0 where all are equal."""
        return float(np.nanmax([0.0, *self.numbers["max_abs"]]))

    @property
    def where(self) -> str:
        """Where the largest difference is; empty where there is none."""
        if not self.max_difference:
            return ""
        return str(self.numbers["where"].iloc[int(np.nanargmax(self.numbers["max_abs"]))])

    @property
    def same_rows(self) -> bool:
        """Whether each row of the one has its row in the other."""
        return not (self.only_a or self.only_b)

    @property
    def same(self) -> bool:
        """Whether the tables hold the same rows with exactly the same entries, text included."""
        return self.same_rows and not self.numbers["changed"].any()

    def __str__(self) -> str:
        if self.same:
            said = f"{self.a} and {self.b} hold the same numbers"
        else:
            changed = self.numbers[self.numbers["changed"] > 0].to_dict("records")
            moved = [
                f"{row['column']}: {row['changed']} of {row['rows']} rows differ"
                + (
                    f", by up to {row['max_abs']:.4g} at {row['where']}"
                    if row["max_abs"] > 0
                    else ""
                )
                for row in changed
            ]
            lonely = [f"{self.only_a} rows only in {self.a}"] if self.only_a else []
            lonely += [f"{self.only_b} rows only in {self.b}"] if self.only_b else []
            said = "\n".join([*moved, *lonely])
        asked = [f"{row.field}: {row.a!r} / {row.b!r}" for row in self.fields.itertuples()]
        return "\n".join([said, *asked])


def diff(a: Result, b: Result) -> RunDiff:
    """Compare two results row by row on the axis columns they share.

    Raises:
        RunError: The tables share no column but the numbers themselves and differ in length, so
            no row of the one is known to belong to a row of the other.
    """
    on = _axes(a, b)
    left, right = _keyed(a.frame, on), _keyed(b.frame, on)
    compared = [str(name) for name in a.frame if name in b.frame.columns and name not in on]
    keys = [*on, _NTH]
    if not on and len(left) != len(right):
        raise RunError(
            f"the tables of {a.id} and {b.id} share no axis and have {len(left)} and "
            f"{len(right)} rows",
            expected="two results with axis columns in common",
        )
    paired = left[[*keys, *compared]].merge(
        right[[*keys, *compared]], on=keys, how="outer", suffixes=("_a", "_b"), indicator=_SIDE
    )
    both = paired[paired[_SIDE] == "both"]
    return RunDiff(
        a=a.id,
        b=b.id,
        fields=_fields(a, b),
        numbers=pd.DataFrame(
            [_compare(both, name, on) for name in compared],
            columns=["column", "rows", "changed", "max_abs", "where"],
        ),
        on=tuple(on),
        only_a=int((paired[_SIDE] == "left_only").sum()),
        only_b=int((paired[_SIDE] == "right_only").sum()),
    )


def _axes(a: Result, b: Result) -> list[str]:
    """The shared columns that say which row is which: as few as tell all rows apart."""
    shared = [
        str(name)
        for name in a.frame
        if name in b.frame.columns
        and not any(pd.api.types.is_float_dtype(r.frame[name].dtype) for r in (a, b))
        and name not in (a.view.number, b.view.number)
    ]
    surely = [n for n in shared if n in (*_EXAMPLES, *AXES, *a.view.axes, *b.view.axes)]
    on: list[str] = []
    for name in [*surely, *(n for n in shared if n not in surely)]:
        if _tells_apart(on, a, b) and name not in surely:
            break
        on.append(name)
    # what another column tells better is no axis: a claim's verdict, which may change
    for name in [n for n in reversed(on) if n not in surely]:
        fewer = [n for n in on if n != name]
        if _tells_apart(on, a, b) and _tells_apart(fewer, a, b):
            on = fewer
    return on


def _tells_apart(on: list[str], *results: Result) -> bool:
    if not on:
        return all(len(result.frame) < 2 for result in results)
    return not any(result.frame.duplicated(on).any() for result in results)


def _keyed(frame: pd.DataFrame, on: list[str]) -> pd.DataFrame:
    """Rows that share a place are told apart by their order."""
    nth = frame.groupby(on, dropna=False, sort=False).cumcount() if on else np.arange(len(frame))
    return frame.assign(**{_NTH: nth})


def _compare(both: pd.DataFrame, name: str, on: list[str]) -> dict[str, Any]:
    one, other = both[f"{name}_a"], both[f"{name}_b"]
    differs = ~((one == other) | (one.isna() & other.isna())).to_numpy(bool)
    row = {"column": name, "rows": len(both), "changed": int(differs.sum())}
    if not differs.any():
        return row | {"max_abs": 0.0 if _is_number(one, other) else np.nan, "where": ""}
    first = int(np.flatnonzero(differs)[0])
    largest = np.nan
    if _is_number(one, other):
        gap = np.abs(one.to_numpy(float) - other.to_numpy(float))
        gap = np.where(differs & np.isnan(gap), np.inf, gap)
        gap[~differs] = 0.0
        first, largest = int(gap.argmax()), float(gap.max())
    place = both.iloc[first]
    return row | {"max_abs": largest, "where": ", ".join(f"{n} {place[n]}" for n in on)}


def _is_number(*columns: pd.Series) -> bool:
    return all(pd.api.types.is_numeric_dtype(column.dtype) for column in columns)


def _fields(a: Result, b: Result) -> pd.DataFrame:
    one, other = _flat(a), _flat(b)
    rows = [
        {"field": name, "a": one.get(name), "b": other.get(name)}
        for name in dict.fromkeys([*one, *other])
        if one.get(name) != other.get(name)
    ]
    return pd.DataFrame(rows, columns=["field", "a", "b"], dtype=object)


def _flat(result: Result) -> dict[str, Hashable]:
    """Provenance as ``versions.torch``; an option counts the same passed or left at its default."""
    record = result.provenance.model_dump(mode="json")
    options = {**record.pop("defaulted"), **record.pop("passed")}
    kept = {name: value for name, value in record.items() if name not in _ALWAYS_DIFFERENT}
    return _flatten({"options": options, **kept}, "")


def _flatten(value: Any, name: str) -> dict[str, Hashable]:
    if isinstance(value, Mapping):
        found: dict[str, Hashable] = {}
        for key, inner in value.items():
            found |= _flatten(inner, f"{name}.{key}" if name else str(key))
        return found
    return {name: value if isinstance(value, Hashable) else repr(value)}
