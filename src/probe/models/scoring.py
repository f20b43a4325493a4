"""How each layer of a bridge makes attention scores: read off one forward pass, then checked.

What the layer is given as cosines and sines says how fast pairs turn, but not which dimensions
make a pair: libraries differ. So every way of pairing is tried on the queries and keys of the run,
and the one that gives the layer's own scores is the truth. Where none does, nothing is claimed.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from probe.core.errors import ModelError
from probe.core.rotary import Rotary, Scoring

_POSITIONS = 16
_MASKED = -1e4
"""Scores below are those of keys out of reach."""


def find(model: Any) -> list[Scoring]:
    """One Scoring a layer.

    Raises:
        ModelError: Scores that are not a scaled product of turned queries and keys (ALiBi,
            relative biases), or that the bridge does not show.

    Cost: one forward pass of 16 tokens.
    """
    n_pos = min(_POSITIONS, model.dims.n_ctx)
    if missing := {"q", "k", "attn_scores"} - model.sites:
        raise ModelError(
            f"{model.name} shows no {', '.join(sorted(missing))}, so how it makes attention scores "
            "cannot be found",
            expected="a decoder whose queries, keys and scores are recorded",
        )
    # Different tokens a few apart: equal ones would leave queries and keys alike.
    tokens = (torch.arange(n_pos)[None] * 7 + 3) % model.dims.d_vocab
    with _overheard(model) as tables:
        trace = model.trace(tokens, ["q", "k", "attn_scores"])
    return [
        _of_layer(model, layer, tables[layer], *(trace[kind, layer][0] for kind in _READ))
        for layer in range(model.dims.n_layers)
    ]


_READ = ("q", "k", "attn_scores")


@contextlib.contextmanager
def _overheard(model: Any) -> Iterator[list[tuple[Tensor, Tensor] | None]]:
    """The cosines and sines each attention layer is handed, None where there are none."""
    tables: list[tuple[Tensor, Tensor] | None] = [None] * model.dims.n_layers

    def listen(layer: int) -> Callable[..., None]:
        def hook(module: Any, inputs: Any, given: dict[str, Any]) -> None:
            table = given.get("position_embeddings")
            tables[layer] = None if table is None else (table[0][0], table[1][0])

        return hook

    handles = [
        model.block(layer).attn.register_forward_pre_hook(listen(layer), with_kwargs=True)
        for layer in range(model.dims.n_layers)
    ]
    try:
        yield tables
    finally:
        for handle in handles:
            handle.remove()


def _of_layer(
    model: Any,
    layer: int,
    table: tuple[Tensor, Tensor] | None,
    q: Tensor,
    k: Tensor,
    scores: Tensor,
) -> Scoring:
    attention, config = model.block(layer).attn, model.bridge.original_model.config
    cap = getattr(config.get_text_config(), "attn_logit_softcapping", None)
    q_norm, k_norm = (_norm(attention, name, model.dims.d_head) for name in ("q_norm", "k_norm"))
    bare = Scoring(1.0, None, None, q_norm, k_norm)
    q, k = bare.queries(q).transpose(0, 1), bare.keys(k).transpose(0, 1)
    k = k.repeat_interleave(model.dims.heads_per_kv, dim=0)
    seen = scores > _MASKED
    wanted = scores.double() if cap is None else cap * torch.atanh(scores.double() / cap)
    size = wanted[seen].abs().max()
    close = 1e-3 if model.dtype.itemsize >= 4 else 5e-2
    for rotary in [*_candidates(table), None]:
        product = _products(q, k, rotary)
        scale = (product * wanted)[seen].sum() / product[seen].square().sum().clamp(min=1e-30)
        if ((scale * product - wanted)[seen].abs() <= close * size + 1e-6).all():
            return Scoring(float(scale), rotary, cap, q_norm, k_norm)
    raise ModelError(
        f"layer {layer} of {model.name} makes attention scores that are no scaled product of "
        "queries and keys, turned or not",
        expected="rotary, learned or no positions",
    )


def _products(q: Tensor, k: Tensor, rotary: Rotary | None) -> Tensor:
    q, k = q.double(), k.double()
    if rotary is not None:
        places = torch.arange(q.shape[1], device=q.device)
        q, k = rotary.turn(q, places), rotary.turn(k, places)
    return q @ k.transpose(-1, -2)


def _candidates(table: tuple[Tensor, Tensor] | None) -> Iterator[Rotary]:
    """Rotations that these cosines and sines may mean."""
    if table is None:
        return
    cos, sin = (part.double() for part in table)
    size = torch.hypot(cos[1], sin[1])
    speed, width = torch.atan2(sin[1], cos[1]), len(size)
    if not speed.any():  # turned by nothing
        return
    half = width // 2
    for speeds, first, second in (
        (speed[:half], range(half), range(half, width)),
        (speed[:half], range(0, width, 2), range(1, width, 2)),
        (speed[::2], range(0, width, 2), range(1, width, 2)),
        (speed, range(width), range(width, 2 * width)),
    ):
        pairs = torch.tensor([list(first), list(second)], device=cos.device).T
        turning = speeds != 0  # p-RoPE leaves slow pairs as they are
        yield Rotary(pairs[turning], speeds[turning], float(size[0]))


def _norm(attention: Any, name: str, d_head: int) -> Callable[[Tensor], Tensor] | None:
    if name not in attention.submodules:
        return None
    module = getattr(attention, name)
    if module.weight.shape[0] in (1, d_head) or module.weight.ndim > 1:
        return module
    return lambda x: module(x.flatten(-2)).unflatten(-1, x.shape[-2:])  # over all heads at once
