"""Matrices of low rank, kept as their two factors: all that is asked of them costs rank × width."""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Complex, Float
from torch import Tensor


class Svd(NamedTuple):
    """``left * values @ right``, values falling."""

    left: Float[Tensor, "*batch m rank"]
    values: Float[Tensor, "*batch rank"]
    right: Float[Tensor, "*batch rank n"]


@dataclass(frozen=True, eq=False)
class LowRank:
    """``left @ right`` without ever making it: a head's circuit is d_model² of rank d_head.

    >>> product = LowRank(torch.ones(100, 1), torch.ones(1, 50))
    >>> round(float(product.norm), 4), product.svd.values.shape
    (70.7107, torch.Size([1]))
    """

    left: Float[Tensor, "*batch m rank"]
    right: Float[Tensor, "*batch rank n"]

    @property
    def mT(self) -> "LowRank":
        """The transpose."""
        return LowRank(self.right.mT, self.left.mT)

    def __matmul__(self, other: "LowRank") -> "LowRank":
        """The product; its factors are this one's left and the other's right."""
        return LowRank(self.left, (self.right @ other.left) @ other.right)

    def __getitem__(self, batch: int) -> "LowRank":
        """One of a batch."""
        return LowRank(self.left[batch], self.right[batch])

    @property
    def without_left(self) -> Float[Tensor, "*batch rank n"]:
        """A smaller matrix whose product with anything on the right has the same norm.

        ``left = Q T`` with orthonormal Q, which changes no norm: ``T @ right``.
        """
        return torch.linalg.qr(self.left).R @ self.right

    @property
    def without_right(self) -> Float[Tensor, "*batch m rank"]:
        """A smaller matrix whose product with anything on the left has the same norm."""
        return self.left @ torch.linalg.qr(self.right.mT).R.mT

    @property
    def norm(self) -> Float[Tensor, "*batch"]:
        """Frobenius norm."""
        left, right = torch.linalg.qr(self.left).R, torch.linalg.qr(self.right.mT).R
        return (left @ right.mT).norm(dim=(-2, -1))

    @cached_property
    def svd(self) -> Svd:
        """Exact singular values and vectors of the product."""
        q_left, r_left = torch.linalg.qr(self.left)
        q_right, r_right = torch.linalg.qr(self.right.mT)
        u, values, v = torch.linalg.svd(r_left @ r_right.mT)
        return Svd(q_left @ u, values, v @ q_right.mT)

    @property
    def eigenvalues(self) -> Complex[Tensor, "*batch rank"]:
        """Of a square product, those that its rank allows to differ from zero.

        They are the eigenvalues of ``right @ left``.
        """
        return torch.linalg.eigvals(product(self.right, self.left))


def product(
    a: Float[Tensor, "*batch m inner"], b: Float[Tensor, "*#batch inner n"]
) -> Float[Tensor, "*batch m n"]:
    """``a @ b`` with zero where the rounding of float32 weights is all there is.

    Where sums cancel, as in circuits made by hand, what is left of them has eigenvalues that mean
    nothing, and routines that look for them do not converge.
    """
    made = a @ b
    sizes = a.norm(dim=-1)[..., :, None] * b.norm(dim=-2)[..., None, :]
    return torch.where(made.abs() > torch.finfo(torch.float32).eps * sizes, made, 0.0)


def product_norms(
    first: Float[Tensor, "one rank d_model"], second: Float[Tensor, "other d_model width"]
) -> Float[Tensor, "one other"]:
    """Frobenius norm of each of the first times each of the second, in one product.

    For low-rank ``A`` and ``B``, ``product_norms(A.without_left, B.without_right)`` are the norms
    of every ``A B``.
    """
    product = first.flatten(0, 1) @ second.movedim(0, 1).flatten(1)
    blocks = product.unflatten(0, first.shape[:2]).unflatten(-1, (len(second), -1))
    return blocks.pow(2).sum((1, 3)).sqrt()


def positive_share(eigenvalues: Complex[Tensor, "*batch rank"]) -> Float[Tensor, "*batch"]:
    """``Σ Re λ / Σ |λ|``: 1 where a matrix only enlarges, -1 where it only turns about."""
    size = eigenvalues.abs().sum(-1)
    return torch.where(size > 0, eigenvalues.real.sum(-1) / size.clamp(min=1e-300), 0.0)
