"""Text → the tiny models' tokens → rows of one context each."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from probe.core.errors import CorpusError, OptionError

VOCABULARY = 1024
SPECIAL = ("<bos>", "<eos>", "<pad>")
_HELD_OUT = 21
"""One document in so many is kept for measuring."""
_AT_ONCE = 256


@dataclass(frozen=True)
class Rows:
    """Token rows that begin with BOS and stay within one document.

    Attributes:
        train: To learn from.
        held_out: Of documents that were never learnt from.
        text_hash: SHA-256 of all documents, first 16 digits.
        tokenizer: What made them.
    """

    train: Int[Tensor, "row pos"]
    held_out: Int[Tensor, "other pos"]
    text_hash: str
    tokenizer: Any = field(repr=False)


def tiny_rows(documents: Iterable[Any], *, n_ctx: int = 256, tokenizer: Any = None) -> Rows:
    """Documents as the rows tiny models are trained and measured on.

    Args:
        documents: A corpus, such as ``everyday_corpus()``, or texts.
        n_ctx: Tokens of a row.
        tokenizer: A Hugging Face one, such as ``model.tokenizer.hf`` to measure a trained model;
            by default one is trained on the documents.

    Raises:
        CorpusError: Too little text.
        OptionError: Rows too short for a token after BOS.
    """
    if n_ctx < 2:
        raise OptionError(f"n_ctx={n_ctx}", expected="2 or more: rows begin with BOS")
    texts = [getattr(document, "text", document) for document in documents]
    return pack(texts, tokenizer or train_tokenizer(texts), n_ctx)


def train_tokenizer(texts: Iterable[str], size: int = VOCABULARY) -> Any:
    """A byte-pair tokenizer of the text, as a Hugging Face tokenizer that prepends BOS."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", 0)]
    )
    return as_hugging_face(tokenizer)


def as_hugging_face(tokenizer: Any) -> Any:
    """The tokenizer with the names of its special tokens."""
    from transformers import PreTrainedTokenizerFast

    bos, eos, pad = SPECIAL
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=bos, eos_token=eos, pad_token=pad
    )


def pack(texts: Iterable[str], tokenizer: Any, n_ctx: int) -> Rows:
    """Cut documents into rows of one context; what is left over at a document's end is dropped.

    Raises:
        CorpusError: Too little text for a row of each sort.
    """
    digest = hashlib.sha256()
    kept: dict[bool, list[Tensor]] = {True: [], False: []}
    for number, (text, ids) in enumerate(_encoded(texts, tokenizer)):
        digest.update(text.encode("utf-8", "replace") + b"\0")
        full = len(ids) // (n_ctx - 1)
        pieces = torch.tensor(ids[: full * (n_ctx - 1)], dtype=torch.int16).view(full, n_ctx - 1)
        kept[number % _HELD_OUT == _HELD_OUT - 1].append(pieces)
    parts = [torch.cat(kept[held]) if kept[held] else torch.empty(0, 1) for held in (False, True)]
    if not all(len(part) for part in parts):
        raise CorpusError(
            f"{len(kept[False]) + len(kept[True])} documents gave {len(parts[0])} rows to learn "
            f"from and {len(parts[1])} to measure on",
            expected=f"at least {_HELD_OUT} documents of more than {n_ctx} tokens",
        )
    bos = tokenizer.bos_token_id
    train, held_out = (torch.nn.functional.pad(part, (1, 0), value=bos) for part in parts)
    return Rows(train, held_out, digest.hexdigest()[:16], tokenizer)


def _encoded(texts: Iterable[str], tokenizer: Any) -> Iterator[tuple[str, list[int]]]:
    """Texts with their ids, without special tokens; encoded in batches, which is faster."""
    fast, texts = tokenizer.backend_tokenizer, iter(texts)
    while batch := list(islice(texts, _AT_ONCE)):
        found = fast.encode_batch(batch, add_special_tokens=False)
        yield from zip(batch, (one.ids for one in found), strict=True)
