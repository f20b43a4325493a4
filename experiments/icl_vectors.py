"""Is the task in one vector? Task vectors and function vectors of SmolLM2, with controls.

    python experiments/icl_vectors.py [--quick] [--seed N]

For every built-in in-context task that ten demonstrations make the model do (half of the held-out
pairs or more): accuracy on held-out pairs without demonstrations, without and with the task vector
(Hendel et al. 2023) and the function vector (Todd et al. 2024), beside random directions of the
same norm, the vector of shuffled labels, and another task's vector. Layers are chosen on dev pairs,
heads and means on train pairs; test pairs are only answered. Departures from the papers: six
prompts instead of 25 for indirect effects, because one forward pass here is dear, and one split of
the pairs, so intervals are over tasks; the first answer token counts.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

import probe

SOLVED, TOP = 0.5, 10
CONFLICTS = (
    ("past_tense", "gerund"),
    ("gerund", "third_person"),
    ("third_person", "past_tense"),
    ("plural", "capitalise"),
    ("comparative", "superlative"),
)
"""Tasks on the same inputs: what demonstrations show, and whose vector is put in."""
COMPOSED = ("past_tense", "gerund", "third_person", "plural")
"""Tasks that are composed with ``capitalise``."""

HENDEL, TODD = "Hendel et al. 2023", "Todd et al. 2024"
CLOSE = probe.Claim(
    "task vectors recover most of in-context accuracy",
    published="baseline 0.13, task vector 0.74, in context 0.84, mean of 7 models x 18 tasks",
    source=f"{HENDEL}, full results table", mark="read",
    rule="tasks with in-context accuracy >= 0.4. R: mean TV/ICL >= 0.75 and TV >= 3x baseline; "
    "P: TV/ICL >= 0.5",
    reproduced={
        "task vector / in context": probe.at_least(0.75),
        "task vector / baseline": probe.at_least(3),
    },
    partly={"task vector / in context": probe.at_least(0.5)},
)  # fmt: skip
MIDDLE = probe.Claim(
    "the best layer for task vectors is in the middle, shared across tasks",
    published="GPT-J 13 of 28, LLaMA-7B 14 of 32, Pythia-6.9B 13 of 32",
    source=f"{HENDEL}, stored results", mark="read",
    rule="R: peak of mean dev accuracy at 30-60 % depth; P: 20-75 %",
    reproduced={"depth of the peak": probe.between(0.30, 0.60)},
    partly={"depth of the peak": probe.between(0.20, 0.75)},
)  # fmt: skip
OVERRIDES = probe.Claim(
    "a task vector overrides demonstrations of another task",
    published="LLaMA-13B: 4 of 5 pairs of tasks follow the vector",
    source=f"{HENDEL}, overriding table", mark="read",
    rule="R: the vector's task wins in >= 3 of 5 pairs; P: >= 2",
    reproduced={"pairs won": probe.at_least(3)},
    partly={"pairs won": probe.at_least(2)},
)  # fmt: skip
FEW = probe.Claim(
    "a handful of early-to-middle heads carries the task",
    published="GPT-J: ten of 448 heads lead, the first 0.059, the tenth 0.011",
    source=f"{TODD}, head list in the repository", mark="read",
    rule="R: top 10 of 270 heads hold >= 50 % of positive indirect effect, median depth 25-65 %; "
    "P: >= 30 %",
    reproduced={
        "share of the top ten": probe.at_least(0.5),
        "their median depth": probe.between(0.25, 0.65),
    },
    partly={"share of the top ten": probe.at_least(0.3)},
)  # fmt: skip
WORKS = probe.Claim(
    "function vectors make the model do the task without demonstrations",
    published="GPT-J, zero-shot: 5.5 to 57.5 %; layer average 9.5 %",
    source=f"{TODD}, Table 2", mark="memory",
    rule="R: FV >= 5x baseline, >= 50 % of ten-shot, and >= 10 points over the layer average; "
    "P: >= 2x baseline",
    reproduced={
        "function vector / baseline": probe.at_least(5),
        "function vector / in context": probe.at_least(0.5),
        "less layer average": probe.at_least(0.10),
    },
    partly={"function vector / baseline": probe.at_least(2)},
)  # fmt: skip
FADES = probe.Claim(
    "function vectors work best in early-middle layers and fade late",
    published="qualitative", source=f"{TODD}, abstract", mark="read",
    rule="R: best layer at 25-65 % depth, accuracy at >= 80 % depth at most half of the best",
    reproduced={
        "depth of the best layer": probe.between(0.25, 0.65),
        "late / best": probe.at_most(0.5),
    },
)  # fmt: skip
COMPOSES = probe.Claim(
    "sums of function vectors solve composed tasks, to some extent",
    published="partly", source=f"{TODD}, abstract", mark="read",
    rule="R: at least a third of composed tasks beat both parts by 10 points or more",
    reproduced={"share that beat both parts": probe.at_least(1 / 3)},
)  # fmt: skip
_TABLE = {
    "task": "in-context task",
    "solved": "whether ten demonstrations give at least half of the held-out pairs",
    "condition": "in context: ten demonstrations; none: no demonstrations, no vector; TV, FV: task "
    "and function vector; random, shuffled, other: controls in the vector's place; layer average: "
    "the mean state added",
    "value": "share of held-out pairs whose first answer token is the likeliest",
    "low": "lower end of the 95 % bootstrap interval over pairs",
    "high": "upper end",
    "n": "pairs",
}
_CURVES = {
    "task": "in-context task",
    "vector": "TV or FV",
    "layer": "layer the vector acts at",
    "value": "accuracy on dev pairs without demonstrations",
}


@dataclass(frozen=True)
class Found:
    """What was found of one task."""

    task: probe.PairTask
    tv: probe.VectorResult
    fv: probe.VectorResult
    effects: pd.DataFrame
    scores: dict[str, np.ndarray]


def right(model: probe.Model, task: probe.Task, vector: Any = None) -> np.ndarray:
    """1 for each prompt whose answer is the likeliest token."""
    encoded = task.encode(model)
    edits = [] if vector is None else vector.edits()
    logits = model.forward(encoded.clean, edits, lengths=encoded.lengths, last_only=True)
    return (logits.argmax(-1).cpu() == encoded.need_answers()).double().numpy()


def find(model: probe.Model, task: probe.PairTask, n: int, in_context: np.ndarray) -> Found:
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
    average = probe.task_vector(model, task, n=n, layer=fv.layer, least=0.0)
    scores = {"in context": in_context}
    for name, vector, wrong in (("TV", tv, wrong_tv), ("FV", fv, wrong_fv)):
        shown = probe.evaluate_vector(model, vector, task, randoms=3, others={"shuffled": wrong})
        frame = shown.frame.pivot(index="batch", columns="condition", values="value")
        scores |= {"none": frame["none"], name: frame["vector"], f"{name} shuffled": frame.shuffled}
        scores[f"{name} random"] = frame.filter(like="random").mean(axis=1)
    scores["layer average"] = right(model, task.prompts("test"), average.at(rule="add"))
    return Found(task, tv, fv, effects, {k: np.asarray(v) for k, v in scores.items()})


@probe.study(
    paper=f"{HENDEL}; {TODD}",
    full={"tasks": None, "n": 6, "n_test": 16},
    quick={"tasks": ["plural", "past_tense", "gerund", "capitalise"], "n": 4, "n_test": 8},
)
def icl_vectors(*, seed: int, tasks: Sequence[str] | None, n: int, n_test: int) -> Iterator[Any]:
    """Is the task in one vector? Task vectors and function vectors of SmolLM2, with controls."""
    model = probe.load_model("smollm2")
    yield model
    found, rows = {}, []
    for name in tasks or probe.icl_tasks():
        task = probe.icl_task(name, seed=seed)
        queries = task.prompts("test", shots=10, n=n_test)
        in_context = right(model, queries)
        if in_context.mean() >= SOLVED:
            found[name] = find(model, task, n, in_context)
            print(name, {k: round(float(v.mean()), 2) for k, v in found[name].scores.items()},
                  "layers", found[name].tv.layer, found[name].fv.layer, flush=True)  # fmt: skip
        else:
            rows.append({"task": name, "solved": False, "condition": "in context",
                         **interval(in_context)})  # fmt: skip
            print(name, "in context", round(float(in_context.mean()), 2), flush=True)
    add_other_tasks(model, found)
    for name, one in found.items():
        for condition, values in one.scores.items():
            rows.append({"task": name, "solved": True, "condition": condition, **interval(values)})
    table = pd.DataFrame(rows)[list(_TABLE)]
    view = probe.View(kind="heatmap", x="condition", y="task", color="value", scale="share")
    yield probe.Exhibit("Accuracy by task and condition", table, _TABLE, view)
    lines = curves(found)
    shown = probe.View(kind="line", x="layer", color="vector")
    yield probe.Exhibit("Accuracy by layer, dev pairs", lines, _CURVES, shown)
    yield from judge(found, lines, model.dims.n_layers)
    yield from judge_pairs(model, found, min(n_test, 8))


def add_other_tasks(model: probe.Model, found: dict[str, Found]) -> None:
    """The next task's vector in the place of each, as a control."""
    names = list(found)
    for here, there in zip(names, names[1:] + names[:1], strict=True):
        mine, other = found[here], found[there]
        test = mine.task.prompts("test")
        for name, vector, foreign in (("TV", mine.tv, other.tv), ("FV", mine.fv, other.fv)):
            in_place = foreign.at(layer=vector.layer)
            mine.scores[f"{name} other"] = right(model, test, in_place)


