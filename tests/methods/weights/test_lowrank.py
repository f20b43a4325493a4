"""Low-rank products against the dense matrices they stand for."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from probe.methods.lowrank import LowRank, positive_share, product, product_norms


def drawn(seed: int, n: int, m: int, k: int, rank: int) -> LowRank:
    generator = torch.Generator().manual_seed(seed)
    left = torch.randn(n, m, rank, generator=generator, dtype=torch.float64)
    return LowRank(left, torch.randn(n, rank, k, generator=generator, dtype=torch.float64))


def dense(product: LowRank) -> torch.Tensor:
    return product.left @ product.right


@settings(max_examples=15)
@given(st.integers(0, 999), st.integers(3, 9), st.integers(1, 3))
def test_norms_singular_values_and_eigenvalues_are_those_of_the_dense_matrix(
    seed: int, width: int, rank: int
) -> None:
    one = drawn(seed, 2, width, width, rank)
    whole = dense(one)
    torch.testing.assert_close(one.norm, torch.linalg.matrix_norm(whole))
    left, values, right = one.svd
    torch.testing.assert_close(values, torch.linalg.svdvals(whole)[:, :rank])
    torch.testing.assert_close(left * values[:, None] @ right, whole)
    ours, truth = one.eigenvalues, torch.linalg.eigvals(whole)
    torch.testing.assert_close(ours.sum(-1).real, whole.diagonal(dim1=1, dim2=2).sum(-1))
    torch.testing.assert_close(
        ours.abs().sort(descending=True).values,
        truth.abs().sort(descending=True).values[:, :rank],
        rtol=1e-5,
        atol=1e-5,
    )


def test_products_and_transposes_are_those_of_the_dense_matrices() -> None:
    a, b = drawn(1, 3, 5, 7, 2), drawn(2, 3, 7, 6, 4)
    torch.testing.assert_close(dense(a @ b), dense(a) @ dense(b))
    torch.testing.assert_close(dense(a.mT), dense(a).mT)
    torch.testing.assert_close(dense(a[1]), dense(a)[1])


def test_norms_of_all_pairs_in_one_product() -> None:
    a, b = drawn(1, 3, 5, 7, 2), drawn(2, 4, 7, 6, 3)
    norms = product_norms(a.without_left, b.without_right)
    for i in range(3):
        for j in range(4):
            whole = torch.linalg.matrix_norm(dense(a)[i] @ dense(b)[j])
            torch.testing.assert_close(norms[i, j], whole)


@pytest.mark.parametrize(("sign", "share"), [(1.0, 1.0), (-1.0, -1.0)])
def test_the_share_of_a_matrix_that_enlarges_is_one(sign: float, share: float) -> None:
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert float(positive_share(LowRank(sign * x, x.T).eigenvalues)) == pytest.approx(share)


def test_the_share_of_a_rotation_is_its_cosine() -> None:
    angle = torch.tensor(1.0, dtype=torch.float64)
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()]).view(2, 2)
    eye = torch.eye(2, dtype=torch.float64)
    assert float(positive_share(LowRank(eye, turn).eigenvalues)) == pytest.approx(
        float(angle.cos())
    )


def test_a_matrix_of_nothing_has_no_share() -> None:
    zero = LowRank(torch.zeros(2, 5, 3), torch.zeros(2, 3, 5))
    assert positive_share(zero.eigenvalues).tolist() == [0.0, 0.0]


def test_what_rounding_leaves_of_a_cancelled_sum_is_zero() -> None:
    a = torch.tensor([[1e8, 1.0, -1e8]])
    b = torch.tensor([[1.0], [1e-3], [1.0]])
    assert product(a, b).item() == 0.0
    assert product(a, b * torch.tensor([[1.0], [1.0], [-1.0]])).item() == pytest.approx(2e8)
