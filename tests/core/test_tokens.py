"""Strings and tokenizers of every kind."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_tokenizers import KINDS, byte_level, prepended, tokenizer_of, word_level

from probe.core.errors import TaskError
from probe.core.model import Model
from probe.core.tokens import Tokenizer

BYTES = Tokenizer(byte_level(vocab_size=400, texts=["the cat saw a dog and a bird"]))
WORDS = word_level(["the cat saw the dog"], bos=True)
TEXT = st.text(st.characters(exclude_categories=["Cs"]))
HOSTILE = [
    "\x00",
    "a\x00b",
    "\x1b[31mred",
    "<b>&amp;</b><script>",
    "$x$ and $$y$$",
    ":red[x]",
    "\u202eabc",
    "é e\u0301 👩‍👩‍👧",
    "a\u2028b\x85c",
    "א" * 10_000,
]


def data_of(strings: list[str]) -> bytes:
    """The bytes that token strings stand for; the text must hold no <0x..> of its own."""
    hexed = re.compile(r"(?:<0x[0-9A-F]{2}>)+")
    return b"".join(
        bytes.fromhex(re.sub("<0x|>", "", text)) if hexed.fullmatch(text) else text.encode()
        for text in strings
    )


@given(TEXT)
def test_strings_spell_the_text(text: str) -> None:
    text = text.replace("<", "")
    assert data_of(BYTES.strings(BYTES.encode(text))) == text.encode()


@given(TEXT)
def test_decode_undoes_encode(text: str) -> None:
    assert BYTES.decode(BYTES.encode(text, special=False)) == text


@pytest.mark.slow  # every token of every kind
@pytest.mark.parametrize("kind", KINDS)
def test_every_token_has_a_string(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    for token in range(tokenizer.n_vocab):
        text = tokenizer.string(token)
        assert text
        assert "Ġ" not in text
        assert "▁" not in text
        text.encode()


@given(st.integers())
def test_an_id_outside_the_vocabulary_is_shown_as_a_number(token: int) -> None:
    known = 0 <= token < BYTES.n_vocab
    assert (BYTES.string(token) == f"<{token}>") == (not known)


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_strange_text_is_kept_as_it_is(text: str) -> None:
    ids = BYTES.prompt(text, n_ctx=50_000)
    assert BYTES.decode(ids) == text
    assert data_of(BYTES.strings(ids)) == text.encode()


@pytest.mark.parametrize("surrogate", ["\ud800", "\udfff"])
def test_a_lone_surrogate_is_named(surrogate: str) -> None:
    with pytest.raises(TaskError) as error:
        BYTES.encode(f"ab{surrogate}c")
    message = str(error.value)
    assert f"character 2 of the prompt is a lone surrogate (U+{ord(surrogate):04X})" in message
    assert 'Try: text.encode("utf-8", "replace").decode()' in message


def test_the_remedy_for_a_surrogate_works() -> None:
    assert BYTES.encode("ab\ud800c".encode("utf-8", "replace").decode()) == BYTES.encode("ab?c")


@pytest.mark.parametrize(("text", "hf"), [("", BYTES.hf), ("", WORDS), (" \n\t", WORDS)])
def test_an_empty_prompt_is_refused(text: str, hf: object) -> None:
    with pytest.raises(TaskError, match=r"has no tokens\nExpected: at least one token of text"):
        Tokenizer(hf).prompt(text, n_ctx=10)


def test_a_prompt_may_fill_the_context_and_no_more() -> None:
    assert len(BYTES.prompt("x" * 50, n_ctx=50)) == 50
    with pytest.raises(TaskError) as error:
        BYTES.prompt("x" * 51, n_ctx=50)
    assert "the prompt has 51 tokens\nExpected: at most 50, the model's context" in str(error.value)
    assert "Try: keep the last part of the text" in str(error.value)


@pytest.mark.parametrize(
    ("hf", "bos", "expected"),
    [
        (BYTES.hf, None, False),
        (BYTES.hf, True, True),
        (BYTES.hf, False, False),
        (WORDS, None, True),
        (WORDS, True, True),
        (WORDS, False, False),
    ],
)
def test_the_bos_policy(hf: object, bos: bool | None, expected: bool) -> None:
    tokenizer = Tokenizer(hf, bos)
    bare = tokenizer.encode("the cat", special=False)
    assert tokenizer.bos is expected
    first = [tokenizer.hf.bos_token_id] if expected else []
    assert tokenizer.encode("the cat") == [*first, *bare]
    assert all(map(tokenizer.is_special, first))
    assert not any(map(tokenizer.is_special, bare))


def test_the_bos_policy_of_an_encoder_keeps_its_last_token() -> None:
    from tokenizers import processors

    hf = word_level(["the cat"])
    hf.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    own, without = Tokenizer(hf), Tokenizer(hf, bos=False)
    bare = own.encode("the cat", special=False)
    assert own.encode("the cat") == [0, *bare, 1]
    assert without.encode("the cat") == [*bare, 1]


def test_bos_that_does_not_exist_is_refused() -> None:
    hf = word_level(["the cat"])
    hf.bos_token = None
    with pytest.raises(
        TaskError, match=r"bos=True, and this tokenizer has no BOS token\nTry: bos="
    ):
        Tokenizer(hf, bos=True)


def test_single_tokens() -> None:
    tokenizer = tokenizer_of("single digits")
    token = tokenizer.need_single(" Mary")
    assert tokenizer.string(token) == " Mary"
    assert tokenizer.single(" Mary") == token
    assert tokenizer.single("") is None
    with pytest.raises(TaskError) as error:
        tokenizer.need_single(" Zyxwvut")
    assert "the answer ' Zyxwvut' is 6 tokens for this tokenizer: [' Z', 'y'" in str(error.value)
    assert "Expected: an answer of one token\nTry: another word" in str(error.value)
    with pytest.raises(TaskError, match='Try: " Mary" with its leading space'):
        tokenizer.need_single("Mary")


def test_an_unknown_word_is_no_single_token() -> None:
    assert Tokenizer(WORDS).single(" cat") is not None
    assert Tokenizer(WORDS).single(" zebra") is None


def test_a_space_the_tokenizer_adds_does_not_count() -> None:
    tokenizer = Tokenizer(prepended())
    assert tokenizer.encode("and Mary", special=False)[1:] == [tokenizer.single(" Mary")]


def test_padding_is_the_tokenizers_own_or_its_eos() -> None:
    assert BYTES.hf.pad_token_id is None
    assert BYTES.pad_id == BYTES.eos_id == BYTES.hf.eos_token_id
    hf = word_level(["the cat"])
    hf.pad_token = "<unk>"
    assert Tokenizer(hf).pad_id == hf.unk_token_id
    hf.pad_token = hf.eos_token = None
    assert Tokenizer(hf).pad_id == 0
    assert Tokenizer(hf).eos_id is None


@pytest.mark.slow
def test_smollm2_strings_spell_the_text(smollm2: Model) -> None:
    tokenizer = smollm2.tokenizer
    for text in HOSTILE:
        ids = tokenizer.prompt(text, n_ctx=50_000)
        assert tokenizer.decode(ids) == text
        assert data_of(tokenizer.strings(ids)) == text.encode()
