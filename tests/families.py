"""Small random models of every family we support, built in memory."""

from collections.abc import Callable
from typing import Any

import torch

_VOCAB = 61
_COMMON = {
    "vocab_size": _VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}


def _gpt2() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=_VOCAB, n_embd=32, n_layer=3, n_head=4, n_positions=64,
            initializer_range=0.2, bos_token_id=0, eos_token_id=1,
        )
    )  # fmt: skip


def _neox() -> Any:
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    sizes = {k: v for k, v in _COMMON.items() if k not in ("num_key_value_heads",)}
    return GPTNeoXForCausalLM(GPTNeoXConfig(**sizes, rotary_pct=0.5))


def _llama() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**_COMMON))


def _qwen2() -> Any:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    return Qwen2ForCausalLM(Qwen2Config(**_COMMON))


def _qwen3() -> Any:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    return Qwen3ForCausalLM(Qwen3Config(**_COMMON, head_dim=8))


def _gemma2() -> Any:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    return Gemma2ForCausalLM(
        Gemma2Config(**_COMMON, head_dim=8, sliding_window=6, query_pre_attn_scalar=8)
    )


def _gemma3() -> Any:
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    return Gemma3ForCausalLM(
        Gemma3TextConfig(**_COMMON, head_dim=8, sliding_window=6, query_pre_attn_scalar=8)
    )


def _mistral() -> Any:
    from transformers import MistralConfig, MistralForCausalLM

    return MistralForCausalLM(MistralConfig(**_COMMON, head_dim=8, sliding_window=6))


def _phi3() -> Any:
    from transformers import Phi3Config, Phi3ForCausalLM

    return Phi3ForCausalLM(Phi3Config(**_COMMON))


def _mixtral() -> Any:
    from transformers import MixtralConfig, MixtralForCausalLM

    return MixtralForCausalLM(
        MixtralConfig(**_COMMON, head_dim=8, num_local_experts=4, num_experts_per_tok=2)
    )


def _bert() -> Any:
    from transformers import BertConfig, BertForMaskedLM

    return BertForMaskedLM(
        BertConfig(
            vocab_size=_VOCAB, hidden_size=32, num_hidden_layers=3, num_attention_heads=4,
            intermediate_size=48, max_position_embeddings=64, initializer_range=0.2,
        )
    )  # fmt: skip


FAMILIES: dict[str, Callable[[], Any]] = {
    "gpt2": _gpt2, "neox": _neox, "llama": _llama, "qwen2": _qwen2, "qwen3": _qwen3,
    "gemma2": _gemma2, "gemma3": _gemma3, "mistral": _mistral, "phi3": _phi3,
    "mixtral": _mixtral, "bert": _bert,
}  # fmt: skip
CAUSAL = [name for name in FAMILIES if name != "bert"]


def tokenizer() -> Any:
    """Sixty words: t3 to t60 and three special tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<bos>": 0, "<eos>": 1, "<pad>": 2} | {f"t{i}": i for i in range(3, _VOCAB)}
    fast = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    fast.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=fast, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>"
    )


def build(name: str, seed: int = 0) -> Any:
    """A plain Hugging Face model of a family, with random weights and non-trivial norms."""
    torch.manual_seed(seed)
    hf = FAMILIES[name]().eval()
    for key, weight in hf.named_parameters():
        if weight.ndim == 1 and "bias" not in key:  # norm gains: anything but ones
            weight.data += 0.3 * torch.randn_like(weight)
        elif weight.ndim == 1:
            weight.data += 0.1 * torch.randn_like(weight)
    hf.set_attn_implementation("eager")
    return hf
