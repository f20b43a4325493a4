"""How well does SmolLM2 do each in-context task, by the number of demonstrations?

    python experiments/icl_accuracy.py [--quick] [--model smollm2]

The share of held-out pairs whose first answer token is the likeliest, with a 95 % bootstrap
interval over pairs. Methods that look for a task in a model are judged only on tasks it can do:
``SOLVED`` is where ten demonstrations give at least 0.5. ``results/icl_accuracy.csv`` is written
again after each task, so a run that is stopped leaves what it measured.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

import probe

SOLVED = 0.5
SHOTS = (0, 2, 5, 10)
OUT = Path(__file__).parent / "results" / "icl_accuracy.csv"
COLUMNS = ["task", "sort", "shots", "accuracy", "low", "high", "n"]


def accuracy(model: probe.Model, name: str, shots: int, n: int, seed: int = 0) -> np.ndarray:
    """1 for each prompt answered right, 0 for each that is not."""
    task = probe.icl_task(name, seed=seed)
    n = min(n, len(task.split("test")))
    checked = task.prompts("test", shots=shots, n=n).check(model, "log_prob")
    return checked.frame.right.to_numpy(float)


def interval(right: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """95 % bootstrap interval of a mean."""
    draws = np.random.default_rng(seed).choice(right, (2000, len(right))).mean(1)
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(low), float(high)


def write(frame: pd.DataFrame, file: Path) -> None:
    """Put the table in a file, whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    frame.to_csv(partial, index=False, float_format="%.4f")
    partial.rename(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="4 prompts a cell")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    model = probe.load_model(options.model)
    rows = []
    for name, entry in probe.icl_tasks().items():
        for shots in SHOTS:
            right = accuracy(model, name, shots, 4 if options.quick else 24)
            low, high = interval(right)
            rows.append((name, entry.sort, shots, right.mean(), low, high, len(right)))
        frame = pd.DataFrame(rows, columns=COLUMNS)
        write(frame, options.out)
        print(f"{name:<16}", *(f"{row[3]:.2f}" for row in rows[-len(SHOTS) :]), flush=True)
    wide = frame.pivot(index="task", columns="shots", values="accuracy").round(2)
    print(wide.sort_values(SHOTS[-1], ascending=False).to_string())
    solved = wide.index[wide[SHOTS[-1]] >= SOLVED]
    print(f"{len(solved)} of {len(wide)} at least {SOLVED} at {SHOTS[-1]} shots")


if __name__ == "__main__":
    main()
