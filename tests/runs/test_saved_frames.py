"""What is written is what is read: values, types, missing ones, and text of any kind."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from probe.core.errors import RunError
from probe.runs.frames import read_frame, write_frame

ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=6)


def there_and_back(frame: pd.DataFrame, folder: Path) -> pd.DataFrame:
    recipe = write_frame(frame, folder / "frame.parquet")
    return read_frame(folder / "frame.parquet", recipe)


def assert_same(back: pd.DataFrame, frame: pd.DataFrame) -> None:
    assert list(back.columns) == list(frame.columns)
    assert list(back.dtypes) == list(frame.dtypes)
    assert len(back) == len(frame)
    for name in frame.columns:
        if frame[name].dtype == object:
            assert list(map(repr, back[name])) == list(map(repr, frame[name]))
        elif frame[name].dtype.kind == "f":
            bits = f"u{frame[name].dtype.itemsize}"
            assert np.array_equal(
                back[name].to_numpy().view(bits), frame[name].to_numpy().view(bits)
            )
        else:
            assert back[name].equals(frame[name].reset_index(drop=True))


@st.composite
def frames(draw: Any) -> pd.DataFrame:
    n = draw(st.integers(0, 6))
    entries = {
        "int64": st.integers(-(2**63), 2**63 - 1),
        "int8": st.integers(-128, 127),
        "float64": st.floats(),
        "float32": st.floats(width=32),
        "bool": st.booleans(),
        "str": st.text(max_size=6),
        "object": st.one_of(st.none(), ANY_TEXT),
        "mixed": st.one_of(st.none(), ANY_TEXT, st.integers(), st.floats(), st.booleans()),
    }
    kinds = draw(st.lists(st.sampled_from(sorted(entries)), min_size=1, max_size=4))
    columns = {}
    for i, kind in enumerate(kinds):
        values = draw(st.lists(entries[kind], min_size=n, max_size=n))
        dtype = "object" if kind == "mixed" else kind
        columns[f"column {i}"] = pd.Series(values, dtype=dtype)
    return pd.DataFrame(columns)


@settings(max_examples=150)
@given(frame=frames())
def test_any_table_comes_back(frame: pd.DataFrame, tmp_path_factory: Any) -> None:
    assert_same(there_and_back(frame, tmp_path_factory.mktemp("frames")), frame)


@pytest.mark.parametrize(
    "column",
    [
        pd.Series(["a", "b", None, "a"], dtype="category"),
        pd.Series([1, None, 3, 4], dtype="Int64"),
        pd.Series([True, None, False, True], dtype="boolean"),
        pd.Series(["a", None, "b", ""], dtype="str"),
        pd.to_datetime(pd.Series(["2026-01-01"] * 4)),
        pd.Series(["\ud83d\ude00", "\ud83d", "😀", None], dtype=object),
        pd.Series([[1, 2], [], None, ["a"]], dtype=object),
        pd.Series([0, "final", None, 2.5], dtype=object),
        pd.Series([1.5, np.nan, -0.0, np.inf], dtype="float16"),
    ],
    ids=lambda column: f"{column.dtype} {column[0]}".encode("ascii", "replace").decode(),
)
def test_special_columns_come_back(column: pd.Series, tmp_path: Path) -> None:
    frame = pd.DataFrame({"x": column})
    assert_same(there_and_back(frame, tmp_path), frame)


def test_the_index_starts_anew_and_the_table_can_be_changed(tmp_path: Path) -> None:
    frame = pd.DataFrame({"x": [1.0, 2.0, 3.0]})[1:]
    back = there_and_back(frame, tmp_path)
    assert list(back.index) == [0, 1]
    back.loc[0, "x"] = 5.0
    assert back["x"].tolist() == [5.0, 3.0]


@pytest.mark.parametrize(
    ("frame", "said"),
    [
        (pd.DataFrame({"x": pd.Series([(1, 2)], dtype=object)}), "it holds tuple"),
        (pd.DataFrame({"x": pd.Series([{1}], dtype=object)}), "it holds set"),
        (pd.DataFrame({"x": pd.Series([np.float64(1)], dtype=object)}), "it holds float64"),
        (pd.DataFrame({"x": [1 + 2j]}), "column 'x' of type complex128"),
        (pd.DataFrame([[1, 2]], columns=["x", "x"]), "each name once"),
        (pd.DataFrame({0: [1]}), "columns named by words"),
    ],
    ids=["tuple", "set", "numpy scalar", "complex", "twice", "number"],
)
def test_what_would_not_come_back_is_refused(
    frame: pd.DataFrame, said: str, tmp_path: Path
) -> None:
    with pytest.raises(RunError) as raised:
        write_frame(frame, tmp_path / "frame.parquet")
    assert said in str(raised.value)
    assert not list(tmp_path.iterdir())
