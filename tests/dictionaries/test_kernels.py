"""Sparse products equal the dense ones, and hand-written gradients equal autograd's."""

from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from probe.dictionaries import candidates, sparse
from probe.dictionaries.candidates import batchtopk_by_candidates, topk_by_candidates
from probe.dictionaries.kernels import Code, batchtopk_code, topk_code
from probe.dictionaries.recipe import Recipe
from probe.dictionaries.sparse import sparse_step
from probe.dictionaries.step import Batch, initial_parameters

D_IN, D_OUT, D_SAE, ROWS, K = 12, 9, 40, 30, 4


def dense_code(before: torch.Tensor, architecture: str, k: int) -> torch.Tensor:
    """Selection by sorting, in one line each."""
    flat = before.relu()
    if architecture == "topk":
        least = before.sort(dim=-1, descending=True).values[:, k - 1 : k]
    else:
        least = flat.flatten().sort(descending=True).values[k * len(before) - 1]
    return flat * (before >= least)


def dense_losses(p: dict, batch: Batch, recipe: Recipe, dead: torch.Tensor) -> dict:
    """The same losses written densely, for autograd."""
    read = batch.x - p["b_dec"] if batch.tied else batch.x
    before = read @ p["E"].T + p["b_enc"]
    code = dense_code(before, recipe.architecture, recipe.k)
    past = batch.x @ p["S"].T if recipe.skip else 0.0
    terms = []
    for width in recipe.groups or (recipe.d_sae,):
        out = code[:, :width] @ p["D"][:width] + p["b_dec"] + past
        terms.append((out - batch.y).pow(2).sum(-1).mean())
    losses = {"reconstruction": terms[-1]}
    if len(terms) > 1:
        losses["inner"] = torch.stack(terms[:-1]).sum()
    if recipe.revive == "auxk" and dead.any():
        missing = (batch.y - code @ p["D"] - p["b_dec"] - past).detach()
        of_dead = torch.where(dead, before, -torch.inf)
        k_aux = min(int(dead.sum()), batch.x.shape[1] // 2)
        kept = of_dead.topk(k_aux, dim=-1)
        aux = torch.zeros_like(before).scatter(-1, kept.indices, kept.values.relu())
        normalised = (aux @ p["D"] - missing).pow(2).mean() / missing.var(0, correction=0).mean()
        variance = batch.y.var(0, correction=0).sum()
        losses["auxk"] = recipe.aux_weight * variance * normalised
    return losses


@pytest.mark.parametrize("dead", [False, True])
@pytest.mark.parametrize("form", ["tied", "transcoder", "skip"])
@pytest.mark.parametrize("architecture", ["topk", "batchtopk", "matryoshka_batchtopk"])
def test_gradients_equal_autograds_to_1e_5(architecture, form, dead):
    recipe = Recipe(
        architecture=architecture, d_sae=D_SAE, k=K, n_tokens=100, skip=form == "skip",
        groups=(8, 20, D_SAE) if architecture.startswith("matryoshka") else (), aux_weight=0.5,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(ROWS, D_IN, generator=generator)
    batch = Batch(x, x) if form == "tied" else Batch(x, x[:, :D_OUT].sin())
    p = initial_parameters(recipe, D_IN, batch.y.shape[1], tied=batch.tied)
    for name in p:
        p[name] = p[name] + 0.3 * torch.randn(p[name].shape, generator=generator)
    mask = torch.zeros(D_SAE, dtype=torch.bool)
    mask[25:] = dead
    ours = sparse_step(p, batch, recipe, K, mask)
    leaves = {name: value.clone().requires_grad_() for name, value in p.items()}
    losses = dense_losses(leaves, batch, recipe, mask)
    sum(losses.values()).backward()
    assert set(ours.losses) == set(losses)
    for name, value in losses.items():
        assert ours.losses[name] == pytest.approx(float(value.detach()), rel=1e-5)
    for name, value in leaves.items():
        scale = float(value.grad.abs().max())
        torch.testing.assert_close(
            ours.gradients[name] / scale, value.grad / scale, rtol=1e-5, atol=1e-5
        )
    code = dense_code(
        (x - p["b_dec"] if batch.tied else x) @ p["E"].T + p["b_enc"], architecture, K
    )
    assert torch.equal(ours.fired, (code > 0).sum(0))


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.integers(1, 6), st.floats(-1, 3), st.booleans())
def test_codes_keep_the_largest_whatever_is_guessed(seed, k, guess, mostly_negative):
    before = torch.randn(7, 11, generator=torch.Generator().manual_seed(seed))
    before = before - 2.0 if mostly_negative else before
    for architecture, code in [
        ("topk", topk_code(before, k)),
        ("batchtopk", batchtopk_code(before, 7 * k)),
        ("batchtopk", batchtopk_code(before, 7 * k, guess)),
    ]:
        assert torch.equal(code.csr().to_dense(), dense_code(before, architecture, k))


@settings(max_examples=30)
@given(
    st.integers(0, 10_000), st.sampled_from([1, 3, 8]), st.floats(-1.5, 0.3),
    st.sampled_from([0.9, 0.99, 1.01]),
)  # fmt: skip
def test_candidates_hold_the_largest_whatever_the_rows_and_biases(seed, k, bias, guess):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(32, 50, generator=generator) * torch.logspace(-3, 3, 32)[:, None]
    x[0] = 0.0
    E = torch.randn(601, 50, generator=generator) * torch.rand(601, 1, generator=generator)
    b = bias + 0.3 * torch.randn(601, generator=generator)
    before = torch.addmm(b, x, E.T)
    whole = batchtopk_code(before, 32 * k)
    with mock.patch.object(candidates, "_MANY", 1000):
        code = topk_by_candidates(x, E, b, k)
        assert code is not None
        same_code(code, topk_code(before, k))
        code = batchtopk_by_candidates(x, E, b, 32 * k, guess * float(whole.values.min()))
    assert (code is None) == (guess > 1)
    if code is not None:
        same_code(code, whole)


def same_code(ours: Code, expected: Code) -> None:
    a, b = ours.csr().to_dense(), expected.csr().to_dense()
    assert torch.equal(a > 0, b > 0)
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_candidates_are_given_up_where_they_would_be_many_or_mean_nothing():
    x, E = torch.randn(16, 8), torch.ones(400, 8)
    assert topk_by_candidates(x.abs(), E, torch.zeros(400), 2) is None
    assert batchtopk_by_candidates(x.abs(), E, torch.zeros(400), 32, 1e-3) is None
    x[3, 2] = torch.nan
    assert topk_by_candidates(x, torch.randn(400, 8), torch.zeros(400), 2) is None
    assert batchtopk_by_candidates(x, torch.randn(400, 8), torch.zeros(400), 32, 1.0) is None


@pytest.mark.parametrize("architecture", ["topk", "batchtopk", "matryoshka_batchtopk"])
def test_a_step_by_candidates_is_the_dense_step(architecture, monkeypatch):
    recipe = Recipe(architecture=architecture, d_sae=640, k=K, n_tokens=100, aux_weight=0.5)
    x = torch.randn(ROWS, D_IN, generator=torch.Generator().manual_seed(0))
    p = initial_parameters(recipe, D_IN, D_IN, tied=True)
    dead = torch.arange(640) > 600
    both = []
    for pays in (False, True):
        monkeypatch.setattr(sparse, "candidates_pay", lambda *_, pays=pays: pays)
        both.append(sparse_step(p, Batch(x, x), recipe, K, dead, guess=0.5))
    dense, ours = both
    assert torch.equal(ours.fired, dense.fired)
    assert ours.losses == pytest.approx(dense.losses, rel=1e-5)
    for name, value in dense.gradients.items():
        torch.testing.assert_close(ours.gradients[name], value, rtol=1e-4, atol=1e-5)
