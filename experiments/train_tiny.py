"""Train the tiny models that come with Probe, and put them into the package.

``python experiments/train_tiny.py`` makes all of them again, in about eighty minutes of one core; a
run that was cut short goes on where it was, and the studies of tiny models find what was trained.
Weights are stored in half precision; the recipe, the seed and the hash of the text are beside them
in ``training.json``. On another kind of processor they come out as from another seed.
"""

import shutil
from pathlib import Path

import typer
from safetensors.torch import load_file, save_file
from tiny_runs import trained_folder

import probe

SHIPPED = {
    "attn-only-1l": ("attn-only-1l", 0),
    "attn-only-1l-seed1": ("attn-only-1l", 1),
    "attn-only-1l-seed2": ("attn-only-1l", 2),
    "attn-only-2l": ("attn-only-2l", 0),
    "attn-only-2l-seed1": ("attn-only-2l", 1),
    "attn-only-2l-seed2": ("attn-only-2l", 2),
    "relu-1l": ("relu-1l", 0),
}
"""Name → recipe and seed."""
WEIGHTS = Path(__file__).parents[1] / "src/probe/models/tiny/weights"


def main(out: Path = WEIGHTS, only: list[str] | None = None) -> None:
    """Train what is named (all by default), and ship it."""
    rows = probe.tiny_rows(probe.everyday_corpus())
    for name in only or SHIPPED:
        recipe, seed = SHIPPED[name]
        ship(trained_folder(recipe, rows, seed, {}), out / name)
        print(f"{name}: {out / name}")


def ship(trained: Path, folder: Path) -> None:
    """Copy a trained model, its weights in half precision."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(trained / name, folder)
    weights = load_file(trained / "model.safetensors")
    halved = {name: weight.half() for name, weight in weights.items()}
    save_file(halved, folder / "model.safetensors", metadata={"format": "pt"})
    shutil.copy(trained.parent / "training.json", folder)


if __name__ == "__main__":
    typer.run(main)
