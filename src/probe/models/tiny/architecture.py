"""The tiny transformers as Hugging Face models.

Llama with parts left out. Its attention, norm, rotation, mask and cache are Llama's own code; only
the block is ours, since none of Llama's has the parts these papers vary:

- ``activation=None``: no MLP at all. The other way to an attention-only model, an MLP with zero
  weights, would put a second norm, neurons and ``mlp_out`` into every trace and say ``d_mlp > 0``
  of a model that has none.
- ``activation="solu"``, ``mlp_norm=True``: softmax linear units, ``x · softmax(x)``, with a norm
  on the neurons. Hugging Face has neither.
- ``positions="learned"``: added to the token embedding; no pair of query and key turns.
- ``positions="rotary"``: queries and keys have biases. A head that looks one token back, whatever
  the tokens, needs a part of query and key that is the same for all of them; without biases the
  token embeddings must first grow one.
- ``rotary_share``: the share of pairs, fastest first, that turn (p-RoPE). Each keeps its speed of
  the full rotation, unlike with Hugging Face's ``partial_rotary_factor``, which spreads the whole
  range of speeds over fewer dimensions. With 0 nothing but the mask tells places apart (NoPE).
- ``smeared=True``: each head's key is a mixture of the token's own and the one's before it.

The blocks keep Llama's names, so that the bridge's adapter for Llama reads them (``adapter.py``).
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
)
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
)

from probe.models.tiny import MODEL_TYPE


class TinyConfig(LlamaConfig):
    """Llama's configuration and the parts that vary."""

    model_type = MODEL_TYPE
    __no_type_check__ = True  # its constructor takes more than its fields

    activation: str | None = None
    mlp_norm: bool = False
    positions: str = "rotary"
    rotary_share: float = 1.0
    smeared: bool = False


class Activation(nn.Module):
    """ReLU, GELU or SoLU, with or without a norm on what it gives."""

    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        self.name = config.activation
        size, eps = config.intermediate_size, config.rms_norm_eps
        self.norm = LlamaRMSNorm(size, eps=eps) if config.mlp_norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Neurons before → neurons as the output matrix reads them."""
        if self.name == "solu":
            x = x * x.softmax(-1)
        else:
            x = nn.functional.relu(x) if self.name == "relu" else nn.functional.gelu(x)
        return self.norm(x)


class TinyMLP(nn.Module):
    """In, activation, out; no gate, no biases."""

    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.act_fn = Activation(config)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """What the MLP adds to the residual stream."""
        return self.down_proj(self.act_fn(self.up_proj(x)))


class SmearedKeys(nn.Linear):
    """A key projection whose heads each mix a share of the previous token's key into every key.

    ``k_j ← σ(α) k_j + (1 - σ(α)) k_{j-1}``; position 0 keeps its own.
    """

    def __init__(self, width: int, size: int, *, bias: bool, heads: int) -> None:
        super().__init__(width, size, bias=bias)
        self.alpha = nn.Parameter(torch.zeros(heads))

    def forward(self, input: Tensor) -> Tensor:
        """Keys of a whole sequence: a key depends on the token before, which no cache keeps."""
        own = super().forward(input).unflatten(-1, (len(self.alpha), -1))
        before = torch.cat([own[:, :1], own[:, :-1]], dim=1)
        share = self.alpha.sigmoid()[:, None]
        return (share * own + (1 - share) * before).flatten(-2)


class TinyBlock(GradientCheckpointingLayer):
    """Attention, then an MLP where there is one."""

    def __init__(self, config: TinyConfig, layer_idx: int) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.rms_norm_eps
        self.input_layernorm = LlamaRMSNorm(width, eps=eps)
        self.self_attn = LlamaAttention(config, layer_idx)
        size = config.num_attention_heads * self.self_attn.head_dim
        bias = config.positions == "rotary"
        self.self_attn.q_proj = nn.Linear(width, size, bias=bias)
        self.self_attn.k_proj = (
            SmearedKeys(width, size, bias=bias, heads=config.num_attention_heads)
            if config.smeared
            else nn.Linear(width, size, bias=bias)
        )
        if config.activation is not None:
            self.post_attention_layernorm = LlamaRMSNorm(width, eps=eps)
            self.mlp = TinyMLP(config)

    def forward(self, hidden_states: Tensor, **how: Any) -> Tensor:
        """The residual stream after the block."""
        attended, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **how)
        hidden_states = hidden_states + attended
        if "mlp" in self._modules:
            hidden_states = hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))
        return hidden_states


class FastRotaryEmbedding(LlamaRotaryEmbedding):
    """Llama's rotation of the fastest pairs; the others are turned by nothing.

    "RotaryEmbedding" in its name and the method's name are what Hugging Face's loader goes by when
    it fills in the frequencies, which no file holds.
    """

    @staticmethod
    def compute_default_rope_parameters(config: Any, **kwargs: Any) -> tuple[Tensor, float]:
        """Radians a pair turns by from one token to the next, and the factor of cosine and sine."""
        speeds, factor = LlamaRotaryEmbedding.compute_default_rope_parameters(config, **kwargs)
        share = config.rotary_share if config.positions == "rotary" else 0
        speeds[round(share * len(speeds)) :] = 0
        return speeds, factor


class TinyModel(LlamaModel):
    """Embedding, blocks, final norm."""

    _can_record_outputs = {"hidden_states": TinyBlock, "attentions": LlamaAttention}  # noqa: RUF012

    def __init__(self, config: TinyConfig) -> None:
        super(LlamaModel, self).__init__(config)  # not Llama's own: it would make Llama's blocks
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        if config.positions == "learned":
            self.embed_positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.rotary_emb = FastRotaryEmbedding(config)
        self.layers = nn.ModuleList(
            TinyBlock(config, layer) for layer in range(config.num_hidden_layers)
        )
        self.norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_init()

    def forward(self, input_ids: Any = None, **how: Any) -> Any:  # pyright: ignore
        """Llama's forward pass, from token plus position where positions are learned."""
        if "embed_positions" not in self._modules or input_ids is None:
            return super().forward(input_ids=input_ids, **how)
        if how.get("position_ids") is None:
            cache = how.get("past_key_values")
            seen = 0 if cache is None else cache.get_seq_length()
            how["position_ids"] = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
            how["position_ids"] = how["position_ids"] + seen
        positions = self.embed_positions(how["position_ids"])
        how["inputs_embeds"] = self.embed_tokens(input_ids) + positions
        return super().forward(**how)


class TinyForCausalLM(LlamaForCausalLM):
    """A tiny transformer with an unembedding of its own."""

    config_class = TinyConfig

    def __init__(self, config: TinyConfig) -> None:
        super(LlamaForCausalLM, self).__init__(config)
        self.model = TinyModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()


def register() -> None:
    """Let Hugging Face's loader read folders of tiny models. A second time changes nothing."""
    AutoConfig.register(TinyConfig.model_type, TinyConfig, exist_ok=True)
    AutoModelForCausalLM.register(TinyConfig, TinyForCausalLM, exist_ok=True)
