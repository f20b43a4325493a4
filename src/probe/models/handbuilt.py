"""Transformers whose circuit is known because it was written by hand: ground truth for methods.

An induction circuit reads ``... A B ... A`` and predicts ``B``, with two heads in series:

- layer 0, *previous*: every position attends to the position before it and copies that token;
- layer 1, *induction*: a position holding A attends to the position whose copied token is A (the
  one after the earlier A) and writes that position's own token as the prediction.

The residual stream is made of slots of equal width ``size``, each holding one of ``size`` one-hot
codes: ``token``, ``copied`` (by the previous-token head), ``answer`` (by the induction head), and
with learned positions ``position``. All matrices below read one slot and write another.

    previous    query: position - 1       key: position               moves token → copied
    current     query: position           key: position               moves nothing
    induction   query: token              key: copied - token / 2     moves token → answer
    same_token  query: token              key: token                  moves nothing
    the rest    query: 0: they attend evenly to all they see, and move nothing

``- token / 2`` is there for position 0, which has no position before it and copies itself: without
it, position 0 would answer to its own token as well as position 1 does.

Norms do nothing: what they read has one norm, which their gain undoes. In the multi-head layout
(GPT-2) the codes have their mean taken out, so that LayerNorm finds none to subtract; softmax
cannot tell. MLPs are zero. The unembedding reads the slot ``answer`` alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from probe.core.errors import OptionError, nearest

LAYOUTS = ("multi-head", "grouped-query")

_HEADS, _KV_HEADS = 4, 2
_SHARPNESS, _EPS = 30.0, 1e-6
_CONFIDENCE = 4.0
"""What the unembedding multiplies the slot ``answer`` with."""
_ROPE_BASE = 1e8
_SPECIAL = ("<bos>", "<eos>", "<unk>")


@dataclass(frozen=True)
class HandBuilt:
    """A model as ``load_model(built.hf, tokenizer=built.tokenizer)`` takes it, and its truth.

    Attributes:
        hf: The Hugging Face model.
        tokenizer: Of words ``w3``, ``w4``, ... parted by spaces; no BOS unless asked for.
        heads: What a head is → (layer, head). Heads that are not named attend evenly.
        edges: The edges that carry tokens on their way to the answer, as ``Graph`` names them.
        position_edges: Those that carry what no token changes: where to look by position.
    """

    hf: Any = field(repr=False)
    tokenizer: Any = field(repr=False)
    heads: dict[str, tuple[int, int]]
    edges: tuple[str, ...] = field(default=(), kw_only=True)
    position_edges: tuple[str, ...] = field(default=(), kw_only=True)


class Block(NamedTuple):
    """One attention layer's matrices, row vectors, heads first."""

    W_Q: Float[Tensor, "head d_model d_head"]
    W_K: Float[Tensor, "kv_head d_model d_head"]
    W_V: Float[Tensor, "kv_head d_model d_head"]
    W_O: Float[Tensor, "head d_head d_model"]


def induction_model(
    layout: str, size: int = 64, *, sharpness: float = _SHARPNESS, eps: float = _EPS
) -> HandBuilt:
    """A two-layer transformer with one previous-token head and one induction head.

    Args:
        layout: ``"multi-head"``: GPT-2 with learned positions. ``"grouped-query"``: Llama with
            rotary positions, 4 query heads over 2 key/value heads.
        size: Words of the vocabulary, three special ones included, and positions of the context.
        sharpness: By how much the score of what a head looks for stands above all other scores,
            in nats. At the default attention is all or nothing and has no slope to speak of;
            gradients want about 4.
        eps: Of the norms. Far above the variance of what they read (about 2 by the width) they
            are linear, which is what first-order methods take them for.

    Raises:
        OptionError: An unknown layout, or a size at which the construction is not sharp.

    >>> induction_model("multi-head").heads["induction"]
    (1, 1)
    """
    if layout not in LAYOUTS:
        raise OptionError(f'there is no layout "{layout}"', remedy=nearest(layout, LAYOUTS))
    if not 16 <= size <= 128 or size % 4:
        raise OptionError(f"size={size}", expected="a multiple of 4 from 16 to 128")
    own = layout == "multi-head"
    build = learned_positions if own else rotary_positions
    second = _induction_learned if own else _induction_rotary
    hf = build(size, sharpness, eps, second(size, sharpness))
    first, second = ("a0.h2", "a1.h1") if own else ("a0.kv1", "a1.kv0")
    return HandBuilt(
        hf=hf.eval().requires_grad_(False),
        tokenizer=_tokenizer(size),
        heads={"current": (0, 0), "previous": (0, 2), "induction": (1, 1), "same_token": (1, 2)},
        edges=(
            f"input->{first}<v>", "input->a1.h1<q>", f"input->{second}<k>", f"input->{second}<v>",
            f"a0.h2->{second}<k>", "a1.h1->logits",
        ),
        position_edges=("input->a0.h2<q>", f"input->{first}<k>"),
    )  # fmt: skip


