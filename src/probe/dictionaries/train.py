"""Training dictionaries on a store of activations."""

import contextlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from probe.core.errors import DictionaryError, OptionError
from probe.core.options import read_options
from probe.core.progress import Report, progress_bar
from probe.core.provenance import hash_text, now, versions
from probe.dictionaries.dictionary import SparseDictionary
from probe.dictionaries.files import CONFIG, TRAINING, load_dictionary
from probe.dictionaries.recipe import Recipe
from probe.dictionaries.scaling import Data
from probe.dictionaries.store import ActivationStore
from probe.dictionaries.trainer import CHECKPOINT, Trainer
from probe.dictionaries.writing import clear_unfinished, disk_errors, write_json

_LOGS = 200
_CHECKPOINT_SECONDS = 60.0


def train_sae(
    store: ActivationStore, *, out: str | Path, site: str | None = None, device: str = "cpu",
    checkpoint_seconds: float = _CHECKPOINT_SECONDS, **options: Any,
) -> SparseDictionary:  # fmt: skip
    """Train a sparse autoencoder.

    The folder holds a checkpoint while it is trained: a run that was killed goes on from there and
    ends with the same bits; Ctrl-C saves one. Finished, it holds the dictionary in SAELens'
    format and ``training.json``: the options, and loss, L0, explained variance, dead share and
    densities along the way. Called again, it is loaded.

    Args:
        store: The activations.
        out: The folder.
        site: Which tensor of the store; needed where there are several.
        device: Where to train.
        checkpoint_seconds: Time between two checkpoints.
        **options: Of the training, see ``probe.dictionaries.recipe.Recipe``: architecture,
            d_sae, k or sparsity, n_tokens, batch_size, lr, seed, revive, ...

    Raises:
        OptionError: An unknown option, or a value it cannot have.
        DictionaryError: A folder with another training in it, a loss that is not finite, a
            damaged store, no room on the disk.

    Cost: for the top-k family, and for standard once a tenth of its features or fewer are active,
    one dense product, activations × encoder, and little more; for the others about nine such
    products.
    """
    job = _Job(store, _one(store, site), _one(store, site), out, options, device)
    return _train([job], store, checkpoint_seconds)[0]


def train_saes(
    store: ActivationStore, settings: Sequence[Mapping[str, Any]], *, out: str | Path,
    site: str | None = None, device: str = "cpu",
    checkpoint_seconds: float = _CHECKPOINT_SECONDS, **options: Any,
) -> list[SparseDictionary]:  # fmt: skip
    """Train several autoencoders in one pass over a store, each as ``train_sae`` would.

    Args:
        store: The activations.
        settings: Options of each, over the common ones.
        out: A folder; each dictionary has one in it, ``0``, ``1``, ...
        site: As of ``train_sae``.
        device: As of ``train_sae``.
        checkpoint_seconds: As of ``train_sae``.
        **options: Common ones. ``n_tokens``, ``batch_size`` and ``seed`` must be common.

    Raises:
        OptionError: As ``train_sae``, and options that must be common and are not.
        DictionaryError: As ``train_sae``.
    """
    name = _one(store, site)
    jobs = [
        _Job(store, name, name, Path(out) / str(i), {**options, **own}, device)
        for i, own in enumerate(settings)
    ]
    if not jobs:
        raise OptionError("settings is empty", expected="options of at least one dictionary")
    for field in ("n_tokens", "batch_size", "seed", "normalise", "outliers"):
        values = [getattr(job.recipe, field) for job in jobs]
        if len(set(values)) > 1:
            raise OptionError(f"{field} is {values}", expected=f"one {field} for all")
    return _train(jobs, store, checkpoint_seconds)


