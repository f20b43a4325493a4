"""load_model: what it accepts, what it decides, and that a folder comes back as it was saved."""

import shutil
from pathlib import Path
from typing import Any

import families
import pytest
import torch
from safetensors.torch import load_file, save_file

from probe.core.errors import ModelError, OptionError, TaskError
from probe.models.load import load_model
from probe.models.sources import hash_weights
from probe.models.toy import toy_model, toy_tokenizer

TOKENS = torch.tensor([[3, 4, 5, 6, 7]])


def save(folder: Path, name: str = "llama") -> Any:
    hf = families.build(name)
    hf.save_pretrained(folder)
    families.tokenizer().save_pretrained(folder)
    return hf


def test_a_toy_is_the_same_each_time() -> None:
    one, two = load_model("toy"), load_model("toy")
    assert one.spec == two.spec
    assert torch.equal(one.forward(TOKENS), two.forward(TOKENS))
    assert one.spec.weight_hash != load_model("toy-mha").spec.weight_hash


def test_making_a_toy_leaves_the_random_state_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    toy_model("toy")
    assert torch.equal(torch.rand(1), expected)


def test_the_spec_says_what_was_loaded() -> None:
    spec = load_model("toy", dtype="float64", bos=True).spec
    assert (spec.name, spec.source, spec.dtype, spec.device) == ("toy", "random", "float64", "cpu")
    assert (spec.bos, spec.bos_asked) == (True, True)
    assert spec.architecture == "LlamaForCausalLM"
    assert spec.n_params == sum(p.numel() for p in toy_model("toy").parameters())


@pytest.mark.parametrize(("bos", "first"), [(True, "<bos>"), (False, "When"), (None, "When")])
def test_bos_is_put_there_or_not(bos: bool | None, first: str) -> None:
    assert load_model("toy", bos=bos).trace("When Mary", "embed").str_tokens[0][0] == first


def test_a_model_object_is_taken_as_it_is() -> None:
    hf = toy_model("toy", seed=3)
    expected = hf(TOKENS).logits
    model = load_model(hf, tokenizer=toy_tokenizer())
    assert model.spec.source == "object"
    torch.testing.assert_close(model.forward(TOKENS), expected)


@pytest.mark.parametrize("name", families.FAMILIES)
def test_a_folder_gives_what_was_saved_in_it(name: str, tmp_path: Path) -> None:
    hf = save(tmp_path, name)
    model = load_model(str(tmp_path))
    assert model.spec.source == "folder"
    assert model.health["ok"] is True
    torch.testing.assert_close(model.forward(TOKENS), hf(TOKENS).logits, rtol=1e-5, atol=1e-5)


def test_a_path_object_is_a_folder_too(tmp_path: Path) -> None:
    save(tmp_path)
    assert load_model(tmp_path).spec.location == str(tmp_path)


def test_the_weight_hash_names_the_weights(tmp_path: Path) -> None:
    first, copy = tmp_path / "first", tmp_path / "copy"
    save(first)
    shutil.copytree(first, copy)
    name = load_model(first).spec.weight_hash
    assert name == load_model(first).spec.weight_hash == load_model(copy).spec.weight_hash
    weights = load_file(copy / "model.safetensors")
    weights["lm_head.weight"][0, 0] += 1e-3
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    assert load_model(copy).spec.weight_hash != name


def test_the_hash_of_an_object_changes_with_one_weight() -> None:
    hf = families.build("gpt2")
    before = hash_weights(hf)
    assert before == hash_weights(families.build("gpt2"))
    hf.transformer.h[1].ln_1.weight.data[3] += 1e-3
    assert hash_weights(hf) != before


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", torch.float16])
def test_half_precision_from_a_folder_reports_its_drift(tmp_path: Path, dtype: Any) -> None:
    save(tmp_path)
    model = load_model(tmp_path, dtype=dtype)
    assert model.dtype is (dtype if isinstance(dtype, torch.dtype) else getattr(torch, dtype))
    assert model.trace("t3 t4", "resid_post.0")["resid_post", 0].dtype is model.dtype
    drift = {row.name: row.value for row in model.checks}["dtype drift"]
    assert "KL" in str(drift)
    assert model.health["ok"] is True


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"dtype": "flot16"}, 'there is no dtype "flot16"\nTry: did you mean "float16"?'),
        ({"dtype": torch.int8}, 'there is no dtype "int8"'),
        ({"device": "gpu"}, "there is no device 'gpu' here"),
        ({"device": "meta"}, "there is no device 'meta' here"),
        ({"device": "cuda:99"}, "there is no device 'cuda:99' here"),
    ],
)
def test_dtypes_and_devices_that_are_not_there(how: dict[str, Any], said: str) -> None:
    with pytest.raises((OptionError, ModelError)) as error:
        load_model("toy", **how)
    assert said in str(error.value)
    assert "Traceback" not in str(error.value)


@pytest.mark.parametrize("thing", [3, None, [], torch.nn.Linear(2, 2)])
def test_things_that_are_no_model(thing: object) -> None:
    with pytest.raises(ModelError, match=f"load_model was given a {type(thing).__name__}") as error:
        load_model(thing)
    assert "a name, a path, or a Hugging Face model" in str(error.value)


def test_a_model_object_without_its_tokenizer() -> None:
    with pytest.raises(ModelError, match="a model object comes without tokenizer"):
        load_model(toy_model("toy"))


def test_bos_of_a_tokenizer_that_has_none() -> None:
    tokenizer = toy_tokenizer().__class__(tokenizer_object=toy_tokenizer()._tokenizer)
    with pytest.raises(TaskError, match="bos=True, and this tokenizer has no BOS token"):
        load_model(toy_model("toy"), tokenizer=tokenizer, bos=True)


def test_an_architecture_that_does_not_run_in_a_dtype_says_so() -> None:
    with pytest.raises(ModelError, match="MixtralForCausalLM does not run in float64 on cpu"):
        load_model(families.build("mixtral"), tokenizer=families.tokenizer(), dtype="float64")


def test_weights_that_give_no_numbers() -> None:
    hf = families.build("llama")
    hf.model.norm.weight.data[0] = float("nan")
    with pytest.raises(ModelError, match=r"the logits of .* in float32 are not finite"):
        load_model(hf, tokenizer=families.tokenizer())
