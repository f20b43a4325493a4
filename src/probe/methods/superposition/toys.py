"""Toy models of superposition, many trained side by side: which features share a dimension?

Features x are sparse and lie in [0, 1]; a few hidden dimensions carry them and are read out again
(Elhage et al. 2022). One model takes microseconds a step, so what matters is how many fit into one:
sparsities, importances and seeds are an axis of the tensors.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probe.core.errors import OptionError, nearest
from probe.core.progress import progress_bar

Kind = Literal["relu", "linear", "hidden_relu", "abs"]
Joint = Literal["together", "apart"]

_SMALLEST_RATE = 0.01
_MOST_POINTS = 4096
_CACHED = 2**18
"""Features of all examples that are in work at once: what stays in the processor's cache."""
_DRAWN_AT_ONCE = 2**22


@dataclass(frozen=True)
class Toys:
    """Trained models.

    Attributes:
        kind: ``relu``: x' = ReLU(WᵀWx + b); ``linear``: the same without ReLU; ``hidden_relu``:
            x' = ReLU(Wᵀ ReLU(Wx) + b); ``abs``: y = ReLU(W_out ReLU(Wx) + b) of x in [-1, 1],
            which shall be |x|.
        W: Into the hidden dimensions.
        b: Of the output.
        W_out: Out of the hidden dimensions; Wᵀ except in ``abs``.
        loss: Importance-weighted squared error, summed over features, on examples all models share.
    """

    kind: Kind
    W: Float[Tensor, "toy hidden feature"] = field(repr=False)
    b: Float[Tensor, "toy feature"] = field(repr=False)
    W_out: Float[Tensor, "toy feature hidden"] = field(repr=False)
    loss: Float[Tensor, " toy"] = field(repr=False)

    def __call__(self, x: Float[Tensor, "toy batch feature"]) -> Float[Tensor, "toy batch feature"]:
        """What the models make of these features."""
        return _output(self.kind, x, self.W, self.b, self.W_out)

    def pick(self, which: Int[Tensor, " toy"] | Bool[Tensor, " all"]) -> "Toys":
        """Some of the models."""
        return replace(
            self, W=self.W[which], b=self.b[which], W_out=self.W_out[which], loss=self.loss[which]
        )

    def best_of(self, n: int) -> "Toys":
        """Of each n models that follow one another, the one of least loss."""
        best = self.loss.view(-1, n).argmin(1)
        return self.pick(torch.arange(len(best)) * n + best)


