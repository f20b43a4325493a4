"""A corpus the model writes is the same however often writing it was cut off."""

import pytest

from probe.core.errors import CorpusError, OptionError
from probe.core.progress import listening
from probe.corpora import write_corpus
from probe.corpora.openings import n_openings, opening

OPTIONS = {"n_tokens": 300, "max_new_tokens": 12, "batch_size": 8}


def test_a_stopped_run_goes_on_to_the_same_file(toy, tmp_path):
    whole, parts = tmp_path / "whole.jsonl", tmp_path / "parts.jsonl"
    write_corpus(toy, whole, **OPTIONS)
    sizes = []
    with listening(lambda done, total, unit: False):
        while not sizes or sizes[-1] < whole.stat().st_size:
            write_corpus(toy, parts, **OPTIONS)
            sizes.append(parts.stat().st_size)
    assert len(sizes) > 2
    assert parts.read_bytes() == whole.read_bytes()


def test_texts_continue_their_openings(toy, tmp_path):
    corpus = write_corpus(toy, tmp_path / "c.jsonl", openings=["The war", "When"], **OPTIONS)
    texts = [document.text for document in corpus]
    assert all(t.startswith(("The war", "When")[i % 2]) for i, t in enumerate(texts))
    assert any(len(t) > 20 for t in texts)


def test_a_file_of_something_else_is_left_alone(toy, tmp_path):
    path = tmp_path / "c.jsonl"
    write_corpus(toy, path, **OPTIONS)
    kept = path.read_bytes()
    with pytest.raises(CorpusError, match="not written by this model with these options"):
        write_corpus(toy, path, seed=1, **OPTIONS)
    assert path.read_bytes() == kept
    with pytest.raises(OptionError, match="ending in .jsonl"):
        write_corpus(toy, tmp_path / "c.txt", **OPTIONS)


def test_openings_are_many_and_drawn_by_number():
    drawn = {opening(number) for number in range(1000)}
    assert n_openings() > 2000
    assert len(drawn) > 500
    assert any("<" in opening(number, chat="<{}>") for number in range(10))
