"""Packings against optima that are known."""

import math

import numpy as np
import pytest
import torch

from probe.core.errors import OptionError
from probe.methods.superposition import packing
from probe.methods.superposition.packing import pack_directions, pair_angles, welch_bound


def test_the_bound_is_met_by_a_simplex_and_by_what_fits() -> None:
    n = 6
    simplex = torch.eye(n) - 1 / n  # n vectors of n - 1 dimensions
    assert pair_angles(simplex).largest == pytest.approx(welch_bound(n, n - 1), abs=1e-6)
    assert welch_bound(5, 5) == welch_bound(3, 5) == 0
    with pytest.raises(OptionError, match="0 directions in 3 dimensions"):
        welch_bound(0, 3)


def test_what_cannot_be_packed_or_measured() -> None:
    for options in ({"n": 0}, {"d": 0}, {"steps": 0}, {"lr": 0.0}):
        with pytest.raises(OptionError, match="0"):
            pack_directions(**{"n": 2, "d": 2, **options})
    for vectors in (torch.ones(0, 3), torch.full((2, 2), torch.nan)):
        with pytest.raises(OptionError, match="vectors of shape"):
            pair_angles(vectors)


@pytest.mark.parametrize(("n", "d", "optimum"), [(5, 2, math.cos(math.pi / 5)), (6, 3, 5**-0.5)])
def test_known_best_packings_are_found(n: int, d: int, optimum: float) -> None:
    largest = min(pair_angles(pack_directions(n, d, steps=400, seed=s)).largest for s in range(3))
    assert optimum - 1e-4 < largest < optimum * 1.05


def test_packing_beats_random_and_never_the_bound() -> None:
    packed, random = pack_directions(60, 10, steps=60), torch.randn(60, 10)
    assert welch_bound(60, 10) <= pair_angles(packed).largest < pair_angles(random).largest
    assert packed.norm(dim=1).tolist() == pytest.approx([1] * 60, abs=1e-5)


def test_angles_in_blocks_are_those_of_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "_BLOCK", 7)
    vectors = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
    unit = (vectors / vectors.norm(dim=1, keepdim=True)).double().numpy()
    signed = (unit @ unit.T)[np.triu_indices(40, 1)]
    cosine = abs(signed)
    found = pair_angles(vectors, within=10.0)
    assert found.largest == pytest.approx(cosine.max(), rel=1e-5)
    assert found.mean == pytest.approx(signed.mean(), rel=1e-5)
    assert found.sd == pytest.approx(signed.std(), rel=1e-5)
    assert found.near == pytest.approx((cosine <= math.sin(math.radians(10))).mean(), abs=1e-9)


def test_a_zero_vector_is_orthogonal_to_all() -> None:
    assert pair_angles(torch.tensor([[1.0, 0.0], [0.0, 0.0]])).largest == 0
