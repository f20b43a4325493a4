"""A norm as a linear map: its own denominator, and what stands behind it."""

import pytest
import torch
from dense_circuits import loaded

from probe.core.errors import ModelError


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "qwen2"])
def test_it_gives_what_the_layer_gives(family: str) -> None:
    model = loaded(family)
    trace = model.trace(torch.tensor([[4, 9, 20]]), ["resid_pre.1", "q.1"])
    norm = model.norm("attn_in", 1)
    assert norm is not None
    for scale in (1.0, 1e-3):  # at the small one eps counts
        x = scale * trace["resid_pre", 1]
        torch.testing.assert_close(norm(x), model.block(1).ln1(x), rtol=1e-3, atol=1e-4)
    q = torch.einsum("bpm,hmd->bphd", norm(trace["resid_pre", 1]), model.weights.W_Q(1))
    torch.testing.assert_close(q + model.weights.b_Q(1), trace["q", 1], rtol=1e-4, atol=1e-4)


def test_a_matrix_behind_a_norm() -> None:
    norm = loaded("gpt2").norm("final")
    assert norm is not None
    x, matrix = torch.randn(3, 32), torch.randn(32, 5)
    torch.testing.assert_close(
        norm.apply(x, torch.ones(1)) @ matrix, x @ norm.read_by(matrix), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "qwen2"])
def test_slopes_are_taken_back_as_autograd_takes_them(family: str) -> None:
    """Through the layer itself, one head after another; of the smaller run eps counts."""
    model = loaded(family)
    norm, matrix = model.norm("attn_in", 1), model.weights.W_K(1)
    assert norm is not None
    x = torch.randn(2, 3, matrix.shape[1]) * torch.tensor([1.0, 1e-2])[:, None, None]
    slopes = torch.randn(2, 3, matrix.shape[0], matrix.shape[2])
    ours = norm.taken_back(x, slopes, matrix)
    for head, weight in enumerate(matrix):
        own = x.clone().requires_grad_()
        read = model.block(1).ln1(own) @ weight
        (each,) = torch.autograd.grad(read, own, slopes[:, :, head])
        size = float(each.sum(0).abs().max())
        torch.testing.assert_close(ours[head], each.sum(0), rtol=1e-3, atol=1e-4 * size)


def test_where_there_is_no_norm_there_is_none() -> None:
    model = loaded("qwen2")
    assert model.norm("attn_out", 0) is None
    assert model.norm("q", 0) is None
    bert = loaded("bert")
    with pytest.raises(ModelError, match="is an encoder: its blocks normalise"):
        bert.norm("attn_in", 0)
