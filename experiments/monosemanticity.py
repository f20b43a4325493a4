"""Towards Monosemanticity (Bricken et al. 2023), on one-layer ReLU models trained here.

Models of the paper's size (128 wide, 512 neurons) learn the everyday text from three seeds;
standard dictionaries with unit decoder rows, an L1 penalty and the paper's four resamplings learn
their neurons' activations on that text; everything is measured on rows of other documents.

Fixed before any measurement:

- *Training*: batch and learning rate by the explained variance of a quarter of a training.
- *Penalty*: the first of the grid with which the 8x dictionary of the first seed has an L0 of 10
  to 20; the nearest to 15 if there is none. All dictionaries have it.
- *Splitting*: dictionaries of 1, 4 and 8 features a neuron (512, 2048, 4096); the paper's go up to
  32 (16,384), for which there is neither the text nor the time here.
- *Dead or ultralow*: fires on none of the measured tokens. They are fewer than 1e6, so this takes
  in more than the paper's densities below 1e-6. Other numbers are of units that fire on at least
  100 of them.
- *Top-decile purity*, of a feature or neuron: of the tokens on which it fires, take the tenth on
  which it is strongest; the largest share of these that one rule explains: "it is this token", "it
  follows this token", or "it stands in this context".
- *Contexts* are kinds of line, found by patterns. The paper's are rare, so specificity is
  asked of each of those that cover 0.3 to 4 % of the tokens; the best feature and the best neuron
  by correlation are chosen on even rows and measured on odd ones.
- *Context feature*: at least 90 % of its summed activation is in one context. *Single-token
  feature*: at least 90 % of it is on one token.
- *Two modes*: of log10 density (counts spread over their unit, or small ones would be modes); how
  far apart, by the two highest peaks of a kernel density estimate.

probe reproduce monosemanticity [--quick]
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import units
from monosemanticity_runs import L0, Found, choose, measure, prepared
from tiny_runs import text_of

import probe

SOURCE = "Bricken et al. 2023, transformer-circuits.pub/2023/monosemantic-features"
MORE = 1e-9
"""More than nothing: a tie is not enough."""
LOSS = probe.Claim(
    "A dictionary eight times as wide keeps most of what the MLP does",
    published="79 % of the loss (A/1), 94.5 % (A/5)",
    source=f'{SOURCE}, "How much of the model"', mark="read",
    rule="loss recovered against zero ablation of the MLP, 8x dictionary at L0 10-20, R: at least "
    "70 %; P: 50 %",
    reproduced={"loss recovered, zero": probe.at_least(0.7), "L0": probe.between(*L0)},
    partly={"loss recovered, zero": probe.at_least(0.5), "L0": probe.between(*L0)},
)  # fmt: skip
DEAD = probe.Claim(
    "Few features are dead or ultralow after resampling, fewer than without",
    published="of 4,096, 168 dead and 292 of density below 1e-6", source=SOURCE, mark="read",
    rule="share dead or ultralow, R: at most 15 % and lower than without resampling; P: lower only",
    reproduced={
        "dead or ultralow, share": probe.at_most(0.15),
        "without resampling, more by": probe.at_least(MORE),
    },
    partly={"without resampling, more by": probe.at_least(MORE)},
)  # fmt: skip
MODES = probe.Claim(
    "The histogram of densities has two modes",
    published="near 1e-7 and 1e-5 (run A/16)", source=SOURCE, mark="read",
    rule="R: dip test p < 0.05 and modes at least a decade apart; absence in a small run is no "
    "failure, the authors see it in many runs, not in all",
    reproduced={"dip test, p": probe.at_most(0.05), "modes apart, decades": probe.at_least(1)},
)  # fmt: skip
PURER = probe.Claim(
    "Features are more interpretable than neurons",
    published="human median 12 against 0 of 14 (162 items)", source=SOURCE, mark="read",
    rule="proxy: top-decile purity, R: median feature above the 90th percentile of neurons; P: "
    "above the median neuron",
    reproduced={"median feature - 90th percentile neuron": probe.at_least(MORE)},
    partly={"median feature - median neuron": probe.at_least(MORE)},
)  # fmt: skip
UNIVERSAL = probe.Claim(
    "Features are found again in another seed, more than neurons",
    published="median best-match correlation 0.72 against 0.46", source=f"{SOURCE}, Universality",
    mark="read",
    rule="median best-match activation correlation, R: features less neurons at least 0.15 and "
    "features at least 0.6; P: difference at least 0.05",
    reproduced={"features - neurons": probe.at_least(0.15), "features": probe.at_least(0.6)},
    partly={"features - neurons": probe.at_least(0.05)},
)  # fmt: skip
SPECIFIC = probe.Claim(
    "Contexts have specific features and no specific neurons",
    published="correlation with the proxy: base64 0.38, Hebrew 0.55; best neurons 0.18, 0.1",
    source=SOURCE, mark="read",
    rule="at least three detectable contexts, each of them, R: top activations at least 95 % in "
    "context and the best feature's correlation at least twice the best neuron's",
    reproduced={
        "contexts": probe.at_least(3),
        "top activations in context, least": probe.at_least(0.95),
        "best feature / best neuron, least": probe.at_least(2),
    },
)  # fmt: skip
SPLIT = probe.Claim(
    "Features split with size",
    published="base64: 1 → 3 → many features (512 → 4,096 → 16,384)", source=SOURCE, mark="read",
    rule="R: the number of features with context purity of at least 0.9 grows at each of three "
    "sizes",
    reproduced={"smallest growth, features": probe.at_least(1)},
)  # fmt: skip
RANDOM = probe.Claim(
    "A model of random weights gives mostly single-token features",
    published="qualitative", source=SOURCE, mark="read",
    rule="R: share of single-token features higher than in the trained model",
    reproduced={"untrained - trained, share": probe.at_least(MORE)},
)  # fmt: skip


@probe.study(
    paper="Bricken et al. 2023",
    full={"seeds": 3, "changes": {}, "documents": None, "store": 400_000, "rows": 600,
          "n_tokens": 1_024_000, "batch_size": 256, "lr": 3e-3, "grid": [3, 2, 1, 4, 8]},
    quick={"seeds": 2, "changes": {"steps": 120, "d_mlp": 64}, "documents": 300, "store": 20_000,
           "rows": 60, "n_tokens": 100_000, "batch_size": 256, "lr": 3e-3, "grid": [3]},
)  # fmt: skip
def monosemanticity(*, seed: int, seeds: int, **size: Any) -> Iterator:
    """Train models and dictionaries, measure them seed by seed, and judge."""
    rows = text_of(size["documents"], shipped=False)
    runs = [prepared(rows, one, size) for one in range(seed, seed + seeds)]
    yield from (run.model for run in runs)
    sparsity, tried = choose(runs[0])
    found = []
    for run in runs:
        run.sparsity = sparsity
        found.append(measure(run))
    yield from of_dictionaries(found, tried)
    yield from of_features(found)
    yield densities(found)
    if any(len(one.contexts) for one in found):
        yield by_context(found)


def over_seeds(found: list[Found], name: str, less: str = "") -> Any:
    """A number of each seed, or its difference to another."""
    return probe.over_seeds(
        [one.numbers[name] - (one.numbers[less] if less else 0) for one in found]
    )


def of_dictionaries(found: list[Found], tried: str) -> Iterator:
    """How well they reconstruct, and how often their features fire."""
    of = partial(over_seeds, found)
    yield LOSS.judge(
        {"loss recovered, zero": of("zero"), "L0": of("l0"), "loss recovered, mean": of("mean")},
        f"L0 of each penalty tried: {tried}; zero ablation flatters, as the authors say",
    )
    yield DEAD.judge(
        {
            "dead or ultralow, share": of("dead"),
            "without resampling, more by": of("dead, plain", "dead"),
        },
        f"silent on all of {found[0].features.shape[0]} held-out tokens",
    )
    yield MODES.judge({"dip test, p": of("dip"), "modes apart, decades": of("modes")})


def of_features(found: list[Found]) -> Iterator:
    """What features are, against neurons, other seeds, other widths and an untrained model."""
    of = partial(over_seeds, found)
    yield PURER.judge(
        {
            "median feature - 90th percentile neuron": of("features, median", "neurons, 90 %"),
            "median feature - median neuron": of("features, median", "neurons, median"),
            "median feature": of("features, median"),
            "median neuron": of("neurons, median"),
            "the same of the strongest 50 tokens": of("features, of 50", "neurons, of 50"),
            "features judged": of("features, judged"),
        },
        "a proxy for raters: top-decile purity",
    )
    yield universal(found)
    yield specificity(found)
    yield splitting(found)
    yield RANDOM.judge(
        {
            "untrained - trained, share": of("single, blank", "single"),
            "untrained, share": of("single, blank"),
            "trained, share": of("single"),
            "L0, untrained": of("l0, blank"),
        },
        "dictionaries four times as wide as the MLP, of the same penalty",
    )


def universal(found: list[Found]) -> Any:
    """Each seed's units and their best matches in the next seed."""
    pairs = list(zip(found, found[1:] + found[:1], strict=True)) if len(found) > 1 else []

    def matched(name: str) -> np.ndarray:
        both = ((getattr(a, name), getattr(b, name)) for a, b in pairs)
        return np.array([np.median(units.correlations(a, b)[units.judged(a)].max(1))
                         for a, b in both])  # fmt: skip

    if not pairs:
        return UNIVERSAL.leave_out("needs a second seed")
    features, neurons = matched("features"), matched("neurons")
    return UNIVERSAL.judge(
        {
            "features - neurons": probe.over_seeds(features - neurons),
            "features": probe.over_seeds(features),
            "neurons": probe.over_seeds(neurons),
        },
        "each seed against the next; the seeds share the text, not its order",
    )


