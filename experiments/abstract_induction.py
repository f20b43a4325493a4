"""Do SmolLM2's induction heads match patterns too (Olsson et al. 2022, Argument 4)?

Prompts as in the paper, with words chosen for this study: rows such as ``March lion: 0``, whose
label is the class of the two words, {month, colour} x {animal, fruit}. Fixed before measuring: 28
rows, seven of each class, in random order, and a row whose label is asked for; neither of its words
stands in an earlier row, so that a head that only copies literally finds nothing. Attention is
that of the last token before the label. The first token, on which SmolLM2's heads rest, counts as
no row's. The head is chosen on one half of the prompts and judged on the other.
"""

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

import probe

SOURCE = "Olsson et al. 2022, transformer-circuits.pub/2022/in-context-learning-and-induction-heads"
MATCHES = 0.5
"""Prefix-matching score from which on a head is looked at."""
RIGHT = "attention to rows of the right class"

ABSTRACT = probe.Claim(
    "One head matches prefixes and copies abstractly (translation, patterns)",
    published="copying / prefix: literal head 0.89 / 0.75, translation 0.20 / 0.85, pattern 0.69 / "
    "0.94; pattern head: about 65 % of attention on the right rows",
    source=f"{SOURCE}, Argument 4", mark="read",
    rule="R: a head with prefix score 0.5 puts half its attention on the right class; P: 35 %",
    reproduced={RIGHT: probe.at_least(0.5)},
    partly={RIGHT: probe.at_least(0.35)},
)  # fmt: skip

FIRST = (
    ("January", "February", "March", "April", "May", "June", "July", "August", "September",
     "October", "November", "December"),
    ("red", "blue", "green", "yellow", "purple", "brown", "black", "white", "grey", "pink",
     "silver", "turquoise"),
)  # fmt: skip
SECOND = (
    ("dog", "cat", "lion", "tiger", "horse", "sheep", "rabbit", "wolf", "bear", "elephant",
     "monkey", "goat"),
    ("apple", "banana", "cherry", "grape", "lemon", "mango", "peach", "pear", "plum", "melon",
     "strawberry", "pineapple"),
)  # fmt: skip
CLASSES = 4
"""Label: twice the number of the first word's kind, and that of the second word's."""
KINDS = ("same class", "other classes", "own row", "first token")
"""What attention is shared out among."""


