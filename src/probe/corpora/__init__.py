"""Text → documents → token batches."""

from probe.corpora.documents import Corpus, Document, load_corpus
from probe.corpora.tokens import TokenBatch, token_batches
from probe.corpora.written import write_corpus

__all__ = [
    "Corpus",
    "Document",
    "TokenBatch",
    "load_corpus",
    "token_batches",
    "write_corpus",
]
