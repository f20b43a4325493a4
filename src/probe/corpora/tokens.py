"""Documents as token batches, each token with the document it came from."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from probe.core.errors import OptionError
from probe.core.task import pad
from probe.core.tokens import Tokenizer
from probe.corpora.documents import Document

_NOWHERE = -1


@dataclass(frozen=True, eq=False)
class TokenBatch:
    """Rows of tokens, padded on the right.

    Attributes:
        tokens: Token ids.
        lengths: Real tokens of each row, special ones included.
        document: ``Document.id`` of each token; -1 for tokens that stand in no document (BOS,
            separators, padding).
        position: Which token of its document it is, from 0; -1 likewise.
        special: Tokens that are no text: BOS, separators, padding, and special tokens spelled out
            in a document. Usually left out of a harvest.
    """

    tokens: Int[Tensor, "batch pos"]
    lengths: Int[Tensor, " batch"]
    document: Int[Tensor, "batch pos"]
    position: Int[Tensor, "batch pos"]
    special: Bool[Tensor, "batch pos"]


@dataclass
class _Row:
    """Tokens with where each came from."""

    tokens: list[int] = field(default_factory=list)
    document: list[int] = field(default_factory=list)
    position: list[int] = field(default_factory=list)

    def add(self, tokens: list[int], document: int, first: int) -> None:
        """Tokens of one document, the first at this position of it; -1 for no document."""
        nowhere = document == _NOWHERE
        self.tokens += tokens
        self.document += [document] * len(tokens)
        self.position += [_NOWHERE] * len(tokens) if nowhere else range(first, first + len(tokens))


def token_batches(
    documents: Iterable[Document],
    tokenizer: Tokenizer,
    *,
    n_pos: int = 128,
    batch_size: int = 8,
    pack: bool = True,
) -> Iterator[TokenBatch]:
    """Cut documents into rows of at most ``n_pos`` tokens.

    Every row begins (and ends) as the tokenizer's policy has a prompt begin (and end). A document
    longer than a row goes on in the next. Memory: one document and one batch.

    Args:
        documents: The stream, see ``load_corpus``.
        tokenizer: Its BOS policy holds.
        n_pos: Tokens in a row, special ones included.
        batch_size: Rows in a batch; the last batch may have fewer.
        pack: Fill each row, over the ends of documents, with the EOS token between two; only the
            last row is short. Otherwise a row holds one document, and short ones leave padding.

    Raises:
        OptionError: No room for text in a row, or a batch size below one.
        TaskError: A document that is no valid text.
    """
    before, after = tokenizer.prefix, tokenizer.suffix
    room = n_pos - len(before) - len(after)
    if room < 1 or batch_size < 1:
        raise OptionError(
            f"n_pos={n_pos}, batch_size={batch_size}",
            expected=f"n_pos of at least {len(before) + len(after) + 1}, batch_size of at least 1",
        )
    rows: list[_Row] = []
    for body in _bodies(documents, tokenizer, room, pack):
        row = _Row()
        row.add(before, _NOWHERE, 0)
        row.tokens += body.tokens
        row.document += body.document
        row.position += body.position
        row.add(after, _NOWHERE, 0)
        rows.append(row)
        if len(rows) == batch_size:
            yield _batch(rows, tokenizer)
            rows = []
    if rows:
        yield _batch(rows, tokenizer)


def _bodies(
    documents: Iterable[Document], tokenizer: Tokenizer, room: int, pack: bool
) -> Iterator[_Row]:
    """What stands in each row between the special tokens that begin and end it."""
    separator = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    body = _Row()
    for document in documents:
        ids, first = tokenizer.encode(document.text, special=False), 0
        if not ids:
            continue
        if body.tokens:
            body.add(separator, _NOWHERE, 0)
        while first < len(ids):
            part = ids[first : first + room - len(body.tokens)]
            body.add(part, document.id, first)
            first += len(part)
            if len(body.tokens) == room or not pack:
                yield body
                body = _Row()
    if body.tokens:
        yield body


def _batch(rows: list[_Row], tokenizer: Tokenizer) -> TokenBatch:
    tokens = pad([row.tokens for row in rows], tokenizer.pad_id)
    document = pad([row.document for row in rows], _NOWHERE)
    marked = torch.tensor([tokenizer.is_special(token) for token in tokens.flatten().tolist()])
    return TokenBatch(
        tokens=tokens,
        lengths=torch.tensor([len(row.tokens) for row in rows]),
        document=document,
        position=pad([row.position for row in rows], _NOWHERE),
        special=marked.view(tokens.shape) | (document == _NOWHERE),
    )
