"""What a dictionary makes of an activation, some of its features set: the value of a splice."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from probe.core.dictionary import Dictionary
from probe.core.errors import EditError


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """A rule that makes an activation out of the one that stands there.

    With f = encode(x) and f' the same with some features set: decode(f'), and x − decode(f) more
    where the error is kept.

    Attributes:
        dictionary: The dictionary.
        keep_error: Whether what it leaves out stays.
        features: What each feature is set to; NaN where it is left as it is encoded.
    """

    dictionary: Dictionary
    keep_error: bool
    features: Float[Tensor, " feature"] | None = None

    def of(self, x: Float[Tensor, "*any d_in"]) -> Float[Tensor, "*any d_in"]:
        """The activation to put there."""
        if x.shape[-1] != self.dictionary.d_in:
            raise EditError(
                f"{self.dictionary.name} encodes {self.dictionary.d_in} dimensions, and was given "
                f"{x.shape[-1]}",
                expected="the whole last axis of the site it was made for",
            )
        found = self.dictionary.encode(x)
        changed = self._changed(found)
        made = self.dictionary.decode(changed, x)
        if self.keep_error:
            made = made + (x - self.dictionary.decode(found, x))
        return made.to(x.dtype)

    def _changed(self, found: Float[Tensor, "*any feature"]) -> Float[Tensor, "*any feature"]:
        if self.features is None:
            return found
        wanted = self.features.to(found)
        return torch.where(wanted.isnan(), found, wanted)
