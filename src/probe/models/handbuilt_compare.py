"""A transformer that compares neighbours and copies, written by hand: a circuit through an MLP.

It reads ``<bos> w7 w4 w4 w9 w5`` and answers ``w4``, the word that stands twice in a row:

- layer 0, *previous*: every position copies the token before it, as in ``handbuilt``;
- layer 0, MLP: a neuron for each word compares: token and copied token are both that word. All
  neurons write the same *mark*;
- layer 1, *find*: every position attends to the position that is marked and writes that position's
  own token as the answer.

    find        query: a constant         key: the mark               moves token → answer
    same_token  query: token              key: token                  moves nothing

The mark lies along the codes of ``<eos>`` and ``<unk>``, which no prompt holds, in the slot
``copied``. ``<bos>`` has no neuron: it stands first, where *previous* copies a token to itself.

In the multi-head layout (GPT-2) a neuron is relu(token + copied - 3/2) and the constant a bias; in
the grouped-query layout (Llama) it is silu(copied) · token, and the constant what all tokens share.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from probe.core.errors import OptionError, nearest
from probe.models.handbuilt import (
    _EPS,
    _SHARPNESS,
    _SPECIAL,
    LAYOUTS,
    Block,
    HandBuilt,
    _slots,
    _tokenizer,
    learned_positions,
    rotary_positions,
    slow_pairs,
)

_MARK = 0.5
"""Length of what the MLP writes: short beside a code, so that the norms hardly feel it."""
_GATE = 2.0


def compare_model(
    layout: str, size: int = 64, *, sharpness: float = _SHARPNESS, eps: float = _EPS
) -> HandBuilt:
    """A two-layer transformer that says which word is repeated at once.

    Args:
        layout: As for ``induction_model``.
        size: Words of the vocabulary, three special ones included, and positions of the context.
        sharpness: As for ``induction_model``.
        eps: As for ``induction_model``.

    Raises:
        OptionError: An unknown layout, or a size at which the construction is not sharp.

    >>> compare_model("grouped-query", 16).edges[1:4]
    ('a0.h2->m0', 'input->m0', 'm0->a1.kv0<k>')
    """
    if layout not in LAYOUTS:
        raise OptionError(f'there is no layout "{layout}"', remedy=nearest(layout, LAYOUTS))
    if not 16 <= size <= 128 or size % 4:
        raise OptionError(f"size={size}", expected="a multiple of 4 from 16 to 128")
    own = layout == "multi-head"
    hf = (_gpt2 if own else _llama)(size, sharpness, eps)
    first, second = ("a0.h2", "a1.h1") if own else ("a0.kv1", "a1.kv0")
    constant = () if own else ("input->a1.h1<q>",)
    return HandBuilt(
        hf=hf.eval().requires_grad_(False),
        tokenizer=_tokenizer(size),
        heads={"current": (0, 0), "previous": (0, 2), "find": (1, 1), "same_token": (1, 2)},
        edges=(
            f"input->{first}<v>", "a0.h2->m0", "input->m0", f"m0->{second}<k>",
            f"input->{second}<v>", "a1.h1->logits",
        ),
        position_edges=("input->a0.h2<q>", f"input->{first}<k>", *constant),
    )  # fmt: skip


@torch.no_grad()
def _gpt2(size: int, sharpness: float, eps: float) -> Any:
    token, copied, answer, _ = _slots(4 * size, size)
    sharp, none = sharpness * size**0.5, torch.zeros(4 * size, size)
    mark, words = _mark(copied), len(_SPECIAL)
    key = none.clone()
    key[:, :1] = mark
    block = Block(
        W_Q=torch.stack([none, none, sharp * token, none]),
        W_K=torch.stack([none, key, token, none]),
        W_V=torch.stack([none, token, none, none]),
        W_O=torch.stack([none.T, answer.T, none.T, none.T]),
    )
    hf = learned_positions(size, sharpness, eps, block, n_inner=size - words)
    hf.transformer.h[1].attn.c_attn.bias[size] = sharp / _MARK  # head 1's first dimension
    mlp = hf.transformer.h[0].mlp
    mlp.c_fc.weight.copy_((token + copied)[:, words:])
    mlp.c_fc.bias.fill_(2 / size - 1.5)  # codes have their mean taken out
    mlp.c_proj.weight.copy_(_MARK * mark.T.expand(size - words, -1) / 0.5)
    return hf


@torch.no_grad()
def _llama(size: int, sharpness: float, eps: float) -> Any:
    token, copied, answer = _slots(3 * size, size)
    sharp, slow = sharpness * (2 * size) ** 0.5, slow_pairs(size)
    none = torch.zeros(3 * size, 2 * size)
    mark, words = _mark(copied), len(_SPECIAL)
    anything = token.sum(1, keepdim=True)
    block = Block(
        W_Q=torch.stack([none, sharp / _MARK * anything * slow[0], sharp * token @ slow, none]),
        W_K=torch.stack([mark * slow[0], token @ slow]),
        W_V=torch.stack([token @ slow, none]),
        W_O=torch.stack([none.T, slow.T @ answer.T, none.T, none.T]),
    )
    hf = rotary_positions(size, sharpness, eps, block, n_inner=size - words)
    mlp = hf.model.layers[0].mlp
    mlp.gate_proj.weight.copy_(_GATE * copied.T[words:])
    mlp.up_proj.weight.copy_(token.T[words:])
    fired = torch.nn.functional.silu(torch.tensor(_GATE))
    mlp.down_proj.weight.copy_((_MARK * mark / fired).expand(-1, size - words))
    return hf


def _mark(copied: Float[Tensor, "d_model size"]) -> Float[Tensor, "d_model 1"]:
    """The direction that says: the same as the token before."""
    eos, unk = (copied[:, _SPECIAL.index(word)] for word in ("<eos>", "<unk>"))
    return ((eos - unk) / 2**0.5)[:, None]
