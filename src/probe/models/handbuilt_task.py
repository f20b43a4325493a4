"""A transformer that learns a task from demonstrations, written by hand: its task direction known.

It reads ``Q: a3 A: b3 Q: a5 A:`` and answers ``b5``. There are two tasks, two ways to send the
inputs a0, a1, ... to the outputs b0, b1, ...; nothing but the demonstrations says which is meant.
Three layers, grouped-query (4 query heads over 2 key/value heads), rotary positions. Slots of the
residual stream: ``token``, ``seen``, ``task``, ``answer``.

    layer 0, match 0 and match 1   at an output: is the input two tokens back the one this task
                                   sends here? If so, write the task's mark to ``seen``.
    layer 1, collect               the mean mark of the outputs seen so far, to ``task``.
    layer 2, apply 0 and apply 1   where ``task`` holds the task's mark: take the token before,
                                   write what the task sends it to to ``answer``. Else rest on the
                                   last ``A:``, which moves nothing.

With the outputs shuffled no demonstration matches, so nothing is collected and no answer given.
What *collect* writes at the last token is the task, and all of it: ``MARK`` along ``directions``.

Marks are small, so that the norms, whose gain is made for a token alone, hardly feel them. Scores:
a distance kernel peaks at 16, falls by 1.1 one token off and by 8 four off; a match and resting on
``Q:`` or ``A:`` are weighed against that, with margins of 30 nats or more.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from probe.models.handbuilt import (
    _CONFIDENCE,
    _HEADS,
    _KV_HEADS,
    _ROPE_BASE,
    _SHARPNESS,
    _SPECIAL,
    Block,
    HandBuilt,
    _at_distance,
    _columns,
    _slots,
    _zeroed,
    word_tokenizer,
)

MARK = 0.1
"""Length of what *collect* writes."""

_SIZE, _INPUTS = 64, 24
_STEPS = (0, 7)
"""Task → how far an input's output stands from it."""
_Q, _A, _FIRST_INPUT = len(_SPECIAL), len(_SPECIAL) + 1, len(_SPECIAL) + 2


@dataclass(frozen=True)
class HandBuiltTask(HandBuilt):
    """As ``HandBuilt``, with its tasks.

    Attributes:
        directions: Task → unit vector along which the residual stream carries it.
        pairs: Task → its inputs and outputs.
    """

    directions: Float[Tensor, "task d_model"]
    pairs: tuple[tuple[tuple[str, str], ...], ...]


def task_model() -> HandBuiltTask:
    """The transformer of this file.

    >>> task_model().heads["collect"]
    (1, 2)
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    width = 4 * _SIZE
    config = LlamaConfig(
        vocab_size=_SIZE, max_position_embeddings=_SIZE, hidden_size=width, intermediate_size=4,
        num_hidden_layers=3, num_attention_heads=_HEADS, num_key_value_heads=_KV_HEADS,
        head_dim=2 * _SIZE, rope_parameters={"rope_type": "default", "rope_theta": _ROPE_BASE},
        tie_word_embeddings=False, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    hf = _zeroed(LlamaForCausalLM(config))
    token, _, task, answer = _slots(width, _SIZE)
    hf.model.embed_tokens.weight.copy_(token.T)
    hf.lm_head.weight.copy_(_CONFIDENCE * answer.T)
    hf.model.norm.weight.fill_(1.0)
    for block, part in zip(_blocks(), hf.model.layers, strict=True):
        eps = part.input_layernorm.variance_epsilon
        part.input_layernorm.weight.fill_((1 / width + eps) ** 0.5)
        part.post_attention_layernorm.weight.fill_(1.0)
        part.self_attn.q_proj.weight.copy_(_columns(block.W_Q).T)
        part.self_attn.k_proj.weight.copy_(_columns(block.W_K).T)
        part.self_attn.v_proj.weight.copy_(_columns(block.W_V).T)
        part.self_attn.o_proj.weight.copy_(block.W_O.flatten(0, 1).T)
    heads = {"match 0": (0, 0), "match 1": (0, 1), "collect": (1, 2), "apply 0": (2, 0)}
    return HandBuiltTask(
        hf=hf.eval().requires_grad_(False),
        tokenizer=_words(),
        heads={**heads, "apply 1": (2, 1)},
        directions=task.T[: len(_STEPS)],
        pairs=tuple(
            tuple((f"a{i}", f"b{(i + step) % _INPUTS}") for i in range(_INPUTS)) for step in _STEPS
        ),
    )


def _words() -> Any:
    named = ["Q:", "A:", *(f"{side}{i}" for side in "ab" for i in range(_INPUTS))]
    spare = _SIZE - len(_SPECIAL) - len(named)
    return word_tokenizer([*named, *(f"w{i}" for i in range(spare))])


def _blocks() -> list[Block]:
    width, d_head = 4 * _SIZE, 2 * _SIZE
    token, seen, task, answer = _slots(width, _SIZE)
    slow = torch.zeros(_SIZE, d_head)
    half = _SIZE // 2  # pair i is made of dimensions i and i + size; the slow ones hardly turn
    slow[:half, half:_SIZE] = torch.eye(half)
    slow[half:, _SIZE + half :] = torch.eye(half)
    sharp = _SHARPNESS * d_head**0.5
    anything = token.sum(1, keepdim=True)  # reads 1 whatever the token
    inputs = token[:, _FIRST_INPUT : _FIRST_INPUT + _INPUTS].sum(1, keepdim=True)
    here, none = anything * _at_distance(0, _SIZE), torch.zeros(width, d_head)
    back_two = anything * (_at_distance(2, _SIZE) + 3.0 * slow[_Q])
    match = [sharp * (back_two + 4.0 * token @ sent.T @ slow) for sent in _sent()]
    rest = 4.0 * anything * slow[_A]
    apply = [
        sharp * (anything * _at_distance(1, _SIZE) + rest - 8.0 / MARK * task[:, [t]] * slow[_A])
        for t in range(len(_STEPS))
    ]
    return [
        Block(
            W_Q=torch.stack([*match, none, none]),
            W_K=torch.stack([here + token @ slow, none]),
            W_V=torch.stack([inputs * slow[0], none]),
            W_O=torch.stack([*(MARK * _to(seen, t, slow[0]) for t in (0, 1)), none.T, none.T]),
        ),
        Block(
            W_Q=torch.stack([none, none, sharp / MARK * anything * slow[0], none]),
            W_K=torch.stack([none, seen[:, :2].sum(1, keepdim=True) * slow[0]]),
            W_V=torch.stack([none, seen @ slow]),
            W_O=torch.stack([none.T, none.T, slow.T @ task.T, none.T]),
        ),
        Block(
            W_Q=torch.stack([*apply, none, none]),
            W_K=torch.stack([here + token[:, [_A]] * slow[_A], none]),
            W_V=torch.stack([token @ slow, none]),
            W_O=torch.stack([*(slow.T @ sent @ answer.T for sent in _sent()), none.T, none.T]),
        ),
    ]


def _sent() -> list[Float[Tensor, "size size"]]:
    """Task → matrix from each input's code to its output's."""
    made = []
    for step in _STEPS:
        matrix = torch.zeros(_SIZE, _SIZE)
        for i in range(_INPUTS):
            matrix[_FIRST_INPUT + i, _FIRST_INPUT + _INPUTS + (i + step) % _INPUTS] = 1.0
        made.append(matrix)
    return made


def _to(slot: Float[Tensor, "d_model size"], place: int, code: Float[Tensor, " d_head"]) -> Tensor:
    return code[:, None] * slot[:, place]