def train_transcoder(
    store: ActivationStore, *, out: str | Path, reads: str | None = None,
    writes: str | None = None, device: str = "cpu",
    checkpoint_seconds: float = _CHECKPOINT_SECONDS, **options: Any,
) -> SparseDictionary:  # fmt: skip
    """Train a transcoder: features of a module's input that reconstruct its output.

    Args:
        store: Activations of both sites, harvested in one pass.
        out: The folder, see ``train_sae``.
        reads: The input's site; by default the store's first.
        writes: The output's site; by default the store's second.
        device: Where to train.
        checkpoint_seconds: Time between two checkpoints.
        **options: As of ``train_sae``; ``skip=True`` adds a linear path from input to output;
            gated there is none.

    Raises:
        OptionError: As ``train_sae``.
        DictionaryError: As ``train_sae``, or a store without two sites.
    """
    names = store.names
    if len(names) < 2 and (reads is None or writes is None):
        raise DictionaryError(
            f"{store.path} holds {', '.join(names)} alone",
            expected="the input and the output of a module",
            remedy='harvest(..., site=["mlp_in", "mlp_out"], layer=...)',
        )
    if options.get("architecture") == "gated":
        raise OptionError("a gated transcoder", expected="another architecture")
    source = (store.known(reads or names[0]),)
    job = _Job(store, source, (store.known(writes or names[1]),), out, options, device)
    return _train([job], store, checkpoint_seconds)[0]


def train_crosscoder(
    store: ActivationStore, *, out: str | Path, sites: Sequence[str] | None = None,
    device: str = "cpu", checkpoint_seconds: float = _CHECKPOINT_SECONDS, **options: Any,
) -> SparseDictionary:  # fmt: skip
    """Train a crosscoder: shared features of several layers, with a decoder for each.

    The sparsity penalty weighs a feature by the sum of its decoders' norms (Lindsey et al. 2024).

    Args:
        store: Activations of the layers, harvested in one pass.
        out: The folder, see ``train_sae``.
        sites: Which; by default all of the store, in its order.
        device: Where to train.
        checkpoint_seconds: Time between two checkpoints.
        **options: As of ``train_sae``, but not gated.

    Raises:
        OptionError: As ``train_sae``.
        DictionaryError: As ``train_sae``, or sites of different widths.
    """
    names = tuple(store.known(name) for name in (sites or store.names))
    if len(names) < 2 or len({store.width(name) for name in names}) > 1:
        widths = {name: store.width(name) for name in names}
        raise DictionaryError(f"sites {widths}", expected="two or more of one width")
    if options.get("architecture") == "gated":
        raise OptionError("a gated crosscoder", expected="another architecture")
    return _train([_Job(store, names, names, out, options, device)], store, checkpoint_seconds)[0]


def _one(store: ActivationStore, site: str | None) -> tuple[str, ...]:
    if site is None and len(store.names) > 1:
        raise DictionaryError(
            f"{store.path} holds {', '.join(store.names)}", expected="site=, one of them"
        )
    return (store.known(site or store.names[0]),)


