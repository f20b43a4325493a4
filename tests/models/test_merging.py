"""Each merging rule against its published formula, written out entry by entry."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from probe.models.merging import agree, drop, linear, nth_largest, slerp_weights, trim


def slerp(a: torch.Tensor, b: torch.Tensor, t: float) -> torch.Tensor:
    return linear([a, b], slerp_weights(float(a @ b), float(a.norm()), float(b.norm()), t))


def test_slerp_walks_the_circle_at_even_speed() -> None:
    a, b = torch.tensor([1.0, 0.0]).double(), torch.tensor([0.0, 1.0]).double()
    for t in (0.0, 0.25, 0.5, 1.0):
        angle = t * math.pi / 2
        right = torch.tensor([math.cos(angle), math.sin(angle)]).double()
        torch.testing.assert_close(slerp(a, b, t), right)


@settings(max_examples=30)
@given(seed=st.integers(0, 999), t=st.floats(0, 1))
def test_slerp_of_equal_norms_keeps_the_norm_and_divides_the_angle(seed: int, t: float) -> None:
    a, b = torch.randn(2, 7, generator=torch.Generator().manual_seed(seed)).double()
    a, b = a / a.norm(), b / b.norm()
    made = slerp(a, b, t)
    assert float(made.norm()) == pytest.approx(1.0, abs=1e-9)
    angle = math.acos(float(a @ b))
    assert float(a @ made) == pytest.approx(math.cos(t * angle), abs=1e-9)


@pytest.mark.parametrize("factor", [1.0, 2.5, -1.0, 0.0])
def test_slerp_of_parallel_opposed_and_zero_vectors_is_linear(factor: float) -> None:
    a = torch.tensor([1.0, -2.0, 3.0]).double()
    torch.testing.assert_close(slerp(a, factor * a, 0.25), 0.75 * a + 0.25 * factor * a)


def test_slerp_passes_over_to_linear_without_a_step() -> None:
    a = torch.tensor([1.0, 0.0]).double()
    for angle in (0.9e-4, 1.1e-4):
        b = torch.tensor([math.cos(angle), math.sin(angle)]).double()
        assert float((slerp(a, b, 0.3) - (0.7 * a + 0.3 * b)).abs().max()) < 1e-8


def ties_by_hand(deltas: list[list[float]]) -> list[float]:
    out = []
    for entries in zip(*deltas, strict=True):
        positive, negative = sum(e for e in entries if e > 0), -sum(e for e in entries if e < 0)
        side = 1 if positive > negative else -1 if negative > positive else 0
        voters = [e for e in entries if e * side > 0]
        out.append(sum(voters) / len(voters) if voters else 0.0)
    return out


def test_ties_elects_a_sign_and_averages_those_who_have_it() -> None:
    deltas = [[3.0, -1.0, 0.0, 2.0, 0.0], [-1.0, -2.0, 4.0, -2.0, 0.0], [1.0, 4.0, 0.0, 0.0, 0.0]]
    made = agree([torch.tensor(delta) for delta in deltas]).tolist()
    assert made == ties_by_hand(deltas) == [2.0, 4.0, 4.0, 0.0, 0.0]


@settings(max_examples=30)
@given(st.lists(st.lists(st.integers(-3, 3), min_size=4, max_size=4), min_size=1, max_size=4))
def test_ties_is_its_definition(deltas: list[list[int]]) -> None:
    made = agree([torch.tensor(delta).double() for delta in deltas])
    torch.testing.assert_close(made, torch.tensor(ties_by_hand(deltas)).double())


@settings(max_examples=40)
@given(
    seed=st.integers(0, 999),
    sizes=st.lists(st.integers(1, 50), min_size=1, max_size=4),
    share=st.floats(0, 1),
    scale=st.sampled_from([1e-30, 1.0, 1e20]),
)
def test_the_nth_largest_is_found_without_sorting(
    seed: int, sizes: list[int], share: float, scale: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    pieces = [scale * torch.randn(size, generator=generator).double() for size in sizes]
    everything = torch.cat(pieces).abs().float()
    n = 1 + int(share * (len(everything) - 1))
    threshold = nth_largest(lambda: pieces, n)
    assert threshold == float(everything.topk(n).values[-1])
    assert sum(int((trim(piece, threshold) != 0).sum()) for piece in pieces) == n


def test_equal_magnitudes_at_the_threshold_are_all_kept() -> None:
    delta = torch.tensor([1.0, -1.0, 0.5])
    assert trim(delta, nth_largest(lambda: [delta], 1)).tolist() == [1.0, -1.0, 0.0]


@pytest.mark.parametrize("p", [0.0, 0.5, 0.9])
def test_dare_drops_that_share_and_keeps_the_sum_in_the_mean(p: float) -> None:
    delta = torch.rand(200_000, generator=torch.Generator().manual_seed(1)).double() + 0.5
    made = drop(delta, p, torch.Generator().manual_seed(0))
    kept = made != 0
    assert float(kept.double().mean()) == pytest.approx(1 - p, abs=0.005)
    torch.testing.assert_close(made[kept], delta[kept] / (1 - p))
    assert float(made.mean() / delta.mean()) == pytest.approx(1.0, abs=0.02)
    raw = drop(delta, p, torch.Generator().manual_seed(0), rescale=False)
    torch.testing.assert_close(raw, made * (1 - p))
    assert torch.equal(made, drop(delta, p, torch.Generator().manual_seed(0)))
