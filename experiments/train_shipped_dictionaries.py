"""The dictionaries that come with Probe: how they were made, from nothing but what is installed.

    python experiments/train_shipped_dictionaries.py BUILD_FOLDER

SmolLM2 writes half of the text, the other half is the source of Python's standard library; its
activations on both are harvested once, and the dictionaries are trained on them. Each step goes on
where it was stopped. One core needs some hours.
"""

import random
import sys
import sysconfig
from pathlib import Path

import torch
import typer

import probe

SITES = ["resid_post.15", "mlp_in.15", "mlp_out.15"]
WRITTEN_TOKENS = 300_000
SOURCE_CHARACTERS = 1_100_000
PIECE = 2000
N_POS = 128
MEASURED_TOKENS = 10_000
HELD_OUT = 20
"""One piece of text in so many is left out of training, to measure on."""


def source_code(seed: int = 0) -> list[str]:
    """Pieces of the standard library, by random draw."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    files = [
        path
        for path in sorted(folder.rglob("*.py"))
        if not {"site-packages", "test", "tests", "idlelib", "lib2to3"} & set(path.parts)
    ]
    pieces = []
    for path in files:
        text = path.read_text("utf-8", errors="ignore")
        pieces += [text[i : i + PIECE] for i in range(0, len(text), PIECE)]
    random.Random(seed).shuffle(pieces)
    return pieces[: SOURCE_CHARACTERS // PIECE]


def texts(build: Path, held_out: bool) -> list[str]:
    """The training text, or what is held out of it."""
    written = probe.load_corpus(build / "written.jsonl")
    pieces = [document.text for document in written] + source_code()
    return [t for i, t in enumerate(pieces) if (i % HELD_OUT == 0) == held_out]


def activations(model: probe.Model, build: Path) -> probe.ActivationStore:
    """All three sites in one pass, the first token of each row left out: it is an outlier."""
    return probe.harvest(
        model, texts(build, held_out=False), site=SITES, out=build / "activations",
        n_pos=N_POS, skip_first=1, dtype="float16", seed=0,
    )  # fmt: skip


def train_resid(store: probe.ActivationStore, build: Path) -> probe.SparseDictionary:
    return probe.train_sae(
        store, site="resid_post.15", architecture="batchtopk", d_sae=6144, k=48,
        n_tokens=1_500_000, batch_size=2048, lr=1e-3, outliers=0, seed=0,
        out=build / "smollm2-resid-15",
    )  # fmt: skip


def train_mlp(store: probe.ActivationStore, build: Path) -> probe.SparseDictionary:
    return probe.train_transcoder(
        store, reads="mlp_in.15", writes="mlp_out.15", architecture="batchtopk", d_sae=4608, k=48,
        n_tokens=1_200_000, batch_size=2048, lr=1e-3, seed=0, out=build / "smollm2-mlp-15",
    )  # fmt: skip


def measure(dictionary: probe.SparseDictionary, model: probe.Model, build: Path) -> probe.Result:
    """On the text left out of training, both halves mixed; what the card says."""
    held_out = texts(build, held_out=True)
    random.Random(0).shuffle(held_out)
    return probe.evaluate_sae(
        dictionary, model, held_out, n_tokens=MEASURED_TOKENS, ce_tokens=MEASURED_TOKENS // 2
    )


def main(build: Path) -> None:
    # bfloat16 runs twice as fast here, and changes activations less than training would notice
    model = probe.load_model("smollm2", dtype="bfloat16")
    probe.write_corpus(
        model, build / "written.jsonl", n_tokens=WRITTEN_TOKENS, batch_size=128, seed=0
    )
    store = activations(model, build)
    print(store)
    exact = probe.load_model("smollm2")
    for train in (train_resid, train_mlp):
        dictionary = train(store, build)
        numbers = measure(dictionary, exact, build).frame.query("feature.isna()")
        print(dictionary, numbers[["metric", "baseline", "value"]].to_string(index=False), sep="\n")
        dictionary.to(torch.float16).save(build / "float16" / dictionary.name)


if __name__ == "__main__":
    sys.exit(typer.run(main))