def specificity(found: list[Found]) -> Any:
    """The worst of each seed's rare contexts."""
    tables = [one.contexts.pivot(index="context", columns="unit") for one in found
              if len(one.contexts)]  # fmt: skip
    if not tables:
        return SPECIFIC.leave_out("no context is there and rare enough")
    ratios = [table.value.feature / table.value.neuron.clip(lower=0.001) for table in tables]
    inside = [table.in_context.feature for table in tables]
    both = [((top >= 0.95) & (ratio >= 2)).sum()
            for top, ratio in zip(inside, ratios, strict=True)]  # fmt: skip
    return SPECIFIC.judge(
        {
            "contexts": probe.over_seeds(map(len, tables)),
            "top activations in context, least": probe.over_seeds([top.min() for top in inside]),
            "best feature / best neuron, least": probe.over_seeds([r.min() for r in ratios]),
            "best feature / best neuron, median": probe.over_seeds([r.median() for r in ratios]),
            "contexts where both hold": probe.over_seeds(both),
        },
        "correlations, first seed: " + "; ".join(
            f"{name} {row.feature:.2f} against {row.neuron:.2f}"
            for name, row in tables[0].value.iterrows()
        ),
    )  # fmt: skip


def splitting(found: list[Found]) -> Any:
    """Features of one context, by the dictionary's width."""
    counted = {name.removeprefix("split "): [one.numbers[name] for one in found]
               for name in found[0].numbers if name.startswith("split ")}  # fmt: skip
    growth = np.diff(list(counted.values()), axis=0).min(0)
    return SPLIT.judge(
        {"smallest growth, features": probe.over_seeds(growth)}
        | {f"width {width}": probe.over_seeds(number) for width, number in counted.items()}
    )


