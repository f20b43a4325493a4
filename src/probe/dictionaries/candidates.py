"""The largest pre-activations without computing them all exactly.

A product in bfloat16 takes a fifth of the time where the processor has one, and each of its values
is known to lie within a bound of the exact one. What cannot be among the largest is left out by
that bound; the few candidates that remain are computed in float32 and chosen from. So the features
are the same as those of the dense product, up to its own rounding.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probe.dictionaries.kernels import Code, coded, compressed, row_starts

_ROUNDOFF = 2.0**-8
"""Of bfloat16, relative."""
_MANY = 8
"""More candidates than this many times what is kept are not worth collecting."""
_BLOCKS = 2.25
"""Blocks of a row, times k: their k-th largest maximum bounds the row's k-th largest from below."""
_SPARSE = 16
"""Below this many features for each that is kept, candidates save nothing."""
_ROWS = 1024
"""Of the encoder, looked at together: few enough to stay in the processor's cache."""


def candidates_pay(read: Float[Tensor, "row d_in"], d_sae: int, k: int) -> bool:
    """Whether this machine multiplies bfloat16 fast and the code is sparse enough."""
    fits = read.dtype == torch.float32 and read.device.type == "cpu"
    return fits and d_sae >= _SPARSE * k and read.numel() * d_sae >= 2**28 and _fast_bfloat16()


@lru_cache
def _fast_bfloat16() -> bool:
    known = torch.cpu.get_capabilities()
    return torch.backends.mkldnn.is_available() and any(
        known.get(name, False) for name in ("avx512_bf16", "amx_bf16")
    )


def topk_by_candidates(
    read: Float[Tensor, "row d_in"], E: Float[Tensor, "feature d_in"],
    b: Float[Tensor, " feature"], k: int,
) -> Code | None:  # fmt: skip
    """The k largest of each row of read·Eᵀ + b that are above zero.

    Of equal values on the edge either may be kept, as by ``torch.topk``. None where the bound
    leaves too many candidates, or something is not finite.
    """
    rough = _rough(read, E, b)
    if rough is None:
        return None
    # of a block without a value above zero this is some value of it: as good a bound from below
    blocks = min(round(_BLOCKS * k), len(E))
    whole = rough.values[:, : len(E) // blocks * blocks]
    maxima = whole.view(len(read), -1, blocks).view(torch.int16).amax(1).view(torch.bfloat16)
    kth = maxima.float().topk(k, dim=-1, sorted=False).values.amin(1)
    found = rough.above(kth - _ROUNDOFF * kth.abs() - rough.error - rough.shift)
    if len(found) > _MANY * k * len(read):
        return None
    starts, features, values = _exact(found, read, E, b)
    rows = found // len(E)
    at = torch.arange(len(rows)) - starts.long()[rows]
    widest = int(starts.diff().max())
    padded = torch.full((len(read), max(k, widest)), -torch.inf)
    padded[rows, at] = values
    best = padded.topk(k, dim=-1, sorted=False)
    kept = best.values > 0
    chosen = (best.indices + starts[:-1, None].long())[kept]
    return Code(row_starts(kept.sum(1)), features[chosen], values[chosen], len(E))


def batchtopk_by_candidates(
    read: Float[Tensor, "row d_in"], E: Float[Tensor, "feature d_in"],
    b: Float[Tensor, " feature"], count: int, guess: float,
) -> Code | None:  # fmt: skip
    """The ``count`` largest of read·Eᵀ + b over the whole batch, all above ``guess`` > 0.

    None where fewer exceed ``guess``, or the bound leaves too many candidates.
    """
    rough = _rough(read, E, b)
    if rough is None:
        return None
    found = rough.above(torch.full((len(read),), guess))
    if not count <= len(found) <= _MANY * count:
        return None
    values = _exact(found, read, E, b)[2]
    best = values.topk(count, sorted=False)
    if float(best.values.min()) < guess:
        return None
    kept = torch.zeros(len(found), dtype=torch.bool).index_fill_(0, best.indices, True)
    return coded(found[kept], values[kept], (len(read), len(E)))


@dataclass(frozen=True, eq=False)
class _Rough:
    """Pre-activations plus ``shift``, in bfloat16.

    Attributes:
        values: The sums, rounded.
        error: Of each row, how far a sum may be from the exact one before it is rounded.
        shift: Above every error, so that what may be above zero is above zero here.
    """

    values: Float[Tensor, "row feature"]
    error: Float[Tensor, " row"]
    shift: float

    def above(self, least: Float[Tensor, " row"]) -> Int[Tensor, " entry"]:
        """Where the exact value may be at least ``least`` and above zero, counted row by row.

        Rounding keeps order: what is at least y is at least round(y) afterwards. And bfloat16
        above zero has the order of its bits, which are faster to compare.
        """
        bound = (least.clamp(min=0.0) + self.shift - self.error).bfloat16()
        return _where(self.values.view(torch.int16) >= bound.view(torch.int16)[:, None])


def _rough(read: Tensor, E: Tensor, b: Tensor) -> _Rough | None:
    """The product in bfloat16, and by how much each row may be off.

    With hats for what is rounded, |x̂·Ê − x·E| ≤ ‖x − x̂‖‖Ê‖ + ‖x‖‖E − Ê‖; the biases add their own
    rounding, and the sums in float32 that of d_in additions, here and in the exact product.
    """
    size, widest = read.norm(dim=1), float(E.norm(dim=1).max())
    apart = max(float(_rounded_off(rows).max()) for rows in E.split(_ROWS))
    error = _rounded_off(read) * (widest + apart) + size * apart
    error += read.shape[1] * 2.0**-22 * size * widest + _ROUNDOFF * float(b.abs().max())
    # rounding the shift is an error too, and the shift must stay above it
    shift = 1.02 * float(error.max()) + 1e-30
    error += _ROUNDOFF * shift
    if not torch.isfinite(error).all():
        return None
    product = torch.addmm((b + shift).bfloat16(), read.bfloat16(), E.bfloat16().T)
    return _Rough(product, error, shift)


def _rounded_off(rows: Float[Tensor, "row d_in"]) -> Float[Tensor, " row"]:
    """Norm of what rounding a row to bfloat16 takes away."""
    return (rows - rows.bfloat16().float()).norm(dim=1)


def _exact(
    found: Int[Tensor, " entry"], read: Tensor, E: Tensor, b: Tensor
) -> tuple[Int[Tensor, " rows_and_one"], Int[Tensor, " entry"], Float[Tensor, " entry"]]:
    """Row starts, features and exact pre-activations of the candidates."""
    starts = row_starts(torch.bincount(found // len(E), minlength=len(read)))
    features = (found % len(E)).int()
    biases = compressed(starts, features, b[features], (len(read), len(E)))
    return starts, features, torch.sparse.sampled_addmm(biases, read, E.T).values()


def _where(mask: Bool[Tensor, "row feature"]) -> Int[Tensor, " entry"]:
    """Places of what is true; eight are passed over at once where none is."""
    flat = mask.flatten()
    if len(flat) % 8:
        return flat.nonzero()[:, 0]
    words = flat.view(torch.int64).nonzero()[:, 0]
    word, byte = flat.view(-1, 8)[words].nonzero().unbind(1)
    return words[word] * 8 + byte
