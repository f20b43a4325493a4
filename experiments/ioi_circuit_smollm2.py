"""Circuits of the indirect object in SmolLM2: which way of ranking edges finds the better ones.

EAP, EAP-IG, information flow and random rankings of all 70,651 edges, judged as the MIB benchmark
does: faithfulness at ten sizes, CPR and CMD, with 95 % bootstrap intervals over prompts, in one
table. Edges left out read the corrupted run.

    python experiments/ioi_circuit_smollm2.py [--n 32] [--seed 0] [--steps 5]
"""

import time

import pandas as pd
import typer

import probe

RANKINGS = ["eap", "eap_ig", "information_flow", "random"]


def main(n: int = 32, seed: int = 0, steps: int = 5) -> None:
    model = probe.load_model("smollm2")
    checked = probe.load_task("ioi", n=n, seed=seed).check(model)
    print(checked, "\n")
    edges = probe.Graph.of(model.dims).n_edges
    began = time.perf_counter()
    result = probe.run(
        "circuit_benchmark", model=model, task=checked.correct, rankings=RANKINGS, steps=steps,
        save=True,
    )  # fmt: skip
    print(f"{edges} edges, {len(checked.correct)} pairs, {time.perf_counter() - began:.0f} s\n")
    print(in_one_table(result.frame).to_string())


def in_one_table(frame: pd.DataFrame) -> pd.DataFrame:
    """A row for CPR, CMD and each size; a column for each ranking, with its interval."""
    cells = [
        f"{row.value:.3f} [{row.low:.3f}, {row.high:.3f}]" for row in frame.itertuples(index=False)
    ]
    table = frame.assign(cell=cells).pivot(index="measure", columns="ranking", values="cell")
    return table.loc[frame["measure"].unique(), frame["ranking"].unique()]


if __name__ == "__main__":
    typer.run(main)
