"""The model of tables against the transformer written out token by token."""

import pytest
import torch

from probe.core.errors import OptionError
from probe.models.modular import Modular, train_modular

SMALL = {"d_model": 8, "n_heads": 2, "d_mlp": 16}


def written_out(model: Modular, a: int, b: int) -> torch.Tensor:
    """Logits at "=", by attention over the three tokens."""
    w = {name: part.detach() for name, part in model.weights.items()}
    x = w["W_E"][[a, b, model.p]] + w["W_pos"]
    q, k, v = (torch.einsum("sd,hdk->hsk", x, w[name]) for name in ("W_Q", "W_K", "W_V"))
    pattern = (q[:, -1:] @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
    stream = x[-1] + torch.einsum("hsk,hkd->d", pattern @ v, w["W_O"])
    neurons = torch.relu(stream @ w["W_in"] + w["b_in"])
    return (stream + neurons @ w["W_out"] + w["b_out"]) @ w["W_U"]


def test_tables_are_the_transformer() -> None:
    model = train_modular(7, epochs=30, **SMALL)
    logits = model.logits()
    for a, b in ((0, 0), (3, 5), (6, 2)):
        assert torch.allclose(logits[a * 7 + b], written_out(model, a, b), atol=1e-5)
    assert model.answers.view(7, 7)[5, 4] == 2
    assert torch.allclose(model.unembed(model.mlp()), logits)


def test_it_learns_what_it_sees_and_is_watched() -> None:
    epochs: list[int] = []
    model = train_modular(
        7, share=0.5, epochs=300, weight_decay=0.1, lr=1e-2, at=[0, 100, 300],
        watch=lambda epoch, _: epochs.append(epoch), **SMALL,
    )  # fmt: skip
    assert epochs == [0, 100, 300]
    assert (model.logits().argmax(1) == model.answers)[model.train].double().mean() > 0.95
    assert len(model.train) + len(model.test) == 49
    assert not set(model.train.tolist()) & set(model.test.tolist())


def test_watching_can_end_it_and_seeds_repeat() -> None:
    seen: list[int] = []
    stop = train_modular(
        5, epochs=50, at=[0, 3], watch=lambda epoch, _: seen.append(epoch) or epoch < 3, **SMALL
    )
    again, other = train_modular(5, epochs=3, **SMALL), train_modular(5, epochs=3, seed=1, **SMALL)
    assert seen == [0, 3]
    assert stop.logits().equal(again.logits())
    assert not stop.logits().equal(other.logits())


def test_what_cannot_be_trained() -> None:
    with pytest.raises(OptionError, match="3 heads in width 8"):
        train_modular(5, d_model=8, n_heads=3)
    with pytest.raises(OptionError, match="share 1.0 of 25 pairs leaves 25"):
        train_modular(5, share=1.0)
