"""How much of a head's queries, keys and values lies in each rotary pair of dimensions."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from probe.core.errors import ModelError, OptionError
from probe.core.model import Model
from probe.core.rotary import Rotary
from probe.core.trace import Trace

PARTS = ("q", "k", "v")


@dataclass(frozen=True, eq=False)
class Usage:
    """Mean length of each part of each head within each pair, one layer, one row a prompt.

    Attributes:
        rotary: The layer's rotation.
        of: ``q``, ``k``, ``v`` → mean over tokens of the length within each pair.
    """

    rotary: Rotary
    of: dict[str, Float[Tensor, "batch heads pair"]]

    def share(self, part: str, pairs: slice) -> Float[Tensor, "batch heads"]:
        """Of all pairs' lengths together, what these pairs hold."""
        lengths = self.of[part]
        return lengths[..., pairs].sum(-1) / lengths.sum(-1)


def turning(model: Model, layer: int) -> Rotary:
    """The rotation of a layer.

    Raises:
        ModelError: A layer that does not rotate.
    """
    rotary = model.scoring(layer).rotary
    if rotary is None:
        raise ModelError(
            f"layer {layer} of {model.name} does not rotate queries and keys by position",
            expected="rotary position embeddings",
        )
    return rotary


def usage(model: Model, trace: Trace, layer: int, counted: Bool[Tensor, "batch pos"]) -> Usage:
    """From recorded q, k and v of a layer; queries and keys after their own norms.

    Args:
        model: The model.
        trace: With q, k and v of the layer.
        layer: Which.
        counted: Positions that the mean is over.
    """
    scoring, rotary = model.scoring(layer), turning(model, layer)
    weight = counted[:, :, None, None].to(model.device)
    means = {}
    for part, x in (
        ("q", scoring.queries(trace["q", layer])),
        ("k", scoring.keys(trace["k", layer])),
        ("v", trace["v", layer]),
    ):
        lengths = rotary.strengths(x.float())
        means[part] = (lengths * weight).sum(1) / weight.sum(1)
    return Usage(rotary, means)


def counted(trace: Trace, skip_first: int) -> Bool[Tensor, "batch pos"]:
    """Real positions from the first that counts.

    Raises:
        OptionError: Prompts that have none.
    """
    place = torch.arange(trace.tokens.shape[1])
    if (short := trace.lengths <= skip_first).any():
        row = int(short.nonzero()[0])
        raise OptionError(
            f"skip_first={skip_first}, and prompt {row} has {int(trace.lengths[row])} tokens",
            expected="prompts that are longer",
        )
    return (place >= skip_first) & (place < trace.lengths[:, None].cpu())


def sites(layers: Sequence[int]) -> list[tuple[str, int]]:
    """What ``usage`` needs recorded."""
    return [(part, layer) for layer in layers for part in PARTS]
