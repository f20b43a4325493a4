"""Kill a harvest or a training at random moments, and see whether it ends with the same files.

    python tests/dictionaries/killing.py harvest | train FOLDER [KILLS] [SEED]

Everything is imported once; what is killed are forks, by a SIGKILL that nothing can catch.
"""

import contextlib
import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch

from probe.dictionaries.harvest import harvest
from probe.dictionaries.store import ActivationStore
from probe.dictionaries.train import train_sae
from probe.models.load import load_model

NEW_FILES = (0, 1, 2)
"""How many files of tensors a run may write before its signal is on its way."""
PAUSE = 0.05
"""Seconds on its way, at most."""
TRIES = 10
"""Runs begun for each kill, at most."""


def run_in_fork(work: Callable[[], object]) -> int:
    """The process that does it."""
    child = os.fork()
    if child:
        return child
    try:
        work()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def finish(work: Callable[[], object]) -> None:
    """An undisturbed run."""
    _, status = os.waitpid(run_in_fork(work), 0)
    assert status == 0, status


def tensors(folder: Path) -> set[tuple[str, int]]:
    """The files of tensors, a file written again being another one."""
    found = set()
    for path in folder.glob("*.safetensors"):
        with contextlib.suppress(FileNotFoundError):  # thrown away since
            found.add((path.name, path.stat().st_mtime_ns))
    return found


def kill_after(child: int, new_files: int, pause: float, folder: Path) -> int:
    """Kill it a pause after so many files, if it lives that long; how it ended."""
    seen = before = tensors(folder)
    while len(seen - before) < new_files:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status
        time.sleep(0.001)
        seen = seen | tensors(folder)
    time.sleep(pause)
    os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


def kill_at_random(
    work: Callable[[], object], folder: Path, kills: int, seed: int
) -> tuple[int, set[str]]:
    """Begin it again and again until so many runs were killed; how many, and what files they left.

    A run that ends before its signal comes is no kill: its files are thrown away and it begins
    anew. Moments are counted in files, so a slow machine is killed at the same ones.
    """
    rng, hits, left = random.Random(seed), 0, set[str]()
    for _ in range(TRIES * kills):
        child = run_in_fork(work)
        status = kill_after(child, rng.choice(NEW_FILES), rng.uniform(0, PAUSE), folder)
        if os.WIFSIGNALED(status):
            hits += 1
            left |= set(files(folder))
        else:
            assert status == 0, status
            shutil.rmtree(folder)
        if hits == kills:
            break
    return hits, left


def harvesting(folder: Path) -> Callable[[str], object]:
    """A store of fifty shards."""
    model = load_model("toy")
    texts = [
        f"{name} went to the store with {i} cats . " * 12 for i in range(100) for name in "ABC"
    ]

    def work(name: str) -> object:
        return harvest(
            model, texts, site=["mlp_in", "mlp_out"], layer=1, out=folder / name, n_pos=24,
            tokens_per_shard=960, tokens_per_batch=240,
        )  # fmt: skip

    return work


def training(folder: Path) -> Callable[[str], object]:
    """Some thousand steps, with a checkpoint whenever there is time for one."""
    x = torch.randn(500, 8, generator=torch.Generator().manual_seed(0)) * 3 + torch.arange(8.0)
    store = ActivationStore.from_array(x, out=folder / "store", shard_rows=128)

    def work(name: str) -> object:
        return train_sae(
            store, out=folder / name, architecture="batchtopk", d_sae=64, k=4, n_tokens=120_000,
            batch_size=64, lr=1e-3, checkpoint_seconds=0.05,
        )  # fmt: skip

    return work


def files(path: Path) -> dict[str, bytes]:
    """All but the record of the training, which names times."""
    return {p.name: p.read_bytes() for p in path.glob("*") if p.name != "training.json"}


def main(what: str, folder: Path, kills: int = 10, seed: int = 0) -> None:
    """Print what happened, as JSON."""
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    work = {"harvest": harvesting, "train": training}[what](folder)
    finish(lambda: work("whole"))
    hits, left = kill_at_random(lambda: work("killed"), folder / "killed", kills, seed)
    finish(lambda: work("killed"))
    ours, whole = files(folder / "killed"), files(folder / "whole")
    found = {
        "killed": hits, "left by kills": sorted(left), "files": len(whole), "same": ours == whole,
        "differ": [n for n in {**ours, **whole} if ours.get(n) != whole.get(n)],
    }  # fmt: skip
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    name, path, *numbers = sys.argv[1:]
    main(name, Path(path), *map(int, numbers))
