"""The text tiny models learn from is the same wherever it is made."""

import collections
import itertools

import pytest

import probe
from probe.core.errors import OptionError
from probe.corpora.everyday import everyday_corpus, generated_document, library_documents


def test_it_is_the_same_each_time_and_another_for_another_seed() -> None:
    one, same, other = ([doc.text for doc in everyday_corpus(20, seed, limit=40)]
                        for seed in (0, 0, 1))  # fmt: skip
    assert one == same
    assert one[::2] != other[::2]  # generated
    assert one[1::2] == other[1::2]  # the library


def test_names_come_back_within_a_document() -> None:
    for number in range(20):
        words = generated_document(0, number).split()
        names = collections.Counter(word.strip('.,:"') for word in words if word[:1].isupper())
        assert names.most_common(1)[0][1] >= 3


def test_the_library_is_read_without_its_tests() -> None:
    texts = list(itertools.islice(library_documents(), 400))
    assert any("def " in text for text in texts)
    assert not any("class RegressionTests(unittest.TestCase)" in text for text in texts)


def test_a_negative_number_of_documents_is_refused() -> None:
    with pytest.raises(OptionError, match="limit=-3"):
        everyday_corpus(limit=-3)
    with pytest.raises(OptionError, match="n_generated=-1"):
        probe.everyday_corpus(-1)
