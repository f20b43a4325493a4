"""What a model computes on a corpus, kept on disk to train dictionaries on."""

import shutil
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from probe.core.errors import DictionaryError, OptionError, ProbeWarning
from probe.core.model import Model
from probe.core.progress import Report, progress_bar
from probe.core.site import Site, SiteLike, expand_sites
from probe.corpora import Corpus, load_corpus
from probe.dictionaries.harvest_text import Text, forward_batches, shard_texts
from probe.dictionaries.store import (
    MANIFEST,
    ActivationStore,
    Manifest,
    Shard,
    check_finite,
    write_shard,
)
from probe.dictionaries.writing import clear_unfinished, disk_errors, write_json

_SPARE_BYTES = 50_000_000
_ABOUT = ("tokens", "document", "position")
_DTYPES = ("float32", "float16", "bfloat16")


def harvest(
    model: Model,
    corpus: Corpus | str | Path | Iterable[str],
    *,
    site: "SiteLike | Sequence[SiteLike]" = "resid_post",
    layer: int | Sequence[int] | None = None,
    out: str | Path,
    n_tokens: int | None = None,
    n_pos: int = 128,
    pack: bool = True,
    skip_first: int = 0,
    dtype: str = "float32",
    tokens_per_batch: int = 2048,
    tokens_per_shard: int = 65_536,
    seed: int = 0,
) -> ActivationStore:
    """Record activations over a corpus into a store on disk.

    The rows of a store are in random order: the corpus is cut into rows of ``n_pos`` tokens, these
    are shuffled over windows of four million tokens, and the tokens of a shard among themselves.
    Shard for shard the result is decided by the arguments, so a run that was killed goes on at
    the first missing shard, and a shard that is damaged is made again and no other.

    Args:
        model: The model.
        corpus: A corpus, a file, or texts.
        site: A kind of site, a Site, or several: all are recorded in the same pass.
        layer: The layer or layers of kinds that have one; None for every layer.
        out: The folder; one begun with the same arguments is continued.
        n_tokens: Stop after the row of text in which so many are stored; by default the whole
            corpus.
        n_pos: Tokens the model sees at once.
        pack: Fill rows over the ends of documents; see ``token_batches``.
        skip_first: Leave out the first so many tokens the model sees. Models that begin without
            a BOS token attend to the first token instead, and give it a huge activation.
        dtype: Stored as float32, float16 or bfloat16; what rounding changed is in the manifest.
        tokens_per_batch: In one forward pass.
        tokens_per_shard: In one file, before special tokens are left out.
        seed: Of the shuffles.

    Raises:
        DictionaryError: A folder with another harvest in it, a corpus that has changed since,
            activations that are not finite or do not fit the dtype, no room on the disk.
        SiteError: A site the model does not have.
        OptionError: A number out of range.

    Cost: one forward pass over the corpus, stopped after the last site. Memory: the token ids of
    one window, and one shard.
    """
    if min(n_pos, tokens_per_batch, tokens_per_shard) < 1 or not 0 <= skip_first < n_pos:
        raise OptionError(
            f"n_pos={n_pos}, tokens_per_batch={tokens_per_batch}, "
            f"tokens_per_shard={tokens_per_shard}, skip_first={skip_first}",
            expected="at least 1 of each, and fewer skipped than there are",
        )
    if dtype not in _DTYPES:
        raise OptionError(f'dtype="{dtype}"', expected=f"one of {', '.join(_DTYPES)}")
    documents = corpus if isinstance(corpus, Corpus) else load_corpus(corpus)
    sites = _sites(model, site, layer)
    made = {
        "model": model.name, "weight_hash": model.spec.model_dump()["weight_hash"],
        "model_dtype": str(model.dtype).removeprefix("torch."), "bos": model.tokenizer.bos,
        "corpus": documents.name, "n_tokens": n_tokens, "n_pos": n_pos, "pack": pack,
        "skip_first": skip_first, "tokens_per_batch": tokens_per_batch,
        "tokens_per_shard": tokens_per_shard, "seed": seed,
    }  # fmt: skip
    widths = [_width(model, s) for s in sites]
    manifest = Manifest(names=[str(s) for s in sites], widths=widths, dtype=dtype, made=made)
    path = Path(out)
    with disk_errors(path):
        path.mkdir(parents=True, exist_ok=True)
        had = _begun(path, manifest)
        clear_unfinished(path)
        job = _Job(model, sites, path, manifest, had, tokens_per_batch, seed)
        with progress_bar(f"harvesting {', '.join(manifest.names)}") as report:
            job.run(shard_texts(documents, model, made), n_tokens, report)
    return ActivationStore(path)


def _sites(model: Model, site: Any, layer: int | Sequence[int] | None) -> list[Site]:
    if layer is None:
        return expand_sites(site, model.dims.n_layers)
    kinds = [site] if isinstance(site, str) else list(site)
    layers = [layer] if isinstance(layer, int) else list(layer)
    return expand_sites([(kind, one) for kind in kinds for one in layers], model.dims.n_layers)


def _width(model: Model, site: Site) -> int:
    """Length of one token's activation, heads side by side."""
    if site.axes[:2] != ("batch", "pos"):
        raise OptionError(
            f"{site} has the axes {', '.join(site.axes)}",
            expected="a site with one activation for each token",
        )
    axes = [a for a in site.axes[2:] if site.head is None or a != site.head_axis]
    return prod(model.dims.size(axis, batch=1, pos=1) for axis in axes)


