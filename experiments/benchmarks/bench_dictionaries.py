"""Training and harvesting against SAELens' trainer and the bare truncated forward, in turns.

    python experiments/benchmarks/bench_dictionaries.py [step | widths | harvest | memory]

Speeds are activations a second; read a ratio, not a figure: it depends on the machine's mood.
"""

import contextlib
import gc
import itertools
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import psutil
import torch
from timing import PeakMemory, in_turns, machine, matrix_rate

import probe

D_IN, BATCH, LAYER = 576, 2048, 15
TEXT = ["The history of railways begins with horses pulling wagons along wooden rails. " * 40]


def ours(store: probe.ActivationStore, steps: int, **options: object) -> float:
    """Median activations a second over the steps, the first left out."""
    at: list[float] = []
    with (
        tempfile.TemporaryDirectory() as out,
        probe.listening(lambda *_: at.append(time.perf_counter())),
    ):
        probe.train_sae(
            store, out=out, n_tokens=(steps + 1) * options["batch_size"], revive="none", **options
        )
    took = sorted(b - a for a, b in itertools.pairwise(at))
    return options["batch_size"] / took[len(took) // 2]


def theirs(
    batches: Iterator[dict], steps: int, architecture: str, d_sae: int, batch_size: int, k: int
) -> float:
    """SAELens' trainer, its own defaults but for the decoder's norm."""
    import sae_lens
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    config = {
        "topk": sae_lens.TopKTrainingSAEConfig,
        "batchtopk": sae_lens.BatchTopKTrainingSAEConfig,
    }
    sae = sae_lens.TrainingSAE.get_sae_class_for_architecture(architecture)(
        config[architecture](d_in=D_IN, d_sae=d_sae, k=k, rescale_acts_by_decoder_norm=False)
    )
    trainer = SAETrainer(
        SAETrainerConfig(10**9, batch_size, lr=3e-4, lr_end=3e-4), sae, data_provider=iter([])
    )
    took = []
    for _ in range(steps + 1):
        rows = next(batches)["x"]
        start = time.perf_counter()
        trainer.step(rows)
        trainer.n_training_steps += 1
        took.append(time.perf_counter() - start)
    took = sorted(took[1:])
    return batch_size / took[len(took) // 2]


def compare(
    store: probe.ActivationStore, d_sae: int, batch: int, rounds: int, steps: int, k: int = 32
) -> None:
    for architecture in ("topk", "batchtopk"):
        pairs, taken = [], []
        for _ in range(rounds):
            with PeakMemory() as mine:
                fast = ours(
                    store, steps, architecture=architecture, d_sae=d_sae, k=k, batch_size=batch,
                    unit_decoder=False,
                )  # fmt: skip
            gc.collect()
            with PeakMemory() as rival:
                slow = theirs(store.batches(batch), steps, architecture, d_sae, batch, k)
            gc.collect()
            pairs.append((fast, slow))
            taken.append((mine.mib, rival.mib))
        fast, slow = (statistics.median(p[i] for p in pairs) for i in (0, 1))
        memory = [max(t[i] for t in taken) for i in (0, 1)]
        bound = matrix_rate() / (2 * D_IN * d_sae)
        print(
            f"| {architecture} | {d_sae} | {batch} | {fast:.0f} | {slow:.0f} | "
            f"**{fast / slow:.1f}** | {bound:.0f} | {memory[0]:.0f} | {memory[1]:.0f} |",
            flush=True,
        )


HEADER = """
Activations a second (medians, the first step left out), and MiB taken at most; d_in 576, k 32.

| architecture | d_sae | batch | Probe | SAELens | ratio | float32 encoder product alone | \
Probe, MiB | SAELens, MiB |
|---|---|---|---|---|---|---|---|---|"""


def step() -> None:
    print(HEADER)
    with made_up(4 * BATCH) as store:
        compare(store, 4608, BATCH, rounds=3, steps=4)


def widths() -> None:
    print(HEADER)
    with made_up(4 * BATCH) as store:
        for d_sae, batch, steps in ((2048, 2048, 4), (8192, 2048, 3), (16384, 1024, 2)):
            compare(store, d_sae, batch, rounds=1, steps=steps)
        compare(store, 65536, 512, rounds=1, steps=2)


def harvest() -> None:
    """Disk, checksum and shuffle included, against the forward up to the layer and nothing else."""
    model = probe.load_model("smollm2")
    tokens = torch.randint(1000, 40000, (8, 128))
    n = 0

    def probes() -> None:
        nonlocal n
        with tempfile.TemporaryDirectory() as out:
            n = probe.harvest(
                model, TEXT * 12, layer=LAYER, out=out, tokens_per_batch=1024,
                tokens_per_shard=4096,
            ).n_rows  # fmt: skip

    def bare() -> None:
        for _ in range(max(1, n // tokens.numel())):
            model.trace(tokens, [("resid_post", LAYER)])

    probes()
    seconds = in_turns({"harvest": probes, "bare": bare}, rounds=3)
    rate = n / seconds["harvest"]
    alone = max(1, n // tokens.numel()) * tokens.numel() / seconds["bare"]
    print(
        f"\nHarvest, SmolLM2, resid_post.{LAYER}, {n} tokens: {rate:.0f} tokens/s; the forward up "
        f"to that layer alone {alone:.0f}; ratio **{rate / alone:.2f}**."
    )


def memory() -> None:
    """What a harvest of sixteen shards holds as it goes on."""
    print("\nMiB held above the start in each quarter of a harvest, at most:\n")
    print("| model | tokens | first | second | third | last | tokens/s |")
    print("|---|---|---|---|---|---|---|")
    for name, layer, n_tokens in (("toy", 1, 2_000_000), ("smollm2", LAYER, 50_000)):
        model = probe.load_model(name)
        process, peaks = psutil.Process(), [0] * 4

        def watch(
            done: int, total: int, unit: str, n: int = n_tokens, process: psutil.Process = process,
            peaks: list[int] = peaks,
        ) -> bool:  # fmt: skip
            quarter = min(3, 4 * done // n)
            peaks[quarter] = max(peaks[quarter], process.memory_info().rss)
            return True

        texts = TEXT * (n_tokens // 400)
        before, begun = process.memory_info().rss, time.perf_counter()
        with tempfile.TemporaryDirectory() as out, probe.listening(watch):
            store = probe.harvest(
                model, texts, layer=layer, out=out, n_tokens=n_tokens,
                n_pos=min(128, model.dims.n_ctx), tokens_per_shard=n_tokens // 16,
            )  # fmt: skip
        rate = store.n_rows / (time.perf_counter() - begun)
        held = " | ".join(f"{(peak - before) / 2**20:.0f}" for peak in peaks)
        print(f"| {name} | {store.n_rows} | {held} | {rate:.0f} |", flush=True)


@contextlib.contextmanager
def made_up(rows: int) -> Iterator[probe.ActivationStore]:
    with tempfile.TemporaryDirectory() as folder:
        x = torch.randn(rows, D_IN, generator=torch.Generator().manual_seed(0))
        yield probe.ActivationStore.from_array(x, out=Path(folder) / "store")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    print(f"## Dictionaries, {machine()}")
    parts = {"step": step, "widths": widths, "harvest": harvest, "memory": memory}
    for name in sys.argv[1:] or parts:
        parts[name]()
