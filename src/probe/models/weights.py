"""A bridge's matrices under one convention: row vectors, heads first."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from probe.core.errors import ModelError
from probe.core.model import Dims


class BridgeWeights:
    """``Weights`` read from a TransformerBridge, one layer at a time."""

    def __init__(self, bridge: Any, dims: Dims) -> None:
        self._bridge, self._dims = bridge, dims

    @property
    def W_E(self) -> Float[Tensor, "d_vocab d_model"]:
        """Token embedding."""
        return self._bridge.embed.weight.detach()

    @property
    def W_U(self) -> Float[Tensor, "d_model d_vocab"]:
        """Unembedding, without the final norm."""
        weight = self._bridge.unembed.original_component.weight.detach()
        return weight.T if weight.shape[0] != self._dims.d_model else weight

    @property
    def b_U(self) -> Float[Tensor, " d_vocab"]:
        """Unembedding bias, zeros where there is none."""
        bias = getattr(self._bridge.unembed.original_component, "bias", None)
        return self.W_U.new_zeros(self.W_U.shape[1]) if bias is None else bias.detach()

    def W_Q(self, layer: int) -> Float[Tensor, "head d_model d_head"]:
        """Query projection of a layer."""
        return self._read(layer, "attn", "W_Q")

    def W_K(self, layer: int) -> Float[Tensor, "kv_head d_model d_head"]:
        """Key projection of a layer."""
        return self._read(layer, "attn", "W_K")

    def W_V(self, layer: int) -> Float[Tensor, "kv_head d_model d_head"]:
        """Value projection of a layer."""
        return self._read(layer, "attn", "W_V")

    def W_O(self, layer: int) -> Float[Tensor, "head d_head d_model"]:
        """Output projection of a layer."""
        return self._read(layer, "attn", "W_O")

    def b_Q(self, layer: int) -> Float[Tensor, "head d_head"]:
        """Query biases of a layer, zeros where there are none."""
        return self._bias(layer, "b_Q", self._dims.n_heads)

    def b_K(self, layer: int) -> Float[Tensor, "kv_head d_head"]:
        """Key biases of a layer, zeros where there are none."""
        return self._bias(layer, "b_K", self._dims.n_kv_heads)

    def b_V(self, layer: int) -> Float[Tensor, "kv_head d_head"]:
        """Value biases of a layer, zeros where there are none."""
        return self._bias(layer, "b_V", self._dims.n_kv_heads)

    def W_in(self, layer: int) -> Float[Tensor, "d_model d_mlp"]:
        """What the MLP's neurons read (the linear branch where there is a gate)."""
        return self._matrix(layer, "in", self._dims.d_model)

    def W_gate(self, layer: int) -> Float[Tensor, "d_model d_mlp"] | None:
        """What the MLP's gate reads, None where there is none."""
        if "gate" not in self._mlp(layer).submodules:
            return None
        return self._matrix(layer, "gate", self._dims.d_model)

    def W_out(self, layer: int) -> Float[Tensor, "d_mlp d_model"]:
        """What the MLP's neurons write."""
        return self._matrix(layer, "out", self._dims.d_mlp)

    def _read(self, layer: int, part: str, name: str) -> Tensor:
        weight = getattr(getattr(self._bridge.blocks[layer], part), name)
        return weight.detach()

    def _bias(self, layer: int, name: str, n_heads: int) -> Tensor:
        bias = getattr(self._bridge.blocks[layer].attn, name)
        if bias is None:
            return self.W_E.new_zeros(n_heads, self._dims.d_head)
        return bias.detach()

    def _mlp(self, layer: int) -> Any:
        if self._dims.n_experts:
            raise ModelError(
                f"layer {layer} is a mixture of {self._dims.n_experts} experts and has no one MLP",
                expected="a model with one MLP a layer",
            )
        return self._bridge.blocks[layer].mlp

    def _matrix(self, layer: int, name: str, rows: int) -> Tensor:
        weight = getattr(self._mlp(layer), name).weight.detach()
        # nn.Linear stores [out, in], GPT-2's Conv1D [in, out]; a square matrix is told by its class
        linear = isinstance(_innermost(getattr(self._mlp(layer), name)), torch.nn.Linear)
        if weight.shape[0] != weight.shape[1]:
            linear = weight.shape[0] != rows
        return weight.T if linear else weight


def _innermost(component: Any) -> Any:
    inner = getattr(component, "original_component", None)
    return component if inner is None else inner
