"""Sparse codes: after the encoder's product, only active features are touched.

A code has k of d_sae features a row. Its decode, its gradient and both weight gradients cost
k/d_sae of the dense products, as compressed-sparse-row products that torch has on the CPU and on
CUDA alike.
"""

import warnings
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

_MANY = 8
"""More candidates than this many times what is kept are not worth collecting."""


@dataclass(frozen=True, eq=False)
class Code:
    """Active features of a batch, sorted by row.

    Attributes:
        row_starts: Where each row's entries begin, and the number of entries.
        features: Which feature each entry is.
        values: Its activation.
        d_sae: Number of features.
    """

    row_starts: Int[Tensor, " rows_and_one"]
    features: Int[Tensor, " entry"]
    values: Float[Tensor, " entry"]
    d_sae: int

    @property
    def n_rows(self) -> int:
        """Rows of the batch."""
        return len(self.row_starts) - 1

    def csr(self, values: Float[Tensor, " entry"] | None = None) -> Tensor:
        """As torch's sparse matrix [row, feature], of other values where they are given."""
        values = self.values if values is None else values
        return compressed(self.row_starts, self.features, values, (self.n_rows, self.d_sae))

    def decode(self, W_dec: Float[Tensor, "feature d_out"]) -> Float[Tensor, "row d_out"]:
        """Sum of decoder rows, each times its activation."""
        return self.csr() @ W_dec

    def gradient(
        self, g: Float[Tensor, "row d_out"], W_dec: Float[Tensor, "feature d_out"]
    ) -> Float[Tensor, " entry"]:
        """By each activation, of a loss whose gradient by the reconstruction is ``g``.

        Zero where the activation is: ReLU passes nothing there.
        """
        pattern = self.csr(torch.zeros_like(self.values))
        full = torch.sparse.sampled_addmm(pattern, g, W_dec.T, beta=0.0).values()
        return full * (self.values > 0)

    def transposed(self) -> "Transposed":
        """Sorted by feature, for sums over the rows in which a feature is active."""
        order = self.features.argsort(stable=True)
        counts = torch.bincount(self.features, minlength=self.d_sae)
        rows = torch.repeat_interleave(
            torch.arange(self.n_rows, device=self.features.device, dtype=torch.int32),
            self.row_starts.diff(),
            output_size=len(self.features),
        )
        return Transposed(row_starts(counts), rows[order], order, self.n_rows)

    def part(self, first: int, last: int) -> tuple["Code", Tensor]:
        """The code of features from ``first`` up to ``last``, and which entries these are."""
        inside = (self.features >= first) & (self.features < last)
        counted = torch.nn.functional.pad(inside.cumsum(0, dtype=torch.int32), (1, 0))
        part = replace(
            self,
            row_starts=counted[self.row_starts.long()],
            features=self.features[inside],
            values=self.values[inside],
        )
        return part, inside


@dataclass(frozen=True, eq=False)
class Transposed:
    """The entries of a code sorted by feature."""

    feature_starts: Int[Tensor, " features_and_one"]
    rows: Int[Tensor, " entry"]
    order: Int[Tensor, " entry"]
    n_rows: int

    def accumulate(
        self, values: Float[Tensor, " entry"], dense: Float[Tensor, "row d"]
    ) -> Float[Tensor, "feature d"]:
        """For each feature, the sum over rows of value × row of ``dense``."""
        size = (len(self.feature_starts) - 1, self.n_rows)
        return compressed(self.feature_starts, self.rows, values[self.order], size) @ dense


def compressed(
    starts: Int[Tensor, " n_and_one"], columns: Tensor, values: Tensor, size: tuple[int, int]
) -> Tensor:
    """Torch's matrix of compressed sparse rows."""
    _hear_that_csr_is_beta()
    return torch.sparse_csr_tensor(starts, columns, values, size=size, check_invariants=False)


@lru_cache
def _hear_that_csr_is_beta() -> None:
    """Torch says so once; a reader of ours need not."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta", UserWarning)
        torch.zeros(1, 1).to_sparse_csr()


def topk_code(before: Float[Tensor, "row feature"], k: int) -> Code:
    """The k largest of each row, those below zero as zeros."""
    kept = before.topk(k, dim=-1, sorted=False)
    starts = torch.arange(0, kept.values.numel() + 1, k, dtype=torch.int32, device=before.device)
    return Code(starts, kept.indices.flatten().int(), kept.values.flatten().relu(), before.shape[1])


def batchtopk_code(
    before: Float[Tensor, "row feature"], count: int, guess: float | None = None
) -> Code:
    """The ``count`` largest of the whole batch that are above zero.

    ``guess``: a value that probably fewer than a few times ``count`` exceed and at least ``count``
    do, like nine tenths of the last batch's smallest. It saves time and does not change the result.
    """
    flat = before.flatten()
    candidates = (flat > max(guess, 0.0)).nonzero()[:, 0] if guess is not None else None
    if candidates is not None and count <= len(candidates) <= _MANY * count:
        kept = candidates[flat[candidates].topk(count, sorted=False).indices]
    else:
        top = flat.topk(count, sorted=False)
        kept = top.indices[top.values > 0]
    kept = kept.sort().values
    return coded(kept, flat[kept], (len(before), before.shape[1]))


def coded(
    places: Int[Tensor, " entry"], values: Float[Tensor, " entry"], size: tuple[int, int]
) -> Code:
    """A code of entries whose places count through the matrix row by row, in this order."""
    starts = row_starts(torch.bincount(places // size[1], minlength=size[0]))
    return Code(starts, (places % size[1]).int(), values, size[1])


def row_starts(counts: Int[Tensor, " n"]) -> Int[Tensor, " n_and_one"]:
    """Where each row's entries begin, and their number, from how many each has."""
    return torch.nn.functional.pad(counts.cumsum(0), (1, 0)).int()
