"""A table as parquet and back, exactly: dtypes, NaN, and text that is no valid UTF-8."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from probe.core.errors import RunError

Recipe = dict[str, dict[str, str]]
"""Column → its dtype, and how it is stored."""


def write_frame(frame: pd.DataFrame, path: Path) -> Recipe:
    """Write the table, and say how to read it.

    The index is not kept: rows count from 0. Numbers, text and missing values come back as they
    were. Text with a lone surrogate is stored as bytes, and a column of mixed values (numbers and
    words, lists) as JSON.

    Raises:
        RunError: A column that would not come back the same.
    """
    _check_names(frame)
    recipe = {str(name): _recipe(frame[name]) for name in frame.columns}
    arrays = {name: _store(frame[name], how["stored"], name) for name, how in recipe.items()}
    table = pa.table(arrays)
    back = _restore(table, recipe)
    for name in frame.columns:
        if not _same(frame[name], back[name]):
            raise _unsaved(str(name), frame[name])
    pq.write_table(table, path, compression="zstd")
    return recipe


def read_frame(path: Path, recipe: Recipe) -> pd.DataFrame:
    """The table as it was written.

    Raises:
        RunError: The file is missing, cut short, or not the table the recipe is for.
    """
    try:
        with pq.ParquetFile(path) as file:
            return _restore(file.read(), recipe)
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        raise RunError(
            f"{path} cannot be read: {error}",
            expected="the parquet file that was saved with this run",
            remedy="copy the folder again, or run the method again",
        ) from None


def _recipe(column: pd.Series) -> dict[str, str]:
    return {"dtype": str(column.dtype), "stored": _how(column)}


def _how(column: pd.Series) -> str:
    if column.dtype != object:
        return "plain"
    if all(isinstance(value, str) or value is None for value in column):
        return "text" if all(value is None or _is_utf8(value) for value in column) else "bytes"
    return "json"


def _store(column: pd.Series, how: str, name: str) -> pa.Array | pa.ChunkedArray:
    encode: Callable[[Any], str] = json.dumps if how == "json" else str
    try:
        if how == "plain":
            # By default NaN would become a missing value, which only text and labels have.
            bare = column.to_numpy() if isinstance(column.dtype, np.dtype) else column
            return pa.array(bare, from_pandas=None if bare is column else False)
        if how == "text":
            return pa.array(column.tolist(), pa.large_string())
        data = [None if v is None else encode(v).encode("utf-8", "surrogatepass") for v in column]
        return pa.array(data, pa.large_binary())
    except (TypeError, ValueError, pa.ArrowException):
        raise _unsaved(name, column) from None


def _restore(table: pa.Table, recipe: Recipe) -> pd.DataFrame:
    columns = {}
    for name, how in recipe.items():
        column = table.column(name)
        if how["stored"] == "plain":
            columns[name] = column.to_pandas().astype(how["dtype"])
            continue
        values = column.to_pylist()
        if how["stored"] != "text":
            values = [None if v is None else v.decode("utf-8", "surrogatepass") for v in values]
        if how["stored"] == "json":
            values = [None if v is None else json.loads(v) for v in values]
        columns[name] = pd.Series(values, dtype=object)
    return pd.DataFrame(columns, index=pd.RangeIndex(table.num_rows))


def _same(one: pd.Series, other: pd.Series) -> bool:
    if one.dtype != other.dtype or len(one) != len(other):
        return False
    if one.dtype != object:
        return one.reset_index(drop=True).equals(other)
    return all(
        type(a) is type(b) and (a == b or (a != a and b != b))
        for a, b in zip(one, other, strict=True)
    )


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_names(frame: pd.DataFrame) -> None:
    names = list(frame.columns)
    if not all(isinstance(name, str) and _is_utf8(name) for name in names):
        raise RunError(f"the table has columns {names}", expected="columns named by words")
    if len(set(names)) < len(names):
        raise RunError(f"the table has columns {names}", expected="each name once")


def _unsaved(name: str, column: pd.Series) -> RunError:
    kinds = sorted({type(value).__name__ for value in column}) if column.dtype == object else []
    return RunError(
        f"column {name!r} of type {column.dtype} would not load as it was saved"
        + (f" (it holds {', '.join(kinds)})" if kinds else ""),
        expected="numbers, text, or what JSON can hold",
        remedy=f'frame.astype({{"{name}": ...}}) with a type of numbers or str',
    )
