"""A corpus through a model, as the activations that a dictionary reads and reconstructs."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from probe.core.dictionary import Dictionary
from probe.core.errors import DictionaryError, OptionError
from probe.core.model import Model
from probe.core.site import Site
from probe.core.trace import Trace
from probe.corpora import Corpus, TokenBatch, load_corpus, token_batches
from probe.dictionaries.dictionary import SparseDictionary

CorpusLike = Corpus | str | Path | Iterable[str]
_ENCODED_BYTES = 128 * 2**20


@dataclass(frozen=True, eq=False)
class Text:
    """What is read of a corpus, and how.

    Attributes:
        corpus: The documents.
        n_tokens: Stop after the batch in which so many tokens have counted; None for all.
        n_pos: Tokens in a row.
        batch_size: Rows in a batch.
        skip_first: Tokens at the beginning of each row that do not count.
        limit: Norm of what is encoded above which a token does not count.
    """

    corpus: Corpus
    n_tokens: int | None
    n_pos: int
    batch_size: int
    skip_first: int
    limit: float = math.inf

    def batches(self, model: Model) -> Iterator[TokenBatch]:
        """All batches that are read."""
        seen = 0
        for batch in token_batches(
            self.corpus, model.tokenizer, n_pos=self.n_pos, batch_size=self.batch_size
        ):
            yield batch
            seen += int(self.counted(batch).sum())
            if self.n_tokens is not None and seen >= self.n_tokens:
                return

    def counted(self, batch: TokenBatch) -> Bool[Tensor, "batch pos"]:
        """Which tokens count: text, and not the first of a row where those are skipped."""
        counted = ~batch.special
        counted[:, : self.skip_first] = False
        return counted

    def usual(self, x: Float[Tensor, "batch pos *layer d_in"]) -> Bool[Tensor, "batch pos"]:
        """Which activations are no outliers."""
        return (x.flatten(2).float().norm(dim=-1) <= self.limit).cpu()


@dataclass(frozen=True, eq=False)
class Seen:
    """One batch, as the dictionary sees it.

    Attributes:
        batch: The tokens.
        counted: Which of them count.
        reads: What is encoded, of the tokens that count.
        writes: What is to be reconstructed.
        before: Batches that came before this one.
    """

    batch: TokenBatch
    counted: Bool[Tensor, "batch pos"]
    reads: Float[Tensor, "token *layer d_in"] = field(repr=False)
    writes: Float[Tensor, "token *layer d_out"] = field(repr=False)
    before: int


def text_of(
    sae: Dictionary,
    model: Model,
    corpus: CorpusLike,
    *,
    n_tokens: int | None,
    n_pos: int,
    batch_size: int,
    skip_first: int | None,
    outliers: float | None,
) -> Text:
    """The options of a pass, checked; None is what the dictionary was trained with.

    Outliers are found by the median norm over the first batch.
    """
    check_fits(sae, model)
    if min(n_pos, batch_size, 1 if n_tokens is None else n_tokens) < 1:
        raise OptionError(
            f"n_tokens={n_tokens}, n_pos={n_pos}, batch_size={batch_size}",
            expected="at least 1 of each",
        )
    metadata = sae.metadata if isinstance(sae, SparseDictionary) else {}
    made, trained = metadata.get("made", {}), metadata.get("options", {})
    skip = int(made.get("skip_first", 0)) if skip_first is None else skip_first
    times = float(trained.get("outliers", 0)) if outliers is None else outliers
    if not 0 <= skip < n_pos:
        raise OptionError(f"skip_first={skip}", expected=f"0 to {n_pos - 1}, fewer than n_pos")
    documents = corpus if isinstance(corpus, Corpus) else load_corpus(corpus)
    text = Text(documents, n_tokens, n_pos, batch_size, skip)
    if times <= 0:
        return text
    first = next(activations(sae, model, text), None)
    if first is None or not len(first.reads):
        return text
    median = float(first.reads.flatten(1).float().norm(dim=-1).median())
    return replace(text, limit=times * median)


def activations(sae: Dictionary, model: Model, text: Text, *, skip: int = 0) -> Iterator[Seen]:
    """What the dictionary reads and writes, batch by batch; the first ``skip`` are passed over.

    Cost: a forward pass over each batch, stopped after the last site.
    """
    sites = list(dict.fromkeys([*sae.reads, *sae.writes]))
    for number, batch in enumerate(islice(text.batches(model), skip, None), skip):
        trace = model.trace(batch.tokens, sites, batch_size=len(batch.tokens))
        x = stacked(sae, trace, sae.reads)
        counted = text.counted(batch) & text.usual(x)
        reads = x[counted.to(model.device)]
        writes = stacked(sae, trace, sae.writes)[counted.to(model.device)]
        yield Seen(batch, counted, reads, writes, number)


def stacked(
    sae: Dictionary, trace: Trace, sites: tuple[Site, ...]
) -> Float[Tensor, "batch pos *layer d_in"]:
    """Recorded activations as a dictionary takes them: a crosscoder's have a layer axis."""
    each = [trace[site].flatten(2) for site in sites]
    layered = sae.W_dec.ndim == 3
    return torch.stack(each, dim=2) if layered else each[0]


def encoded(sae: Dictionary, seen: Seen) -> Iterator[tuple[slice, Float[Tensor, "token feature"]]]:
    """Feature activations of the tokens that count, as many at once as fit."""
    size = max(1, _ENCODED_BYTES // (4 * sae.d_sae))
    for start in range(0, len(seen.reads), size):
        part = slice(start, start + size)
        yield part, sae.encode(seen.reads[part].to(sae.device))


def check_fits(sae: Dictionary, model: Model) -> None:
    """Refuse a dictionary that says nowhere where it belongs, or was made for another width."""
    if not sae.reads or not sae.writes:
        raise DictionaryError(
            f"{sae.name} does not say which activations it encodes",
            expected="a site",
            remedy='load_dictionary(..., reads=["resid_post.8"])',
        )
    site = sae.reads[0]
    width = 1
    for axis in site.axes[2:]:
        width *= model.dims.size(axis, batch=1, pos=1)
    if width != sae.d_in:
        raise DictionaryError(
            f"{sae.name} encodes {sae.d_in} dimensions, and {site} of {model.name} has {width}",
            expected="the model it was made for",
        )
