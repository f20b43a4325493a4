"""Task arithmetic: can what fine-tuning changed be added, negated, merged, thinned out?

A small Llama learns a mixture: four tasks (a symbol to another, by a table for each task) that it
sees answered by the right table or by a decoy, half of the time each, and a control task with two
right answers, so that its loss has a floor as text has. Four copies are tuned, one on the right
table of each task; nothing in that says which table of another task is the right one. Their weights
are then combined as files by Probe's own functions. Skill is the mean probability of the right
answer on prompts that were never trained on (other fillers); λ is chosen on a third set of prompts,
from one grid for all methods.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import probe

T = TypeVar("T")
N_TASKS, N_SYMBOLS, N_FILLERS, BATCH = 4, 32, 16, 256
CONTROL = N_TASKS
"""The fifth task: two right answers, each half of the time."""
GRID = [0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.4, 1.6, 1.8]
DROPS = [0.5, 0.7, 0.8, 0.9, 0.95, 0.99]
ILHARCO = "Ilharco et al. 2023"
TIES = "Yadav et al. 2023"

NEGATION = probe.Claim(
    "negating a task vector forgets the task with little side damage",
    published="toxic generations 4.8 → 0.8 %, WikiText perplexity 16.4 → 16.9; gradient ascent 0 % "
    "at a perplexity above 1e10",
    source=f"{ILHARCO}, Table 2", mark="second-hand",
    rule="R: target loses ≥ 50 % of its gain, control loss +≤ 5 %; P: ≥ 30 %, ≤ 10 %",
    reproduced={"share of the gain lost": probe.at_least(0.5),
                "rise of control loss": probe.at_most(0.05)},
    partly={"share of the gain lost": probe.at_least(0.3),
            "rise of control loss": probe.at_most(0.10)},
)  # fmt: skip
ADDITION = probe.Claim(
    "added task vectors keep the skills of all",
    published="98.9 % of single-model accuracy for pairs, 91.2 % for all eight",
    source=ILHARCO,
    mark="second-hand",
    rule="R: ≥ 95 % for pairs, ≥ 85 % for four; P: ≥ 85 %, ≥ 70 %",
    reproduced={"two tasks": probe.at_least(0.95), "four tasks": probe.at_least(0.85)},
    partly={"two tasks": probe.at_least(0.85), "four tasks": probe.at_least(0.70)},
)
BETTER = probe.Claim(
    "TIES merges better than task arithmetic",
    published="+2.3 (NLP) and +1.7 (vision) points over the best baseline; PEFT +2.5; ViT-B/32 "
    "+1.8, L/14 +1.5; T5-base +0.7, large +3.6; out of domain +1.0 and +4.4",
    source=f"{TIES}, Tables 1 and 3-9", mark="second-hand",
    rule="four tasks, λ tuned equally; R: ≥ +0.5 points; P: within ± 0.5",
    reproduced={"points gained": probe.at_least(0.5)},
    partly={"points gained": probe.at_least(-0.5)},
)  # fmt: skip
SIGNS = probe.Claim(
    "the signs of the largest fifth carry the task",
    published="flipping the bottom 80 % barely matters",
    source=f"{TIES}, Figures 10 and 11", mark="second-hand",
    rule="R: flipping the top 20 % costs ≥ 3 times flipping the bottom 80 %",
    reproduced={"cost, top over bottom": probe.at_least(3)},
)  # fmt: skip
STEADY = probe.Claim(
    "TIES is less sensitive to λ",
    published="68-75 % against 55-75 % over λ from 0.8 to 1.8",
    source=f"{TIES}, Figure 13", mark="second-hand",
    rule="R: range over λ from 0.8 to 1.8 is ≤ 60 % of task arithmetic's",
    reproduced={"range, TIES over arithmetic": probe.at_most(0.6)},
)  # fmt: skip
THINNED = probe.Claim(
    "nine tenths of what tuning changed can be dropped, if the rest is rescaled",
    published="90-99 % of fine-tuning deltas can go, which are within 0.002 (README: 0.005); "
    "WizardLM on GSM8K 2.2 → 66.3 merged, WizardMath alone 64.2",
    source="Yu et al. 2024 (DARE), abstract and README", mark="read",
    rule="R: drop 0.9 keeps ≥ 95 % of the gain, and ≥ 10 % more than without rescaling; P: ≥ 85 %",
    reproduced={"share of the gain kept": probe.at_least(0.95),
                "more than without rescaling": probe.at_least(0.10)},
    partly={"share of the gain kept": probe.at_least(0.85)},
)  # fmt: skip


@dataclass(frozen=True)
class World:
    """The tasks of one seed, as prompts of filler, filler, task, symbol.

    Attributes:
        answers: [task, symbol]; the control's second answer stands in the last row.
        decoys: [task, symbol]: the wrong answers that the model meets before tuning.
        fillers: Pairs of fillers of each split: to train on, to choose λ on, to be judged on.
    """

    answers: Tensor
    decoys: Tensor
    fillers: Mapping[str, Tensor]

    @classmethod
    def of(cls, seed: int) -> "World":
        """Tables and splits drawn from a seed."""
        generator = torch.Generator().manual_seed(seed)
        tables = [torch.randperm(N_SYMBOLS, generator=generator) for _ in range(2 * N_TASKS + 3)]
        answers, decoys = torch.stack(tables).split([N_TASKS + 2, N_TASKS + 1])
        pairs = torch.cartesian_prod(torch.arange(N_FILLERS), torch.arange(N_FILLERS))
        pairs = pairs[torch.randperm(len(pairs), generator=generator)]
        train, choose, test = pairs.split([len(pairs) - 32, 16, 16])
        return cls(answers, decoys, {"train": train, "choose": choose, "test": test})

    def prompts(self, task: int | Tensor, symbol: Tensor, filler: Tensor) -> Tensor:
        """Token ids [prompt, 4]."""
        tasks = torch.as_tensor(task).expand(len(symbol))
        return torch.cat([filler, torch.stack([N_FILLERS + tasks, _token(symbol)], 1)], 1)

    def every(self, task: int, split: str) -> tuple[Tensor, Tensor]:
        """Every symbol after every pair of fillers of a split."""
        fillers = self.fillers[split]
        symbol = torch.arange(N_SYMBOLS).repeat(len(fillers))
        return self.prompts(task, symbol, fillers.repeat_interleave(N_SYMBOLS, 0)), symbol

    def batch(
        self, tasks: Sequence[int], right: float, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Training prompts and answers; those of the tasks are right with this probability."""
        task = torch.tensor(tasks)[torch.randint(len(tasks), (BATCH,), generator=generator)]
        symbol = torch.randint(N_SYMBOLS, (BATCH,), generator=generator)
        fillers = self.fillers["train"]
        chosen = fillers[torch.randint(len(fillers), (BATCH,), generator=generator)]
        coin = torch.rand(BATCH, generator=generator)
        answer = torch.where(coin < right, self.answers[task, symbol], self.decoys[task, symbol])
        either = self.answers[CONTROL + (coin < 0.5).long(), symbol]
        answer = torch.where(task == CONTROL, either, answer)
        return self.prompts(task, symbol, chosen), _token(answer)


