"""Which rotary frequencies do SmolLM2's 270 heads use, and is it what Gemma 7B's do?

Barbero et al. (2024) find that most of the length of queries and keys lies in the slowest pairs,
that heads for the previous token or the token itself use the fastest, and that values, which are
not rotated, show nothing. Text: sentences written for this study, and the prompts of Probe's tasks.
What the paper claims of models trained with fewer frequencies, or none, is in ``p_rope.py``.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import torch

import probe

PAPER = "Barbero et al. (2024), Round and Round We Go! arXiv 2410.06205"
PAIRS, EDGE = 32, 8
"""Rotary pairs of a head, and how many of them are called slowest and fastest."""
POSITIONAL = 0.5

SLOW = probe.Claim(
    "low frequencies carry most norm at every layer; values show nothing",
    published="figures 3, 4 and 13, Gemma 7B",
    source=PAPER,
    mark="second-hand",
    rule="share of summed pair norms in the 8 slowest of 32 pairs (uniform 25 %): R: at least 40 % "
    "averaged, in at least 80 % of layers; P: 30 %. Control: values within 25 ± 3 %",
    reproduced={
        "slowest pairs, queries and keys": probe.at_least(0.40),
        "layers at 40 % or more": probe.at_least(0.80),
        "slowest pairs, values": probe.between(0.22, 0.28),
    },
    partly={
        "slowest pairs, queries and keys": probe.at_least(0.30),
        "slowest pairs, values": probe.between(0.22, 0.28),
    },
)
FAST = probe.Claim(
    "diagonal and previous-token heads use the highest frequencies",
    published="layer 1 heads 5 and 8; logit 383 of a bound of 484 on the diagonal",
    source=PAPER,
    mark="second-hand",
    rule="heads with previous-token score of at least 0.5: share of the 8 fastest pairs at least "
    "twice that of the average head; P: 1.3 times",
    reproduced={"fastest pairs, over the average head": probe.at_least(2.0)},
    partly={"fastest pairs, over the average head": probe.at_least(1.3)},
)
DECAY = probe.Claim(
    "rotation need not make attention decay with distance",
    published="propositions 3.1 and 3.2: for any query and distance a key that scores highest "
    "there; for normal queries and keys the expectation is 0 at all distances",
    source=PAPER,
    mark="second-hand",
    rule="numeric check of both: R: exact",
    reproduced={
        "distances at which the key made for them scores highest": probe.at_least(1.0),
        "largest mean score over its standard error": probe.at_most(4.0),
    },
)


@probe.study(paper=PAPER, full={"n": 16}, quick={"n": 2})
def rotary_smollm2(*, seed: int, n: int) -> Iterator[Any]:
    """Rotary usage of SmolLM2's heads against the claims of arXiv 2410.06205."""
    model = probe.load_model("smollm2")
    yield model
    texts = sentences(n, seed)
    usage = probe.run("rotary_usage", model=model, prompt=texts)
    frame = usage.frame
    yield SLOW.judge(slowest(frame), note=note(model, texts))
    heads = probe.run("positional_heads", model=model, prompt=texts, pairs=EDGE).frame
    random = probe.run("head_scores", model=model, scores=["previous"]).frame
    previous = random.groupby(["layer", "head"])["value"].mean()
    yield FAST.judge(fastest(heads, previous), note="previous-token score on random tokens")
    yield DECAY.judge(no_decay(model, seed))
    table = frame.groupby(["part", "layer", "pair", "wavelength"], as_index=False)["share"].mean()
    yield probe.Exhibit(
        "Use of rotary frequencies",
        table,
        {
            "part": "q: queries; k: keys; v: values, which are not rotated",
            "layer": "block",
            "pair": "rotary pair, 0 the fastest",
            "wavelength": "tokens after which the pair is back",
            "share": "of the length of all pairs, mean over heads and prompts",
        },
        probe.View(kind="heatmap", x="pair", y="layer", color="share", facet="part", scale="share"),
    )
    means = heads.groupby(["layer", "head"], as_index=False)[
        ["value", "slow", "previous", "current"]
    ].mean()
    yield probe.Exhibit(
        "Every head",
        means.assign(random_previous=previous.to_numpy()),
        {
            "layer": "block",
            "head": "query head",
            "value": "share of the 8 fastest pairs, queries and keys",
            "slow": "share of the 8 slowest pairs",
            "previous": "attention to the previous token, on these texts",
            "current": "attention to the token itself",
            "random_previous": "attention to the previous token, on repeated random tokens",
        },
        probe.View(kind="scatter", x="value", y="random_previous", color="layer"),
    )


def sentences(n: int, seed: int) -> list[str]:
    """Plain prose, as long as a few lines, and prompts of the built-in tasks."""
    names = ["ioi", "greater_than", "capital_of", "docstring"]
    prompts = [
        prompt.clean for name in names for prompt in probe.load_task(name, n=n, seed=seed).prompts
    ]
    return [*PROSE, *prompts]