def _begun(path: Path, manifest: Manifest) -> list[Shard]:
    """The shards of an earlier run of the same harvest."""
    if not (path / MANIFEST).exists():
        return []
    old = ActivationStore(path).manifest
    ours, theirs = manifest.model_dump(), old.model_dump()
    for field in ("version", "names", "widths", "dtype", "made"):
        if ours[field] == theirs[field]:
            continue
        now, then = ours[field], theirs[field]
        if isinstance(now, dict):
            keys = [key for key in {**now, **then} if now.get(key) != then.get(key)]
            now, then = ({key: d.get(key) for key in keys} for d in (now, then))
        raise DictionaryError(
            f"{path} holds another harvest: {field} {then}, and now {now}",
            expected="the arguments it was begun with, or a new folder",
        )
    return old.shards


class _Job:
    """One harvest in progress."""

    def __init__(
        self, model: Model, sites: list[Site], path: Path, manifest: Manifest, had: list[Shard],
        tokens_per_batch: int, seed: int,
    ) -> None:  # fmt: skip
        self.model, self.sites, self.path, self.manifest = model, sites, path, manifest
        self.had, self.tokens_per_batch, self.seed = had, tokens_per_batch, seed
        self.dtype = getattr(torch, manifest.dtype)
        self.begun, self.recorded = time.monotonic(), 0

    def run(self, texts: Iterator[Text], n_tokens: int | None, report: Report) -> None:
        """Make every shard that is not there and whole."""
        stored = 0
        if not self.had:
            self._save_manifest()
        old = ActivationStore(self.path) if self.had else None
        for number, all_of_it in enumerate(texts):
            text = all_of_it if n_tokens is None else all_of_it.first(n_tokens - stored)
            whole = number < len(self.had) and self._is_whole(old, number, text)
            shard = (
                self.had[number] if whole else self._make(number, text, stored, n_tokens, report)
            )
            if shard is None:  # asked to stop
                return
            self.manifest.shards.append(shard)
            stored += shard.rows
            done = n_tokens is not None and stored >= n_tokens
            self.manifest.complete = done
            if not whole or done:
                self._save_manifest()
            if done:
                return
        self.manifest.complete = True
        self._save_manifest()

    def _save_manifest(self) -> None:
        """The shards there are; those of an earlier run that come later stay listed."""
        later = [] if self.manifest.complete else self.had[len(self.manifest.shards) :]
        value = self.manifest.model_dump()
        value["shards"] += [shard.model_dump() for shard in later]
        write_json(self.path / MANIFEST, value)

    def _is_whole(self, old: ActivationStore | None, number: int, text: Text) -> bool:
        shard = self.had[number]
        if shard.source != text.hash:
            raise DictionaryError(
                f"the text of {shard.file} is not what it was made from: the corpus has changed",
                expected=f"the corpus {self.manifest.made['corpus']} as it was",
                remedy="harvest it to a new folder",
            )
        if old is not None and old.is_whole(number):
            return True
        warnings.warn(
            f"{self.path / shard.file} is missing or damaged, and is made again",
            ProbeWarning,
            stacklevel=6,
        )
        return False

    def _make(
        self, number: int, text: Text, stored: int, n_tokens: int | None, report: Report
    ) -> Shard | None:
        self._check_room(text)
        names = self.manifest.names
        total = int(text.kept.sum())
        exact = {
            name: torch.empty(total, width)
            for name, width in zip(names, self.manifest.widths, strict=True)
        }
        about = {key: torch.empty(total, dtype=torch.int32) for key in _ABOUT}
        at = 0
        for rows in forward_batches(text, self.tokens_per_batch, self.model.dims.causal):
            batch = text.rows(rows)
            width = int(batch.lengths.max())
            trace = self.model.trace(
                batch.tokens[:, :width].long(), self.sites, batch_size=len(batch)
            )
            kept = batch.kept[:, :width]
            here = slice(at, at + int(kept.sum()))
            for name, site in zip(names, self.sites, strict=True):
                value = trace[site.whole]
                value = value.flatten(2) if site.head is None else value[:, :, site.head]
                exact[name][here] = value[kept.to(value.device)].float().cpu()
            for key in _ABOUT:
                about[key][here] = getattr(batch, key)[:, :width][kept]
            at = here.stop
            self.recorded += int(batch.lengths.sum())
            rate = self.recorded / (time.monotonic() - self.begun)
            done = stored + at
            if report(done, max(n_tokens or 0, done), f"tokens, {rate:.0f}/s") is False:
                return None
        return self._write(number, text, exact, about)

    def _write(
        self, number: int, text: Text, exact: dict[str, Tensor], about: dict[str, Tensor]
    ) -> Shard:
        order = torch.randperm(
            len(about["tokens"]), generator=torch.Generator().manual_seed(self.seed + number)
        )
        rounding = {}
        for name, rows in exact.items():
            check_finite(name, rows, f"in shard {number}, row")
            stored = rows.to(self.dtype)
            check_finite(f"{name} as {self.manifest.dtype}", stored, f"in shard {number}, row")
            if self.dtype != torch.float32:
                rounding[name] = float((stored.float() - rows).norm() / rows.norm())
            exact[name] = stored[order]
        tensors = {**exact, **{key: rows[order] for key, rows in about.items()}}
        left_out = int(text.lengths.sum()) - len(order)
        return write_shard(
            self.path, number, tensors, source=text.hash, left_out=left_out, rounding=rounding
        )

    def _check_room(self, text: Text) -> None:
        need = int(text.kept.sum()) * sum(self.manifest.widths) * self.dtype.itemsize
        free = shutil.disk_usage(self.path).free
        if need + _SPARE_BYTES > free:
            raise DictionaryError(
                f"the next shard takes {need / 1e6:.0f} MB, and {free / 1e6:.0f} MB are free in "
                f"{self.path}",
                expected=f"{_SPARE_BYTES / 1e6:.0f} MB to spare",
                remedy="make room and call again: it goes on where it stopped",
            )
