"""A Hugging Face dataset reads like a file, and one that cannot be had says why."""

import sys
from pathlib import Path

import pytest

from probe.core.errors import CorpusError
from probe.corpora import load_corpus

TEXTS = ["one text", "a\nsecond", "שלום <b>$x$</b>"]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    import datasets

    datasets.Dataset.from_dict({"said": TEXTS, "n": [1, 2, 3]}).save_to_disk(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.mark.slow
def test_a_saved_dataset_reads_the_same_each_time(saved: Path) -> None:
    corpus = load_corpus(saved, column="said")
    for _ in range(2):
        assert [document.text for document in corpus] == TEXTS
    assert corpus.name == "saved"
    with pytest.raises(CorpusError, match='has no column "text"(.|\n)*Known: said, n'):
        list(load_corpus(saved))
    with pytest.raises(CorpusError, match="text 0 is int, not text"):
        list(load_corpus(saved, column="n"))


@pytest.mark.slow
def test_a_dataset_by_name_is_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked = []

    def load(name: str, split: str, streaming: bool) -> list[dict[str, str]]:
        asked.append((name, split, streaming))
        if name == "nobody/nothing":
            raise datasets.exceptions.DatasetNotFoundError("Dataset 'x' doesn't exist\non the Hub")
        return [{"text": text} for text in TEXTS]

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert [d.text for d in load_corpus("hf:some/texts:test", limit=2)] == TEXTS[:2]
    with pytest.raises(CorpusError, match=r"nobody/nothing, split train, cannot be opened: Datas"):
        list(load_corpus("hf:nobody/nothing"))
    assert asked == [("some/texts", "test", True), ("nobody/nothing", "train", True)]


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    corpus = load_corpus("hf:some/texts")
    with pytest.raises(CorpusError, match=r"is not installed\n(.|\n)*pip install datasets"):
        list(corpus)
