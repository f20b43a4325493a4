"""Metrics of a reconstruction against closed forms on constructed activations."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from probe.dictionaries.moments import Moments, largest_cosines


def measured(x: torch.Tensor, made: torch.Tensor, features: torch.Tensor, cuts: int = 1) -> dict:
    moments = Moments(features.shape[1])
    for parts in zip(x.chunk(cuts), made.chunk(cuts), features.chunk(cuts), strict=True):
        moments.add(*parts)
    return moments.numbers()


def test_a_perfect_reconstruction() -> None:
    x = torch.randn(50, 6)
    numbers = measured(x, x.clone(), torch.ones(50, 3))
    assert numbers["explained_variance"] == 1
    assert numbers["squared_error"] == 0
    for name in ("cosine", "norm_ratio", "relative_bias"):
        assert numbers[name] == pytest.approx(1)


def test_the_mean_explains_nothing_wherever_the_mean_is() -> None:
    x = torch.randn(400, 5, dtype=torch.float64) + 1000
    mean = x.mean(0).expand_as(x)
    assert measured(x, mean, torch.ones(400, 2))["explained_variance"] == pytest.approx(0, abs=1e-9)


@settings(max_examples=20)
@given(st.floats(0.05, 1.5), st.integers(0, 1000))
def test_shrinkage(share: float, seed: int) -> None:
    """x̂ = c·x: norm ratio c, relative bias c, error (1 − c)²E‖x‖²."""
    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    numbers = measured(x, share * x, torch.ones(64, 1))
    assert numbers["norm_ratio"] == pytest.approx(share)
    assert numbers["relative_bias"] == pytest.approx(share)
    assert numbers["cosine"] == pytest.approx(1)
    size = float(x.square().sum(1).mean())
    assert numbers["squared_error"] == pytest.approx((1 - share) ** 2 * size, abs=1e-12)


def test_noise_of_a_known_size() -> None:
    """x = ±a e₁, x̂ = x ± b e₂: EV = 1 − b²/a² exactly, cosine a/√(a² + b²)."""
    a, b = 3.0, 0.75
    sign = torch.tensor([1.0, -1.0, 1.0, -1.0])
    x = torch.stack([a * sign, torch.zeros(4)], 1)
    made = torch.stack([a * sign, b * torch.tensor([1.0, 1.0, -1.0, -1.0])], 1)
    numbers = measured(x, made, torch.ones(4, 1))
    assert numbers["explained_variance"] == pytest.approx(1 - b**2 / a**2)
    assert numbers["cosine"] == pytest.approx(a / math.hypot(a, b))
    assert numbers["relative_bias"] == pytest.approx((a**2 + b**2) / a**2)


def test_batches_do_not_change_the_whole() -> None:
    """Batches of other means: averaging their explained variances would give another number."""
    x = torch.cat([torch.randn(30, 4) + 5 * i for i in range(4)])
    made, features = x + 0.5 * torch.randn(120, 4), torch.relu(torch.randn(120, 7))
    whole, parts = measured(x, made, features), measured(x, made, features, cuts=4)
    assert parts == pytest.approx(whole)
    each = [measured(*p)["explained_variance"] for p in zip(
        x.chunk(4), made.chunk(4), features.chunk(4), strict=True)]  # fmt: skip
    assert abs(sum(each) / 4 - whole["explained_variance"]) > 1e-3


def test_float32_sums_do_not_lose_a_small_variance() -> None:
    x = torch.randn(20_000, 2) * 0.01 + 300
    made = x.double().mean(0).float() + 0.5 * (x - x.double().mean(0).float())
    ours = measured(x, made, torch.ones(len(x), 1), cuts=50)["explained_variance"]
    d = x.double()
    exact = 1 - float((d - made.double()).square().sum() / (d - d.mean(0)).square().sum())
    assert ours == pytest.approx(exact, rel=1e-3)
    assert ours == pytest.approx(0.75, abs=1e-2)


def test_sparsity_is_counted() -> None:
    features = torch.tensor([[0.0, 1.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 0.0], [0.0, 1.0, 0.5]])
    moments = Moments(3)
    moments.add(torch.randn(4, 2), torch.randn(4, 2), features)
    numbers = moments.numbers()
    assert moments.density.tolist() == [0, 0.75, 0.25]
    assert numbers["l0"] == 1.0
    assert numbers["l1"] == pytest.approx(4.5 / 4)
    assert numbers["dead_share"] == pytest.approx(1 / 3)
    assert numbers["dense_share"] == pytest.approx(2 / 3)


def test_no_variance_is_not_a_number() -> None:
    x = torch.ones(8, 3)
    assert math.isnan(measured(x, x, torch.ones(8, 1))["explained_variance"])


def test_largest_cosines_of_rows_at_known_angles() -> None:
    rows = torch.tensor([[1.0, 0.0], [0.0, 3.0], [1.0, 1.0], [-2.0, 0.0]])
    half = math.sqrt(0.5)
    assert largest_cosines(rows, block=3).tolist() == pytest.approx([half, half, half, 0])
    both = torch.stack([rows, rows])
    assert largest_cosines(both).tolist() == pytest.approx([half, half, half, 0])