@probe.study(
    paper="Olsson et al. 2022",
    full={"model": "smollm2", "n": 128, "rows": 28},
    quick={"model": "smollm2", "n": 16, "rows": 28},
)
def abstract_induction(*, seed: int, model: str, n: int, rows: int) -> Iterator[Any]:
    """``n`` prompts of ``rows`` rows and one that is asked for, half of them to choose heads by."""
    subject = probe.load_model(model)
    yield subject
    rng = np.random.default_rng(seed)
    prompts = [prompt(rng, number % CLASSES, rows) for number in range(n)]
    chosen, judged = measure(subject, prompts[: n // 2]), measure(subject, prompts[n // 2 :])
    scores, without_first = prefix_scores(subject)
    yield every_head(scores, chosen, judged)
    matching = scores >= MATCHES
    if not matching.any():
        yield ABSTRACT.leave_out(
            f"no head has that prefix score; the highest is {scores.max():.2f}"
        )
        return
    layer, head = best(chosen, matching)
    yield ABSTRACT.judge(
        numbers(judged, (layer, head), best(chosen, np.ones_like(matching)))
        | {
            "prefix score of the head": probe.exactly(float(scores[layer, head])),
            "the same without the first token": probe.exactly(float(without_first[layer, head])),
            "heads with that prefix score": probe.exactly(int(matching.sum())),
        },
        note=f"patterns only, no translation; head {layer}.{head}, chosen of those with that "
        f"prefix score on {n // 2} other prompts",
    )


# --- prompts -------------------------------------------------------------------------------------


class Row(NamedTuple):
    """Two words and the label of their class."""

    first: str
    second: str
    label: int

    def __str__(self) -> str:
        return f"{self.first} {self.second}: {self.label}"


def prompt(rng: np.random.Generator, asked: int, n: int) -> list[Row]:
    """``n`` rows, as many of each class, and one of the class asked for, with words of its own."""
    last = row(rng, asked, without=())
    labels = rng.permutation(np.arange(n) % CLASSES)
    return [*(row(rng, int(label), without=last) for label in labels), last]


def row(rng: np.random.Generator, label: int, without: Sequence[object]) -> Row:
    """A row of this class, without the words that are used already."""
    kinds = FIRST[label // 2], SECOND[label % 2]
    words = [str(rng.choice([word for word in kind if word not in without])) for kind in kinds]
    return Row(words[0], words[1], label)


def text(rows: Sequence[Row]) -> str:
    """The prompt with its answer."""
    return "\n".join(map(str, rows))


def rows_of(pieces: Sequence[str]) -> list[int]:
    """The number of the row each token is in; the end of a line belongs to it."""
    ends = accumulate((piece.count("\n") for piece in pieces), initial=0)
    return list(ends)[: len(pieces)]


def kinds_of(pieces: Sequence[str], rows: Sequence[Row]) -> list[int]:
    """Which of ``KINDS`` each token is, for the row that is asked for."""
    own, asked = len(rows) - 1, rows[-1].label
    kinds = [2 if at == own else int(rows[at].label != asked) for at in rows_of(pieces)]
    return [KINDS.index("first token"), *kinds[1:]]


# --- measuring -----------------------------------------------------------------------------------


class Attention(NamedTuple):
    """Of each prompt: where each head looks, and whether the label is foretold."""

    shares: np.ndarray
    """[prompt, layer, head, kind]"""
    most_likely: np.ndarray
    """Whether the right label is the likeliest token, [prompt]."""
    preferred: np.ndarray
    """Whether it is the likeliest of the four labels, [prompt]."""


def measure(model: Any, prompts: Sequence[list[Row]]) -> Attention:
    """Attention of the last token before the label, and what the model says there."""
    layers = range(model.dims.n_layers)
    last = f"resid_post.{layers[-1]}"
    trace = model.trace([text(rows) for rows in prompts], ["pattern", last], positions=[-2])
    masks = torch.zeros(len(prompts), trace.tokens.shape[1], len(KINDS))
    for mask, rows, pieces in zip(masks, prompts, trace.str_tokens, strict=True):
        mask[range(len(pieces)), kinds_of(pieces, rows)] = 1
    shares = [trace["pattern", layer][:, :, 0] @ masks for layer in layers]
    answers = trace.tokens[torch.arange(len(prompts)), trace.lengths - 1]
    logits = model.unembed(trace[last][:, 0])
    right = logits.gather(1, answers[:, None])
    return Attention(
        torch.stack(shares, 1).numpy(),
        (right >= logits).all(1).numpy(),
        (right >= logits[:, answers.unique()]).all(1).numpy(),
    )


def prefix_scores(model: Any) -> list[np.ndarray]:
    """Attention to what followed the present token, on random tokens four times, [layer, head].

    And the same where attention to the first token, on which heads rest, is left out. Tokens are of
    all the vocabulary: how common each is in the model's training text is not known.
    """
    length = min(25, (model.dims.n_ctx - 1) // 4)
    frame = probe.run(
        "head_scores", model=model, scores=["induction"], repeats=4, length=length
    ).frame
    means = frame.groupby(["layer", "head"])[["value", "without_first"]].mean()
    return [means[column].unstack().to_numpy() for column in means]


def best(found: Attention, allowed: np.ndarray) -> tuple[int, int]:
    """The head with most attention to the right class, of those allowed."""
    means = np.where(allowed, found.shares[..., 0].mean(0), -1)
    layer, head = np.unravel_index(means.argmax(), means.shape)
    return int(layer), int(head)


def numbers(judged: Attention, head: tuple[int, int], of_all: tuple[int, int]) -> dict[str, Any]:
    """What is reported of the head, of the best of all heads, and of the model."""
    mine = judged.shares[:, *head]
    kinds = dict(zip(KINDS, mine.T, strict=True))

    def over(values: np.ndarray, statistic: Any = np.mean) -> Any:
        return probe.over_examples(values, statistic, of="prompts")

    return {
        RIGHT: over(kinds["same class"]),
        "attention to rows of other classes": over(kinds["other classes"]),
        "attention to its own row": over(kinds["own row"]),
        "attention to the first token": over(kinds["first token"]),
        "right class, of attention to earlier rows": over(
            mine, lambda shares: shares[:, 0].sum() / shares[:, :2].sum()
        ),
        "right class, of earlier rows: chance": probe.exactly(1 / CLASSES),
        f"{RIGHT}, best of all heads": over(judged.shares[:, *of_all, 0]),
        "right label most likely, share of prompts": over(judged.most_likely),
        "right label before the other three, share of prompts": over(judged.preferred),
    }


def every_head(scores: np.ndarray, chosen: Attention, judged: Attention) -> probe.Exhibit:
    """Prefix score and attention of all heads."""
    layers, heads = np.indices(scores.shape).reshape(2, -1)
    means = judged.shares.mean(0).reshape(-1, len(KINDS))
    frame = pd.DataFrame(
        {
            "layer": layers,
            "head": heads,
            "induction": scores.ravel(),
            "value": means[:, 0],
            "choosing": chosen.shares[..., 0].mean(0).ravel(),
            "other": means[:, 1],
            "own": means[:, 2],
            "first": means[:, 3],
        }
    )
    columns = {
        "layer": "block",
        "head": "query head",
        "induction": "prefix-matching score on repeated random tokens",
        "value": "attention to rows of the right class, on the prompts that are judged",
        "choosing": "the same on the prompts that heads are chosen by",
        "other": "attention to rows of other classes",
        "own": "attention to the row that is asked for",
        "first": "attention to the first token",
    }
    view = probe.View(kind="scatter", x="induction", y="value", color="layer")
    return probe.Exhibit("Attention to the right class, every head", frame, columns, view)


if __name__ == "__main__":
    abstract_induction.main()
