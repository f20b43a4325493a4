"""Is the task in one vector? Task vectors and function vectors of SmolLM2, with controls.

    python experiments/icl_vectors.py [--quick] [--seed N]

For every built-in in-context task that ten demonstrations make the model do (half of the held-out
pairs or more): accuracy on held-out pairs without demonstrations, without and with the task vector
(Hendel et al. 2023) and the function vector (Todd et al. 2024), beside random directions of the
same norm, the vector of shuffled labels, and another task's vector. Layers are chosen on dev pairs,
heads and means on train pairs; test pairs are only answered. All of it for three splits of the
pairs: numbers are medians over splits, intervals are over tasks. Layer l of n lies at the depth
l / n, as the papers count. The ten heads of the claim about heads have the largest effects averaged
over tasks, as in Todd's list; the ten in a function vector are the task's own. Departures from the
papers, because one forward pass here is dear: indirect effects from six prompts, not 25; mean head
outputs from six, not 100; a task vector is the mean over six queries with ten demonstrations each
(Hendel: two with five); in-context accuracy is of 16 test pairs a split, all else of all of them.
The first answer token counts.

What is found of each task is kept in ``runs/icl_vectors``: a run that was stopped goes on there.
Remove that folder to measure again.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from vector_runs import TOP, Found, likeliest, scored, splits_of

import probe

SOLVED = 0.5
"""In-context accuracy of a task that counts as solved."""
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
    published="baseline 0.13, task vector 0.74, in context 0.84, mean of 7 models x 18 tasks; "
    "ratio by model 0.83 to 0.91",
    source=f"{HENDEL}, full results table; means and ratios derived", mark="read",
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
    published="GPT-J 13 of 28, LLaMA-7B 14 of 32, Pythia-6.9B 13 of 32; tasks alone 6 to 23",
    source=f"{HENDEL}, stored results; peaks derived", mark="read",
    rule="R: peak of mean dev accuracy at 30-60 % depth; P: 20-75 %",
    reproduced={"depth of the peak": probe.between(0.30, 0.60)},
    partly={"depth of the peak": probe.between(0.20, 0.75)},
)  # fmt: skip
OVERRIDES = probe.Claim(
    "a task vector overrides demonstrations of another task",
    published="LLaMA-13B: 4 of 5 pairs of tasks follow the vector (0.77, 0.78, 0.74, 0.97; "
    "English to Spanish against French 0.07)",
    source=f"{HENDEL}, overriding table", mark="read",
    rule="R: the vector's task wins in >= 3 of 5 pairs; P: >= 2",
    reproduced={"pairs won": probe.at_least(3)},
    partly={"pairs won": probe.at_least(2)},
)  # fmt: skip
FEW = probe.Claim(
    "a handful of early-to-middle heads carries the task",
    published="GPT-J, mean over tasks: 15.5 0.0587, 9.14 0.0584, 12.10 0.0526, 8.1 and 11.0 "
    "0.0445, the tenth 0.0113, of 448 heads",
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
    published="GPT-J: zero-shot 5.5 to 57.5 %, shuffled labels 39.1 to 90.8 %; layer average "
    "9.5 and 79.5 %",
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
    "n": "different pairs, held out in one split or more",
}
_CURVES = {
    "task": "in-context task",
    "vector": "TV or FV",
    "layer": "layer the vector acts at",
    "value": "accuracy on dev pairs without demonstrations, mean over splits",
}


@probe.study(
    paper=f"{HENDEL}; {TODD}",
    full={"tasks": None, "splits": 3, "n": 6, "n_test": 16},
    quick={"tasks": ["plural", "past_tense", "gerund", "capitalise"], "splits": 1, "n": 4,
           "n_test": 8},
)  # fmt: skip
def icl_vectors(
    *, seed: int, tasks: Sequence[str] | None, splits: int, n: int, n_test: int
) -> Iterator[Any]:
    """Is the task in one vector? Task vectors and function vectors of SmolLM2, with controls."""
    model = probe.load_model("smollm2")
    yield model
    judged, unsolved = {}, []
    for name in tasks or probe.icl_tasks():
        in_context, found = splits_of(model, name, range(seed, seed + splits), n, n_test)
        if found:
            judged[name] = found
        else:
            unsolved.append({"task": name, "solved": False, **interval(in_context)})
        told = pd.concat([in_context, *(one.scores for one in found)])
        print(name, told.groupby("condition", sort=False).value.mean().round(2).to_dict(),
              "layers", [(one.tv.layer, one.fv.layer) for one in found], flush=True)  # fmt: skip
    judged = with_other_tasks(model, judged)
    rows = unsolved
    for name, found in judged.items():
        scores = pd.concat([one.scores for one in found])
        solved = accuracy(found, "in context").mean() >= SOLVED
        for _, part in scores.groupby("condition", sort=False):
            rows.append({"task": name, "solved": solved, **interval(part)})
    view = probe.View(kind="heatmap", x="condition", y="task", color="value", scale="share")
    yield probe.Exhibit("Accuracy by task and condition", pd.DataFrame(rows), _TABLE, view)
    lines = curves(judged)
    shown = probe.View(kind="line", x="layer", color="vector", facet="task")
    yield probe.Exhibit("Accuracy by layer, dev pairs", lines, _CURVES, shown)
    yield judge_close(judged)
    solved = {k: v for k, v in judged.items() if accuracy(v, "in context").mean() >= SOLVED}
    yield from judge(solved)
    yield judge_conflicts(model, solved, min(n_test, 8))
    yield judge_sums(model, solved)


def with_other_tasks(model: probe.Model, judged: dict[str, list[Found]]) -> dict[str, list[Found]]:
    """The next task's vectors in the place of each task's own, as a control."""
    names, made = list(judged), {}
    for here, there in zip(names, names[1:] + names[:1], strict=True):
        made[here] = []
        for mine, other in zip(judged[here], judged[there], strict=True):
            test = mine.task.prompts("test")
            tv = other.tv.at(layer=mine.tv.layer)
            fv = other.fv.at(layer=mine.fv.layer)
            more = [scored(model, test, "TV other", tv), scored(model, test, "FV other", fv)]
            made[here].append(replace(mine, scores=pd.concat([mine.scores, *more])))
    return made


def interval(part: pd.DataFrame) -> dict[str, Any]:
    """The mean of one condition with its interval; a pair held out in two splits counts once."""
    found = probe.over_examples(part.groupby("x").value.mean(), of="pairs")
    return {"condition": part.condition.iloc[0], "value": found.value, "low": found.low,
            "high": found.high, "n": found.n}  # fmt: skip


def curves(judged: dict[str, list[Found]]) -> pd.DataFrame:
    """Dev accuracy by layer of both vectors of every task, mean over splits."""
    parts = [
        vector.curve[["layer"]].assign(task=name, vector=kind, value=vector.curve.accuracy)
        for name, found in judged.items()
        for one in found
        for kind, vector in (("TV", one.tv), ("FV", one.fv))
    ]
    means = pd.concat(parts).groupby(["task", "vector", "layer"], sort=False)["value"].mean()
    return means.reset_index()[list(_CURVES)]


# --- verdicts: tasks are resampled; the median is taken over splits -----------------------------


def accuracy(found: list[Found], condition: str) -> np.ndarray:
    """One number a split."""
    return np.array([o.scores[o.scores.condition == condition].value.mean() for o in found])


def over_tasks(statistic: Any, table: Any) -> Any:
    """The median over splits of what is said of all tasks, with its interval over tasks.

    ``table``: task by split, and then whatever ``statistic`` takes for each task.
    """

    def median(some: np.ndarray) -> float:
        return float(np.median([statistic(some[:, split]) for split in range(some.shape[1])]))

    return probe.over_examples(np.asarray(table), median, of="tasks")


def ratio(rows: np.ndarray) -> float:
    """Of the means of two columns; a baseline of nothing counts as half a pair in thirty."""
    return float(rows[:, 0].mean() / max(rows[:, 1].mean(), 1 / 60))


def gap(rows: np.ndarray) -> float:
    """Between the means of two columns."""
    return float(rows[:, 0].mean() - rows[:, 1].mean())


def conditions(found: dict[str, list[Found]], *names: str) -> np.ndarray:
    """Accuracy, task by split by condition."""
    tasks = [[accuracy(splits, name) for name in names] for splits in found.values()]
    return np.array(tasks).swapaxes(1, 2)


BASE = "a baseline of 0 is counted as 1/60"


def judge_close(judged: dict[str, list[Found]]) -> Any:
    """Task vectors against demonstrations."""
    each = {
        "task vector / in context": over_tasks(ratio, conditions(judged, "TV", "in context")),
        "task vector / baseline": over_tasks(ratio, conditions(judged, "TV", "none")),
    }
    return CLOSE.judge(each, BASE)


def peak(rows: np.ndarray) -> float:
    """Depth of the layer at which the mean of tasks is highest; rows are tasks, columns layers."""
    return float(rows.mean(0).argmax() / rows.shape[1])


def late(rows: np.ndarray) -> float:
    """The most that layers at 80 % of the depth or more reach, against the best layer."""
    mean = rows.mean(0)
    return float(mean[int(np.ceil(0.8 * len(mean))) :].max() / max(mean.max(), 1e-9))


def top_share(rows: np.ndarray) -> float:
    """Share of the positive effects, of heads averaged over tasks, that the top heads hold."""
    mean = np.sort(rows.mean(0))[::-1]
    return float(mean[:TOP].sum() / mean.clip(min=0).sum())


def top_depth(rows: np.ndarray, n_layers: int) -> float:
    """Median depth of those heads; columns are the heads of layer 0, then of layer 1, ..."""
    heads = rows.mean(0).argsort()[::-1][:TOP]
    return float(np.median(heads // (rows.shape[1] // n_layers)) / n_layers)


def judge(solved: dict[str, list[Found]]) -> Iterator[Any]:
    """Verdicts on what is true of single tasks."""

    def layers(kind: str) -> np.ndarray:
        return np.array(
            [[getattr(one, kind).curve.accuracy for one in found] for found in solved.values()]
        )

    yield MIDDLE.judge({"depth of the peak": over_tasks(peak, layers("tv"))})
    yield judge_heads(solved, n_layers=layers("tv").shape[-1])
    yield WORKS.judge(
        {
            "function vector / baseline": over_tasks(ratio, conditions(solved, "FV", "none")),
            "function vector / in context": over_tasks(
                ratio, conditions(solved, "FV", "in context")
            ),
            "less layer average": over_tasks(gap, conditions(solved, "FV", "layer average")),
        },
        BASE,
    )
    yield FADES.judge(
        {
            "depth of the best layer": over_tasks(peak, layers("fv")),
            "late / best": over_tasks(late, layers("fv")),
        }
    )


def judge_heads(solved: dict[str, list[Found]], n_layers: int) -> Any:
    """Few heads, and early: of the effects averaged over tasks, and of each task's own."""
    effects = np.array(
        [
            [one.effects.sort_values(["layer", "head"]).value for one in found]
            for found in solved.values()
        ]
    )
    own = [[top_share(split[None]) for split in task] for task in effects]
    depths = [[top_depth(split[None], n_layers) for split in task] for task in effects]
    return FEW.judge(
        {
            "share of the top ten": over_tasks(top_share, effects),
            "their median depth": over_tasks(partial(top_depth, n_layers=n_layers), effects),
            "share of each task's own ten": over_tasks(np.median, own),
            "their median depth, each task's own": over_tasks(np.median, depths),
        }
    )