def _token(symbol: Tensor) -> Tensor:
    return N_FILLERS + N_TASKS + 1 + symbol


def small_llama(seed: int):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=N_FILLERS + N_TASKS + 1 + N_SYMBOLS, hidden_size=64, intermediate_size=128,
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4,
        max_position_embeddings=8, bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def train(
    model, world: World, tasks: Sequence[int], right: float, steps: int, lr: float, seed: int
) -> None:
    """Adam on the answer's cross-entropy, the learning rate falling to zero."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    for _ in range(steps):
        tokens, answer = world.batch(tasks, right, generator)
        loss = torch.nn.functional.cross_entropy(model(tokens).logits[:, -1], answer)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


@torch.no_grad()
def skills(folder: Path, world: World, tasks: Sequence[int], split: str = "test") -> list[float]:
    """Of each task the mean probability of the right answer; of the control the loss in nats."""
    from transformers import LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = LlamaForCausalLM.from_pretrained(folder)
    return [_skill(model, world, task, split) for task in tasks]


def _skill(model, world: World, task: int, split: str) -> float:
    tokens, symbol = world.every(task, split)
    log_probs = model(tokens).logits[:, -1].log_softmax(-1)
    rows = torch.arange(len(symbol))
    if task < CONTROL:
        return float(log_probs[rows, _token(world.answers[task, symbol])].exp().mean())
    both = [log_probs[rows, _token(world.answers[CONTROL + i, symbol])] for i in (0, 1)]
    return float(-(both[0] + both[1]).mean() / 2)


def skill(folder: Path, world: World, task: int, split: str = "test") -> float:
    """Of one task."""
    return skills(folder, world, [task], split)[0]


@dataclass
class Bench:
    """One seed's models on disk, and whatever is made of them."""

    world: World
    folder: Path

    @classmethod
    def trained(cls, seed: int, folder: Path, steps: int, tuning: int) -> "Bench":
        """Train the mixture, then a copy on each task."""
        world, model = World.of(seed), small_llama(seed)
        train(model, world, range(N_TASKS + 1), 0.5, steps, 3e-3, seed)
        model.save_pretrained(folder / "pre")
        start = {name: weight.clone() for name, weight in model.state_dict().items()}
        for task in range(N_TASKS):
            model.load_state_dict(start)
            train(model, world, [task], 1.0, tuning, 1e-3, seed + 100 * (task + 1))
            model.save_pretrained(folder / f"tuned {task}")
        return cls(world, folder)

    @property
    def pre(self) -> Path:
        """The model before tuning."""
        return self.folder / "pre"

    def tuned(self, task: int) -> Path:
        """The model tuned on a task."""
        return self.folder / f"tuned {task}"

    def vector(self, task: int):
        """What that tuning changed."""
        return probe.weight_task_vector(self.pre, self.tuned(task))

    def made(self, make: Callable[[Path], Path], read: Callable[[Path], T]) -> T:
        """What is read of a model that is made, read and thrown away."""
        with tempfile.TemporaryDirectory(dir=self.folder) as place:
            return read(make(Path(place) / "made"))

    def mean_skill(self, folder: Path, tasks: Sequence[int], split: str) -> float:
        """Over tasks."""
        return float(np.mean(skills(folder, self.world, tasks, split)))

    def merged(self, tasks: Sequence[int], split: str, **how: object) -> float:
        """Mean skill of the tuned models of these tasks, merged."""
        models = [self.tuned(task) for task in tasks]
        return self.made(
            lambda out: probe.merge(models, base=self.pre, out=out, **how),
            lambda folder: self.mean_skill(folder, tasks, split),
        )

    def chosen(self, tasks: Sequence[int], **how: object) -> float:
        """The λ of the grid that does best on the prompts to choose by."""
        return max(GRID, key=lambda scale: self.merged(tasks, "choose", scale=scale, **how))