# --- learned positions, a key and a value for each head ---------------------------------------


def learned_positions(
    size: int, sharpness: float, eps: float, second: Block, *, n_inner: int = 4
) -> Any:
    """GPT-2 whose layer 0 copies the token before; its layer 1 is given."""
    from transformers import GPT2Config, GPT2LMHeadModel

    width = 4 * size
    config = GPT2Config(
        vocab_size=size, n_positions=size, n_embd=width, n_layer=2, n_head=_HEADS, n_inner=n_inner,
        tie_word_embeddings=False, bos_token_id=0, eos_token_id=1, layer_norm_epsilon=eps,
        activation_function="relu",
    )  # fmt: skip
    token, copied, answer, position = _slots(width, size)
    hf = _zeroed(GPT2LMHeadModel(config))
    centred = torch.eye(size) - 1 / size
    hf.transformer.wte.weight.copy_(centred @ token.T)
    hf.transformer.wpe.weight.copy_(centred @ position.T)
    hf.lm_head.weight.copy_(_CONFIDENCE * answer.T)
    hf.transformer.ln_f.weight.fill_(_undone(3 / width, eps))

    sharp = sharpness * size**0.5
    before = torch.eye(size).roll(-1, dims=1)
    before[0] = 0  # position 0 sees only itself
    none = torch.zeros(width, size)
    first = Block(
        W_Q=torch.stack([sharp * position, none, sharp * position @ before, none]),
        W_K=torch.stack([position, none, position, none]),
        W_V=torch.stack([none, none, token, none]),
        W_O=torch.stack([none.T, none.T, copied.T, none.T]),
    )
    for layer, (block, part) in enumerate(zip((first, second), hf.transformer.h, strict=True)):
        read = (layer + 2) * (1 - 1 / size)  # token and position; then what was copied, too
        part.ln_1.weight.fill_((read / width + eps) ** 0.5)
        part.ln_2.weight.fill_((3 * (1 - 1 / size) / width + eps) ** 0.5)
        qkv = [_columns(matrix) for matrix in (block.W_Q, block.W_K, block.W_V)]
        part.attn.c_attn.weight.copy_(torch.cat(qkv, dim=1))
        part.attn.c_proj.weight.copy_(block.W_O.flatten(0, 1))
    return hf


def _induction_learned(size: int, sharpness: float) -> Block:
    token, copied, answer, _ = _slots(4 * size, size)
    sharp, none = sharpness * size**0.5, torch.zeros(4 * size, size)
    return Block(
        W_Q=torch.stack([none, sharp * token, sharp * token, none]),
        W_K=torch.stack([none, copied - token / 2, token, none]),
        W_V=torch.stack([none, token, none, none]),
        W_O=torch.stack([none.T, answer.T, none.T, none.T]),
    )


# --- rotary positions, two query heads to a key and a value ------------------------------------


