"""A trained dictionary of features: how it encodes and decodes, whatever trained it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from probe.core.errors import DictionaryError, nearest
from probe.core.site import Site

ACTIVATIONS = ("relu", "jumprelu", "topk", "gated")
NORMS = ("none", "layer_norm", "constant_norm_rescale")
_EPS = 1e-5


@dataclass(frozen=True, eq=False, repr=False)
class SparseDictionary:
    """A sparse autoencoder, transcoder or crosscoder with its weights.

    With u = (x − b_dec)W_enc + b_enc (b_dec is subtracted where ``centred``), features are
    ReLU(u); jumprelu: u where u > threshold ≥ 0; topk: ReLU of the k largest u; gated: where
    (x − b_dec)W_enc + b_gate > 0, ReLU of (x − b_dec)W_enc·exp(r_mag) + b_mag. The reconstruction
    is fW_dec + b_dec, and xW_skipᵀ more where there is a skip connection. A crosscoder sums u over
    its layers and has a decoder for each.

    Attributes:
        name: What it is called in tables.
        architecture: What it was trained as, by SAELens' names. A batch-top-k dictionary encodes
            as jumprelu, with one threshold for all features.
        activation: ``relu``, ``jumprelu``, ``topk`` or ``gated``.
        reads: Sites it encodes.
        writes: Sites it reconstructs.
        tensors: The weights by SAELens' names; never changed.
        k: Of topk.
        centred: Whether b_dec is subtracted from what is encoded.
        norm: What is done to each activation before encoding and undone after decoding.
        metadata: How it came to be: model, data, training.
    """

    name: str
    architecture: str
    activation: str
    reads: tuple[Site, ...]
    writes: tuple[Site, ...]
    tensors: Mapping[str, Tensor]
    k: int | None = None
    centred: bool = True
    norm: str = "none"
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse parts that do not fit one another."""
        if self.activation not in ACTIVATIONS:
            raise DictionaryError(
                f'activation "{self.activation}"', remedy=nearest(self.activation, ACTIVATIONS)
            )
        if self.norm not in NORMS:
            raise DictionaryError(
                f'activations normalised by "{self.norm}"', expected=f"one of {', '.join(NORMS)}"
            )
        expected = self._shapes()
        found = {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}
        if found != expected:
            raise DictionaryError(
                f"{self.name} has weights {_shapes_text(found)}",
                expected=f"{_shapes_text(expected)} for {self.activation}",
            )
        if self.activation == "topk" and not 1 <= (self.k or 0) <= self.d_sae:
            raise DictionaryError(f"{self.name}: k={self.k}", expected=f"1 to {self.d_sae}")

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes that follow from those of W_enc and W_dec."""
        for name in ("W_enc", "W_dec"):
            if name not in self.tensors:
                raise DictionaryError(
                    f"{self.name} has no {name}", expected="W_enc and W_dec",
                    remedy=f"it has {', '.join(self.tensors) or 'no tensors'}",
                )  # fmt: skip
        encoder, decoder = self.tensors["W_enc"], self.tensors["W_dec"]
        *layers, d_in, d_sae = encoder.shape
        d_out = decoder.shape[-1]
        shapes: dict[str, tuple[int, ...]] = {
            "W_enc": (*layers, d_in, d_sae),
            "W_dec": (*layers, d_sae, d_out),
            "b_dec": (*layers, d_out),
        }
        per_feature = {
            "relu": ["b_enc"], "topk": ["b_enc"], "jumprelu": ["b_enc", "threshold"],
            "gated": ["b_gate", "b_mag", "r_mag"],
        }[self.activation]  # fmt: skip
        shapes |= dict.fromkeys(per_feature, (d_sae,))
        if "W_skip" in self.tensors:
            shapes["W_skip"] = (d_out, d_in)
        return shapes

    # --- what it is --------------------------------------------------------------------------

    @property
    def d_in(self) -> int:
        """Width of what it encodes."""
        return self.W_enc.shape[-2]

    @property
    def d_out(self) -> int:
        """Width of what it reconstructs."""
        return self.W_dec.shape[-1]

    @property
    def d_sae(self) -> int:
        """Number of features."""
        return self.W_enc.shape[-1]

    @property
    def layered(self) -> bool:
        """Whether inputs and outputs have a ``layer`` axis, as a crosscoder's do."""
        return self.W_enc.ndim == 3

    @property
    def dtype(self) -> torch.dtype:
        """What its weights are."""
        return self.W_enc.dtype

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return self.W_enc.device

    @property
    def W_enc(self) -> Float[Tensor, "*layer d_in feature"]:
        """Encoder matrix: what makes a feature fire."""
        return self.tensors["W_enc"]

    @property
    def W_dec(self) -> Float[Tensor, "*layer feature d_out"]:
        """Decoder matrix: what a feature writes, one row each."""
        return self.tensors["W_dec"]

    @property
    def b_dec(self) -> Float[Tensor, "*layer d_out"]:
        """What is reconstructed where no feature fires."""
        return self.tensors["b_dec"]

    @property
    def W_skip(self) -> Float[Tensor, "d_out d_in"] | None:
        """The skip connection of a transcoder, None where there is none."""
        return self.tensors.get("W_skip")

    def to(
        self, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> "SparseDictionary":
        """The same with weights of another type or in another place."""
        moved = {name: t.to(device=device, dtype=dtype) for name, t in self.tensors.items()}
        return replace(self, tensors=moved)

    def save(self, path: str | Path) -> Path:
        """Write it to a folder in SAELens' format, see ``save_dictionary``."""
        from probe.dictionaries.files import save_dictionary

        return save_dictionary(self, path)

    # --- what it does ------------------------------------------------------------------------

    def encode(self, x: Float[Tensor, "*any d_in"]) -> Float[Tensor, "*any_but_layer feature"]:
        """Feature activations of activations as the model has them, ≥ 0, mostly 0."""
        product = self._encoder_product(x)
        t = self.tensors
        if self.activation == "gated":
            size = torch.relu(product * t["r_mag"].exp() + t["b_mag"])
            return size * (product + t["b_gate"] > 0)
        before = product + t["b_enc"]
        if self.activation == "jumprelu":
            return torch.relu(before) * (before > t["threshold"])
        if self.activation == "topk":
            kept = before.topk(self.k or 1, dim=-1, sorted=False)
            return torch.zeros_like(before).scatter(-1, kept.indices, torch.relu(kept.values))
        return torch.relu(before)

    def decode(
        self,
        features: Float[Tensor, "*any feature"],
        x: Float[Tensor, "*any_with_layer d_in"] | None = None,
    ) -> Float[Tensor, "*any_with_layer d_out"]:
        """The reconstruction.

        Args:
            features: Feature activations.
            x: What was encoded; needed by a skip connection, and where activations are normalised
                one by one.

        Raises:
            DictionaryError: No ``x`` where it is needed.
        """
        features = features.to(self.dtype)
        if self.layered:
            out = torch.einsum("...f,lfd->...ld", features, self.W_dec) + self.b_dec
        else:
            out = features @ self.W_dec + self.b_dec
        if self.W_skip is None and self.norm == "none":
            return out
        if x is None:
            why = "has a skip connection" if self.norm == "none" else "normalises each activation"
            raise DictionaryError(
                f"{self.name} {why}, and decode was given features alone",
                expected="what was encoded beside them",
                remedy="decode(features, x)",
            )
        x = x.to(self.dtype)
        if self.norm != "none" and self.reads == self.writes:
            shift, scale = self._shift_scale(x)
            out = out * scale + shift
        return out if self.W_skip is None else out + x @ self.W_skip.T

    def _encoder_product(self, x: Tensor) -> Tensor:
        axes = ("layer", "d_in")[-(self.W_enc.ndim - 1) :]
        if x.shape[-len(axes) :] != self.W_enc.shape[:-1]:
            raise DictionaryError(
                f"{self.name} was given activations of shape {tuple(x.shape)}",
                expected=f"[..., {', '.join(axes)}] = [..., "
                f"{', '.join(str(n) for n in self.W_enc.shape[:-1])}]",
            )
        x = x.to(self.dtype)
        if self.norm != "none":
            shift, scale = self._shift_scale(x)
            x = (x - shift) / (scale + _EPS if self.norm == "layer_norm" else scale)
        if self.centred:
            x = x - self.b_dec
        if self.layered:
            return torch.einsum("...ld,ldf->...f", x, self.W_enc)
        return x @ self.W_enc

    def _shift_scale(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What an activation is less of, and what of, once it is normalised."""
        if self.norm == "layer_norm":
            return x.mean(-1, keepdim=True), x.std(-1, keepdim=True)
        scale = x.norm(dim=-1, keepdim=True) / self.d_in**0.5
        return torch.zeros_like(scale), scale

    def __repr__(self) -> str:
        reads = ", ".join(map(str, self.reads)) or "nowhere"
        writes = ", ".join(map(str, self.writes))
        where = f"at {reads}" if self.reads == self.writes else f"from {reads} to {writes}"
        return (
            f"SparseDictionary({self.name}: {self.architecture}, {self.d_sae} features of "
            f"{self.d_in} dimensions {where}, {str(self.dtype).removeprefix('torch.')})"
        )


def _shapes_text(shapes: Mapping[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name} {list(shape)}" for name, shape in sorted(shapes.items()))
