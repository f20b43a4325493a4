"""Does a sentiment direction steer what SmolLM2 writes, and at what cost?

    python experiments/steer_sentiment.py [--quick] [--seed N]

The direction is the mean difference of the residual stream after layer 15 at the last token of ten
pairs of sentences, equal but for their sentiment. It is added at all positions, with strengths from
-4 to 4 (1 is the step from the average negative sentence to the average positive one). Prompts
of the test share no word of sentiment with the pairs.

Judges of sentiment, stated beforehand: ``words``, positive less negative words of a list written
here, by 100 words of what was generated (30 tokens at temperature 1, same seeds at every
strength); and ``odds``, the log-odds SmolLM2 without any vector gives " positive" against
" negative" after "Review: ... Sentiment:", the generated text in between. Cost: KL on neutral text.
Controls: random directions of the same norm, and the direction of number (plural less singular).
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import torch

import probe

LAYER = 15
TEMPLATES = (
    "The film was {}", "I think this book is {}", "The food at the inn was {}",
    "Her new song sounds {}", "Our trip to the coast was {}", "The service in this shop is {}",
    "My first day at work was {}", "The weather all week was {}", "This phone is simply {}",
    "The ending of the story was {}",
)  # fmt: skip
GOOD = "wonderful excellent delightful beautiful fantastic great perfect lovely amazing superb"
BAD = "terrible awful dreadful ugly horrible bad useless nasty disgusting miserable"
SINGULAR = "cat house tree road book chair boat hill song letter"
PLURAL = "cats houses trees roads books chairs boats hills songs letters"
PROMPTS = (
    "The hotel room was", "When I met my neighbour, I felt", "Last night's concert was",
    "The teacher told us that the class", "After the game, the team", "My grandmother's soup is",
    "The city in winter looks", "The meeting this morning",
)  # fmt: skip
NEUTRAL = (
    "Water boils at one hundred degrees at sea level and at a lower temperature on a mountain.",
    "The train to the north leaves the central station at noon and stops at every village.",
    "A triangle has three sides, and its angles add up to half a turn.",
    "The committee will meet on Tuesday to discuss the plan for the new bridge.",
)
POSITIVE_WORDS = frozenset(
    "good great best better happy love loved lovely beautiful wonderful excellent amazing nice "
    "delicious enjoy enjoyed enjoyable perfect fantastic pleasant pleased friendly joy delight "
    "delightful brilliant fun warm comfortable success successful proud excited exciting glad "
    "superb favorite impressive charming sweet bright vibrant smile grateful win won".split()
)
NEGATIVE_WORDS = frozenset(
    "bad worst worse sad hate hated ugly terrible awful horrible poor nasty disgusting dreadful "
    "disappointed disappointing disappointment boring pain painful angry anger fear afraid dirty "
    "cold broken wrong failed failure miserable unhappy useless dull annoying worried lost lose "
    "uncomfortable rude cruel tired sick dark died death problem problems".split()
)

MONOTONE = probe.Claim(
    "strength moves the sentiment of generations monotonically until its cost rises",
    published="an aim of ours, no published figure", source="this project", mark="derived",
    rule="over strengths whose KL on neutral text is at most 1 nat: Spearman correlation of "
    "strength with both judges >= 0.9; at the strongest of them the move of odds is at least "
    "twice that of any control",
    reproduced={
        "Spearman, odds": probe.at_least(0.9),
        "Spearman, words": probe.at_least(0.9),
        "move of odds / control's": probe.at_least(2),
    },
)  # fmt: skip
_COLUMNS = {
    "direction": "sentiment; random: of the same norm; number: plural less singular",
    "strength": "what the direction is multiplied by",
    "batch": "generated text",
    "value": "odds: log-odds of positive against negative, in nats",
    "words": "positive less negative words, by 100 words",
    "cost": "KL on neutral text, mean over tokens, in nats",
}


def words(text: str) -> float:
    """The list's judgement."""
    found = [word.strip(".,!?;:\"'()").lower() for word in text.split()]
    balance = sum(w in POSITIVE_WORDS for w in found) - sum(w in NEGATIVE_WORDS for w in found)
    return 100 * balance / max(len(found), 1)


def odds(model: probe.Model, text: str) -> float:
    """The unsteered model's judgement."""
    sides = [model.tokenizer.need_single(word) for word in (" positive", " negative")]
    ids = torch.tensor([model.tokenizer.encode(f"Review: {text}\nSentiment:")])
    scores = model.forward(ids, last_only=True)[0, sides]
    return float(scores[0] - scores[1])


