"""Small tokenizers of every kind we meet, trained here on the words of the tasks."""

from functools import cache
from typing import Any

import tokenizers
from tokenizers import (
    Regex,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from probe.core.tokens import Tokenizer
from probe.tasks import TASKS, load_task

_SPECIAL = ["<s>", "</s>", "<unk>"]
_DIGITS = {
    "single": [pre_tokenizers.Digits(individual_digits=True)],
    "pairs": [pre_tokenizers.Split(Regex(r" ?\p{N}{1,2}"), "isolated")],
    "triples": [pre_tokenizers.Split(Regex(r"\p{N}{1,3}"), "isolated")],
}


@cache
def task_texts(n: int = 600) -> list[str]:
    """What the tasks say when no tokenizer limits them."""
    prompts = [p for name in TASKS for p in load_task(name, n=n).prompts]
    return [f"{text}{p.answer}" for p in prompts for text in (p.clean, p.corrupted)]


def byte_level(
    digits: str = "single", vocab_size: int = 3000, texts: list[str] | None = None
) -> Any:
    """Byte-level BPE like GPT-2's; ``digits`` says how numbers are cut."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [*_DIGITS[digits], pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    numbers = [f"{i:02} {i:03} 17{i:02} {i}" for i in range(1000)]
    tokenizer.train_from_iterator(
        [*(texts or task_texts()), *numbers * 5],
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=_SPECIAL,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return _fast(tokenizer)


def word_level(texts: list[str] | None = None, *, bos: bool = False) -> Any:
    """Whole words, punctuation apart; what it does not know is <unk>."""
    tokenizer = tokenizers.Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(
        texts or task_texts(),
        trainers.WordLevelTrainer(special_tokens=_SPECIAL, show_progress=False),
    )
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
        )
    return _fast(tokenizer)


def metaspace(texts: list[str] | None = None) -> Any:
    """SentencePiece's form: a text that begins without a space is given one."""
    tokenizer = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    tokenizer.train_from_iterator(
        texts or task_texts(),
        trainers.BpeTrainer(vocab_size=2500, special_tokens=_SPECIAL, show_progress=False),
    )
    return _fast(tokenizer)


def prepended(texts: list[str] | None = None) -> Any:
    """Llama 2's and Mistral's file as it is: the space is put there before cutting, always."""
    tokenizer = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    tokenizer.decoder = decoders.Replace("▁", " ")
    tokenizer.train_from_iterator(
        texts or task_texts(),
        trainers.BpeTrainer(vocab_size=2500, special_tokens=_SPECIAL, show_progress=False),
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    return _fast(tokenizer)


def _fast(tokenizer: tokenizers.Tokenizer) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


KINDS = {
    "single digits": lambda: byte_level("single"),
    "pairs of digits": lambda: byte_level("pairs"),
    "groups of three digits": lambda: byte_level("triples"),
    "metaspace": metaspace,
    "words with BOS": lambda: word_level(bos=True),
}
"""What the tasks are tried on."""


@cache
def tokenizer_of(kind: str) -> Tokenizer:
    """The tokenizer of a kind, made once."""
    return Tokenizer(KINDS[kind]())
