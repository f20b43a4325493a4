"""Task vectors in weights: an algebra that is exact, and tables of norms and cosines."""

from pathlib import Path

import numpy as np
import pytest
import torch
from families import build, tokenizer
from safetensors.torch import load_file

import probe
from probe.core.errors import OptionError, ProbeWarning
from probe.models.task_vector import WeightVector


def write(path: Path, seed: int | None, scale: float = 0.1) -> Path:
    hf = build("gpt2")
    if seed is not None:
        generator = torch.Generator().manual_seed(seed)
        for weight in hf.parameters():
            weight.data += scale * torch.randn(weight.shape, generator=generator)
    hf.save_pretrained(path)
    tokenizer().save_pretrained(path)
    return path


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write(tmp_path / "base", None)


@pytest.fixture
def vectors(tmp_path: Path, base: Path) -> list[WeightVector]:
    tuned = [write(tmp_path / f"tuned {seed}", seed) for seed in (1, 2, 3)]
    return [probe.weight_task_vector(base, one) for one in tuned]


def tensors(path: Path) -> dict[str, torch.Tensor]:
    return load_file(path / "model.safetensors")


def assert_same(one: Path, other: Path) -> None:
    ours, theirs = tensors(one), tensors(other)
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name


def test_adding_gives_the_tuned_model_and_subtracting_the_first_bit_for_bit(
    base: Path, vectors: list[WeightVector], tmp_path: Path
) -> None:
    there = vectors[0].apply(out=tmp_path / "there")
    assert_same(there, tmp_path / "tuned 1")
    back = (-vectors[0]).apply(there, out=tmp_path / "back")
    assert_same(back, base)
    assert_same((vectors[0] - vectors[0]).apply(out=tmp_path / "none"), base)


def test_elsewhere_adding_and_subtracting_is_off_by_one_last_place_at_most(
    vectors: list[WeightVector], tmp_path: Path
) -> None:
    start = tmp_path / "tuned 3"
    vector = 0.3 * vectors[0] + 0.7 * vectors[1]
    there = vector.apply(start, out=tmp_path / "there")
    back = vector.apply(there, out=tmp_path / "back", scale=-1.0)
    before, between, after = map(tensors, (start, there, back))
    for name in before:
        largest = torch.maximum(before[name].abs(), between[name].abs())
        place = torch.nextafter(largest, torch.tensor(torch.inf)) - largest
        assert ((after[name] - before[name]).abs() <= place).all(), name


def test_sums_multiples_and_analogies_are_their_formulas(
    base: Path, vectors: list[WeightVector], tmp_path: Path
) -> None:
    a, b, c = vectors
    out = (c + (b - a)).apply(out=tmp_path / "out", scale=0.5)
    pre, one, two, three = map(tensors, (base, *(tmp_path / f"tuned {seed}" for seed in (1, 2, 3))))
    for name, made in tensors(out).items():
        change = three[name].double() - pre[name] + two[name].double() - one[name].double()
        torch.testing.assert_close(made, (pre[name] + 0.5 * change).float(), rtol=1e-6, atol=1e-7)
    assert repr(2.0 * a).startswith("WeightVector(2·(")


def test_norms_and_cosines_are_those_of_the_tensors(
    base: Path, vectors: list[WeightVector], tmp_path: Path
) -> None:
    named = {"a": vectors[0], "b": 2.0 * vectors[0], "c": vectors[1]}
    norms = probe.compare_weight_vectors(named)
    pre, one = tensors(base), tensors(tmp_path / "tuned 1")
    for layer in range(3):
        names = [name for name in pre if f".h.{layer}." in name]
        change = torch.cat([(one[name] - pre[name]).flatten() for name in names]).norm()
        before = torch.cat([pre[name].flatten() for name in names]).norm()
        row = norms.frame[(norms.frame["layer"] == layer)].set_index("vector")
        assert row["value"]["a"] == pytest.approx(float(change), rel=1e-4)
        assert row["relative"]["a"] == pytest.approx(float(change / before), rel=1e-4)
        assert row["value"]["b"] == pytest.approx(2 * float(change), rel=1e-4)
    cosines = probe.compare_weight_vectors(named, measure="cosine", by="tensor")
    value = cosines.frame.set_index("pair")["value"]
    np.testing.assert_allclose(value["a · b"], 1.0)
    assert (value["a · c"].abs() < 0.7).all()
    assert abs(value["a · c"].mean()) < 0.1
    assert cosines.frame["layer"].isna().sum() == 3 * sum(".h." not in name for name in pre)


@pytest.mark.parametrize("measure", ["norm", "cosine"])
@pytest.mark.parametrize("by", ["layer", "tensor"])
def test_tables_are_drawn_saved_and_made_again(
    vectors: list[WeightVector], measure: str, by: str
) -> None:
    result = probe.compare_weight_vectors(
        dict(zip("abc", vectors, strict=True)), measure=measure, by=by
    )
    assert len(result.plot().data) > 0
    result.save()
    assert probe.load_result(result.id).frame.equals(result.frame)
    again = probe.rerun(result.id)
    assert again.same, again.about


def test_vectors_of_different_origins_are_compared_with_a_warning(
    vectors: list[WeightVector], tmp_path: Path
) -> None:
    other = probe.weight_task_vector(tmp_path / "tuned 2", tmp_path / "tuned 3")
    with pytest.warns(ProbeWarning, match="start from different checkpoints"):
        probe.compare_weight_vectors({"a": vectors[0], "b": other}, measure="cosine")


def test_nothing_to_compare_is_refused(vectors: list[WeightVector]) -> None:
    with pytest.raises(OptionError, match="no vector was given"):
        probe.compare_weight_vectors({})
    with pytest.raises(OptionError, match="cosines of 1 vectors"):
        probe.compare_weight_vectors({"a": vectors[0]}, measure="cosine")
    with pytest.raises(OptionError, match='no measure "angle"'):
        probe.compare_weight_vectors({"a": vectors[0]}, measure="angle")
