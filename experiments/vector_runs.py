"""Task and function vectors of one in-context task, and what they do; kept, so that a run goes on.

Used by ``icl_vectors``.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

import probe

JUDGED, TOP = 0.4, 10
"""In-context accuracy from which vectors are looked for; heads of a function vector."""
KEPT = Path("runs/icl_vectors")


@dataclass(frozen=True)
class Found:
    """What was found of one task in one split of its pairs.

    ``scores``: 1 or 0 for each test pair (``x``) and ``condition``.
    """

    task: probe.PairTask
    tv: probe.VectorResult
    fv: probe.VectorResult
    effects: pd.DataFrame
    scores: pd.DataFrame

    def save(self, folder: Path) -> None:
        """Put it in a folder, whole or not at all."""
        partial = folder.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        self.tv.save(partial / "tv.safetensors")
        self.fv.save(partial / "fv.safetensors")
        self.effects.to_parquet(partial / "effects.parquet")
        self.scores.to_parquet(partial / "scores.parquet")
        partial.rename(folder)

    @classmethod
    def load(cls, task: probe.PairTask, folder: Path) -> "Found":
        """What ``save`` put there."""
        vectors = [probe.VectorResult.load(folder / f"{name}.safetensors") for name in ("tv", "fv")]
        tables = [pd.read_parquet(folder / f"{name}.parquet") for name in ("effects", "scores")]
        return cls(task, *vectors, *tables)


def likeliest(model: probe.Model, encoded: probe.Encoded, vector: Any = None) -> Any:
    """The model's first token after each prompt."""
    edits = [] if vector is None else vector.edits()
    logits = model.forward(encoded.clean, edits, lengths=encoded.lengths, last_only=True)
    return logits.argmax(-1).cpu()


def scored(model: probe.Model, task: probe.Task, condition: str, vector: Any = None) -> Any:
    """1 for each prompt whose answer is the likeliest token, 0 for each other."""
    encoded = task.encode(model)
    right = likeliest(model, encoded, vector) == encoded.need_answers()
    inputs = [prompt.tags["x"] for prompt in task.prompts]
    return pd.DataFrame({"x": inputs, "condition": condition, "value": right.double().numpy()})


def find(model: probe.Model, task: probe.PairTask, n: int, in_context: pd.DataFrame) -> Found:
    """Vectors of one task, and its accuracies on test pairs."""
    shown = task.prompts("train", shots=10, n=n, labels="both")
    effects = probe.run("head_effects", model=model, task=shown).summary(["layer", "head"])
    top = effects.sort_values("value", ascending=False).head(TOP)
    heads = [(int(row.layer), int(row.head)) for row in top.itertuples()]
    tv = probe.task_vector(model, task, n=n, least=0.0)
    fv = probe.function_vector(model, task, n=n, heads=heads, least=0.0)
    wrong_tv = probe.task_vector(model, task, n=n, layer=tv.layer, labels="shuffled")
    wrong_fv = probe.function_vector(
        model, task, n=n, heads=heads, layer=fv.layer, labels="shuffled"
    )
    parts = [in_context]
    for name, vector, wrong in (("TV", tv, wrong_tv), ("FV", fv, wrong_fv)):
        frame = probe.evaluate_vector(
            model, vector, task, randoms=3, others={f"{name} shuffled": wrong}
        ).frame
        frame["condition"] = frame.condition.replace("vector", name).str.replace(
            r"^random.*", f"{name} random", regex=True
        )
        parts.append(frame[frame.condition != "none"] if name == "FV" else frame)
    average = probe.task_vector(model, task, n=n, layer=fv.layer, least=0.0).at(rule="add")
    parts.append(scored(model, task.prompts("test"), "layer average", average))
    return Found(task, tv, fv, effects, pd.concat(parts)[["x", "condition", "value"]])


def splits_of(
    model: probe.Model, name: str, seeds: Sequence[int], n: int, n_test: int
) -> tuple[pd.DataFrame, list[Found]]:
    """In-context accuracy of a task, and, if it is high enough, what is found in each split."""
    tasks = {seed: probe.icl_task(name, seed=seed) for seed in seeds}
    folders = {seed: KEPT / f"{name}-split{seed}-n{n}-test{n_test}" for seed in seeds}
    KEPT.mkdir(parents=True, exist_ok=True)
    in_context = {}
    for seed, task in tasks.items():
        file = KEPT / f"{folders[seed].name}.csv"
        if not file.is_file():
            queries = task.prompts("test", shots=10, n=n_test)
            frame = scored(model, queries, "in context")
            frame.to_csv(file.with_suffix(".partial"), index=False)
            file.with_suffix(".partial").rename(file)
        in_context[seed] = pd.read_csv(file, keep_default_na=False)
    every, found = pd.concat(in_context.values()), []
    if every.value.mean() >= JUDGED:
        for seed, task in tasks.items():
            if not folders[seed].is_dir():
                find(model, task, n, in_context[seed]).save(folders[seed])
            found.append(Found.load(task, folders[seed]))
    return every, found
