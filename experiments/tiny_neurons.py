"""Whether a neuron of a one-layer model looks interpretable: a proxy where there are no raters.

A neuron looks interpretable if, of its 20 strongest contexts, each from another row, at least 80 %
are one token or one class of token. A context is the token at which it fires. Classes are white
space, digits, capitals, stops, quotes, opening and closing brackets and other signs, each under a
tenth of the everyday text; small words and pieces of words, three quarters of it, are no class.
The neuron's *rule* is that token, else that class.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

TOP, PURE = 20, 0.8
CLASSES = ("white space", "digit", "capital", "stop", "quote", "opening", "closing", "sign")
SIDES = ("before the norm", "after the norm")


@dataclass(frozen=True)
class Strongest:
    """Where neurons fire most.

    Attributes:
        tokens: Of each neuron's strongest contexts, [neuron, 20]; -1 where it does not fire.
        peak: Its largest value, [neuron].
    """

    tokens: torch.Tensor
    peak: torch.Tensor


def neurons(model, activation: str, rows: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    """Tokens, [row, pos], and neurons before and after the norm, [row, pos, neuron], by chunks.

    Before the norm is after the activation function; without a norm the two are one. The first
    position, the same in every row, is left out.
    """
    for chunk in rows.long().split(16):
        trace = model.trace(chunk, ["mlp_pre", "mlp_post"])
        raw = trace["mlp_pre", 0][:, 1:]
        before = raw * raw.softmax(-1) if activation == "solu" else torch.nn.functional.gelu(raw)
        yield chunk[:, 1:], before, trace["mlp_post", 0][:, 1:]


def strongest(parts: Iterator[tuple[torch.Tensor, ...]]) -> list[Strongest]:
    """The strongest contexts before the norm and after it."""
    found: list[list[tuple[torch.Tensor, torch.Tensor]]] = [[], []]
    for tokens, *sides in parts:
        for side, activation in zip(found, sides, strict=True):
            most, where = activation.max(1)
            side.append((most, tokens.gather(1, where)))
    return [_of_rows(*map(torch.cat, zip(*side, strict=True))) for side in found]


def _of_rows(most: torch.Tensor, tokens: torch.Tensor) -> Strongest:
    top, rows = most.topk(TOP, dim=0)
    return Strongest(tokens.gather(0, rows).masked_fill(top <= 0, -1).T, top[0])


def class_of(token: str) -> int:
    """The place in ``CLASSES``, by the first character that is not white; -1 for none.

    >>> CLASSES[class_of(" 12")], CLASSES[class_of("():")], class_of(" the")
    ('digit', 'opening', -1)
    """
    first = token.strip()[:1]
    tests = (
        not first, first.isdigit(), first.isupper(), first in ".,;:!?", first in "\"'`",
        first in "([{", first in ")]}", first.isascii() and not first.isalnum(),
    )  # fmt: skip
    return next((place for place, true in enumerate(tests) if true), -1)


def classes(tokenizer) -> torch.Tensor:
    """The class of each token of a vocabulary."""
    return torch.tensor([class_of(tokenizer.decode([token])) for token in range(len(tokenizer))])


def rules(top: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """The tokens that fit a neuron's rule, [neuron, token]; none where it has no rule.

    Args:
        top: ``Strongest.tokens``.
        classes: Of each token.
    """
    tokens = torch.zeros(len(top), len(classes))
    tokens.scatter_add_(1, top.clamp(min=0), (top >= 0).float())
    members = _members(classes)
    one = tokens >= PURE * TOP
    many = (tokens @ members >= PURE * TOP).float() @ members.T > 0
    return torch.where(one.any(1, keepdim=True), one, many)


def _members(classes: torch.Tensor) -> torch.Tensor:
    """Which tokens a class has, [token, class]."""
    return (classes[:, None] == torch.arange(len(CLASSES))).float()


def share(rule: torch.Tensor) -> float:
    """Of the neurons, those that have a rule."""
    return rule.any(1).float().mean().item()


def by_level(
    parts: Iterator[tuple[torch.Tensor, ...]], peaks: list[torch.Tensor], vocabulary: int
) -> torch.Tensor:
    """How often each token is where a neuron fires so strongly, [side, tenth, neuron, token].

    A level is a neuron's value over its largest; the tenths of levels begin above 0.
    """
    n = len(peaks[0])
    counts = torch.zeros(2, 10 * n * vocabulary)
    for tokens, *sides in parts:
        for side, activation in enumerate(sides):
            level = activation / peaks[side]
            fires = level > 0
            tenth = (level[fires] * 10).ceil().long().clamp(1, 10) - 1
            neuron = torch.arange(n).expand_as(level)[fires]
            token = tokens[..., None].expand_as(level)[fires]
            place = (tenth * n + neuron) * vocabulary + token
            counts[side].scatter_add_(0, place, torch.ones(len(place)))
    return counts.view(2, 10, n, vocabulary)


def purity(counts: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Share of the commonest token or class, [side, tenth]; see ``_mean``."""
    of_class = counts @ _members(classes)
    return _mean(torch.maximum(counts.amax(-1), of_class.amax(-1)), counts)


def fits(counts: torch.Tensor, rule: torch.Tensor) -> torch.Tensor:
    """Share of tokens that fit the neuron's rule, [side, tenth]; see ``_mean``."""
    has = rule.any(1)
    return _mean((counts * rule).sum(-1)[..., has], counts[..., has, :])


def _mean(of: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Over the neurons with at least 20 tokens in the tenth before the norm and after it.

    NaN where there is no such neuron.
    """
    every = counts.sum(-1)
    enough = (every >= TOP).all(0)
    return torch.where(enough, of / every.clamp(min=1), torch.nan).nanmean(-1)
