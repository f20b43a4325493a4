"""Every token of every document stands once, with its document and position."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_tokenizers import byte_level, word_level

from probe.core.errors import OptionError, TaskError
from probe.core.tokens import Tokenizer
from probe.corpora import Document, TokenBatch, load_corpus, token_batches

TEXTS = ["the cat saw the dog", "", "a bird", "the old tree sang " * 9, " ", "dog"]


WORDS = ["the cat saw the dog", "a bird sat by the old tree and sang"]
KINDS = {
    "bytes": lambda: Tokenizer(byte_level(vocab_size=300, texts=WORDS)),
    "bytes with BOS": lambda: Tokenizer(byte_level(vocab_size=300, texts=WORDS), bos=True),
    "words with BOS": lambda: Tokenizer(word_level(WORDS, bos=True)),
}


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return KINDS[request.param]()


def cut(tokenizer: Tokenizer, texts: list[str], **options: int | bool) -> list[TokenBatch]:
    return list(token_batches(load_corpus(texts), tokenizer, **options))


def gathered(batches: list[TokenBatch]) -> dict[int, list[int]]:
    """Document → its tokens, put back by their positions."""
    found: dict[int, dict[int, int]] = {}
    for batch in batches:
        rows = zip(
            batch.tokens.flatten().tolist(),
            batch.document.flatten().tolist(),
            batch.position.flatten().tolist(),
            strict=True,
        )
        for token, document, position in rows:
            if document >= 0:
                assert position not in found.setdefault(document, {})
                found[document][position] = token
            else:
                assert position == -1
    return {d: [tokens[i] for i in range(len(tokens))] for d, tokens in found.items()}


def expected(tokenizer: Tokenizer, texts: list[str]) -> dict[int, list[int]]:
    ids = {i: tokenizer.encode(text, special=False) for i, text in enumerate(texts)}
    return {i: tokens for i, tokens in ids.items() if tokens}


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize(("n_pos", "batch_size"), [(2, 1), (5, 2), (16, 3), (500, 8)])
def test_no_token_is_lost_or_doubled(
    n_pos: int, batch_size: int, pack: bool, tokenizer: Tokenizer
) -> None:
    batches = cut(tokenizer, TEXTS, n_pos=n_pos, batch_size=batch_size, pack=pack)
    assert gathered(batches) == expected(tokenizer, TEXTS)
    assert all(batch.tokens.shape[1] <= n_pos for batch in batches)
    assert all(len(batch.tokens) == batch_size for batch in batches[:-1])


@given(
    texts=st.lists(st.text("abc ,é", max_size=40), max_size=6),
    n_pos=st.integers(1, 20),
    batch_size=st.integers(1, 4),
    pack=st.booleans(),
)
def test_any_texts_any_size(texts: list[str], n_pos: int, batch_size: int, pack: bool) -> None:
    batches = cut(BYTES, texts, n_pos=n_pos, batch_size=batch_size, pack=pack)
    assert gathered(batches) == expected(BYTES, texts)


BYTES = Tokenizer(byte_level(vocab_size=300, texts=["a b c"]))


def test_every_row_begins_as_a_prompt_does(tokenizer: Tokenizer) -> None:
    for pack in (True, False):
        for batch in cut(tokenizer, TEXTS, n_pos=7, pack=pack):
            if tokenizer.bos:
                assert (batch.tokens[:, 0] == tokenizer.hf.bos_token_id).all()
                assert batch.special[:, 0].all()
                assert (batch.document[:, 0] == -1).all()
            else:
                assert not batch.special[:, 0].any()


def test_packed_rows_are_full_but_for_the_last(tokenizer: Tokenizer) -> None:
    batches = cut(tokenizer, TEXTS, n_pos=9, batch_size=2)
    lengths = torch.cat([batch.lengths for batch in batches]).tolist()
    assert len(lengths) > 3
    assert set(lengths[:-1]) == {9}


def test_documents_in_a_row_are_parted_by_eos(tokenizer: Tokenizer) -> None:
    (batch,) = cut(tokenizer, ["the cat", "the dog"], n_pos=64)
    row = batch.tokens[0, int(tokenizer.bos) :].tolist()
    first, second = (tokenizer.encode(t, special=False) for t in ("the cat", "the dog"))
    assert row == [*first, tokenizer.eos_id, *second]
    assert batch.special[0].tolist() == [
        *[True] * tokenizer.bos,
        *[False] * len(first),
        True,
        *[False] * len(second),
    ]


def test_unpacked_rows_hold_one_document_each(tokenizer: Tokenizer) -> None:
    for batch in cut(tokenizer, TEXTS, n_pos=16, pack=False):
        for row in batch.document.tolist():
            assert len({document for document in row if document >= 0}) == 1


def test_padding_is_marked(tokenizer: Tokenizer) -> None:
    (batch,) = cut(tokenizer, ["the cat saw the dog", "dog"], n_pos=64, pack=False)
    padding = torch.arange(batch.tokens.shape[1]) >= batch.lengths[:, None]
    assert padding.any()
    assert batch.special[padding].all()
    assert (batch.document[padding] == -1).all()
    assert (batch.tokens[padding] == tokenizer.pad_id).all()


def test_special_tokens_spelled_out_in_a_text_are_marked_and_belong_to_it() -> None:
    (batch,) = cut(BYTES, ["a</s>b"])
    assert batch.special.tolist() == [[False, True, False]]
    assert batch.document.tolist() == [[0, 0, 0]]


def test_ids_are_those_of_the_documents() -> None:
    (batch,) = token_batches([Document(41, "a"), Document(7, "b")], BYTES)
    assert batch.document.tolist() == [[41, -1, 7]]


def test_batches_come_before_the_corpus_ends() -> None:
    endless = (Document(i, "a b c") for i in itertools.count())
    first = list(itertools.islice(token_batches(endless, BYTES, n_pos=8, batch_size=2), 3))
    assert [batch.tokens.shape for batch in first] == [(2, 8)] * 3


def test_nothing_gives_no_batches(tokenizer: Tokenizer) -> None:
    assert cut(tokenizer, []) == cut(tokenizer, [""]) == []


def test_the_same_batches_each_time(tokenizer: Tokenizer) -> None:
    corpus = load_corpus(TEXTS)
    first, second = (list(token_batches(corpus, tokenizer, n_pos=6)) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one.tokens, other.tokens)
        assert torch.equal(one.document, other.document)


def test_rows_without_room_are_refused(tokenizer: Tokenizer) -> None:
    least = 1 + int(tokenizer.bos)
    with pytest.raises(OptionError, match=rf"n_pos=0, .*\nExpected: n_pos of at least {least}"):
        cut(tokenizer, TEXTS, n_pos=0)
    with pytest.raises(OptionError, match=r"batch_size=0\nExpected: .*batch_size of at least 1"):
        cut(tokenizer, TEXTS, batch_size=0)


def test_a_lone_surrogate_is_refused_before_it_is_cut() -> None:
    with pytest.raises(TaskError, match=r"character 1 of the prompt is a lone surrogate"):
        list(token_batches([Document(0, "a\udc00")], BYTES))
