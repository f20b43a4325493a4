"""Features of a prompt, and what changing one of them adds to the model.

Adding (f' − f)·W_dec to a run is splicing in the reconstruction with feature f set to f' and the
error kept; it also works for a transcoder, which reads elsewhere.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from probe.core.dictionary import Dictionary
from probe.core.edit import Edit
from probe.core.errors import OptionError
from probe.core.model import Model
from probe.core.task import Encoded
from probe.core.trace import Trace
from probe.dictionaries.passes import stacked


@dataclass(frozen=True, eq=False)
class Encoding:
    """Prompts as features.

    Attributes:
        sae: The dictionary.
        features: Activations; 0 at padding.
        error: What the reconstruction leaves out of the site it writes; 0 at padding.
        real: Where the prompts are not padding.
    """

    sae: Dictionary
    features: Float[Tensor, "batch pos feature"] = field(repr=False)
    error: Float[Tensor, "batch pos d_out"] = field(repr=False)
    real: Bool[Tensor, "batch pos"] = field(repr=False)

    def change(self, feature: int, to: Float[Tensor, "batch pos"] | float) -> Edit:
        """The edit that sets one feature, everywhere."""
        moved = (to - self.features[..., feature]) * self.real
        value = moved[..., None] * self.sae.W_dec[feature]
        return Edit(self.sae.writes[0], "add", value, {}, f"feature {feature}")

    def active(self, row: int) -> list[int]:
        """Features that fire somewhere in a prompt."""
        return (self.features[row] > 0).any(0).nonzero()[:, 0].tolist()


def encode(model: Model, encoded: Encoded, sae: Dictionary, *, corrupted: bool = False) -> Encoding:
    """The features of a task's prompts. One forward pass up to the dictionary's sites."""
    sites = list(dict.fromkeys([*sae.reads, *sae.writes]))
    return of_trace(model.trace(encoded, sites, corrupted=corrupted), sae)


def of_trace(trace: Trace, sae: Dictionary) -> Encoding:
    """The features of recorded prompts."""
    x, there = stacked(sae, trace, sae.reads), stacked(sae, trace, sae.writes)
    real = torch.arange(x.shape[1]) < trace.lengths[:, None]
    real = real.to(x.device)
    found = sae.encode(x)
    error = there - sae.decode(found, x)
    return Encoding(sae, found * real[..., None], error * real[..., None], real)


def check_features(sae: Dictionary, features: Sequence[int]) -> None:
    """Refuse features that are not there."""
    wrong = [feature for feature in features if not 0 <= feature < sae.d_sae]
    if wrong or not features:
        raise OptionError(
            f"features={list(features)} of {sae.name}",
            expected=f"at least one, from 0 to {sae.d_sae - 1}",
        )
