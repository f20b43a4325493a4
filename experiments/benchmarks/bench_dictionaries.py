"""Training and harvesting against SAELens' trainer and the bare truncated forward, in turns.

    python experiments/benchmarks/bench_dictionaries.py [step | widths | harvest]

Speeds are activations a second; read a ratio, not a figure: it depends on the machine's mood.
"""

import contextlib
import itertools
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from timing import PeakMemory, in_turns, matrix_rate

import probe

D_IN, BATCH = 576, 2048


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
        pairs = []
        for _ in range(rounds):
            mine = ours(
                store, steps, architecture=architecture, d_sae=d_sae, k=k, batch_size=batch,
                unit_decoder=False,
            )  # fmt: skip
            rival = theirs(store.batches(batch), steps, architecture, d_sae, batch, k)
            pairs.append((mine, rival))
        mine, rival = (sorted(p[i] for p in pairs)[len(pairs) // 2] for i in (0, 1))
        bound = matrix_rate() / (2 * D_IN * d_sae)
        print(
            f"| {architecture} | {d_sae} | {batch} | {mine:.0f} | {rival:.0f} | {mine / rival:.1f} "
            f"| {bound:.0f} |"
        )


def step() -> None:
    print("| architecture | d_sae | batch | Probe | SAELens | ratio | encoder product alone |")
    with made_up(4 * BATCH) as store:
        compare(store, 4608, BATCH, rounds=3, steps=3)


def widths() -> None:
    print("| architecture | d_sae | batch | Probe | SAELens | ratio | encoder product alone |")
    with made_up(4 * BATCH) as store:
        for d_sae in (2048, 8192, 32768, 65536):
            compare(store, d_sae, 512, rounds=1, steps=2)


def harvest() -> None:
    """Disk, checksum and shuffle included, against the forward up to the layer and nothing else."""
    model = probe.load_model("smollm2")
    word = "The history of railways begins with horses pulling wagons along wooden rails. "
    text, layer = [word * 40] * 12, 15
    tokens = torch.randint(1000, 40000, (8, 128))
    n = 0

    def probes() -> None:
        nonlocal n
        with tempfile.TemporaryDirectory() as out:
            n = probe.harvest(
                model,
                text,
                layer=layer,
                out=Path(out),
                tokens_per_batch=1024,
                tokens_per_shard=2048,
            ).n_rows

    def bare() -> None:
        for _ in range(max(1, n // tokens.numel())):
            model.trace(tokens, [("resid_post", layer)])

    probes()
    seconds = in_turns({"harvest": probes, "bare": bare}, rounds=3)
    rates = {
        "harvest": n / seconds["harvest"],
        "bare": max(1, n // tokens.numel()) * tokens.numel() / seconds["bare"],
    }
    print(f"harvest {rates['harvest']:.0f} tokens/s, bare truncated forward {rates['bare']:.0f}")
    print(f"ratio {rates['harvest'] / rates['bare']:.2f}")


@contextlib.contextmanager
def made_up(rows: int) -> Iterator[probe.ActivationStore]:
    with tempfile.TemporaryDirectory() as folder:
        x = torch.randn(rows, D_IN, generator=torch.Generator().manual_seed(0))
        yield probe.ActivationStore.from_array(x, out=Path(folder) / "store")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    for name in sys.argv[1:] or ["step", "widths", "harvest"]:
        with PeakMemory() as memory:
            {"step": step, "widths": widths, "harvest": harvest}[name]()
        print(f"peak memory above the start: {(memory.peak - memory.before) / 1e6:.0f} MB")
