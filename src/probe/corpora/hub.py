"""Hugging Face datasets as streams of text: by name from the hub, or folders that were saved."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from probe.core.errors import CorpusError, nearest

PREFIX = "hf:"
_SPLIT = "train"


@dataclass(frozen=True)
class DatasetTexts:
    """The texts of a dataset, row by row, without loading it whole.

    Attributes:
        name: Name on the hub, or a folder written by ``Dataset.save_to_disk``.
        split: Which part of a dataset on the hub.
        column: Where the text is.
    """

    name: str
    split: str
    column: str

    @classmethod
    def named(cls, source: str, column: str) -> "DatasetTexts":
        """``hf:NAME`` or ``hf:NAME:SPLIT``."""
        name, _, split = source.removeprefix(PREFIX).partition(":")
        return cls(name, split or _SPLIT, column)

    def __iter__(self) -> Iterator[Any]:
        for row in self._opened():
            if self.column not in row:
                raise CorpusError(
                    f'{self.name} has no column "{self.column}"', remedy=nearest(self.column, row)
                )
            yield row[self.column]

    def _opened(self) -> Any:
        try:
            import datasets
        except ImportError:
            raise CorpusError(
                f"{self.name} is a Hugging Face dataset, and the package datasets is not installed",
                remedy="pip install datasets, or a .txt, .jsonl or .parquet file",
            ) from None
        try:
            if Path(self.name).is_dir():
                return datasets.load_from_disk(self.name)
            return datasets.load_dataset(self.name, split=self.split, streaming=True)
        except (OSError, ValueError) as error:
            raise CorpusError(
                f"the dataset {self.name}, split {self.split}, cannot be opened: "
                f"{str(error).splitlines()[0]}",
                expected="a dataset on the hub, with a connection to it",
                remedy="hf:NAME:SPLIT, or a .parquet file of it",
            ) from None


def is_saved_dataset(path: Path) -> bool:
    """Whether ``Dataset.save_to_disk`` has written this folder."""
    try:
        return (path / "dataset_info.json").is_file()
    except OSError:  # a name that is too long
        return False
