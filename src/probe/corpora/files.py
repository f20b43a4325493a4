"""What is in a file of text: one reader for each kind, none of which holds the whole file."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

from probe.core.errors import CorpusError, nearest

Texts = Iterator[tuple[object, str]]
"""Text (not yet checked to be any), and where it stands, for an error to name."""

_PARQUET_ROWS = 256


def read_text(path: Path, column: str) -> Texts:
    """Documents separated by blank lines; the column means nothing here."""
    lines: list[str] = []
    start = 1
    for number, line in _lines(path):
        if line.strip():
            start = start if lines else number
            lines.append(line)
        elif lines:
            yield "\n".join(lines), f"{path}, line {start}"
            lines = []
    if lines:
        yield "\n".join(lines), f"{path}, line {start}"


def read_jsonl(path: Path, column: str) -> Texts:
    """One JSON object a line; blank lines are passed over."""
    for number, line in _lines(path):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise CorpusError(
                f"{where} is not JSON: {error}: {line[:60]!r}",
                expected=f'one object a line, like {{"{column}": "..."}}',
            ) from None
        if not isinstance(row, dict):
            raise CorpusError(
                f"{where} holds {type(row).__name__}: {line[:60]!r}",
                expected=f'an object, like {{"{column}": "..."}}',
            )
        if column not in row:
            raise CorpusError(f'{where} has no "{column}"', remedy=nearest(column, row))
        yield row[column], f'"{column}" in {where}'


def read_parquet(path: Path, column: str) -> Texts:
    """One row a document, a few hundred rows in memory at a time."""
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if column not in names:
                raise CorpusError(f'{path} has no column "{column}"', remedy=nearest(column, names))
            row = 0
            for batch in file.iter_batches(batch_size=_PARQUET_ROWS, columns=[column]):
                for value in batch.column(0):
                    yield value.as_py(), f'"{column}" in {path}, row {row}'
                    row += 1
    except (pyarrow.ArrowException, OSError) as error:
        raise CorpusError(
            f"{path} is not a whole Parquet file: {error}", expected="a Parquet file"
        ) from None


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines from 1, without their ends. Split at newlines alone: text may hold other breaks."""
    number = 0
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                yield number, text.removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise CorpusError(
            f"{path}, line {number}, byte {error.start} is not UTF-8: {error.reason}",
            expected="a UTF-8 file",
        ) from None
    except OSError as error:
        raise CorpusError(f"{path} cannot be read: {error.strerror}") from None


READERS: dict[str, Callable[[Path, str], Texts]] = {
    ".txt": read_text,
    ".jsonl": read_jsonl,
    ".parquet": read_parquet,
}
"""Ending of a file → its reader."""