class _Job:
    """One dictionary to be trained in one folder."""

    def __init__(
        self, store: ActivationStore, reads: tuple[str, ...], writes: tuple[str, ...],
        out: str | Path, options: Mapping[str, Any], device: str,
    ) -> None:  # fmt: skip
        self.path = Path(out)
        self.recipe = read_options(Recipe, options, "the training")
        if self.recipe.skip and reads == writes:
            raise OptionError("skip=True for an autoencoder", expected="a transcoder")
        self.store, self.reads, self.writes, self.device = store, reads, writes, device
        shards = [shard.sha256 for shard in store.manifest.shards]
        self.about = hash_text(f"{self.recipe} {reads} {writes} {shards}")
        self.checkpoint = self.path / CHECKPOINT
        self.trainer: Trainer | None = None

    def finished(self) -> SparseDictionary | None:
        """What an earlier run with the same options has saved."""
        if not (self.path / CONFIG).exists():
            return None
        found = load_dictionary(self.path)
        if found.metadata.get("training") != self.about:
            raise DictionaryError(
                f"{self.path} holds another dictionary, {found}",
                expected="a new folder, or the store and options it was trained with",
            )
        return found if found.metadata.get("complete") else None

    def begin(self, data: Data) -> Trainer:
        """The trainer, where it left off."""
        self.trainer = Trainer(self.recipe, data, self.device)
        clear_unfinished(self.path)
        if self.checkpoint.exists():
            self.trainer.load(self.checkpoint, self.about)
        return self.trainer

    def save_checkpoint(self) -> None:
        """So that nothing is lost."""
        if self.trainer is not None:
            with disk_errors(self.path):
                self.path.mkdir(parents=True, exist_ok=True)
                self.trainer.save(self.checkpoint, self.about)

    def save(self, trainer: Trainer, seconds: float) -> SparseDictionary:
        """The dictionary and how it was trained; the checkpoint goes once both are there."""
        last = trainer.history[-1] if trainer.history else {}
        summary = {k: last[k] for k in ("l0", "explained_variance", "dead_share") if k in last}
        made = self.store.manifest.made
        metadata = {
            "training": self.about, "complete": trainer.done, "made": made,
            "model_name": made.get("model"), "weight_hash": made.get("weight_hash"),
            "prepend_bos": made.get("bos"), "context_size": made.get("n_pos"),
            "tokens": trainer.step * self.recipe.batch_size,
            "last": summary, "options": self.recipe.model_dump(mode="json"),
        }  # fmt: skip
        name = f"{self.recipe.architecture}-{self.recipe.d_sae}-" + "-".join(self.writes)
        found = trainer.data.fold(
            trainer.parameters, self.recipe, trainer.threshold, name, metadata
        )
        density = [float(f"{value:.4g}") for value in trainer.density.tolist()]
        with disk_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            write_json(
                self.path / TRAINING,
                {
                    "options": self.recipe.model_dump(mode="json"), "made": made, "saved": now(),
                    "seconds": round(seconds, 1), "versions": versions(),
                    "history": trainer.history, "density": density,
                },
            )  # fmt: skip
        found.save(self.path)
        if trainer.done:
            self.checkpoint.unlink(missing_ok=True)
        return found


def _train(
    jobs: list[_Job], store: ActivationStore, checkpoint_seconds: float
) -> list[SparseDictionary]:
    done = [job.finished() for job in jobs]
    open_jobs = [job for job, found in zip(jobs, done, strict=True) if found is None]
    if open_jobs:
        first = open_jobs[0]
        recipe = first.recipe
        data = Data.of(
            store, first.reads, first.writes, normalise=recipe.normalise, outliers=recipe.outliers
        )
        trainers = [job.begin(data) for job in open_jobs]
        began = time.monotonic()
        try:
            with progress_bar("training") as report:
                _run(open_jobs, trainers, data, report, checkpoint_seconds)
        except (KeyboardInterrupt, DictionaryError):
            # what was learnt is kept; another disk error must not hide the first
            with contextlib.suppress(DictionaryError):
                for job in open_jobs:
                    job.save_checkpoint()
            raise
        seconds = time.monotonic() - began
        saved = iter([j.save(t, seconds) for j, t in zip(open_jobs, trainers, strict=True)])
        done = [found if found is not None else next(saved) for found in done]
    return [found for found in done if found is not None]


def _run(
    jobs: list[_Job], trainers: list[Trainer], data: Data, report: Report,
    checkpoint_seconds: float,
) -> None:  # fmt: skip
    recipe = jobs[0].recipe
    start = min(trainer.step for trainer in trainers)
    every = max(1, recipe.n_steps // _LOGS)
    last, begun = time.monotonic(), time.monotonic()
    batches = data.store.batches(recipe.batch_size, names=data.names, seed=recipe.seed, start=start)
    for step in range(start, recipe.n_steps):
        batch = data.batch(next(batches), torch.device(jobs[0].device))
        for trainer in trainers:
            if trainer.step > step:
                continue
            trainer.learn(batch)
            if trainer.step % every == 0 or trainer.done:
                trainer.log()
        rate = (step + 1 - start) * recipe.batch_size / (time.monotonic() - begun)
        go_on = report(step + 1, recipe.n_steps, trainers[0].state(rate))
        if go_on is False or time.monotonic() - last > checkpoint_seconds:
            for job in jobs:
                job.save_checkpoint()
            last = time.monotonic()
        if go_on is False:
            return