def judge_conflicts(model: probe.Model, solved: dict[str, list[Found]], n: int) -> Any:
    """Demonstrations of one task, and the vector of another."""
    pairs = [(a, b) for a, b in CONFLICTS if a in solved and b in solved]
    won = []
    for shown, put_in in pairs:
        both = zip(solved[shown], solved[put_in], strict=True)
        leads = [override(model, mine, other, n) for mine, other in both]
        print(f"{shown} shown, {put_in} put in: leads by {np.round(leads, 2)}", flush=True)
        won.append(np.median(leads) > 0)
    if not pairs:
        return OVERRIDES.leave_out("no pair of tasks on the same inputs is solved")
    note = f"of {len(pairs)} pairs whose tasks are both solved"
    return OVERRIDES.judge(
        {"pairs won": probe.over_examples(won, np.sum, of="pairs of tasks")}, note
    )


def override(model: probe.Model, shown: Found, put_in: Found, n: int) -> float:
    """By what share of prompts the vector's task leads over that of the demonstrations."""
    outputs = dict(put_in.task.pairs)
    prompts = shown.task.prompts("test", shots=10, n=n)
    asked = [prompt for prompt in prompts.prompts if prompt.tags["x"] in outputs]
    other = [p.model_copy(update={"answer": f" {outputs[p.tags['x']]}"}) for p in asked]
    mine, theirs = (replace(prompts, prompts=tuple(part)).encode(model) for part in (asked, other))
    said = likeliest(model, mine, put_in.tv)
    hits = [(said == part.need_answers()).double().mean() for part in (theirs, mine)]
    return float(hits[0] - hits[1])


