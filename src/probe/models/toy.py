"""Random models of two layers, for tests, examples and the app's empty state.

They answer at random; what they are good for is being complete, instant and always there.
"""

from functools import lru_cache
from typing import Any

from probe.core.errors import OptionError, nearest

_N_CTX = 96
_WORDS = (
    "When and went to the store park school , gave a drink book ball to . Mary John Tom Anna Bill "
    "Jane Mark Kate Paul Rose The war lasted from year was is are in of on at she he her his it by "
    "dogs cat key keys cats dog teacher doctor capital France Paris Italy Rome Spain Madrid that "
    "said because they friends had fun def self return None name size after Then afternoon garden "
    "office house ring kiss bone bag computer necklace snack basket red blue green one two three"
).split()

TOYS: dict[str, dict[str, Any]] = {
    "toy": {"heads": 4, "kv_heads": 2},
    "toy-mha": {"heads": 4, "kv_heads": 4},
}
"""Name → head layout: grouped-query and multi-head."""


def toy_model(name: str = "toy", seed: int = 0) -> Any:
    """A random Hugging Face Llama: 2 layers, 32 wide, RoPE, RMSNorm, gated MLP."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    if name not in TOYS:
        raise OptionError(f'there is no toy "{name}"', remedy=nearest(name, TOYS))
    config = LlamaConfig(
        vocab_size=len(toy_tokenizer()),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=TOYS[name]["heads"],
        num_key_value_heads=TOYS[name]["kv_heads"],
        max_position_embeddings=_N_CTX,
        initializer_range=0.3,  # large enough for attention to be uneven
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


@lru_cache
def toy_tokenizer() -> Any:
    """A byte-level tokenizer that knows a hundred words and reads any text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1024,
        special_tokens=["<bos>", "<eos>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    text = [f"{word} {word}" for word in _WORDS]
    tokenizer.train_from_iterator(text * 2, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>"
    )