def measure(
    model: probe.Model, vector: probe.VectorResult, strengths: list[float], seeds: range, n: int
) -> pd.DataFrame:
    """Generations at every strength, judged."""
    cost = probe.vector_cost(model, vector, NEUTRAL, strengths=strengths).frame
    spent = cost.groupby("strength").value.mean()
    rows = []
    for strength in strengths:
        edits = vector.at(strength=strength).edits() if strength else []
        for number, (seed, prompt) in enumerate((s, p) for s in seeds for p in PROMPTS):
            made = model.generate(prompt, edits, max_new_tokens=n, temperature=1.0, seed=seed)
            rows.append((vector.name, strength, number, odds(model, prompt + made.text),
                         words(made.text), spent[strength]))  # fmt: skip
        print(vector.name, strength, np.mean([row[3] for row in rows[-number - 1 :]]), flush=True)
    return pd.DataFrame(rows, columns=list(_COLUMNS))


def ranked(frame: pd.DataFrame, column: str) -> Any:
    """Rank correlation of strength with a judge's mean over texts."""
    table = frame.pivot(index="batch", columns="strength", values=column)
    strengths = pd.Series(table.columns)

    def spearman(rows: np.ndarray) -> float:
        return float(strengths.corr(pd.Series(rows.mean(0)), method="spearman"))

    return probe.over_examples(table.to_numpy(), spearman, of="texts")


def judged(frame: pd.DataFrame) -> Iterator[Any]:
    """The verdict."""
    inside = frame[frame.cost <= 1]
    own = inside[inside.direction == "sentiment"]
    ends = own.strength.max(), own.strength.min()
    moves = {
        name: part[part.strength == ends[0]].value.mean()
        - part[part.strength == ends[1]].value.mean()
        for name, part in frame.groupby("direction")
    }
    control = max(abs(move) for name, move in moves.items() if name != "sentiment")
    yield MONOTONE.judge(
        {
            "Spearman, odds": ranked(own, "value"),
            "Spearman, words": ranked(own, "words"),
            "move of odds / control's": probe.exactly(moves["sentiment"] / max(control, 1e-9)),
        },
        f"strengths {ends[1]:g} to {ends[0]:g} cost at most 1 nat",
    )


@probe.study(
    paper="Rimsky et al. 2024; Turner et al. 2023",
    full={"strengths": [-4, -2, -1, 0, 1, 2, 4], "seeds": 3, "tokens": 30},
    quick={"strengths": [-2, 0, 2], "seeds": 1, "tokens": 8},
)
def steer_sentiment(*, seed: int, strengths: list[int], seeds: int, tokens: int) -> Iterator[Any]:
    """Does a sentiment direction steer what SmolLM2 writes, and at what cost?"""
    model = probe.load_model("smollm2")
    yield model
    good = [t.format(w) for t, w in zip(TEMPLATES, GOOD.split(), strict=True)]
    bad = [t.format(w) for t, w in zip(TEMPLATES, BAD.split(), strict=True)]
    vector = probe.steering_vector(model, good, bad, layer=LAYER, name="sentiment")
    many, one = ([f"I see the {w}" for w in words.split()] for words in (PLURAL, SINGULAR))
    number = probe.steering_vector(model, many, one, layer=LAYER, name="number")
    scaled = number.named("number", number.vector * vector.norm / number.norm)
    drawn = torch.randn(vector.vector.shape, generator=torch.Generator().manual_seed(seed))
    noise = vector.named("random", drawn * vector.norm / drawn.norm())
    span, each = [float(s) for s in strengths], range(seed, seed + seeds)
    parts = [measure(model, vector, span, each, tokens)]
    parts += [measure(model, control, span, each[:1], tokens) for control in (noise, scaled)]
    frame = pd.concat(parts, ignore_index=True)
    view = probe.View(kind="line", x="strength", color="direction")
    yield probe.Exhibit("Sentiment by strength", frame, _COLUMNS, view)
    cost = frame.drop_duplicates(["direction", "strength"]).assign(value=lambda f: f.cost)
    meaning = {**_COLUMNS, "value": _COLUMNS["cost"]}
    yield probe.Exhibit("Cost by strength", cost, meaning, view)
    yield from judged(frame)


if __name__ == "__main__":
    steer_sentiment.main()
