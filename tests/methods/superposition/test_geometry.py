"""Dimensionalities of shapes that are known exactly."""

import math

import pytest
import torch

from probe.methods.superposition.geometry import (
    dimensionality,
    dimensions_per_feature,
    feature_cosines,
    feature_groups,
)


def polygon(n: int) -> torch.Tensor:
    angle = 2 * math.pi / n * torch.arange(n)
    return torch.stack([angle.cos(), angle.sin()])


TETRAHEDRON = torch.tensor([[1.0, 1, -1, -1], [1, -1, 1, -1], [1, -1, -1, 1]]) / 3**0.5
SHAPES = {
    "digon": (torch.tensor([[1.0, -1.0]]), 1 / 2),
    "triangle": (polygon(3), 2 / 3),
    "pentagon": (polygon(5), 2 / 5),
    "tetrahedron": (TETRAHEDRON, 3 / 4),
    "alone": (torch.eye(3), 1.0),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_dimensionality_of_a_shape(shape: str) -> None:
    W, expected = SHAPES[shape]
    found = dimensionality(W[None])
    assert torch.allclose(found, torch.full_like(found, expected), atol=1e-5)
    assert found.sum() == pytest.approx(W.shape[0], abs=1e-4)
    assert dimensions_per_feature(W[None]) == pytest.approx(expected, abs=1e-5)


def test_nothing_has_no_dimension_and_no_group() -> None:
    W = torch.tensor([[1.0, 0.0, -1.0], [0.0, 0.0, 0.0]])
    assert dimensionality(W[None]).tolist() == [[0.5, 0.0, 0.5]]
    assert feature_groups(W) == [[0, 2]]
    assert feature_cosines(W[None])[0, 1].tolist() == [0, 0, 0]


def test_a_bipyramid_is_a_triangle_and_a_digon() -> None:
    W = torch.zeros(3, 5)
    W[:2, :3], W[2, 3:] = polygon(3), torch.tensor([1.0, -1.0])
    assert feature_groups(W) == [[0, 1, 2], [3, 4]]
    assert torch.allclose(dimensionality(W[None])[0], torch.tensor([2 / 3] * 3 + [1 / 2] * 2))
