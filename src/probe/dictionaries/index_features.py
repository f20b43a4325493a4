"""One pass over text into one file that can be searched: what each feature of a dictionary does."""

import shutil
import sqlite3
from collections.abc import Iterator
from itertools import repeat
from math import isinf
from pathlib import Path
from typing import Any, NamedTuple

import torch

from probe.core import provenance
from probe.core.dictionary import Dictionary
from probe.core.errors import CorpusError, DictionaryError, OptionError
from probe.core.model import Model
from probe.core.progress import Report, progress_bar
from probe.dictionaries import index_file, relations
from probe.dictionaries.feature_index import FeatureIndex
from probe.dictionaries.firings import Firings, Parts, n_counted
from probe.dictionaries.named import named
from probe.dictionaries.passes import CorpusLike, Text, text_of
from probe.dictionaries.summaries import Summariser, rounded

_TOKENS_PER_PART = 32_768
_BLOCK = 128


def index_features(
    model: Model,
    sae: Dictionary | str,
    corpus: CorpusLike,
    *,
    out: str | Path,
    n_tokens: int | None = None,
    n_pos: int = 128,
    batch_size: int = 16,
    skip_first: int | None = None,
    outliers: float | None = None,
    n_top: int = 20,
    n_intervals: int = 10,
    per_interval: int = 5,
    correlation_tokens: int = 50_000,
    seed: int = 0,
) -> FeatureIndex:
    """Find where every feature fires, and keep what a page about it shows.

    Examples, histograms and intervals are drawn from all activations in the text, not from a
    sample. A build that is killed goes on after the last whole part it had written beside
    ``out``. The file replaces an older one only when it is whole, and takes over its labels;
    readers of the older one are not disturbed before that.

    Args:
        model: The model.
        sae: A dictionary made for it, or the name of one.
        corpus: The text. What is written into the index is the text itself.
        out: The file.
        n_tokens: Stop after the batch in which so many tokens have counted; None for all.
        n_pos: Tokens the model sees at once; an example's context is at most this.
        batch_size: Rows of text in a forward pass.
        skip_first: Tokens at the beginning of each row that do not count; None for what the
            dictionary was trained with.
        outliers: Tokens whose activation's norm is more than so many times the median do not
            count; 0 to count all, None for what the dictionary was trained with.
        n_top: Strongest examples kept of each feature.
        n_intervals: Intervals of equal width, and of equal count.
        per_interval: Examples kept of each interval.
        correlation_tokens: Tokens over which features are correlated, the first of the text.
        seed: Chooses the examples of intervals.

    Raises:
        DictionaryError: A dictionary of another width; a build begun with other arguments.
        CorpusError: No token that counts.
        OptionError: A number out of range.

    Cost: one forward pass over the text, stopped after the dictionary's site. Disk while it is
    made: 12 bytes for each feature that fires on each token.
    """
    if min(n_top, n_intervals, per_interval, correlation_tokens) < 1:
        raise OptionError(
            f"n_top={n_top}, n_intervals={n_intervals}, per_interval={per_interval}, "
            f"correlation_tokens={correlation_tokens}",
            expected="at least 1 of each",
        )
    sae = named(sae, model)
    text = text_of(
        sae, model, corpus, n_tokens=n_tokens, n_pos=n_pos, batch_size=batch_size,
        skip_first=skip_first, outliers=outliers,
    )  # fmt: skip
    path = Path(out)
    plan = _plan(model, sae, text)
    per_part = max(1, _TOKENS_PER_PART // (n_pos * batch_size))
    try:
        parts = Parts(path.with_name(path.name + ".part"), plan, per_part)
        with progress_bar(f"indexing {sae.name}") as report:
            parts.fill(sae, model, text, report)
            kept = {"n_top": n_top, "n_intervals": n_intervals, "per_interval": per_interval}
            build = _Build(model, sae, parts, plan, kept, correlation_tokens, seed)
            build.write(path, report)
    except OSError as error:
        raise DictionaryError(
            f"{path} cannot be written: {error.strerror}", expected="a folder with room"
        ) from None
    shutil.rmtree(parts.folder)
    return FeatureIndex(path)


def _plan(model: Model, sae: Dictionary, text: Text) -> dict[str, Any]:
    """All that decides where features fire."""
    return {
        "model": model.name, "weight_hash": model.spec.model_dump()["weight_hash"],
        "dictionary": sae.name, "architecture": sae.architecture, "d_sae": sae.d_sae,
        "dictionary_hash": _hash(sae), "reads": [str(s) for s in sae.reads],
        "writes": [str(s) for s in sae.writes], "corpus": text.corpus.name,
        "n_tokens": text.n_tokens, "n_pos": text.n_pos, "batch_size": text.batch_size,
        "skip_first": text.skip_first, "norm_limit": None if isinf(text.limit) else text.limit,
    }  # fmt: skip


def _hash(sae: Dictionary) -> str:
    """Tells dictionaries apart by what they answer."""
    probe = torch.linspace(-1, 1, sae.W_enc.shape[:-1].numel(), dtype=torch.float64)
    found = sae.encode(probe.to(sae.W_enc).view(sae.W_enc.shape[:-1]))
    weights = (float(found.double().sum()), float(sae.W_dec.double().abs().sum()))
    return provenance.hash_text(repr([float(f"{number:.6g}") for number in weights]))


class _Page(NamedTuple):
    """A feature's row, and the tokens it is found by."""

    row: tuple[int, int, float, float, float, float, bytes]
    tokens: list[tuple[str, int, int, float]]


class _Build:
    """The file, from the firings."""

    def __init__(
        self,
        model: Model,
        sae: Dictionary,
        parts: Parts,
        plan: dict[str, Any],
        kept: dict[str, int],
        correlation_tokens: int,
        seed: int,
    ) -> None:
        self.model, self.sae, self.parts = model, sae, parts
        self.n = sum(n_counted(file) for file in parts.files)
        if not self.n:
            shutil.rmtree(parts.folder)
            raise CorpusError(
                f"no token of {plan['corpus']} counts",
                expected=f"text, in rows of more than skip_first={plan['skip_first']} tokens",
            )
        self.rows = [tokens for _, tokens in parts.rows()]
        self.summariser = Summariser(self.rows, seed=seed, **kept)
        self.n_correlated, self.correlated = relations.correlated(
            parts.files, sae.d_sae, correlation_tokens
        )
        self.about = {
            **plan, **kept, "version": index_file.VERSION, "tokens": self.n, "seed": seed,
            "correlation_tokens": self.n_correlated, "made": provenance.now(),
            "versions": provenance.versions(),
        }  # fmt: skip

    def write(self, path: Path, report: Report) -> None:
        """Make it beside, then put it in the place of an older one."""
        made = self.parts.folder / "index.sqlite"
        made.unlink(missing_ok=True)
        file = sqlite3.connect(made)
        file.execute("pragma synchronous = off")
        file.executescript(index_file.SCHEMA)
        used = {token for row in self.rows for token in row}
        for done, page in enumerate(self._pages(), 1):
            file.execute("insert into features values (?, ?, ?, ?, ?, ?, ?)", page.row)
            file.executemany("insert or replace into tokens_of values (?, ?, ?, ?)", page.tokens)
            used.update(token for _, token, _, _ in page.tokens)
            if done % _BLOCK == 0:
                report(done, self.sae.d_sae, "features")
        texts = ((i, index_file.pack_tokens(row)) for i, row in enumerate(self.rows))
        file.executemany("insert into texts values (?, ?)", texts)
        words = ((token, self.model.tokenizer.string(token)) for token in sorted(used))
        file.executemany("insert into vocabulary values (?, ?)", words)
        for feature, label, changed in index_file.labels_of(path):
            index_file.put_label(file, feature, label, changed)
        FeatureIndex.describe(file, self.about)
        file.commit()
        file.execute("vacuum")
        file.execute("pragma journal_mode = wal")  # so that readers and one writer do not wait
        file.close()
        index_file.settle(path)
        made.replace(path)

    def _pages(self) -> Iterator[_Page]:
        sae, d_sae = self.sae, self.sae.d_sae
        cosines = relations.encoder_cosines(sae)
        logits = (one for block in relations.token_logits(sae, self.model)
                  for one in relations.token_lists(block))  # fmt: skip
        beside = zip(relations.neighbours(sae), self.correlated, _or_nothing(logits), strict=False)
        for block, firings in self.parts.blocks(d_sae, _BLOCK):
            for place, feature in enumerate(block):
                near, together, tokens = next(beside)
                page = self.summariser.of(feature, firings.of(place))
                page |= {"neighbours": near, "correlated": together}
                page |= dict(zip(("promoted", "suppressed", "logits", "ends"), tokens, strict=True))
                page["encoder_cosine"] = (
                    None if cosines is None else rounded(float(cosines[feature]))
                )
                yield self._page(feature, page, firings.of(place))

    def _page(self, feature: int, page: dict[str, Any], firings: Firings) -> _Page:
        n = len(firings)
        largest, mean = (firings.value.max(), firings.value.mean()) if n else (0.0, 0.0)
        nearest = page["neighbours"][0][1] if page["neighbours"] else 0.0
        found = [
            (how, int(token), feature, float(value))
            for how in ("promoted", "suppressed", "fires_on")
            for token, value, *_ in page[how]
        ]
        packed = index_file.pack_page(page)
        row = (feature, n, n / self.n, float(largest), float(mean), float(nearest), packed)
        return _Page(row, found)


def _or_nothing(lists: Iterator[Any]) -> Iterator[Any]:
    """The lists, or empty ones for ever where a dictionary does not write into the stream."""
    yield from lists
    yield from repeat(([], [], [], []))
