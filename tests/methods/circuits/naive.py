"""Edge attribution as the textbook writes it, on plain Hugging Face models, one edge at a time.

Each edge's derivative: the receiver's own projection, in the library's own module, is given the
stream plus ε times what the sender wrote otherwise, and the metric is differentiated by ε. No code
of the package takes part, but for the recorded outputs of the senders being recomputed here too.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass
class Block:
    """One block's modules, by what they do."""

    norm: Any
    post: Any
    """Norm of what attention writes, or None."""
    out: Any
    mlp_norm: Any
    mlp: Any
    """What adds to the stream: the MLP or the norm that follows it."""
    projections: dict[str, Any]
    columns: dict[str, Callable[[Tensor], Tensor]]
    """Which outputs of its projection are a kind's, as a view [batch, pos, heads, d_head]."""


def blocks(hf: Any, n_heads: int, n_kv: int) -> list[Block]:
    body = getattr(hf, "transformer", None) or getattr(hf, "gpt_neox", None) or hf.model
    made = []
    for layer in getattr(body, "h", None) or body.layers:
        if hasattr(layer, "ln_1"):
            attn = layer.attn
            thirds = {k: _third(i, n_heads) for i, k in enumerate("qkv")}
            made.append(
                Block(layer.ln_1, None, attn.c_proj, layer.ln_2, layer.mlp,
                      dict.fromkeys("qkv", attn.c_attn), thirds)
            )  # fmt: skip
        elif hasattr(layer, "attention"):
            attn = layer.attention
            mixed = {k: _interleaved(i, n_heads) for i, k in enumerate("qkv")}
            made.append(
                Block(layer.input_layernorm, None, attn.dense, layer.post_attention_layernorm,
                      layer.mlp, dict.fromkeys("qkv", attn.query_key_value), mixed)
            )  # fmt: skip
        else:
            attn, gemma = layer.self_attn, hasattr(layer, "pre_feedforward_layernorm")
            heads = {"q": n_heads, "k": n_kv, "v": n_kv}
            post = layer.post_attention_layernorm
            made.append(
                Block(layer.input_layernorm, post if gemma else None, attn.o_proj,
                      layer.pre_feedforward_layernorm if gemma else post,
                      layer.post_feedforward_layernorm if gemma else layer.mlp,
                      {k: getattr(attn, f"{k}_proj") for k in "qkv"},
                      {k: _split(heads[k]) for k in "qkv"})
            )  # fmt: skip
    return made


def _split(heads: int) -> Callable[[Tensor], Tensor]:
    return lambda out: out.unflatten(-1, (heads, -1))


def _third(place: int, heads: int) -> Callable[[Tensor], Tensor]:
    def columns(out: Tensor) -> Tensor:
        width = out.shape[-1] // 3
        return out[..., place * width : (place + 1) * width].unflatten(-1, (heads, -1))

    return columns


def _interleaved(place: int, heads: int) -> Callable[[Tensor], Tensor]:
    return lambda out: out.unflatten(-1, (heads, 3, -1))[..., place, :]


def written(hf: Any, parts: list[Block], tokens: Tensor, n_heads: int) -> dict[str, Tensor]:
    """What each sender adds to the stream."""
    seen: dict[str, Tensor] = {}
    handles = [
        parts[0].norm.register_forward_pre_hook(lambda m, a: seen.__setitem__("input", a[0]))
    ]
    for n, part in enumerate(parts):
        handles.append(part.out.register_forward_pre_hook(
            lambda m, a, n=n: seen.__setitem__(f"z{n}", a[0])))  # fmt: skip
        handles.append(part.mlp.register_forward_hook(
            lambda m, a, out, n=n: seen.__setitem__(f"m{n}", out)))  # fmt: skip
    with torch.no_grad():
        hf(tokens)
    for handle in handles:
        handle.remove()
    wrote = {"input": seen["input"]}
    for n, part in enumerate(parts):
        weight, z = part.out.weight, seen[f"z{n}"].unflatten(-1, (n_heads, -1))
        weight = weight if hasattr(part.out, "nf") else weight.T
        each = torch.einsum("bphd,hdm->bphm", z, weight.unflatten(0, (n_heads, -1)))
        if part.post is not None:  # a gain on the sum, by the sum's own size
            total = each.sum(2)
            size = (total.float().pow(2).mean(-1, keepdim=True) + part.post.eps).rsqrt()
            each = each * ((1.0 + part.post.weight) * size)[:, :, None]
        wrote |= {f"a{n}.h{h}": each[:, :, h] for h in range(n_heads)} | {f"m{n}": seen[f"m{n}"]}
    return wrote


def score(
    hf: Any,
    parts: list[Block],
    tokens: Tensor,
    receiver: str,
    apart: Tensor,
    metric: Callable[[Tensor], Tensor],
) -> float:
    """d metric / dε, the receiver alone reading the stream plus ε · apart."""  # fmt: skip
    epsilon = torch.zeros((), dtype=torch.float64, requires_grad=True)
    extra = epsilon * apart
    handles = []
    if receiver == "logits":
        body = getattr(hf, "transformer", None) or getattr(hf, "gpt_neox", None) or hf.model
        last = getattr(body, "ln_f", None) or getattr(body, "final_layer_norm", None) or body.norm
        handles.append(last.register_forward_pre_hook(lambda m, a: (a[0] + extra,)))
    elif receiver.startswith("m"):
        norm = parts[int(receiver[1:])].mlp_norm
        handles.append(norm.register_forward_pre_hook(lambda m, a: (a[0] + extra,)))
    else:
        handles += _head_hooks(parts, receiver, extra)
    value = metric(hf(tokens).logits)
    (slope,) = torch.autograd.grad(value, epsilon)
    for handle in handles:
        handle.remove()
    return float(slope)


def _head_hooks(parts: list[Block], receiver: str, extra: Tensor) -> list[Any]:
    node, kind = receiver[:-3], receiver[-2]
    layer, head = node[1:].split(".")
    part, number = parts[int(layer)], int(head.lstrip("hkv"))
    stream: list[Tensor] = []
    busy: list[int] = []

    def note(module: Any, args: tuple) -> None:
        if not busy:
            stream[:] = [args[0]]

    def project(module: Any, args: tuple, out: Tensor) -> Tensor | None:
        if busy:
            return None
        busy.append(1)
        other = part.projections[kind](part.norm(stream[0] + extra))
        busy.clear()
        made = out.clone()
        part.columns[kind](made)[:, :, number] = part.columns[kind](other)[:, :, number]
        return made

    return [
        part.norm.register_forward_pre_hook(note),
        part.projections[kind].register_forward_hook(project),
    ]
