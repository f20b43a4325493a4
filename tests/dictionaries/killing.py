"""Kill a harvest or a training at random moments, and see whether it ends with the same files.

    python tests/dictionaries/killing.py harvest | train FOLDER [KILLS] [SEED]

Everything is imported once; what is killed are forks, by a SIGKILL that nothing can catch.
"""

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

SHARE = 0.07
"""Of an undisturbed run's time after its first file, the longest that a killed one may have."""
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


def finish(work: Callable[[], object], folder: Path) -> tuple[float, float]:
    """An undisturbed run: seconds until there is a file of tensors, and until the end."""
    began, first = time.monotonic(), 0.0
    child = run_in_fork(work)
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        now = time.monotonic() - began
        if not first and any(folder.glob("*.safetensors")):
            first = now
        if done:
            assert status == 0, status
            return first, now
        time.sleep(0.005)


def kill_at_random(
    work: Callable[[], object], folder: Path, times: tuple[float, float], kills: int, seed: int
) -> tuple[int, set[str]]:
    """Begin it again and again until so many runs were killed; how many, and what files they left.

    A run that ends before its signal comes, on a machine faster than it was, is no kill: its files
    are thrown away and it begins anew.
    """
    (first, whole), rng, hits, left = times, random.Random(seed), 0, set[str]()
    for _ in range(TRIES * kills):
        child = run_in_fork(work)
        time.sleep(rng.uniform(0.5 * first, first + SHARE * (whole - first)))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
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
    times = finish(lambda: work("whole"), folder / "whole")
    hits, left = kill_at_random(lambda: work("killed"), folder / "killed", times, kills, seed)
    finish(lambda: work("killed"), folder / "killed")
    ours, whole = files(folder / "killed"), files(folder / "whole")
    found = {
        "seconds": [round(t, 2) for t in times], "killed": hits,
        "left by kills": sorted(left), "files": len(whole), "same": ours == whole,
        "differ": [n for n in {**ours, **whole} if ours.get(n) != whole.get(n)],
    }  # fmt: skip
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    name, path, *numbers = sys.argv[1:]
    main(name, Path(path), *map(int, numbers))
