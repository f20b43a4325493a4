"""Files and iterables of strings as one stream of documents."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from probe.core.errors import CorpusError, OptionError
from probe.corpora.files import READERS
from probe.corpora.hub import PREFIX, DatasetTexts, is_saved_dataset


@dataclass(frozen=True)
class Document:
    """One text of a corpus.

    Attributes:
        id: Its number in the corpus, from 0, in the order of the source.
        text: What it says.
    """

    id: int
    text: str


@dataclass(frozen=True)
class Corpus:
    """A stream of documents, the same each time it is read; holds one document at a time.

    Attributes:
        name: The file, or what the strings came in.
        source: The file, or the strings.
        column: The field of a JSONL or Parquet file that holds the text.
        limit: The most documents to read.
    """

    name: str
    source: Path | Iterable[Any] = field(repr=False)
    column: str = "text"
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise OptionError(
                f"limit={self.limit}", expected="at least one document, or None for all"
            )

    def __iter__(self) -> Iterator[Document]:
        """The documents, from the first."""
        if isinstance(self.source, Path):
            texts = READERS[self.source.suffix.lower()](self.source, self.column)
        else:
            texts = ((text, f"text {number}") for number, text in enumerate(self.source))
        for number, (text, where) in enumerate(islice(texts, self.limit)):
            yield Document(number, _checked(text, where))


def load_corpus(
    source: str | Path | Iterable[Any], *, column: str = "text", limit: int | None = None
) -> Corpus:
    """Text to harvest from, as a stream of documents.

    Args:
        source: A file, by its ending: ``.txt`` (documents are separated by blank lines),
            ``.jsonl`` (one object a line) or ``.parquet``; ``hf:NAME`` or ``hf:NAME:SPLIT``, a
            dataset of the Hugging Face hub, or a folder that ``Dataset.save_to_disk`` wrote; or
            strings, one a document. Strings that can be read only once, like a generator, give a
            corpus that can be read once.
        column: The field of a file or dataset that holds the text.
        limit: The most documents to read; all by default.

    Raises:
        CorpusError: A missing file, an unknown kind of file, an absent column. While reading: a
            line or row that holds no text, named by its number.
        OptionError: A limit below one.

    >>> [document.id for document in load_corpus(["one text", "another"])]
    [0, 1]
    """
    if isinstance(source, str) and source.startswith(PREFIX):
        return Corpus(source, DatasetTexts.named(source, column), column, limit)
    if isinstance(source, str | Path):
        if is_saved_dataset(Path(source)):
            saved = DatasetTexts(str(source), "", column)
            return Corpus(Path(source).name, saved, column, limit)
        path = _file(Path(source))
        return Corpus(path.name, path, column, limit)
    if isinstance(source, bytes) or not isinstance(source, Iterable):
        raise CorpusError(
            f"a corpus cannot be made of {type(source).__name__}",
            expected="a file, or strings, one a document",
        )
    texts = _Once(source) if isinstance(source, Iterator) else source
    return Corpus(type(source).__name__, texts, column, limit)


class _Once:
    """Strings that can be read one time; a second time they would be missing, or others."""

    def __init__(self, texts: Iterator[Any]) -> None:
        self._texts, self._read = texts, False

    def __iter__(self) -> Iterator[Any]:
        if self._read:
            raise CorpusError(
                f"this {type(self._texts).__name__} has been read",
                expected="texts that can be read again",
                remedy="a list, or a file",
            )
        self._read = True
        return self._texts


def _file(path: Path) -> Path:
    """The path, if it is a file we can read."""
    if path.suffix.lower() not in READERS:
        raise CorpusError(
            f"{str(path)[:80]!r} ends in {path.suffix[:20]!r}",
            expected=f"a file ending in one of {', '.join(READERS)}, or a list of strings",
            remedy="[text] for one text of your own",
        )
    try:
        problem = "is a folder" if path.is_dir() else "" if path.exists() else "does not exist"
    except OSError as error:
        problem = f"cannot be read: {error.strerror}"
    if problem:
        raise CorpusError(
            f"{str(path)[:80]!r} {problem}", expected="a file of text, JSONL or Parquet"
        )
    return path


def _checked(text: object, where: str) -> str:
    if not isinstance(text, str):
        raise CorpusError(
            f"{where} is {type(text).__name__}, not text: {str(text)[:60]!r}", expected="a string"
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise CorpusError(
            f"character {error.start} of {where} is a lone surrogate "
            f"(U+{ord(text[error.start]):04X})",
            expected="valid Unicode text",
            remedy='text.encode("utf-8", "replace").decode()',
        ) from None
    return text
