"""How well activations are reconstructed, over a whole set of them, in double precision.

Every number is a ratio of sums over the set: averaging the ratios of batches gives another one.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor


class Moments:
    """Sums over tokens, added up batch by batch.

    Args:
        d_sae: Number of features.
    """

    def __init__(self, d_sae: int) -> None:
        self.n = 0
        self.fired: Int[Tensor, " feature"] = torch.zeros(d_sae, dtype=torch.int64)
        self._l1 = self._error = self._size = self._dot = self._made = 0.0
        self._ratio = self._cosine = 0.0
        self._sum: Tensor | float = 0.0

    def add(
        self,
        x: Float[Tensor, "token *layer d_out"],
        made: Float[Tensor, "token *layer d_out"],
        features: Float[Tensor, "token feature"],
    ) -> None:
        """Count these tokens: what was there, what was reconstructed, and from which features."""
        x, made = x.detach().flatten(1).double().cpu(), made.detach().flatten(1).double().cpu()
        self.n += len(x)
        self.fired += (features > 0).sum(0).cpu()
        self._l1 += float(features.double().sum())
        self._sum = self._sum + x.sum(0)
        self._error += float((x - made).square().sum())
        size, made_size, dot = x.norm(dim=1), made.norm(dim=1), (x * made).sum(1)
        self._size += float(x.square().sum())
        self._made += float(made.square().sum())
        self._dot += float(dot.sum())
        self._ratio += float((made_size / size.clamp(min=1e-300)).sum())
        self._cosine += float((dot / (size * made_size).clamp(min=1e-300)).sum())

    @property
    def mean(self) -> Float[Tensor, " d_out"]:
        """E x, layers one after another."""
        return torch.as_tensor(self._sum) / self.n

    @property
    def density(self) -> Float[Tensor, " feature"]:
        """Share of tokens on which each feature fires."""
        return self.fired.double() / self.n

    def numbers(self) -> dict[str, float]:
        """The metrics by name; NaN where a variance or a projection is zero."""
        variance = self._size / self.n - float(self.mean.square().sum())
        density = self.density
        return {
            "explained_variance": 1 - _ratio(self._error / self.n, variance),
            "squared_error": self._error / self.n,
            "cosine": self._cosine / self.n,
            "norm_ratio": self._ratio / self.n,
            "relative_bias": _ratio(self._made, self._dot),
            "l0": float(density.sum()),
            "l1": self._l1 / self.n,
            "dead_share": float((self.fired == 0).double().mean()),
            "dense_share": float((density > 0.1).double().mean()),
        }


def _ratio(a: float, b: float) -> float:
    return a / b if b else float("nan")


def largest_cosines(
    W_dec: Float[Tensor, "*layer feature d_out"], *, block: int = 4096
) -> Float[Tensor, " feature"]:
    """Of each feature, the largest cosine of its decoder row with another feature's.

    A crosscoder's rows of all layers are taken as one.
    """
    unit = unit_rows(W_dec)
    best = []
    for start in range(0, len(unit), block):
        cosines = unit[start : start + block] @ unit.T
        rows = torch.arange(len(cosines))
        cosines[rows, rows + start] = -1.0
        best.append(cosines.max(1).values)
    return torch.cat(best)


def unit_rows(W_dec: Float[Tensor, "*layer feature d_out"]) -> Float[Tensor, "feature d"]:
    """Decoder rows of length one; of a crosscoder, its layers' rows side by side."""
    rows = W_dec.detach().float().cpu()
    rows = rows if rows.ndim == 2 else rows.transpose(0, 1).flatten(1)
    return rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-30)
