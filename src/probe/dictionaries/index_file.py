"""The one SQLite file of a feature index: its tables, how it is made whole, how it is opened."""

import json
import sqlite3
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from probe.core.errors import DictionaryError

VERSION = 1
SCHEMA = """
create table meta (name text primary key, value text not null);
create table features (
    id integer primary key, n integer not null, density real not null, max real not null,
    mean real not null, nearest real not null, page blob not null
);
create index features_by_density on features (density);
create index features_by_max on features (max);
create table texts (row integer primary key, tokens blob not null);
create table vocabulary (token integer primary key, text text not null);
create table tokens_of (
    how text not null, token integer not null, feature integer not null, value real not null,
    primary key (how, token, feature)
) without rowid;
create table labels (feature integer primary key, label text not null, changed text not null);
create virtual table labels_text using fts5(label);
"""


def pack_page(page: dict[str, Any]) -> bytes:
    """A feature's page as it is stored."""
    return zlib.compress(json.dumps(page, separators=(",", ":")).encode())


def unpack_page(blob: bytes) -> dict[str, Any]:
    """A feature's page."""
    return json.loads(zlib.decompress(blob))


def pack_tokens(tokens: list[int]) -> bytes:
    """A row of text as it is stored."""
    return zlib.compress(np.asarray(tokens, "<i4").tobytes())


def unpack_tokens(blob: bytes) -> list[int]:
    """The token ids of a row of text."""
    return np.frombuffer(zlib.decompress(blob), "<i4").tolist()


@contextmanager
def opened(path: Path, *, write: bool = False) -> Iterator[sqlite3.Connection]:
    """A connection of its own, closed at the end; what was written is kept if nothing failed.

    A file that cannot be written, or in a folder that cannot, is read as it stands.

    Raises:
        DictionaryError: No file, a damaged one, one that cannot be written.
    """
    if not path.is_file():
        raise DictionaryError(
            f"there is no feature index at {str(path)!r}",
            expected="a file made by index_features",
            remedy=f"index_features(model, sae, corpus, out={path.name!r})",
        )
    try:
        connection = _connect(path)
        try:
            with connection:
                yield connection
        finally:
            connection.close()
    except sqlite3.DatabaseError as error:
        what = "cannot be written" if write else "cannot be read"
        raise DictionaryError(
            f"the feature index {path} {what}: {error}",
            expected="a whole index, in a folder that can be written" if write else "a whole index",
            remedy="make it again with index_features",
        ) from None


def _connect(path: Path) -> sqlite3.Connection:
    where = path.resolve().as_uri()
    try:
        connection = sqlite3.connect(where, uri=True, timeout=10)
        connection.execute("select 1 from meta limit 1")
    except sqlite3.OperationalError:  # WAL needs to write beside the file, also to read
        connection = sqlite3.connect(f"{where}?mode=ro&immutable=1", uri=True)
    return connection


def labels_of(path: Path) -> list[tuple[int, str, str]]:
    """The labels of an index that is about to be made again."""
    if not path.is_file():
        return []
    with opened(path) as file:
        return file.execute("select feature, label, changed from labels").fetchall()


def put_label(file: sqlite3.Connection, feature: int, label: str, changed: str) -> None:
    """Set or, where it is empty, remove a feature's label."""
    file.execute("delete from labels where feature = ?", (feature,))
    file.execute("delete from labels_text where rowid = ?", (feature,))
    if label:
        file.execute("insert into labels values (?, ?, ?)", (feature, label, changed))
        file.execute("insert into labels_text (rowid, label) values (?, ?)", (feature, label))


def settle(path: Path) -> None:
    """Fold what waits beside a file into it, so that it can be replaced."""
    if path.is_file():
        with opened(path, write=True) as file:
            file.execute("pragma wal_checkpoint(truncate)")
            file.execute("pragma journal_mode = delete")
