"""A one-layer transformer that learns to add modulo p, trained on all its pairs at once.

Tokens a, b and "="; learned positions, no layer norm, ReLU, untied (Nanda et al. 2023). Only the
position of "=" is ever read, and its query is the same for every pair. So a head's score of a token
is one number for each of the p words at each place, and so is what the head would write: both are
tables of p rows, looked up for each pair. That is the whole transformer, at the cost of its MLP.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from probe.core.errors import OptionError
from probe.core.progress import progress_bar

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Modular:
    """The model and the pairs it learnt from.

    Attributes:
        p: The modulus.
        weights: ``W_E`` [p + 1, d], ``W_pos`` [3, d], ``W_Q W_K W_V`` [head, d, d_head], ``W_O``
            [head, d_head, d], ``W_in`` [d, d_mlp], ``b_in``, ``W_out`` [d_mlp, d], ``b_out``,
            ``W_U`` [d, p].
        train: Which of the p² pairs (a · p + b) it learnt from.
    """

    p: int
    weights: Weights = field(repr=False)
    train: Int[Tensor, " pair"] = field(repr=False)

    def logits(self) -> Float[Tensor, "pair p"]:
        """Of all p² pairs, in order a · p + b."""
        with torch.no_grad():
            return self.unembed(self.mlp())

    def mlp(self) -> Float[Tensor, "pair d_mlp"]:
        """Neurons after the ReLU, of all p² pairs."""
        with torch.no_grad():
            return _neurons(self.weights, *_pairs(self.p))[1]

    def unembed(self, neurons: Float[Tensor, "pair d_mlp"]) -> Float[Tensor, "pair p"]:
        """Logits of all pairs if the neurons were these."""
        with torch.no_grad():
            stream = _neurons(self.weights, *_pairs(self.p))[0]
            return _logits(self.weights, stream, neurons)

    @property
    def test(self) -> Int[Tensor, " pair"]:
        """The pairs it never saw."""
        unseen = torch.ones(self.p**2, dtype=torch.bool)
        unseen[self.train] = False
        return unseen.nonzero()[:, 0]

    @property
    def answers(self) -> Int[Tensor, " pair"]:
        """(a + b) mod p of all pairs."""
        a, b = _pairs(self.p)
        return (a + b) % self.p


def train_modular(
    p: int = 59,
    *,
    share: float = 0.3,
    epochs: int = 20_000,
    seed: int = 0,
    lr: float = 1e-3,
    weight_decay: float = 1.0,
    d_model: int = 128,
    n_heads: int = 4,
    d_mlp: int = 512,
    at: Sequence[int] = (),
    watch: Callable[[int, Modular], bool | None] | None = None,
) -> Modular:
    """Train by full-batch AdamW (β 0.9, 0.98; ten steps of warm-up); the loss is taken in float64.

    Args:
        p: The modulus.
        share: Of the p² pairs that are trained on.
        epochs: Steps; each sees every training pair.
        seed: Of the weights and of which pairs are seen.
        lr: Learning rate.
        weight_decay: Of AdamW.
        d_model: Width.
        n_heads: Heads, of width ``d_model / n_heads``.
        d_mlp: Neurons.
        at: Epochs (0 is before the first step) at which ``watch`` is called.
        watch: Called with the epoch and the model so far; returning False ends the training.

    Raises:
        OptionError: Heads that do not divide the width, or no pair left to train or test on.
    """
    if d_model % n_heads:
        raise OptionError(
            f"{n_heads} heads in width {d_model}", expected="a width that the heads divide"
        )
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(p**2, generator=generator)
    train = order[: round(share * p**2)].sort().values
    if not 0 < len(train) < p**2:
        raise OptionError(
            f"share {share} of {p**2} pairs leaves {len(train)} to train on",
            expected="a share between 0 and 1",
        )
    weights = _initial(p, d_model, n_heads, d_mlp, generator)
    model = Modular(p, weights, train)
    a, b = (pair[train] for pair in _pairs(p))
    answers = model.answers[train]
    adam = torch.optim.AdamW(
        list(weights.values()), lr=lr, weight_decay=weight_decay, betas=(0.9, 0.98), fused=True
    )
    warm = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: min((step + 1) / 10, 1.0))
    stops = set(at)
    with progress_bar(f"adding modulo {p}") as report:
        for epoch in range(epochs):
            if epoch in stops and watch is not None and watch(epoch, model) is False:
                return model
            logits = _logits(weights, *_neurons(weights, a, b))
            loss = torch.nn.functional.cross_entropy(logits.double(), answers)
            adam.zero_grad(set_to_none=True)
            loss.backward()
            adam.step()
            warm.step()
            if report(epoch + 1, epochs, f"loss {loss.item():.2e}") is False:
                return model
    if epochs in stops and watch is not None:
        watch(epochs, model)
    return model


def _initial(p: int, d: int, heads: int, d_mlp: int, generator: torch.Generator) -> Weights:
    def normal(*shape: int, scale: float) -> Tensor:
        return (torch.randn(*shape, generator=generator) * scale).requires_grad_()

    width = d**-0.5
    return {
        "W_E": normal(p + 1, d, scale=width),
        "W_pos": normal(3, d, scale=width),
        **{name: normal(heads, d, d // heads, scale=width) for name in ("W_Q", "W_K", "W_V")},
        "W_O": normal(heads, d // heads, d, scale=width),
        "W_in": normal(d, d_mlp, scale=width),
        "b_in": torch.zeros(d_mlp, requires_grad=True),
        "W_out": normal(d_mlp, d, scale=width),
        "b_out": torch.zeros(d, requires_grad=True),
        "W_U": normal(d, p, scale=(p + 1) ** -0.5),
    }


def _pairs(p: int) -> Iterator[Tensor]:
    """The numbers a and b of all pairs."""
    every = torch.arange(p**2)
    return iter((every // p, every % p))


def _neurons(w: Weights, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Stream at "=" before the MLP, and the neurons after the ReLU, of these pairs."""
    words = w["W_E"]
    equals = words[-1] + w["W_pos"][2]
    first, second = words[:-1] + w["W_pos"][0], words[:-1] + w["W_pos"][1]
    d_head = w["W_Q"].shape[-1]
    # the query of "=" in each head, carried through W_K: what a score is linear in
    asks = torch.einsum("hdk,hk->dh", w["W_K"], torch.einsum("d,hdk->hk", equals, w["W_Q"]))
    scores = [place @ asks / d_head**0.5 for place in (first, second, equals[None])]
    own = scores[2].expand(len(a), -1)
    attention = torch.stack([scores[0][a], scores[1][b], own], 1).softmax(1)
    values = [
        torch.einsum("pd,hdk->phk", place, w["W_V"]) for place in (first, second, equals[None])
    ]
    z = (
        attention[:, 0, :, None] * values[0][a]
        + attention[:, 1, :, None] * values[1][b]
        + attention[:, 2, :, None] * values[2]
    )
    stream = equals + z.flatten(1) @ w["W_O"].flatten(0, 1)
    return stream, torch.relu(stream @ w["W_in"] + w["b_in"])


def _logits(w: Weights, stream: Tensor, neurons: Tensor) -> Tensor:
    # p < d_model: cheaper than through the stream
    return neurons @ (w["W_out"] @ w["W_U"]) + (stream + w["b_out"]) @ w["W_U"]
