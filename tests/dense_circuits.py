"""Whole matrices in double precision, straight from a model's weights: the slow way to the same."""

from functools import cache
from typing import Any

import torch
from families import build, tokenizer
from torch import Tensor

from probe.models.bridge import BridgeModel
from probe.models.load import load_model


@cache
def loaded(family: str) -> BridgeModel:
    """A small random model of a family, loaded once; leave it as it is."""
    return load_model(build(family), tokenizer=tokenizer())


def gained(model: Any, place: str, layer: int | None, size: int) -> Tensor:
    """A norm with its denominator left out, as a [size, size] matrix read off its module."""
    norm = model.norm(place, layer)
    eye = torch.eye(size, dtype=torch.float64)
    if norm is None:
        return eye
    centre = eye - 1 / size if norm.centred else eye
    return centre * norm.gain.double()


def rotation(model: Any, layer: int, distance: int) -> Tensor:
    """The rotation of a row vector by so many tokens, as a [d_head, d_head] matrix."""
    rotary, size = model.scoring(layer).rotary, model.dims.d_head
    turn = torch.eye(size, dtype=torch.float64)
    for (i, j), speed in zip(rotary.pairs.tolist(), rotary.frequency.tolist(), strict=True):
        angle = torch.tensor(distance * speed, dtype=torch.float64)
        turn[i, i] = turn[j, j] = angle.cos()
        turn[i, j], turn[j, i] = angle.sin(), -angle.sin()
    return turn


def head_ov(model: Any, layer: int, head: int, *, fold: bool = True) -> Tensor:
    """What a head writes of what it reads, [d_model, d_model]."""
    weights, size = model.weights, model.dims.d_model
    shared = head // model.dims.heads_per_kv
    whole = weights.W_V(layer)[shared].double() @ weights.W_O(layer)[head].double()
    if not fold:
        return whole
    before, after = gained(model, "attn_in", layer, size), gained(model, "attn_out", layer, size)
    return before @ whole @ after


def head_qk(model: Any, layer: int, head: int, *, distance: int = 0, fold: bool = True) -> Tensor:
    """How a head compares, [d_model, d_model]."""
    weights, dims = model.weights, model.dims
    q = weights.W_Q(layer)[head].double()
    k = weights.W_K(layer)[head // dims.heads_per_kv].double()
    if fold:
        before = gained(model, "attn_in", layer, dims.d_model)
        q = before @ q @ gained(model, "q", layer, dims.d_head)
        k = before @ k @ gained(model, "k", layer, dims.d_head)
    if distance:
        q = q @ rotation(model, layer, distance)
    return q @ k.T
