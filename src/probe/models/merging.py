"""How weights are combined: each published rule as a function of tensors.

A task vector is τ = θ_tuned - θ_pre. Tensors here are slices of any shape, in double precision.
"""

from collections.abc import Callable, Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

_PARALLEL = 1e-4
"""Sine of the angle below which SLERP is plain interpolation (they differ by its square)."""


def linear(tensors: Sequence[Float[Tensor, "*any"]], weights: Sequence[float]) -> Tensor:
    """Σ w_i θ_i.

    >>> linear([torch.ones(2), torch.zeros(2)], [0.25, 0.75]).tolist()
    [0.25, 0.25]
    """
    total = torch.zeros_like(tensors[0])
    for tensor, weight in zip(tensors, weights, strict=True):
        total += weight * tensor
    return total


def slerp_weights(dot: float, norm_a: float, norm_b: float, t: float) -> tuple[float, float]:
    """The factors of a and b at ``t`` of the way along the great circle from a to b.

    sin((1-t)Ω) / sin Ω and sin(tΩ) / sin Ω, where Ω is the angle between them; 1-t and t where
    they are parallel, opposed, or one of them is zero.

    Source: Shoemake 1985, "Animating Rotation with Quaternion Curves".
    """
    length = norm_a * norm_b
    cosine = min(1.0, max(-1.0, dot / length)) if length else 1.0
    angle = torch.tensor(cosine, dtype=torch.float64).acos()
    sine = float(angle.sin())
    if sine < _PARALLEL:
        return 1 - t, t
    return float(((1 - t) * angle).sin()) / sine, float((t * angle).sin()) / sine


def drop(
    delta: Float[Tensor, "*any"], p: float, generator: torch.Generator, *, rescale: bool = True
) -> Float[Tensor, "*any"]:
    """Drop each entry with probability p; multiply the others by 1 / (1 - p) if ``rescale``.

    Source: Yu et al. 2024, "Language Models are Super Mario" (DARE).
    """
    kept = torch.rand(delta.shape, generator=generator, dtype=torch.float64) >= p
    return delta * kept / (1 - p if rescale else 1.0)


def trim(delta: Float[Tensor, "*any"], threshold: float) -> Float[Tensor, "*any"]:
    """Zero where the magnitude, as a float32 number, is below the threshold."""
    return delta * (delta.abs().float() >= threshold)


def agree(trimmed: Sequence[Float[Tensor, "*any"]]) -> Float[Tensor, "*any"]:
    """TIES' last two steps: elect a sign for each entry, then average what has that sign.

    The sign is that of the sum of all vectors: the side of larger total magnitude. The mean is
    over the vectors that are not zero there and agree; 0 where the sum is 0.

    Source: Yadav et al. 2023, "TIES-Merging", section 4.2.

    >>> agree([torch.tensor([3.0, 1.0]), torch.tensor([-1.0, 2.0])]).tolist()
    [3.0, 1.5]
    """
    total = torch.zeros_like(trimmed[0])
    for delta in trimmed:
        total += delta
    sign = total.sign()
    summed, count = torch.zeros_like(total), torch.zeros_like(total)
    for delta in trimmed:
        same = (delta.sign() == sign) & (sign != 0)
        summed += delta * same
        count += same
    return summed / count.clamp(min=1)


def nth_largest(stream: Callable[[], Iterable[Tensor]], n: int) -> float:
    """The n-th largest magnitude, as a float32 number, of a vector that is never held whole.

    Exact, in two passes: non-negative floats are ordered as their bits are, so the first pass
    counts by the upper sixteen bits and the second by the rest, within the bucket that was hit.

    >>> nth_largest(lambda: [torch.tensor([3.0, -5.0]), torch.tensor([1.0])], n=2)
    3.0
    """
    upper = torch.zeros(2**16, dtype=torch.long)
    for piece in stream():
        upper += torch.bincount(_bits(piece) >> 15, minlength=2**16)
    bucket, above = _hit(upper, n)
    lower = torch.zeros(2**15, dtype=torch.long)
    for piece in stream():
        bits = _bits(piece)
        lower += torch.bincount(bits[bits >> 15 == bucket] & (2**15 - 1), minlength=2**15)
    rest, _ = _hit(lower, n - above)
    return float(torch.tensor((bucket << 15) + rest, dtype=torch.int32).view(torch.float32))


def _bits(piece: Tensor) -> Tensor:
    return piece.abs().float().flatten().contiguous().view(torch.int32).long()


def _hit(counts: Tensor, n: int) -> tuple[int, int]:
    """The bucket that holds the n-th largest, and how many lie in the buckets above it."""
    down = counts.flip(0).cumsum(0)
    place = int((down >= n).nonzero()[0])
    return len(counts) - 1 - place, int(down[place - 1]) if place else 0