# --- what is measured ----------------------------------------------------------------------------


def negated(bench: Bench, task: int) -> dict[str, float]:
    """The strongest forgetting that leaves the control within 5 % on the prompts to choose by."""
    vector, world = bench.vector(task), bench.world

    def at(scale: float, split: str) -> tuple[float, float]:
        found = bench.made(
            lambda out: vector.apply(out=out, scale=-scale),
            lambda folder: skills(folder, world, (task, CONTROL), split),
        )
        return found[0], found[1]

    def loss(split: str) -> float:
        return skill(bench.pre, world, CONTROL, split)

    tried = {scale: at(scale, "choose") for scale in GRID}
    bound = 1.05 * loss("choose")
    allowed = [scale for scale in GRID if tried[scale][1] <= bound] or GRID[:1]
    scale = min(allowed, key=lambda one: tried[one][0])
    left, control = at(scale, "test")
    before, after = (skill(one, world, task) for one in (bench.pre, bench.tuned(task)))
    return {
        "lost": (before - left) / (after - before), "rise": control / loss("test") - 1,
        "before": before, "after": after, "negated": left, "scale": scale,
    }  # fmt: skip


def added(bench: Bench, tasks: Sequence[int]) -> float:
    """Skill of the sum, as a share of what each tuned model has of its own task."""
    scale = bench.chosen(tasks, how="arithmetic")
    alone = np.mean([skill(bench.tuned(task), bench.world, task) for task in tasks])
    return float(bench.merged(tasks, "test", how="arithmetic", scale=scale) / alone)


def flipped(bench: Bench, task: int, largest: bool, share: float = 0.2) -> float:
    """Skill that is lost when the signs of the largest fifth, or of all others, are turned."""
    pre, tuned = (load_file(f / "model.safetensors") for f in (bench.pre, bench.tuned(task)))
    vector = {name: tuned[name] - pre[name] for name in pre}
    sizes = torch.cat([one.abs().flatten() for one in vector.values()])
    line = sizes.topk(round(share * len(sizes))).values[-1]
    turned = {
        name: pre[name] + torch.where((one.abs() >= line) == largest, -one, one)
        for name, one in vector.items()
    }

    def write(out: Path) -> Path:
        out.mkdir()
        save_file(turned, out / "model.safetensors", metadata={"format": "pt"})
        (out / "config.json").write_text((bench.pre / "config.json").read_text())
        return out

    whole = skill(bench.tuned(task), bench.world, task)
    return whole - bench.made(write, lambda folder: skill(folder, bench.world, task))


def thinned(bench: Bench, task: int, drop: float, seed: int, *, rescale: bool) -> float:
    """Share of the gain that is kept when deltas are dropped."""
    before, after = (skill(one, bench.world, task) for one in (bench.pre, bench.tuned(task)))
    left = bench.merged([task], "test", how="dare", drop=drop, rescale=rescale, seed=seed)
    return (left - before) / (after - before)


