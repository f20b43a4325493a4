"""A run whose attention patterns and norm denominators are held: all that is left of it is linear.

The residual stream starts as sums of *sources*, the embedding and what is not linear in it: what
MLPs wrote, and what biases wrote. Heads read it and write to it through their values alone.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from probe.core.errors import ModelError
from probe.core.model import Model
from probe.core.task import Encoded
from probe.methods.head_circuits import need_decoder


@dataclass(frozen=True, eq=False)
class Source:
    """What stands in the residual stream whatever heads do.

    Attributes:
        name: ``embed``, ``mlp.3``, ``bias.3``.
        after: The first layer that can read it; number of layers for the last ones.
        vectors: What it is, at each position.
    """

    name: str
    after: int
    vectors: Float[Tensor, "batch pos d_model"]


class Frozen:
    """One recorded run, and its heads as linear maps.

    Args:
        model: A causal model.
        encoded: The prompts.

    Raises:
        ModelError: An encoder, or logits that are capped and so not linear.
    """

    def __init__(self, model: Model, encoded: Encoded) -> None:
        need_decoder(model)
        if model.dims.softcap is not None:
            raise ModelError(
                f"{model.name} caps its logits, so they are no sum over paths",
                expected="logits that are linear in the normalised residual stream",
                remedy='probe.run("activation_patching") measures heads without this assumption',
            )
        self.model, self.encoded = model, encoded
        kinds = ["resid_pre", "pattern", "z", "ln1_scale", "ln_final_scale"]
        self._has_mlps = "mlp_out" in model.sites
        last = ("resid_post", model.dims.n_layers - 1)
        self._trace = model.trace(encoded, [*kinds, *["mlp_out"] * self._has_mlps, last])
        self._totals = [self._total(layer) for layer in range(model.dims.n_layers)]

    def sources(self) -> list[Source]:
        """All sources, in the order in which the model writes them; biases where there are any."""
        found = [Source("embed", 0, wide(self._trace["resid_pre", 0]))]
        for layer in range(self.model.dims.n_layers):
            bias = self._bias(layer)
            if bias.any():
                found.append(Source(f"bias.{layer}", layer + 1, bias))
            if self._has_mlps and (written := self._trace["mlp_out", layer]).any():
                found.append(Source(f"mlp.{layer}", layer + 1, wide(written)))
        return found

    def entering(self, layer: int) -> Float[Tensor, "batch pos d_model"]:
        """The recorded stream that a layer reads; after the last layer for their number."""
        n_layers = self.model.dims.n_layers
        kind = ("resid_pre", layer) if layer < n_layers else ("resid_post", n_layers - 1)
        return wide(self._trace[kind])

    def heads(
        self, layer: int, x: Float[Tensor, "batch pos d_model"]
    ) -> Float[Tensor, "head batch pos d_model"]:
        """What each head of a layer writes of a part of the stream, biases left out."""
        norm = self.model.norm("attn_in", layer)
        if norm is not None:
            x = norm.apply(x, wide(self._trace["ln1_scale", layer]))
        return self._written(layer, self._moved(layer, x))

    def logits(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_vocab"]:
        """Logits of a stream, under the recorded denominator of the final norm."""
        read = self.model.read_out(x, wide(self._trace["ln_final_scale"]))
        weights = self.model.weights
        return (read + self.model.read_out_bias) @ wide(weights.W_U) + wide(weights.b_U)

    def directions(self) -> tuple[Float[Tensor, "batch d_model"], Float[Tensor, " batch"]]:
        """What the answer's logit, less the wrong answer's or the mean, reads; and its constant."""
        weights, answers = self.model.weights, self.encoded.need_answers().to(self.model.device)
        matrix, bias = wide(weights.W_U), wide(weights.b_U)
        if self.encoded.wrong_answers is None:
            other, constant = matrix.mean(1, keepdim=True), bias.mean()
        else:
            wrong = self.encoded.wrong_answers.to(self.model.device)
            other, constant = matrix[:, wrong], bias[wrong]
        direction = (matrix[:, answers] - other).T
        return direction, bias[answers] - constant + direction @ wide(self.model.read_out_bias)

    def answer(
        self, x: Float[Tensor, "batch pos d_model"], direction: Float[Tensor, "batch d_model"]
    ) -> Float[Tensor, " batch"]:
        """What a part of the last stream adds to what is read at the last token."""
        rows = torch.arange(len(x), device=x.device)
        last = self.encoded.last.to(x.device)
        scale = wide(self._trace["ln_final_scale"])[rows, last]
        return (self.model.read_out(x[rows, last], scale) * direction).sum(-1)

    def _moved(self, layer: int, read: Tensor) -> Tensor:
        """Normalised stream → what each head sums up: [batch, pos, head, d_head]."""
        values = torch.einsum("bkm,hmd->bkhd", read, wide(self.model.weights.W_V(layer)))
        return self._attended(layer, values)

    def _attended(self, layer: int, values: Tensor) -> Tensor:
        each = values.repeat_interleave(self.model.dims.heads_per_kv, dim=-2)
        return torch.einsum("bhqk,bkhd->bqhd", wide(self._trace["pattern", layer]), each)

    def _written(self, layer: int, z: Tensor) -> Float[Tensor, "head batch pos d_model"]:
        each = self.model.head_outputs(layer, z).movedim(-2, 0)
        return self.model.write_out(layer, "attn_out", each, self._totals[layer])

    def _total(self, layer: int) -> Float[Tensor, "batch pos d_model"]:
        """What the layer's attention wrote, before a norm that follows."""
        each = self.model.head_outputs(layer, wide(self._trace["z", layer]))
        return each.sum(-2) + wide(self.model.out_bias(layer, "attn_out"))

    def _bias(self, layer: int) -> Float[Tensor, "batch pos d_model"]:
        """What a layer's attention writes whatever it reads."""
        model, weights = self.model, self.model.weights
        norm, out = model.norm("attn_in", layer), wide(model.out_bias(layer, "attn_out"))
        values = wide(weights.b_V(layer))
        if norm is not None:
            values = values + torch.einsum("m,hmd->hd", wide(norm.bias), wide(weights.W_V(layer)))
        total = self._totals[layer]
        moved = self._attended(layer, values.expand(*total.shape[:2], *values.shape))
        written = self._written(layer, moved).sum(0)
        rest = model.write_out(layer, "attn_out", out.expand_as(total), total)
        return written + rest + wide(model.write_bias(layer, "attn_out"))


def wide(x: Tensor) -> Tensor:
    """Half precision is summed in float32."""
    return x.float() if x.dtype.itemsize < 4 else x