def densities(found: list[Found]) -> probe.Exhibit:
    """How often features fire, as a histogram."""
    bins = np.arange(-6, 0.01, 0.25)
    shares = [np.histogram(one.densities, bins)[0] / len(one.densities) for one in found]
    frame = pd.DataFrame(
        [{"seed": one.seed, "density": round(left + 0.125, 3), "value": value}
         for one, share in zip(found, shares, strict=True)
         for left, value in zip(bins, share, strict=False)]
    )  # fmt: skip
    columns = {
        "seed": "of the model and its dictionary",
        "density": "log10 of the share of tokens on which a feature fires, middle of the bin",
        "value": "share of the features that fire at all",
    }
    view = probe.View(kind="line", x="density", color="seed")
    return probe.Exhibit("Densities of features", frame, columns, view)


def by_context(found: list[Found]) -> probe.Exhibit:
    """The rare contexts one by one."""
    frame = pd.concat([one.contexts for one in found])
    columns = {
        "seed": "of the model and its dictionary",
        "context": "kind of line",
        "share": "of the tokens that stand in such a line",
        "unit": "the best feature, or the best neuron",
        "in_context": "share of the unit's top decile of activations that is in context",
        "value": "correlation of the unit's activation with being in context",
    }
    view = probe.View(kind="bar", x="context", color="unit")
    return probe.Exhibit("Best feature and best neuron of each context", frame, columns, view)


if __name__ == "__main__":
    monosemanticity.main()
