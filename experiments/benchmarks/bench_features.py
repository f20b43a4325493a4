"""The feature index: how fast it is made, beside the bare forward passes, and how fast it is read.

Aim: a page of a feature in less than 100 ms at 65,536 features.
"""

import json
import random
import shutil
import sqlite3
import statistics
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

import torch
from safetensors.torch import save_file
from timing import PeakMemory, machine, once

import probe

SIZES = [4_096, 65_536]
TOY_FEATURES, TOY_FIRE, TOY_TOKENS = 256, 16, 20_000
SMOLLM2_TOKENS, LAYER, READS = 8_192, 15, 300


def random_dictionary(folder: Path, d_in: int, d_sae: int, k: int, site: str) -> str:
    """A top-k dictionary of random rows, in SAELens' format; its folder."""
    folder.mkdir(parents=True)
    rows = torch.nn.functional.normalize(torch.randn(d_sae, d_in))
    tensors = {"W_enc": rows.T.contiguous(), "W_dec": rows, "b_enc": torch.zeros(d_sae),
               "b_dec": torch.zeros(d_in)}  # fmt: skip
    save_file(tensors, folder / "sae_weights.safetensors")
    config = {
        "architecture": "topk", "d_in": d_in, "d_sae": d_sae, "k": k, "dtype": "float32",
        "apply_b_dec_to_input": True, "normalize_activations": "none",
        "metadata": {"sae_lens_version": "6.0.0", "reads": [site], "writes": [site],
                     "name": folder.name},
    }  # fmt: skip
    (folder / "cfg.json").write_text(json.dumps(config))
    return str(folder)


def texts(model: probe.Model, n_tokens: int) -> list[str]:
    """Prompts of a task, drawn until there are so many tokens."""
    found, count, seed = [], 0, 0
    while count < n_tokens:
        for prompt in probe.load_task("ioi", n=256, seed=seed).prompts:
            found.append(prompt.clean)
            count += len(model.tokenizer.encode(prompt.clean))
        seed += 1
    return found


def enlarged(small: Path, out: Path, n_features: int) -> probe.FeatureIndex:
    """The same index with its features repeated until there are so many."""
    shutil.copyfile(small, out)
    with closing(sqlite3.connect(out)) as file:
        file.execute(
            "with recursive copy(n) as (select 1 union all select n + 1 from copy where n < ?) "
            "insert into features select id + ? * copy.n, features.n, density, max, mean, nearest, "
            "page from features, copy",
            (n_features // TOY_FEATURES - 1, TOY_FEATURES),
        )
        file.execute("update meta set value = ? where name = 'd_sae'", (str(n_features),))
        file.commit()
    return probe.FeatureIndex(out)


def latency(index: probe.FeatureIndex) -> tuple[float, float, float]:
    """Median, 99th percentile and worst milliseconds of a page, features in random order."""
    rng, times = random.Random(0), []
    for _ in range(READS):
        feature = rng.randrange(len(index))
        start = time.perf_counter()
        index.feature(feature)
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times), sorted(times)[int(0.99 * READS)], max(times)


def reading(folder: Path) -> None:
    """Latency by number of features; every page holds as many examples as it can."""
    model = probe.load_model("toy")
    width = model.dims.d_model
    name = random_dictionary(folder / "toy", width, TOY_FEATURES, TOY_FIRE, "resid_post.0")
    small = folder / "toy.sqlite"
    index = probe.index_features(model, name, texts(model, TOY_TOKENS), out=small, n_pos=64)
    page = index.feature(0)
    shown = len(page.top) + sum(len(i.examples) for i in page.equal_width + page.equal_count)
    print(f"Pages of {shown} examples.\n")
    print("| features | file, MiB | page, ms: median | 99 % | worst |\n|---|---|---|---|---|")
    for n_features in SIZES:
        out = folder / f"{n_features}.sqlite"
        middle, most, worst = latency(enlarged(small, out, n_features))
        size = out.stat().st_size / 2**20
        print(f"| {n_features} | {size:.0f} | {middle:.1f} | {most:.1f} | {worst:.1f} |")


def building(folder: Path) -> None:
    """Tokens a second of the whole build, beside the bare forward passes up to the same layer."""
    model = probe.load_model("smollm2")
    site = f"resid_post.{LAYER}"
    name = random_dictionary(folder / "smollm2", model.dims.d_model, 4096, 32, site)
    corpus = texts(model, SMOLLM2_TOKENS)
    tokens = torch.randint(1000, model.dims.d_vocab, (SMOLLM2_TOKENS // 128, 128))

    def bare() -> None:
        for rows in tokens.split(16):
            model.trace(rows, site, batch_size=16)

    bare()
    before, _ = once(bare)
    with PeakMemory() as memory:
        seconds, index = once(
            lambda: probe.index_features(
                model, name, corpus, out=folder / "s.sqlite", n_tokens=SMOLLM2_TOKENS
            )
        )
    after, _ = once(bare)
    forward = SMOLLM2_TOKENS / ((before + after) / 2)
    rate = index.about["tokens"] / seconds
    print(f"\nSmolLM2, layer {LAYER}, 4096 features, {index.about['tokens']} tokens: {rate:.0f} "
          f"tokens/s with everything, {rate / forward:.2f} of the bare forward passes up to that "
          f"layer ({forward:.0f} tokens/s); extra memory {memory.mib:.0f} MiB.")  # fmt: skip


def main() -> None:
    torch.manual_seed(0)
    print(f"## Feature index, {machine()}\n")
    with tempfile.TemporaryDirectory() as folder:
        reading(Path(folder))
        if "--reading" not in sys.argv:
            building(Path(folder))


if __name__ == "__main__":
    main()
