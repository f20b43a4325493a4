"""A normalisation layer as a linear map with its denominator held fixed."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class LinearNorm:
    """``y = gain * (x - mean(x) if centred) / scale + bias``.

    LayerNorm and RMSNorm in all their spellings (a gain stored as ``w`` or as ``w - 1``, with or
    without bias) are measured rather than looked up: the layer is called on a few vectors.
    """

    gain: Float[Tensor, " d_model"]
    bias: Float[Tensor, " d_model"]
    centred: bool
    eps: float = 0.0

    @classmethod
    def measure(cls, norm: Any, d_model: int, like: Tensor) -> "LinearNorm":
        """Find gain, bias, centring and eps of a norm layer.

        Args:
            norm: The layer.
            d_model: Its width.
            like: A tensor of the device and dtype it works in.
        """
        # Entries of ±(1 … 2) * 64: no zeros to divide by, and eps is nothing beside them.
        steps = torch.linspace(1, 2, d_model, dtype=torch.float64)
        signs = torch.ones(d_model, dtype=torch.float64)
        signs[1::2] = -1
        x = (64 * steps * signs).to(like)
        small = x / 2**16  # about 1e-3, beside which eps is much
        with torch.no_grad():
            up, down, shifted, up_small, down_small = (
                norm(v[None])[0].double() for v in (x, -x, x + 64, small, -small)
            )
        centred = torch.allclose(up, shifted, rtol=1e-2, atol=1e-3)
        core = x.double() - x.double().mean() if centred else x.double()
        size = core.pow(2).mean()
        gain = (up - down) / 2 * size.sqrt() / core
        lost = ((up - down) / (up_small - down_small)).nanmedian().square()
        eps = (lost - 1) * size / 2**32
        return cls(gain.to(like), ((up + down) / 2).to(like), centred, max(float(eps), 0.0))

    def __call__(self, x: Float[Tensor, "*any d_model"]) -> Float[Tensor, "*any d_model"]:
        """What the layer gives, its own denominator and its bias included."""
        scale = (self.centre(x).pow(2).mean(-1, keepdim=True) + self.eps).sqrt()
        return self.apply(x, scale) + self.bias

    def read_by(
        self, matrix: Float[Tensor, "*any d_model out"]
    ) -> Float[Tensor, "*any d_model out"]:
        """A matrix that reads what the norm gives, as one that reads what the norm is given.

        Up to the denominator: ``apply(x, 1) @ matrix == x @ read_by(matrix)``.
        """
        gained = self.gain[:, None] * matrix
        return gained - gained.mean(-2, keepdim=True) if self.centred else gained

    def centre(self, x: Float[Tensor, "*any d_model"]) -> Float[Tensor, "*any d_model"]:
        """What the denominator divides."""
        return x - x.mean(-1, keepdim=True) if self.centred else x

    def apply(
        self, x: Float[Tensor, "*any d_model"], scale: Float[Tensor, "*#any 1"]
    ) -> Float[Tensor, "*any d_model"]:
        """The linear map without its bias."""
        return self.centre(x) / scale * self.gain

    def taken_back(
        self,
        x: Float[Tensor, "run token d_model"],
        slopes: Float[Tensor, "run token head out"],
        matrix: Float[Tensor, "head d_model out"],
    ) -> Float[Tensor, "head token d_model"]:
        """From slopes by ``self(x) @ matrix`` to the slope by ``x``, summed over runs.

        The layer's own derivative, its denominator's included. With c = centre(x), g = gain and
        s = scale it takes a slope y by what it gives to centre(g y / s) - c (c · g y) / (d s³).
        Both terms are summed over runs before anything as wide as the stream is made for each head.
        """
        c, gained = self.centre(x), self.gain[:, None] * matrix
        variance = c.pow(2).mean(-1, keepdim=True) + self.eps
        scaled = slopes / variance.sqrt()[..., None]
        direct = torch.einsum("tho,hmo->htm", scaled.sum(0), gained)
        along = (scaled * torch.einsum("rtm,hmo->rtho", c, gained)).sum(-1)
        shrink = torch.einsum("rth,rtm->htm", along / (variance * c.shape[-1]), c)
        return self.centre(direct) - shrink