def interval(values: np.ndarray) -> dict[str, float]:
    """A mean with its interval over pairs."""
    found = probe.over_examples(values, of="pairs")
    return {"value": found.value, "low": found.low, "high": found.high, "n": found.n}


def curves(found: dict[str, Found]) -> pd.DataFrame:
    """Dev accuracy by layer of both vectors of every task."""
    parts = [
        vector.curve[["layer"]].assign(task=name, vector=kind, value=vector.curve.accuracy)
        for name, one in found.items()
        for kind, vector in (("TV", one.tv), ("FV", one.fv))
    ]
    return pd.concat(parts)[list(_CURVES)]


def mean_of(found: dict[str, Found], condition: str) -> np.ndarray:
    """Each task's accuracy."""
    return np.array([one.scores[condition].mean() for one in found.values()])


def ratio(rows: np.ndarray) -> float:
    """Of the means of two columns; a baseline of nothing counts as half a pair in thirty."""
    return float(rows[:, 0].mean() / max(rows[:, 1].mean(), 1 / 60))


def judge(found: dict[str, Found], lines: pd.DataFrame, n_layers: int) -> Iterator[Any]:
    """Verdicts on what is true of single tasks."""
    tv, fv, none, icl, average = (
        mean_of(found, name) for name in ("TV", "FV", "none", "in context", "layer average")
    )

    def over(one: np.ndarray, other: np.ndarray) -> Any:
        return probe.over_examples(np.stack([one, other], 1), ratio, of="tasks")

    note = "a baseline of 0 is counted as 1/60"
    yield CLOSE.judge(
        {"task vector / in context": over(tv, icl), "task vector / baseline": over(tv, none)}, note
    )
    by_task = {
        kind: part.pivot(index="task", columns="layer", values="value").to_numpy()
        for kind, part in lines.groupby("vector")
    }

    def peak(rows: np.ndarray) -> float:
        return float(rows.mean(0).argmax() / (n_layers - 1))

    def late(rows: np.ndarray) -> float:
        mean = rows.mean(0)
        return float(mean[int(np.ceil(0.8 * (n_layers - 1))) :].max() / max(mean.max(), 1e-9))

    yield MIDDLE.judge({"depth of the peak": probe.over_examples(by_task["TV"], peak, of="tasks")})
    shares, depths = [], []
    for one in found.values():
        ranked = one.effects.sort_values("value", ascending=False)
        shares.append(ranked.value.head(TOP).sum() / ranked.value.clip(lower=0).sum())
        depths.append(ranked.layer.head(TOP).median() / (n_layers - 1))
    yield FEW.judge(
        {
            "share of the top ten": probe.over_examples(shares, np.median, of="tasks"),
            "their median depth": probe.over_examples(depths, np.median, of="tasks"),
        }
    )
    yield WORKS.judge(
        {
            "function vector / baseline": over(fv, none),
            "function vector / in context": over(fv, icl),
            "less layer average": probe.over_examples(fv - average, of="tasks"),
        },
        note,
    )
    yield FADES.judge(
        {
            "depth of the best layer": probe.over_examples(by_task["FV"], peak, of="tasks"),
            "late / best": probe.over_examples(by_task["FV"], late, of="tasks"),
        }
    )


