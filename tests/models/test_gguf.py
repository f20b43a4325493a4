"""A GGUF file, written here: it loads as the model it was made of, and is unpacked only once."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFWriter

from probe.core.errors import ModelError
from probe.models import sources
from probe.models.load import load_model
from probe.models.toy import toy_model, toy_tokenizer

NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}  # fmt: skip
OUTER = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


def in_pairs(weight: np.ndarray, n_heads: int) -> np.ndarray:
    """GGUF keeps the two halves of a rotary pair beside each other."""
    halves = weight.reshape(n_heads, 2, -1, weight.shape[1])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def write(file: Path, hf: Any) -> Path:
    """What llama.cpp's converter makes of a Llama."""
    config, tokenizer = hf.config, toy_tokenizer()
    writer = GGUFWriter(file, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(config.vocab_size)
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([tokenizer.convert_ids_to_tokens(i) for i in range(len(tokenizer))])
    writer.add_token_types([3 if i < 3 else 1 for i in range(len(tokenizer))])
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_pad_token_id(2)
    for key, tensor in hf.state_dict().items():
        weight = tensor.numpy()
        if key in OUTER:
            writer.add_tensor(OUTER[key], weight)
            continue
        _, _, layer, part = key.removesuffix(".weight").split(".", 3)
        if NAMES[part] in ("attn_q", "attn_k"):
            q = NAMES[part] == "attn_q"
            n_heads = config.num_attention_heads if q else config.num_key_value_heads
            weight = in_pairs(weight, n_heads)
        writer.add_tensor(f"blk.{layer}.{NAMES[part]}.weight", np.ascontiguousarray(weight))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write(tmp_path / "tiny.gguf", toy_model("toy"))


TEXT = "When Mary and John went to the store"


def test_it_is_the_model_it_was_written_from(file: Path) -> None:
    toy, model = load_model("toy"), load_model(file)
    assert model.health["ok"] is True
    assert model.spec.source == "gguf"
    assert model.dims == toy.dims
    ours, theirs = (m.trace(TEXT, ["resid_post", "pattern"]) for m in (model, toy))
    assert ours.str_tokens == theirs.str_tokens
    for site in theirs:
        torch.testing.assert_close(ours[site], theirs[site], rtol=1e-5, atol=1e-5)


def test_the_second_load_unpacks_nothing(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_model(file)

    def convert(*_: object) -> None:
        pytest.fail("it was unpacked again")

    monkeypatch.setattr(sources, "_convert_gguf", convert)
    again = load_model(file)
    assert again.spec == first.spec
    tokens = torch.tensor([[3, 4, 5]])
    assert torch.equal(again.forward(tokens), first.forward(tokens))


def test_another_file_of_the_same_name_is_another_model(file: Path) -> None:
    first = load_model(file)
    write(file, toy_model("toy", seed=1))
    assert load_model(file).spec.weight_hash != first.spec.weight_hash


def test_what_is_kept_is_safetensors_and_no_half_of_it(file: Path, tmp_path: Path) -> None:
    load_model(file)
    kept = {path.suffix for path in (tmp_path / "home").rglob("*") if path.is_file()}
    assert ".safetensors" in kept
    assert kept <= {".safetensors", ".json", ".jinja"}
    assert not list((tmp_path / "home").rglob(".part-*"))


def test_a_file_cut_short_is_refused_and_leaves_nothing(file: Path, tmp_path: Path) -> None:
    data = file.read_bytes()
    for size in (len(data) // 2, len(data) - 1000):
        file.write_bytes(data[:size])
        with pytest.raises(ModelError, match=r"tiny\.gguf could not be loaded"):
            load_model(file)
    assert not list((tmp_path / "home").rglob("*.safetensors"))


def test_a_full_disk_is_found_before_it_is_full(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        free = 1000

    monkeypatch.setattr(sources.shutil, "disk_usage", lambda _: Full)
    with pytest.raises(ModelError, match=r"unpacking tiny\.gguf takes up to") as error:
        load_model(file)
    assert "set PROBE_HOME to a larger disk" in str(error.value)