def slowest(frame: pd.DataFrame) -> dict[str, Any]:
    """Share of the slowest pairs: heads are what is resampled."""
    slow = frame[frame["pair"] >= PAIRS - EDGE]
    keys = ["batch", "part", "layer", "head", "kv_head"]
    share = slow.groupby(keys, dropna=False, as_index=False)["share"].sum()
    heads = share.groupby(["part", "layer", "head", "kv_head"], dropna=False, as_index=False)[
        "share"
    ].mean()
    rotated = heads[heads["part"] != "v"]
    # queries and keys weigh alike, although there are three query heads to a key
    layers = rotated.groupby(["layer", "part"])["share"].mean().groupby("layer").mean()
    parts = {part: rows["share"].to_numpy() for part, rows in heads.groupby("part")}
    return {
        "slowest pairs, queries and keys": probe.over_examples(layers.to_numpy(), of="layers"),
        "layers at 40 % or more": probe.exactly(float((layers >= 0.40).mean())),
        "slowest pairs, values": probe.over_examples(parts["v"], of="value heads"),
        "slowest pairs, queries": probe.over_examples(parts["q"], of="query heads"),
        "slowest pairs, keys": probe.over_examples(parts["k"], of="key heads"),
    }


def fastest(heads: pd.DataFrame, previous: pd.Series) -> dict[str, Any]:
    """Share of the fastest pairs in previous-token heads over that of all heads."""
    share = heads.groupby(["layer", "head"])["value"].mean()
    chosen = share[previous >= POSITIONAL].to_numpy()
    average = float(share.mean())
    return {
        "fastest pairs, over the average head": probe.over_examples(
            chosen / average, of="previous-token heads"
        ),
        "fastest pairs, average head": probe.over_examples(share.to_numpy(), of="heads"),
        "previous-token heads": probe.exactly(len(chosen)),
    }


def no_decay(model: probe.Model, seed: int) -> dict[str, Any]:
    """Both propositions with SmolLM2's own rotation of layer 0."""
    scoring = model.scoring(0)
    rotary, rng = scoring.rotary, np.random.default_rng(seed)

    distances = torch.arange(64)
    hits = []
    for wanted in range(0, 64, 7):
        q = torch.tensor(rng.normal(size=64))
        key = rotary.turn(q, wanted)
        scores = (rotary.turn(q, distances) * key).sum(-1)
        hits.append(int(scores.argmax()) == wanted)
    q, k = (torch.tensor(rng.normal(size=(4000, 64))) for _ in "qk")
    scores = torch.stack([(rotary.turn(q, int(d)) * k).sum(-1) for d in distances[::9]])
    errors = scores.mean(1) / (scores.std(1) / scores.shape[1] ** 0.5)
    return {
        "distances at which the key made for them scores highest": probe.exactly(np.mean(hits)),
        "largest mean score over its standard error": probe.exactly(float(errors.abs().max())),
    }


def note(model: probe.Model, texts: list[str]) -> str:
    """What a reader must know of the numbers: text, base and wavelengths."""
    waves = model.scoring(0).rotary.wavelength
    beyond = [int((waves > length).sum()) for length in (128, 512, 2048, 8192)]
    return (
        f"{len(texts)} texts; 9 query and 3 key heads a layer, each half of the share; wavelengths "
        f"{waves.min():.1f} to {waves.max():.0f} tokens, of 32 pairs {beyond} beyond "
        "128, 512, 2048, 8192"
    )


PROSE = [
    "The harbour was quiet when the last boat came in. Two men tied it to the wall and carried the "
    "boxes up the steps, counting as they went, while the gulls waited on the roof of the old "
    "customs house for whatever might be dropped.",
    "To make the bread, mix the flour with a little salt and the yeast, add warm water, and knead "
    "it for ten minutes. Leave it under a cloth until it has doubled, shape it, let it rise again, "
    "and bake it in a hot oven until the crust sounds hollow.",
    "In mathematics, a group is a set with an operation that combines any two of its elements into "
    "a third, such that the operation is associative, there is an identity element, and every "
    "element has an inverse. The integers under addition are an example.",
    "She had lived in the same street for sixty years and knew every door in it. When the new "
    "family moved in across the road, she watched them from her window for a week before she "
    "crossed over with a cake, and after that the children came every afternoon.",
    'def mean(values):\n    """Arithmetic mean of a list of numbers."""\n    total = 0.0\n'
    "    for value in values:\n        total += value\n    return total / len(values)\n",
    "The committee met on Tuesday to discuss the budget. The treasurer reported that income had "
    "fallen by four per cent, that the reserve would last until the end of next year, and that "
    "unless the rent was reduced the library would have to close on Saturdays.",
]


if __name__ == "__main__":
    rotary_smollm2.main()