def train_toys(
    density: Float[Tensor, "toy feature"],
    *,
    hidden: int,
    importance: Float[Tensor, "#toy feature"] | None = None,
    kind: Kind = "relu",
    sets: Sequence[Sequence[int]] = (),
    joint: Joint = "together",
    steps: int = 5000,
    batch: int = 512,
    lr: float = 3e-3,
    seed: int = 0,
    judged_on: int = 20_000,
    nodes: int = 0,
) -> Toys:
    """Train one model for each row of densities, by Adam with a rate that falls to a hundredth.

    Args:
        density: How often each feature is not zero, 1 - S.
        hidden: Hidden dimensions.
        importance: Weight of each feature's error; by default 1.
        kind: What the models compute, see ``Toys``.
        sets: Sets of features that are drawn jointly.
        joint: ``together``: the features of a set are zero at the same time; ``apart``: at most
            one of a set is not zero.
        steps: Of training.
        batch: Examples a step, drawn afresh for each model.
        lr: Learning rate at the start.
        seed: Of weights and data.
        judged_on: Examples of the loss that is returned.
        nodes: Instead of drawing examples, take the expected loss by Gauss-Legendre quadrature
            with this many nodes a feature; exact but for the kinks of ReLU, for a few features.

    Raises:
        OptionError: A density outside [0, 1], a set that is too likely for at most one, quadrature
            of features that are drawn jointly, or of too many, or an option out of its range.

    >>> import torch
    >>> dense, sparse = train_toys(torch.tensor([[1.0] * 2, [0.05] * 2]), hidden=1, steps=800).W
    >>> bool(dense.abs().min() < 0.1), bool(sparse.abs().min() > 0.5)  # one kept; an antipodal pair
    (True, True)
    """
    _check_options(kind, joint, hidden, steps, batch, judged_on, lr)
    _check(density, sets, joint, nodes)
    grid, chances = quadrature(density, nodes) if nodes else (None, None)
    weight = torch.ones_like(density) if importance is None else importance.expand_as(density)
    generator = torch.Generator().manual_seed(seed)
    rows_each = batch if grid is None else grid.shape[1]
    group = max(_CACHED // (rows_each * density.shape[1]), 1)
    n_groups = -(-len(density) // group)
    trained: list[list[Tensor]] = []
    with progress_bar(f"{len(density)} toy models") as report:
        for place in range(n_groups):
            some = slice(place * group, (place + 1) * group)

            def error(parameters: list[Tensor], rows: slice = some) -> Tensor:
                if grid is None:
                    x = draw_features(
                        density[rows], batch, generator, kind=kind, sets=sets, joint=joint
                    )
                else:
                    x = grid
                off = _output(kind, x, *parameters) - _target(kind, x)
                each = (off.square() * weight[rows, None]).sum(2)
                return each.sum() / batch if chances is None else (each * chances[rows]).sum()

            parameters = _initial(density[some].shape, hidden, kind, generator)
            for step in _descend(parameters, error, steps, lr):
                if step % 50 == 0:
                    report(place * steps + step, n_groups * steps, "steps")
            trained.append([part.detach() for part in parameters])
    W, b, *own = (torch.cat(parts) for parts in zip(*trained, strict=True))
    toys = Toys(kind, W, b, own[0] if own else W.mT, torch.zeros(len(W)))
    if grid is not None:
        return replace(toys, loss=_judge_exactly(toys, density, weight, nodes))
    return replace(toys, loss=_judge(toys, density, weight, sets, joint, judged_on, seed + 1))


def quadrature(
    density: Float[Tensor, "toy feature"], nodes: int
) -> tuple[Float[Tensor, "1 point feature"], Float[Tensor, "toy point"]]:
    """Points and their probabilities that stand for independent features.

    A feature is zero, or at one of the nodes.

    >>> import torch
    >>> points, chance = quadrature(torch.tensor([[0.3]]), nodes=3)
    >>> round(float((chance * points[..., 0] ** 2).sum()), 4)  # 0.3 / 3
    0.1
    """
    at, mass = np.polynomial.legendre.leggauss(nodes)
    values = torch.tensor([0.0, *((at + 1) / 2)], dtype=torch.float32)
    share = torch.tensor(mass / 2, dtype=torch.float32)
    n = density.shape[1]
    index = torch.cartesian_prod(*[torch.arange(nodes + 1)] * n).view(-1, n)
    one = torch.cat([1 - density[..., None], density[..., None] * share], -1)
    chance = torch.ones(len(density), len(index))
    for feature in range(n):
        chance = chance * one[:, feature, index[:, feature]]
    return values[index][None], chance


def _initial(
    shape: torch.Size, hidden: int, kind: Kind, generator: torch.Generator
) -> list[Tensor]:
    """W and b, and W_out where it is not Wᵀ."""
    n_toys, n = shape
    W = torch.randn(n_toys, hidden, n, generator=generator)
    own = [torch.randn(n_toys, n, hidden, generator=generator)] if kind == "abs" else []
    scale = (2 / (hidden + n)) ** 0.5
    parameters = [W * scale, torch.zeros(n_toys, n), *(part * scale for part in own)]
    return [part.requires_grad_() for part in parameters]


def _descend(
    parameters: list[Tensor], error: Callable[[list[Tensor]], Tensor], steps: int, lr: float
) -> Iterator[int]:
    adam = torch.optim.Adam(parameters, lr=lr, fused=True)
    fall = torch.optim.lr_scheduler.ExponentialLR(adam, _SMALLEST_RATE ** (1 / steps))
    for step in range(steps):
        loss = error(parameters)
        adam.zero_grad(set_to_none=True)
        loss.backward()
        adam.step()
        fall.step()
        yield step


def draw_features(
    density: Float[Tensor, "toy feature"],
    batch: int,
    generator: torch.Generator,
    *,
    kind: Kind = "relu",
    sets: Sequence[Sequence[int]] = (),
    joint: Joint = "together",
    shared: bool = False,
) -> Float[Tensor, "toy batch feature"]:
    """Features: zero but for ``density``, then uniform in [0, 1] ([-1, 1] for ``abs``).

    Args:
        density: How often each feature is not zero.
        batch: Examples.
        generator: Of random numbers.
        kind: Of the models.
        sets: Sets of features drawn jointly.
        joint: Together or apart.
        shared: All models see the same random numbers, and so the same examples where their
            densities agree.
    """
    rows = 1 if shared else len(density)
    chance = torch.rand(rows, batch, density.shape[1], generator=generator)
    for members in sets:
        one = torch.rand(rows, batch, 1, generator=generator)
        if joint == "together":
            chance[..., list(members)] = one
        else:  # the members' shares of [0, 1] lie side by side
            ends = density[:1, list(members)].cumsum(1)[:, None]
            inside = one - (ends - density[:1, None, list(members)])
            chance[..., list(members)] = torch.where(inside < 0, 2.0, inside)
    limit = density[:, None]
    if not sets:  # below the limit, the number itself is uniform
        size = chance / limit.clamp(min=1e-30)
    else:
        size = torch.rand(rows, batch, density.shape[1], generator=generator)
    x = torch.where(chance < limit, size, 0.0)
    return x if kind != "abs" else x * (torch.randint(0, 2, x.shape, generator=generator) * 2 - 1)


def _output(kind: Kind, x: Tensor, W: Tensor, b: Tensor, W_out: Tensor | None = None) -> Tensor:
    carried = x @ W.mT
    if kind in ("hidden_relu", "abs"):
        carried = torch.relu(carried)
    made = carried @ (W if W_out is None else W_out.mT) + b[:, None]
    return made if kind == "linear" else torch.relu(made)


def _target(kind: Kind, x: Tensor) -> Tensor:
    return x.abs() if kind == "abs" else x


@torch.no_grad()
def _judge_exactly(toys: Toys, density: Tensor, weight: Tensor, nodes: int) -> Tensor:
    x, chance = quadrature(density, nodes)
    error = toys(x.expand(len(density), -1, -1)) - _target(toys.kind, x)
    return ((error.square() * weight[:, None]).sum(2) * chance).sum(1)


@torch.no_grad()
def _judge(
    toys: Toys, density: Tensor, weight: Tensor, sets: Sequence[Sequence[int]], joint: Joint,
    n: int, seed: int,
) -> Tensor:  # fmt: skip
    """Loss on examples that all models share, so that differences between models are not luck."""
    generator = torch.Generator().manual_seed(seed)
    piece = max(min(n, _DRAWN_AT_ONCE // density.numel()), 1)
    total = torch.zeros(len(density), dtype=torch.float64)
    pieces = -(-n // piece)
    for _ in range(pieces):
        x = draw_features(
            density, piece, generator, kind=toys.kind, sets=sets, joint=joint, shared=True
        )
        error = toys(x) - _target(toys.kind, x)
        total += (error.square() * weight[:, None]).sum(2).mean(1).double()
    return (total / pieces).float()


def _check_options(kind: str, joint: str, hidden: int, steps: int, batch: int, judged_on: int,
                   lr: float) -> None:  # fmt: skip
    for name, value, known in (("kind", kind, get_args(Kind)), ("joint", joint, get_args(Joint))):
        if value not in known:
            raise OptionError(f'there is no {name} "{value}"', remedy=nearest(str(value), known))
    if min(hidden, steps, batch, judged_on) < 1 or lr <= 0:
        raise OptionError(
            f"hidden={hidden}, steps={steps}, batch={batch}, judged_on={judged_on}, lr={lr:g}",
            expected="one or more of each, and a rate above 0",
        )


def _check(density: Tensor, sets: Sequence[Sequence[int]], joint: Joint, nodes: int) -> None:
    points = (nodes + 1) ** density.shape[1] if nodes else 0
    if nodes and (sets or points > _MOST_POINTS):
        raise OptionError(
            f"quadrature of {density.shape[1]} features in {len(sets)} sets takes {points} points",
            expected=f"independent features and at most {_MOST_POINTS} points",
            remedy="nodes=0, which draws examples",
        )
    if not bool(((density >= 0) & (density <= 1)).all()):
        raise OptionError(
            f"densities from {density.min():g} to {density.max():g}",
            expected="shares of examples, 0 to 1",
        )
    for members in sets if joint == "apart" else ():
        total = float(density[:, list(members)].sum(1).max())
        if total > 1 + 1e-6 or bool((density != density[:1]).any()):
            raise OptionError(
                f"at most one of {list(members)} is not zero, yet they are so with {total:g}",
                expected="densities that add up to at most 1, the same in all models",
            )
