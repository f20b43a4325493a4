"""How queries and keys become attention scores: rotation by position, scale, cap, norms."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Rotary:
    """A rotation of pairs of a head's dimensions by angles that grow with position.

    Attributes:
        pairs: Which two dimensions turn together, fastest pair first; others stay as they are.
        frequency: Radians a pair turns by from one token to the next.
        factor: What rotated dimensions are multiplied by besides (1 but for some long contexts).
    """

    pairs: Int[Tensor, "pair 2"]
    frequency: Float[Tensor, " pair"]
    factor: float = 1.0

    @property
    def wavelength(self) -> Float[Tensor, " pair"]:
        """Tokens after which a pair is back where it was."""
        return 2 * torch.pi / self.frequency

    def turn(
        self, x: Float[Tensor, "*any d_head"], positions: Tensor | int
    ) -> Float[Tensor, "*more d_head"]:
        """Vectors turned to positions; ``positions`` broadcasts against all axes but the last.

        >>> quarter = Rotary(torch.tensor([[0, 1]]), torch.tensor([torch.pi / 2]))
        >>> [round(v, 6) for v in quarter.turn(torch.tensor([1.0, 0.0, 5.0]), 1).tolist()]
        [-0.0, 1.0, 5.0]
        """
        places = torch.as_tensor(positions, dtype=torch.float64, device=self.frequency.device)
        angle = places[..., None] * self.frequency.double()
        cos, sin = (self.factor * part.to(x) for part in (angle.cos(), angle.sin()))
        first, second = (x[..., self.pairs[:, end]] for end in (0, 1))
        turned = x.expand(*torch.broadcast_shapes(x.shape[:-1], places.shape), -1).clone()
        turned[..., self.pairs[:, 0]] = first * cos - second * sin
        turned[..., self.pairs[:, 1]] = second * cos + first * sin
        return turned

    def strengths(self, x: Float[Tensor, "*any d_head"]) -> Float[Tensor, "*any pair"]:
        """Length of a vector within each pair; turning does not change it."""
        return x[..., self.pairs].norm(dim=-1)


@dataclass(frozen=True, eq=False)
class Scoring:
    """How one layer makes attention scores, checked against the scores it makes.

    Attributes:
        scale: What the product of query and key is multiplied by.
        rotary: The rotation, None where the layer does not rotate.
        softcap: Scores are ``softcap * tanh(score / softcap)``, None where they are not.
        q_norm: What a layer does to its queries before it turns them, per head; None for nothing.
        k_norm: The same of keys.
    """

    scale: float
    rotary: Rotary | None = None
    softcap: float | None = None
    q_norm: Callable[[Tensor], Tensor] | None = field(default=None, repr=False)
    k_norm: Callable[[Tensor], Tensor] | None = field(default=None, repr=False)

    def queries(self, q: Float[Tensor, "*any head d_head"]) -> Float[Tensor, "*any head d_head"]:
        """Queries as they are compared, but for the rotation."""
        return q if self.q_norm is None else self.q_norm(q)

    def keys(self, k: Float[Tensor, "*any kv_head d_head"]) -> Float[Tensor, "*any kv_head d_head"]:
        """Keys as they are compared, but for the rotation."""
        return k if self.k_norm is None else self.k_norm(k)

    def score(
        self,
        q: Float[Tensor, "*#any d_head"],
        k: Float[Tensor, "*#any d_head"],
        distance: Tensor | int = 0,
    ) -> Float[Tensor, "*more"]:
        """Scores of what ``queries`` and ``keys`` gave, the query so many tokens after the key."""
        if self.rotary is not None:
            q, k = self.rotary.turn(q, distance), self.rotary.turn(k, 0)
        raw = self.scale * (q * k).sum(-1)
        return raw if self.softcap is None else self.softcap * torch.tanh(raw / self.softcap)
