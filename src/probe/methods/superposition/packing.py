"""Nearly orthogonal directions: how small can the largest cosine of N directions in R^d be?"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from probe.core.errors import OptionError
from probe.core.progress import progress_bar

_BLOCK = 2048
_CAP = 20.0


def welch_bound(n: int, d: int) -> float:
    """No n unit vectors in d dimensions have a largest |cosine| below this; 0 where they all fit.

    >>> round(welch_bound(10_000, 100), 4)
    0.0995
    """
    _check(n, d)
    return math.sqrt((n - d) / (d * (n - 1))) if n > d else 0.0


def _check(n: int, d: int) -> None:
    if n < 1 or d < 1:
        raise OptionError(f"{n} directions in {d} dimensions", expected="at least one of each")


class Angles(NamedTuple):
    """The cosines of all pairs, in short."""

    largest: float
    mean: float
    sd: float
    near: float


def pair_angles(vectors: Float[Tensor, "n d"], within: float = 1.0) -> Angles:
    """Largest |cosine|, mean and standard deviation of the cosine, share within degrees of 90.

    Args:
        vectors: Need not be unit vectors.
        within: Degrees.

    Raises:
        OptionError: Not a matrix of finite numbers with a row or more.
    """
    if vectors.ndim != 2 or not vectors.numel() or not bool(vectors.isfinite().all()):
        raise OptionError(
            f"vectors of shape {list(vectors.shape)}", expected="[n, d], all numbers finite"
        )
    unit = vectors / vectors.norm(dim=1, keepdim=True).clamp(min=1e-12)
    n, limit = len(unit), math.sin(math.radians(within))
    largest = total = near = 0.0
    for start in range(0, n, _BLOCK):
        block = unit[start : start + _BLOCK]
        cosine = (block @ unit[start:].T).abs_()
        own = cosine[:, : len(block)]
        own.triu_(1)  # each pair once; what is taken out counts as 0
        outside = len(block) * (len(block) + 1) // 2
        largest = max(largest, float(cosine.max()))
        total += float(cosine.norm()) ** 2
        near += float((cosine <= limit).sum()) - outside
    pairs = max(n * (n - 1) // 2, 1)
    lengths = unit.double().square().sum()
    mean = float(unit.double().sum(0).square().sum() - lengths) / 2 / pairs  # |Σu|² has each twice
    sd = math.sqrt(max(total / pairs - mean**2, 0.0))
    return Angles(min(largest, 1.0), mean, sd, near / pairs)


def pack_directions(
    n: int, d: int, *, steps: int = 500, seed: int = 0, lr: float = 0.02
) -> Float[Tensor, "n d"]:
    """Push n random unit vectors apart: gradient descent on a soft maximum of the squared cosine.

    The soft maximum sharpens as it goes, so that first all pairs and last the worst few count.

    Args:
        n: Directions.
        d: Dimensions.
        steps: Of Adam.
        seed: Of the start.
        lr: Learning rate at the start, falling to zero.

    Raises:
        OptionError: No directions, no dimensions, no steps, or no rate.
    """
    _check(n, d)
    if steps < 1 or lr <= 0:
        raise OptionError(
            f"steps={steps}, lr={lr:g}", expected="a step or more, and a rate above 0"
        )
    start = torch.randn(n, d, generator=torch.Generator().manual_seed(seed))
    vectors = torch.nn.functional.normalize(start, dim=1)
    adam = torch.optim.Adam([vectors], lr=lr)
    best, least = vectors.clone(), pair_angles(vectors).largest
    worst = least
    with progress_bar(f"packing {n} in {d}") as report:
        for step in range(steps):
            done = step / steps
            adam.param_groups[0]["lr"] = lr * (1 - done)
            vectors.grad, worst = _push(vectors, 10 ** (2.5 * done), max(worst, 1e-3))
            if worst < least:
                best, least = vectors.clone(), worst
            adam.step()
            vectors /= vectors.norm(dim=1, keepdim=True)
            if report(step + 1, steps, f"worst cosine {worst:.3f}") is False:
                break
    return best


def _push(unit: Tensor, sharp: float, last: float) -> tuple[Tensor, float]:
    """Gradient of log Σ exp(sharp · (cos / last)²) over pairs, up to a factor; the worst |cosine|.

    In blocks of rows: the n² cosines of 10,000 directions would take 400 MB at every turn.
    """
    gradient, worst, total = torch.empty_like(unit), 0.0, 0.0
    for start in range(0, len(unit), _BLOCK // 4):
        block = unit[start : start + _BLOCK // 4]
        cosine = block @ unit.T
        cosine.diagonal(start).zero_()
        worst = max(worst, float(cosine.abs().max()))
        # relative to the last worst pair, so that nothing vanishes; capped, so that none overflows
        weight = (cosine / last).square_().sub_(1).mul_(sharp).clamp_(max=_CAP).exp_()
        total += float(weight.sum())
        gradient[start : start + len(block)] = weight.mul_(cosine) @ unit
    along = (gradient * unit).sum(1, keepdim=True)
    return (gradient - along * unit) / total, worst
