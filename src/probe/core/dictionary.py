"""What a dictionary of features is to the other rooms: encoder, decoder and two addresses."""

from collections.abc import Callable
from typing import ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from probe.core.errors import DictionaryError
from probe.core.site import Site


@runtime_checkable
class Dictionary(Protocol):
    """A sparse autoencoder, transcoder or crosscoder.

    ``reads`` and ``writes`` are the same one site for an autoencoder, two sites for a transcoder,
    and the same several sites for a crosscoder, whose inputs and outputs carry a ``layer`` axis
    before ``d_in``.
    """

    @property
    def name(self) -> str:
        """What it is called in tables."""
        ...

    @property
    def architecture(self) -> str:
        """``standard``, ``gated``, ``jumprelu``, ``topk``, ``batchtopk``, ... by SAELens' names."""
        ...

    @property
    def reads(self) -> tuple[Site, ...]:
        """The activations it encodes."""
        ...

    @property
    def writes(self) -> tuple[Site, ...]:
        """The activations its decoder reconstructs."""
        ...

    @property
    def d_in(self) -> int:
        """Width of what it encodes."""
        ...

    @property
    def d_sae(self) -> int:
        """Number of features."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """What its weights are."""
        ...

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        ...

    @property
    def W_enc(self) -> Float[Tensor, "*layer d_in feature"]:
        """Encoder matrix: what makes a feature fire."""
        ...

    @property
    def W_dec(self) -> Float[Tensor, "*layer feature d_out"]:
        """Decoder matrix: what a feature writes, one row each."""
        ...

    def encode(self, x: Float[Tensor, "*any d_in"]) -> Float[Tensor, "*any feature"]:
        """Feature activations of activations as the model has them, ≥ 0, mostly 0."""
        ...

    def decode(
        self, features: Float[Tensor, "*any feature"], x: Float[Tensor, "*any d_in"] | None = None
    ) -> Float[Tensor, "*any d_out"]:
        """The reconstruction. ``x`` is what was encoded, for those with a skip connection."""
        ...


class Shelf:
    """Where a method that is given a dictionary's name finds it."""

    opener: ClassVar[Callable[[str], Dictionary] | None] = None
    """What opens it; the api, which may import every room, provides it."""

    @classmethod
    def open(cls, name: str) -> Dictionary:
        """The dictionary of that name, or in that folder."""
        if cls.opener is None:
            raise DictionaryError("nothing to open dictionaries with", remedy="import probe.api")
        return cls.opener(name)
