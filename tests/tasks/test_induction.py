"""What followed last time."""

import pytest
from small_tokenizers import KINDS, byte_level, tokenizer_of

from probe.core.errors import TaskError
from probe.core.task import encode
from probe.core.tokens import Tokenizer
from probe.tasks import load_task


@pytest.fixture(params=KINDS)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return tokenizer_of(request.param)


def successor(text: str) -> str:
    """The word that followed the last word at its earlier mention."""
    words = text.split()
    return words[words.index(words[-1]) + 1]


@pytest.mark.parametrize("length", [2, 7, 20])
def test_the_answer_is_what_followed(length: int, tokenizer: Tokenizer) -> None:
    for prompt in load_task("induction", n=20, length=length).fit(tokenizer).prompts:
        words, twin = prompt.clean.split(), (prompt.corrupted or "").split()
        assert len(words) == length + length // 2
        assert len(set(words)) == length
        assert prompt.answer == f" {successor(prompt.clean)}"
        assert prompt.wrong_answer == f" {successor(prompt.corrupted or '')}"
        differ = [i for i, (a, b) in enumerate(zip(words, twin, strict=True)) if a != b]
        assert differ == [length // 2]


def test_each_word_is_one_token_and_both_mentions_the_same(tokenizer: Tokenizer) -> None:
    task = load_task("induction", n=10, length=12).fit(tokenizer)
    encoded = encode(task, tokenizer, 512)
    begin = int(tokenizer.bos)
    for row in encoded.clean.tolist():
        tokens = row[begin:]
        assert len(tokens) == 18
        assert len(set(tokens[:12])) == 12
        assert tokens[:6] == tokens[12:]


def test_words_come_from_the_whole_vocabulary() -> None:
    task = load_task("induction", n=60).fit(tokenizer_of("single digits"))
    assert len({word for prompt in task.prompts for word in prompt.clean.split()}) > 200


def test_a_vocabulary_of_too_few_words_is_refused_with_an_example() -> None:
    tokenizer = Tokenizer(byte_level(vocab_size=300, texts=["a b"]))
    with pytest.raises(TaskError, match=r"induction: only 0 of 2 prompts could be drawn .*several"):
        load_task("induction", n=2).fit(tokenizer)