def judge_pairs(model: probe.Model, found: dict[str, Found], n: int) -> Iterator[Any]:
    """Verdicts on two tasks at once: conflicting demonstrations, and composition."""
    pairs = [(a, b) for a, b in CONFLICTS if a in found and b in found]
    won = []
    for shown, put_in in pairs:
        outputs = dict(found[put_in].task.pairs)
        prompts = found[shown].task.prompts("test", shots=10, n=n)
        asked = [p for p in prompts.prompts if p.tags["x"] in outputs]
        other = [p.model_copy(update={"answer": f" {outputs[p.tags['x']]}"}) for p in asked]
        vector = found[put_in].tv
        follows = right(model, replace(prompts, prompts=tuple(other)), vector).mean()
        stays = right(model, replace(prompts, prompts=tuple(asked)), vector).mean()
        print(f"{shown} shown, {put_in} put in: {follows:.2f} follow, {stays:.2f} stay", flush=True)
        won.append(follows > stays)
    if pairs:
        note = f"of {len(pairs)} pairs whose tasks are both solved"
        yield OVERRIDES.judge({"pairs won": probe.exactly(sum(won))}, note)
    else:
        yield OVERRIDES.leave_out("no pair of tasks on the same inputs is solved")
    parts = [name for name in COMPOSED if name in found and "capitalise" in found]
    beats = [composed(model, found[name], found["capitalise"]) for name in parts]
    if beats:
        share = probe.over_examples(beats, of="composed tasks")
        yield COMPOSES.judge({"share that beat both parts": share})
    else:
        yield COMPOSES.leave_out("no task to compose is solved")


def composed(model: probe.Model, one: Found, capital: Found) -> bool:
    """Whether the sum of two function vectors beats both by ten points, layers chosen on dev."""
    pairs = [(x, y.capitalize()) for x, y in one.task.pairs]
    task = probe.PairTask.of(pairs, name=f"{one.task.name}, capitalised", seed=one.task.seed)
    scores = []
    for vector in (one.fv + capital.fv, one.fv, capital.fv):
        dev = probe.evaluate_vector(
            model, vector, task, split="dev", layers=range(model.dims.n_layers), randoms=0
        )
        steered = dev.frame[dev.frame.condition == "vector"]
        best = int(steered.groupby("layer").value.mean().idxmax())
        scores.append(right(model, task.prompts("test"), vector.at(layer=best)).mean())
    print(task.name, "sum and parts", [round(float(score), 2) for score in scores], flush=True)
    return bool(scores[0] >= max(scores[1:]) + 0.1)


if __name__ == "__main__":
    icl_vectors.main()