def rotary_positions(
    size: int, sharpness: float, eps: float, second: Block, *, n_inner: int = 4
) -> Any:
    """Llama whose layer 0 copies the token before; its layer 1 is given."""
    from transformers import LlamaConfig, LlamaForCausalLM

    width, d_head = 3 * size, 2 * size
    config = LlamaConfig(
        vocab_size=size, max_position_embeddings=size, hidden_size=width, intermediate_size=n_inner,
        num_hidden_layers=2, num_attention_heads=_HEADS, num_key_value_heads=_KV_HEADS,
        head_dim=d_head, rope_parameters={"rope_type": "default", "rope_theta": _ROPE_BASE},
        tie_word_embeddings=False, bos_token_id=0, eos_token_id=1, rms_norm_eps=eps,
    )  # fmt: skip
    token, copied, answer = _slots(width, size)
    hf = _zeroed(LlamaForCausalLM(config))
    hf.model.embed_tokens.weight.copy_(token.T)
    hf.lm_head.weight.copy_(_CONFIDENCE * answer.T)
    hf.model.norm.weight.fill_(_undone(3 / width, eps))

    sharp, slow = sharpness * d_head**0.5, slow_pairs(size)
    none = torch.zeros(width, d_head)
    anything = token.sum(1, keepdim=True)  # reads 1 whatever the token
    here = anything * _at_distance(0, size)
    first = Block(
        W_Q=torch.stack([sharp * here, none, sharp * anything * _at_distance(1, size), none]),
        W_K=torch.stack([here, here]),
        W_V=torch.stack([none, token @ slow]),
        W_O=torch.stack([none.T, none.T, slow.T @ copied.T, none.T]),
    )
    for layer, (block, part) in enumerate(zip((first, second), hf.model.layers, strict=True)):
        read = layer + 1  # the token; then what was copied, too
        part.input_layernorm.weight.fill_((read / width + eps) ** 0.5)
        part.post_attention_layernorm.weight.fill_((2 / width + eps) ** 0.5)
        part.self_attn.q_proj.weight.copy_(_columns(block.W_Q).T)
        part.self_attn.k_proj.weight.copy_(_columns(block.W_K).T)
        part.self_attn.v_proj.weight.copy_(_columns(block.W_V).T)
        part.self_attn.o_proj.weight.copy_(block.W_O.flatten(0, 1).T)
    return hf


def _induction_rotary(size: int, sharpness: float) -> Block:
    token, copied, answer = _slots(3 * size, size)
    sharp, slow = sharpness * (2 * size) ** 0.5, slow_pairs(size)
    none = torch.zeros(3 * size, 2 * size)
    return Block(
        W_Q=torch.stack([none, sharp * token @ slow, sharp * token @ slow, none]),
        W_K=torch.stack([(copied - token / 2) @ slow, token @ slow]),
        W_V=torch.stack([token @ slow, none]),
        W_O=torch.stack([none.T, slow.T @ answer.T, none.T, none.T]),
    )


def slow_pairs(size: int) -> Float[Tensor, "size d_head"]:
    """Where a code rides: on the slow half of the rotary pairs; positions, on the fastest quarter.

    Pair i is made of dimensions i and i + size.
    """
    half, slow = size // 2, torch.zeros(size, 2 * size)
    slow[:half, half:size] = torch.eye(half)
    slow[half:, size + half :] = torch.eye(half)
    return slow


def _at_distance(distance: int, size: int) -> Float[Tensor, " d_head"]:
    """The query that, against the key ``_at_distance(0)``, scores highest so many tokens back.

    Rotated to positions q and k, pair i of the two scores cos(frequency_i · (q - k - distance)):
    1 for every pair at that distance, and at no other.
    """
    fast = torch.arange(size) < size // 4
    angle = distance * _ROPE_BASE ** -(torch.arange(size) / size)
    return torch.cat([fast * angle.cos(), fast * -angle.sin()])


def _undone(squared: float, eps: float) -> float:
    """The gain at which a norm's eps does not show in what a vector of this mean square becomes."""
    return (1 + eps / squared) ** 0.5


# --- both --------------------------------------------------------------------------------------


def _slots(width: int, size: int) -> tuple[Float[Tensor, "d_model size"], ...]:
    """A matrix for each slot that reads it; transposed, it writes it."""
    return torch.eye(width).split(size, dim=1)


def _columns(heads: Float[Tensor, "head d_model d_head"]) -> Float[Tensor, "d_model all_heads"]:
    return heads.transpose(0, 1).flatten(1)


@torch.no_grad()
def _zeroed(hf: Any) -> Any:
    hf.set_attn_implementation("eager")  # which can say what it attends to
    for weight in hf.parameters():
        weight.requires_grad_(False).zero_()
    return hf


def _tokenizer(size: int) -> Any:
    return word_tokenizer([f"w{i}" for i in range(len(_SPECIAL), size)])


def word_tokenizer(words: Sequence[str]) -> Any:
    """A tokenizer of words parted by white space: three special ones, then these."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = [*_SPECIAL, *words]
    fast = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, "<unk>"))
    fast.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=fast, bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    )