@probe.study(
    paper="Ilharco et al. 2023; Yadav et al. 2023 (TIES); Yu et al. 2024 (DARE)",
    full={"seeds": 5, "steps": 600, "tuning": 150},
    quick={"seeds": 3, "steps": 300, "tuning": 100},
)
def task_arithmetic(*, seed: int, seeds: int, steps: int, tuning: int) -> Iterator[object]:
    """Train, combine, judge."""
    every = range(N_TASKS)
    negations, curves, drops, ratios = [], [], [], []
    two, four, gained, steady = [], [], [], []
    with tempfile.TemporaryDirectory() as place:
        for one in range(seed, seed + seeds):
            bench = Bench.trained(one, Path(place) / str(one), steps, tuning)
            negations += [{"seed": one, "task": task, **negated(bench, task)} for task in every]
            two.append(np.mean([added(bench, pair) for pair in ((0, 1), (2, 3))]))
            four.append(added(bench, every))
            tops, bottoms = ([flipped(bench, t, side) for t in every] for side in (True, False))
            ratios.append(np.mean(tops) / max(np.mean(bottoms), 1e-3))
            curves += list(_curves(bench, one))
            gained.append(100 * _gain(bench, every))
            steady.append(_ranges(pd.DataFrame(curves), one))
            drops += [
                {"seed": one, "drop": p, "rescaled": "yes" if rescale else "no",
                 "value": np.mean([thinned(bench, t, p, one, rescale=rescale) for t in every])}
                for p in DROPS for rescale in (True, False)
            ]  # fmt: skip
    by_seed = pd.DataFrame(negations).groupby("seed")[["lost", "rise", "before", "after"]].mean()
    yield NEGATION.judge(
        {
            "share of the gain lost": probe.over_seeds(by_seed["lost"]),
            "rise of control loss": probe.over_seeds(by_seed["rise"]),
            "skill before tuning": probe.over_seeds(by_seed["before"]),
            "skill after tuning": probe.over_seeds(by_seed["after"]),
        }
    )
    yield ADDITION.judge({"two tasks": probe.over_seeds(two), "four tasks": probe.over_seeds(four)})
    yield BETTER.judge({"points gained": probe.over_seeds(gained)})
    yield SIGNS.judge({"cost, top over bottom": probe.over_seeds(ratios)})
    yield STEADY.judge({"range, TIES over arithmetic": probe.over_seeds(steady)})
    kept = pd.DataFrame(drops).pivot(index=["seed", "drop"], columns="rescaled", values="value")
    nine = kept.xs(0.9, level="drop")
    yield THINNED.judge(
        {
            "share of the gain kept": probe.over_seeds(nine["yes"]),
            "more than without rescaling": probe.over_seeds(nine["yes"] - nine["no"]),
            "knee, share that can be dropped": probe.over_seeds(knees(kept["yes"])),
        },
        f"knee: the most of {', '.join(map(str, DROPS))} that keeps 95 % of the gain, rescaled",
    )
    yield probe.Exhibit(
        "Skill of four tasks merged, by λ", pd.DataFrame(curves),
        {"seed": "seed", "how": "way of merging", "scale": "λ", "value": "mean skill, probability"},
        probe.View(kind="line", x="scale", y="value", color="how", scale="share"),
    )  # fmt: skip
    yield probe.Exhibit(
        "Share of the gain kept, by share of deltas dropped", pd.DataFrame(drops),
        {"seed": "seed", "drop": "share dropped", "rescaled": "whether the rest is rescaled",
         "value": "share of the gain in skill that is kept"},
        probe.View(kind="line", x="drop", y="value", color="rescaled", scale="share"),
    )  # fmt: skip


def knees(kept: pd.Series) -> list[float]:
    """The largest share dropped up to which 95 % of the gain is kept, by seed; 0: none."""
    found = []
    for _, curve in kept.groupby(level="seed"):
        enough = (curve.droplevel("seed").sort_index() >= 0.95).cummin()
        found.append(float(enough.index[enough].max()) if enough.any() else 0.0)
    return found


def _curves(bench: Bench, seed: int) -> Iterator[dict[str, object]]:
    for how in ("arithmetic", "ties"):
        for scale in GRID:
            value = bench.merged(range(N_TASKS), "test", how=how, scale=scale)
            yield {"seed": seed, "how": how, "scale": scale, "value": value}


def _gain(bench: Bench, tasks: Sequence[int]) -> float:
    """Skill of TIES less that of task arithmetic, each at the λ chosen for it."""
    found = {}
    for how in ("arithmetic", "ties"):
        found[how] = bench.merged(tasks, "test", how=how, scale=bench.chosen(tasks, how=how))
    return found["ties"] - found["arithmetic"]


def _ranges(curves: pd.DataFrame, seed: int) -> float:
    part = curves[(curves["seed"] == seed) & (curves["scale"] >= 0.8)]
    ranges = part.groupby("how")["value"].agg(lambda values: values.max() - values.min())
    return float(ranges["ties"] / ranges["arithmetic"])


if __name__ == "__main__":
    task_arithmetic.main()
