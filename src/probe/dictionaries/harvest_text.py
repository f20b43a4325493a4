"""The text of each shard of a harvest: rows of tokens in random order, the same every time."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from probe.core.model import Model
from probe.corpora import Document, token_batches

_WINDOW_TOKENS = 4_000_000


@dataclass(frozen=True)
class Text:
    """Rows of tokens of one shard, with where each token stands."""

    tokens: Int[Tensor, "row pos"]
    lengths: Int[Tensor, " row"]
    document: Int[Tensor, "row pos"]
    position: Int[Tensor, "row pos"]
    kept: Bool[Tensor, "row pos"]

    def __len__(self) -> int:
        return len(self.tokens)

    def rows(self, which: "Tensor | slice") -> "Text":
        """Some of its rows."""
        return Text(*(getattr(self, name)[which] for name in self.__annotations__))

    def first(self, n: int) -> "Text":
        """The first rows, as many as it takes to keep ``n`` tokens."""
        reached = self.kept.sum(1).cumsum(0)
        return self.rows(slice(0, int((reached < n).sum()) + 1))

    @property
    def hash(self) -> str:
        """What names its tokens."""
        return hashlib.sha256(self.tokens.int().numpy().tobytes()).hexdigest()[:16]


def shard_texts(
    documents: Iterable[Document], model: Model, made: dict[str, Any]
) -> Iterator[Text]:
    """The text of each shard, in the order the shards are made."""
    n_pos, per_shard = made["n_pos"], max(1, made["tokens_per_shard"] // made["n_pos"])
    rows = _rows(documents, model, made)
    generator = torch.Generator().manual_seed(made["seed"])
    while window := list(islice(rows, max(1, _WINDOW_TOKENS // n_pos))):
        order = torch.randperm(len(window), generator=generator)
        for part in order.split(per_shard):
            some = [window[i] for i in part.tolist()]
            yield Text(*(torch.cat(tensors) for tensors in zip(*some, strict=True)))


def _rows(
    documents: Iterable[Document], model: Model, made: dict[str, Any]
) -> Iterator[tuple[Tensor, ...]]:
    for batch in token_batches(
        documents, model.tokenizer, n_pos=made["n_pos"], batch_size=64, pack=made["pack"]
    ):
        pos = torch.arange(batch.tokens.shape[1])
        kept = ~batch.special & (pos >= made["skip_first"])
        width = made["n_pos"] - batch.tokens.shape[1]
        for row in range(len(batch.tokens)):
            one = slice(row, row + 1)
            yield (
                _wide(batch.tokens[one], width).int(), batch.lengths[one],
                _wide(batch.document[one], width).int(), _wide(batch.position[one], width).int(),
                _wide(kept[one], width),
            )  # fmt: skip


def _wide(row: Tensor, more: int) -> Tensor:
    return torch.nn.functional.pad(row, (0, more))


def forward_batches(text: Text, tokens: int, causal: bool) -> Iterator[Tensor]:
    """Rows of about one length, longest first, as many as a forward pass may have tokens.

    Rows of a model that reads both ways must be of one length: it would read the padding.
    """
    order = text.lengths.argsort(descending=True, stable=True)
    lengths = text.lengths[order].tolist()
    start = 0
    for end in range(1, len(order) + 1):
        full = (end + 1 - start) * lengths[start] > tokens
        if end == len(order) or full or (not causal and lengths[end] != lengths[start]):
            yield order[start:end]
            start = end
