"""Merging folders: against the formulas on whole tensors, and what is refused."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from families import build, tokenizer
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import probe
from probe.cli import app
from probe.core.errors import ModelError, OptionError, SizeError
from probe.models import checkpoints
from probe.models.merge import merge
from probe.models.merging import agree, linear, slerp_weights, trim

Folder = Callable[..., Path]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    """Writes tiny checkpoints that differ from one base by random amounts."""
    # several slices a tensor, so that slicing is part of what is tested
    monkeypatch.setattr(checkpoints, "_PER_SLICE", 500)

    def make(name: str, seed: int | None, family: str = "llama", **how: Any) -> Path:
        hf = build(family)
        if seed is not None:
            generator = torch.Generator().manual_seed(seed)
            for weight in hf.parameters():
                weight.data += 0.1 * torch.randn(weight.shape, generator=generator)
        hf.to(how.pop("dtype", torch.float32)).save_pretrained(tmp_path / name, **how)
        tokenizer().save_pretrained(tmp_path / name)
        return tmp_path / name

    return make


@pytest.fixture
def three(folder: Folder) -> tuple[Path, Path, Path]:
    return folder("base", None), folder("a", 1), folder("b", 2)


def tensors(path: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for file in path.glob("*.safetensors"):
        found |= load_file(file)
    return found


def double(path: Path) -> dict[str, torch.Tensor]:
    return {name: tensor.double() for name, tensor in tensors(path).items()}


def assert_equals(path: Path, right: dict[str, torch.Tensor]) -> None:
    made = tensors(path)
    assert made.keys() == right.keys()
    for name, tensor in made.items():
        assert torch.equal(tensor, right[name].to(tensor.dtype)), name


# --- each rule -----------------------------------------------------------------------------------


def test_linear(three: tuple[Path, ...], tmp_path: Path) -> None:
    _, a, b = map(double, three)
    merge(three[1:], out=tmp_path / "out", how="linear", weights=[0.3, 0.7])
    right = {name: linear([a[name], b[name]], [0.3, 0.7]) for name in a}
    assert_equals(tmp_path / "out", right)
    merge(three[1:], out=tmp_path / "even")
    assert_equals(tmp_path / "even", {name: 0.5 * a[name] + 0.5 * b[name] for name in a})


def test_slerp(three: tuple[Path, ...], tmp_path: Path) -> None:
    _, a, b = map(double, three)
    merge(three[1:], out=tmp_path / "out", how="slerp", t=0.25)
    made = double(tmp_path / "out")
    for name in a:
        u, v = a[name].flatten(), b[name].flatten()
        wa, wb = slerp_weights(float(u @ v), float(u.norm()), float(v.norm()), 0.25)
        torch.testing.assert_close(made[name], wa * a[name] + wb * b[name], rtol=1e-6, atol=1e-7)


def test_arithmetic(three: tuple[Path, ...], tmp_path: Path) -> None:
    base, a, b = map(double, three)
    options = {"how": "arithmetic", "weights": [1.0, -0.5], "scale": 0.8}
    merge(three[1:], base=three[0], out=tmp_path / "out", **options)
    right = {n: base[n] + 0.8 * ((a[n] - base[n]) - 0.5 * (b[n] - base[n])) for n in base}
    assert_equals(tmp_path / "out", right)


def test_ties_trims_over_the_whole_model(three: tuple[Path, ...], tmp_path: Path) -> None:
    base, a, b = map(double, three)
    merge(three[1:], base=three[0], out=tmp_path / "out", how="ties", keep=0.2, scale=0.7)
    trimmed = []
    for tuned in (a, b):
        flat = torch.cat([(tuned[n] - base[n]).flatten() for n in sorted(base)]).abs().float()
        least = float(flat.topk(round(0.2 * len(flat))).values[-1])
        trimmed.append({n: trim(tuned[n] - base[n], least) for n in base})
        shares = {n: float((trimmed[-1][n] != 0).double().mean()) for n in base}
        assert max(shares.values()) > 0.21  # not the same share of each tensor
    right = {n: base[n] + 0.7 * agree([delta[n] for delta in trimmed]) for n in base}
    assert_equals(tmp_path / "out", right)


def test_dare_is_seeded_and_right_in_the_mean(three: tuple[Path, ...], tmp_path: Path) -> None:
    base, a, b = map(double, three)

    def made(name: str, **options: Any) -> dict[str, torch.Tensor]:
        merge(three[1:], base=three[0], out=tmp_path / name, how="dare", **options)
        return double(tmp_path / name)

    one, again, other = made("1", drop=0.5), made("2", drop=0.5), made("3", drop=0.5, seed=1)
    name = "model.embed_tokens.weight"
    assert torch.equal(one[name], again[name])
    assert not torch.equal(one[name], other[name])
    change = one[name] - base[name]
    parts = [2 * (tuned[name] - base[name]) for tuned in (a, b)]
    sums = [torch.zeros_like(change), parts[0], parts[1], parts[0] + parts[1]]
    nearest = torch.stack([(change - one_sum).abs() for one_sum in sums])
    assert float(nearest.min(0).values.max()) < 1e-6
    counts = torch.bincount(nearest.argmin(0).flatten(), minlength=4) / change.numel()
    assert (counts - 0.25).abs().max() < 0.03  # the two masks are independent
    assert torch.equal(made("4", drop=0.0)[name].float(), (base[name] + sum(parts) / 2).float())


def test_dare_ties_drops_and_then_elects(three: tuple[Path, ...], tmp_path: Path) -> None:
    base, a, b = map(double, three)
    merge(three[1:], base=three[0], out=tmp_path / "out", how="dare_ties", drop=0.0)
    right = {n: base[n] + agree([a[n] - base[n], b[n] - base[n]]) for n in base}
    assert_equals(tmp_path / "out", right)


# --- the folder ----------------------------------------------------------------------------------


def test_the_folder_opens_in_transformers_and_here(three: tuple[Path, ...], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out = merge(three[1:], out=tmp_path / "out")
    hf = AutoModelForCausalLM.from_pretrained(out)
    assert AutoTokenizer.from_pretrained(out)("t3 t4")["input_ids"] == [3, 4]
    tokens = torch.tensor([[3, 4, 5]])
    model = probe.load_model(out)
    torch.testing.assert_close(model.forward(tokens), hf(tokens).logits, rtol=1e-4, atol=1e-4)
    record = json.loads((out / "merge.json").read_text())
    assert record["how"] == "linear"
    assert record["models"] == [str(path) for path in three[1:]]
    assert not list(tmp_path.glob(".part-*"))


def test_shards_and_half_precision_are_read(folder: Folder, tmp_path: Path) -> None:
    a = folder("a", 1, max_shard_size="20KB")
    assert len(list(a.glob("*.safetensors"))) > 1
    b = folder("b", 2, dtype=torch.bfloat16)
    out = merge([b, a], out=tmp_path / "out")
    ones, others = double(b), double(a)
    assert_equals(out, {n: 0.5 * ones[n] + 0.5 * others[n] for n in ones})
    assert {tensor.dtype for tensor in tensors(out).values()} == {torch.bfloat16}


def test_an_interrupted_merge_leaves_nothing(
    three: tuple[Path, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints, "_pieces", stop)
    before = set(tmp_path.iterdir())
    with pytest.raises(KeyboardInterrupt):
        merge(three[1:], out=tmp_path / "out")
    assert set(tmp_path.iterdir()) == before


# --- tied, missing and unequal tensors -----------------------------------------------------------


def rewrite(path: Path, change: Callable[[dict[str, torch.Tensor]], None], **config: Any) -> None:
    held = tensors(path)
    change(held)
    save_file(held, path / "model.safetensors", metadata={"format": "pt"})
    settings = json.loads((path / "config.json").read_text()) | config
    (path / "config.json").write_text(json.dumps(settings))


def tie(held: dict[str, torch.Tensor]) -> None:
    held.pop("lm_head.weight")


def test_a_tied_tensor_is_merged_once_also_if_it_is_written_twice(
    folder: Folder, tmp_path: Path
) -> None:
    a, b = folder("a", 1), folder("b", 2)
    rewrite(a, tie, tie_word_embeddings=True)
    same = {"lm_head.weight": tensors(b)["model.embed_tokens.weight"].clone()}
    rewrite(b, lambda held: held.update(same), tie_word_embeddings=True)
    out = merge([a, b], out=tmp_path / "out")
    assert tensors(out).keys() == tensors(a).keys()
    model = probe.load_model(out)
    assert torch.equal(model.weights.W_E, model.weights.W_U.T)


def test_tied_and_untied_together_become_untied(folder: Folder, tmp_path: Path) -> None:
    a, b = folder("a", 1), folder("b", 2)
    rewrite(a, tie, tie_word_embeddings=True)
    out = merge([a, b], out=tmp_path / "out")
    ones, others = double(a), double(b)
    head = 0.5 * ones["model.embed_tokens.weight"] + 0.5 * others["lm_head.weight"]
    assert torch.equal(double(out)["lm_head.weight"], head.float().double())
    model = probe.load_model(out)
    assert not torch.equal(model.weights.W_E, model.weights.W_U.T)


def test_unequal_checkpoints_are_named_by_tensor_and_shape(folder: Folder, tmp_path: Path) -> None:
    a, b = folder("a", 1), folder("b", 2)
    norm, wide = "model.norm.weight", "model.layers.0.mlp.up_proj.weight"

    def spoil(held: dict[str, torch.Tensor]) -> None:
        held["extra.weight"] = held.pop(norm)
        held[wide] = held[wide][:40].clone()

    rewrite(b, spoil)
    with pytest.raises(ModelError) as error:
        merge([a, b], out=tmp_path / "out")
    message = str(error.value)
    assert f"{b} lacks {norm}" in message
    assert f"only {b} has extra.weight" in message
    assert f"{wide} [40, 32] (expected [48, 32])" in message
    with pytest.raises(ModelError, match="other shapes"):
        probe.weight_task_vector(a, b)
    out = merge([a, b], out=tmp_path / "out", missing="keep")
    for name in (norm, wide):
        assert torch.equal(tensors(out)[name], tensors(a)[name])
    other = "model.embed_tokens.weight"
    assert not torch.equal(tensors(out)[other], tensors(a)[other])


def test_whole_numbers_are_copied_and_must_agree(folder: Folder, tmp_path: Path) -> None:
    a, b = folder("a", 1), folder("b", 2)
    mask = {"model.mask": torch.tensor([[1, 0], [0, 1]])}
    for path in (a, b):
        rewrite(path, lambda held: held.update(mask))
    out = merge([a, b], out=tmp_path / "out")
    assert torch.equal(tensors(out)["model.mask"], mask["model.mask"])
    rewrite(b, lambda held: held.update({"model.mask": 1 - mask["model.mask"]}))
    with pytest.raises(ModelError, match=r"model.mask is stored as I64 and differs"):
        merge([a, b], out=tmp_path / "other")


def test_numbers_that_overflow_are_refused(three: tuple[Path, ...], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is not finite in F32"):
        merge(three[1:], base=three[0], out=tmp_path / "out", how="arithmetic", scale=1e300)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"how": "tiez"}, 'no way to merge called "tiez"'),
        ({"how": "ties"}, "adds what tuning changed"),
        ({"how": "linear", "weights": [1.0]}, "1 weights for 2 models"),
        ({"how": "linear", "t": 0.5}, 'linear has no option "t"'),
        ({"how": "slerp", "base": True}, "slerp takes no base"),
        ({"how": "dare", "base": True, "drop": 1.0}, "dare: drop=1.0"),
    ],
)
def test_what_makes_no_sense_is_refused(
    three: tuple[Path, ...], tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    if "base" in options:
        options = options | {"base": three[0]}
    with pytest.raises(OptionError, match=words):
        merge(three[1:], out=tmp_path / "out", **options)


def test_places_that_do_not_do_are_refused(
    three: tuple[Path, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(OptionError, match="is already there"):
        merge(three[1:], out=three[0])
    with pytest.raises(OptionError, match="given 1 models"):
        merge(three[1:2], out=tmp_path / "out")
    with pytest.raises(OptionError, match="slerp of 3 models"):
        merge(three, out=tmp_path / "out", how="slerp")
    with pytest.raises(ModelError, match="made in memory and has no files"):
        merge(["toy", "toy"], out=tmp_path / "out")
    monkeypatch.setattr(checkpoints.shutil, "disk_usage", lambda _: type("", (), {"free": 10}))
    with pytest.raises(SizeError, match="GiB and 0.00 are free"):
        merge(three[1:], out=tmp_path / "out")


def test_files_that_cannot_be_read_are_named(folder: Folder, tmp_path: Path) -> None:
    a, b = folder("a", 1), folder("b", 2, max_shard_size="20KB")
    next(b.glob("*.safetensors")).unlink()
    with pytest.raises(ModelError, match="is missing, damaged or cut short"):
        merge([a, b], out=tmp_path / "out")
    (b / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ModelError, match="is no index of shards"):
        merge([a, b], out=tmp_path / "out")
    (a / "config.json").write_text('{"model_type": "no such"}')
    with pytest.raises(ModelError, match="describes no causal language model"):
        merge([a, a], out=tmp_path / "out")


def test_the_command_line_merges_too(three: tuple[Path, ...], tmp_path: Path) -> None:
    base, a, b = map(str, three)
    words = ["merge", a, b, "--out", str(tmp_path / "one"), "--how", "arithmetic", "--base", base]
    done = CliRunner().invoke(app, [*words, "--weights", "1,0.5", "--scale", "0.5"])
    assert done.exit_code == 0, done.output
    options = {"how": "arithmetic", "weights": [1, 0.5], "scale": 0.5}
    merge([a, b], base=base, out=tmp_path / "other", **options)
    assert_equals(tmp_path / "one", tensors(tmp_path / "other"))


# --- memory --------------------------------------------------------------------------------------

_PEAK = """
import sys
from probe.core.provenance import peak_bytes
from probe.models.merge import merge
merge(sys.argv[2:], base="smollm2", out=sys.argv[1], how="ties", keep=0.2)
print(peak_bytes() // 2**20)
"""


@pytest.mark.slow
def test_merging_models_of_smollm2s_size_takes_little_memory(
    smollm2: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TIES, the hungriest rule, of two models onto a third: within 1.5 GB, Python included."""
    monkeypatch.delenv("PROBE_HOME")
    done = subprocess.run(
        [sys.executable, "-c", _PEAK, str(tmp_path / "out"), "smollm2", "smollm2"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert int(done.stdout.split()[-1]) < 1500
    assert_equals(tmp_path / "out", tensors(checkpoints.open_checkpoint("smollm2").folder))