def judge_sums(model: probe.Model, solved: dict[str, list[Found]]) -> Any:
    """Sums of two function vectors."""
    parts = [name for name in COMPOSED if name in solved and "capitalise" in solved]
    beats = []
    for name in parts:
        both = zip(solved[name], solved["capitalise"], strict=True)
        scores = np.median([composed(model, one, capital) for one, capital in both], axis=0)
        print(f"{name} and capitalise: sum, parts {np.round(scores, 2)}", flush=True)
        beats.append(scores[0] >= max(scores[1:]) + 0.1)
    if not beats:
        return COMPOSES.leave_out("no task to compose is solved")
    share = probe.over_examples(beats, of="composed tasks")
    return COMPOSES.judge({"share that beat both parts": share})


def composed(model: probe.Model, one: Found, capital: Found) -> list[float]:
    """Accuracy of the sum of two function vectors and of each part, layers chosen on dev pairs."""
    pairs = [(x, y.capitalize()) for x, y in one.task.pairs]
    task = probe.PairTask.of(pairs, name=f"{one.task.name}, capitalised", seed=one.task.seed)
    scores = []
    for vector in (one.fv + capital.fv, one.fv, capital.fv):
        dev = probe.evaluate_vector(
            model, vector, task, split="dev", layers=range(model.dims.n_layers), randoms=0
        )
        steered = dev.frame[dev.frame.condition == "vector"]
        best = int(steered.groupby("layer").value.mean().idxmax())
        found = scored(model, task.prompts("test"), "composed", vector.at(layer=best))
        scores.append(float(found.value.mean()))
    return scores


if __name__ == "__main__":
    icl_vectors.main()
