"""The residual stream as a sum: who wrote what.

The last residual stream is the embedding plus everything every block added to it. Attention's part
splits further into heads and biases, an MLP's into neurons and biases, exactly: nothing here is an
approximation, also where a block normalises what it writes (its denominator is the run's own).
Source: Elhage et al. (2021), "A Mathematical Framework for Transformer Circuits".
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import psutil
import torch
from jaxtyping import Float, Int
from torch import Tensor

from probe.core.errors import ModelError, SizeError
from probe.core.model import Model
from probe.core.site import Site, SiteLike, check_layer
from probe.core.task import Encoded
from probe.core.trace import Trace

KINDS: dict[str, str] = {
    "embed": "token embedding, and position embedding where there is one",
    "head": "attention head",
    "attn_bias": "biases of attention's output, which belong to no head",
    "mlp": "MLP, its biases included",
    "neuron": "neuron of an MLP",
    "mlp_bias": "biases of an MLP that is split into neurons",
}
"""Kind of part → what it is."""

_SHARE_OF_MEMORY = 0.8


@dataclass(frozen=True, slots=True)
class Part:
    """The name of one summand.

    >>> str(Part("head", 3, head=5)), str(Part("embed"))
    ('head 3.5', 'embed')
    """

    kind: str
    layer: int | None = None
    head: int | None = None
    neuron: int | None = None

    def __str__(self) -> str:
        numbers = [str(n) for n in (self.layer, self.head, self.neuron) if n is not None]
        return f"{self.kind} {'.'.join(numbers)}" if numbers else self.kind


@dataclass(frozen=True, eq=False)
class Decomposition:
    """Vectors that add up to the residual stream after the last block.

    Attributes:
        parts: The name of each summand, in the order in which the model writes them.
        vectors: The summands.
        resid: What the model had there: ``resid_post`` of the last layer, recorded.
        scale: The final norm's denominator in this run, for ``model.read_out``.
    """

    parts: tuple[Part, ...]
    vectors: Float[Tensor, "part batch pos d_model"] = field(repr=False)
    resid: Float[Tensor, "batch pos d_model"] = field(repr=False)
    scale: Float[Tensor, "batch pos 1"] = field(repr=False)

    @property
    def gap(self) -> float:
        """Largest departure of the sum from the recorded residual, relative to its largest entry.

        Rounding alone in float32 (about 1e-6); more says that this model adds something we do not
        know of.
        """
        off = (self.vectors.sum(0) - self.resid.to(self.vectors)).abs().max()
        return float(off / self.resid.abs().max().clamp(min=1e-30))


def decompose(
    model: Model,
    prompts: str | Sequence[str] | Encoded | Int[Tensor, "batch pos"],
    positions: Sequence[int] | None = (-1,),
    *,
    neurons: Sequence[int] = (),
) -> Decomposition:
    """Split the last residual stream into what wrote it.

    Args:
        model: A causal model.
        prompts: As for ``model.trace``.
        positions: Where; negative ones count from each prompt's end. None for all, where what
            stands at padded positions means nothing.
        neurons: Layers whose MLP is split into its neurons.

    Returns:
        Vectors in units of the residual stream, float32 or wider. ``attn_bias`` is left out where
        a layer has no bias.

    Raises:
        ModelError: An encoder, whose blocks normalise the stream itself.
        SiteError: A layer that is not there; neurons of a mixture of experts.
        SizeError: More bytes than fit, before they are taken.

    Cost: one forward pass.
    """
    if not model.dims.causal:
        raise ModelError(
            f"{model.name} is an encoder: its blocks normalise the residual stream itself, so it "
            "is not a sum of what was written",
            expected="a causal model",
            remedy='model.trace(prompts, sites=["attn_out", "mlp_out"]) records what each adds',
        )
    trace = model.trace(prompts, _sites(model, neurons), positions=positions)
    resid = trace["resid_post", model.dims.n_layers - 1]
    _check_fits(model, resid, neurons)
    parts, vectors = [Part("embed")], [_wide(trace["resid_pre", 0])[None]]
    for layer in range(model.dims.n_layers):
        written = [_attention(model, trace, layer)]
        if "mlp_out" in model.sites:
            written.append((_neurons if layer in neurons else _mlp)(model, trace, layer))
        for names, values in written:
            parts += names
            vectors.append(values)
    return Decomposition(tuple(parts), torch.cat(vectors), resid, trace["ln_final_scale"])


def written_by_heads(
    model: Model, layer: int, z: Float[Tensor, "*any head d_head"]
) -> Float[Tensor, "*any head d_model"]:
    """What each head adds to the residual stream, given every head's output.

    Where a block normalises what attention writes, with the denominator that these outputs give.
    """
    heads = model.head_outputs(layer, z)
    total = heads.sum(-2, keepdim=True) + model.out_bias(layer, "attn_out").to(heads)
    return model.write_out(layer, "attn_out", heads, total)


def _sites(model: Model, neurons: Sequence[int]) -> list[SiteLike]:
    for layer in neurons:
        check_layer(Site("mlp_post", layer), model.dims.n_layers)
    split = [("mlp_post", layer) for layer in neurons]
    whole = [("mlp_out", layer) for layer in range(model.dims.n_layers) if layer not in neurons]
    whole = whole if "mlp_out" in model.sites else []
    last = ("resid_post", model.dims.n_layers - 1)
    return [("resid_pre", 0), "z", *whole, *split, last, "ln_final_scale"]


def _check_fits(model: Model, resid: Tensor, neurons: Sequence[int]) -> None:
    dims = model.dims
    parts = 1 + dims.n_layers * (dims.n_heads + 2) + len(set(neurons)) * dims.d_mlp
    # twice: the parts, and their concatenation
    need = 2 * parts * resid.numel() * max(4, resid.element_size())
    cuda = resid.device.type == "cuda"
    free = torch.cuda.mem_get_info(resid.device)[0] if cuda else psutil.virtual_memory().available
    if need > _SHARE_OF_MEMORY * free:
        raise SizeError(
            f"this decomposition takes {need / 2**30:.1f} GiB: {parts} parts at "
            f"{resid.shape[0]} x {resid.shape[1]} positions, {dims.d_model} wide",
            expected=f"at most {_SHARE_OF_MEMORY * free / 2**30:.1f} GiB, {_SHARE_OF_MEMORY:.0%} "
            f"of the memory that is free on {resid.device}",
            remedy="positions=[-1], fewer layers in neurons=, or fewer prompts",
        )


def _attention(model: Model, trace: Trace, layer: int) -> tuple[list[Part], Tensor]:
    heads = model.head_outputs(layer, _wide(trace["z", layer])).movedim(-2, 0)
    bias = _wide(model.out_bias(layer, "attn_out"))
    total = heads.sum(0) + bias
    names = [Part("head", layer, head=head) for head in range(len(heads))]
    written = model.write_out(layer, "attn_out", heads, total)
    after = _wide(model.write_bias(layer, "attn_out"))
    if not bias.any() and not after.any():
        return names, written
    rest = model.write_out(layer, "attn_out", bias.expand_as(total), total) + after
    return [*names, Part("attn_bias", layer)], torch.cat([written, rest[None]])


def _mlp(model: Model, trace: Trace, layer: int) -> tuple[list[Part], Tensor]:
    return [Part("mlp", layer)], _wide(trace["mlp_out", layer])[None]


def _neurons(model: Model, trace: Trace, layer: int) -> tuple[list[Part], Tensor]:
    activations, W_out = _wide(trace["mlp_post", layer]), _wide(model.weights.W_out(layer))
    bias = _wide(model.out_bias(layer, "mlp_out"))
    total = activations @ W_out + bias
    each = torch.einsum("bpn,nm->nbpm", activations, W_out)
    written = model.write_out(layer, "mlp_out", each, total)
    rest = model.write_out(layer, "mlp_out", bias.expand_as(total), total)
    rest = rest + _wide(model.write_bias(layer, "mlp_out"))
    names = [Part("neuron", layer, neuron=neuron) for neuron in range(len(each))]
    return [*names, Part("mlp_bias", layer)], torch.cat([written, rest[None]])


def _wide(x: Tensor) -> Tensor:
    """Half precision is summed in float32."""
    return x.float() if x.dtype.itemsize < 4 else x
