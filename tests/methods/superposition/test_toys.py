"""Toy models against what can be worked out by hand."""

import pytest
import torch

from probe.core.errors import OptionError
from probe.methods.superposition import toys
from probe.methods.superposition.toys import Toys, draw_features, quadrature, train_toys


def by_hand(W: torch.Tensor) -> Toys:
    """A model with these weights and no bias."""
    return Toys("relu", W[None], torch.zeros(1, W.shape[1]), W[None].mT, torch.zeros(1))


@pytest.mark.parametrize("s", [0.05, 0.4, 1.0])
def test_quadrature_gives_the_closed_form_of_an_antipodal_pair(s: float) -> None:
    x, chance = quadrature(torch.tensor([[s, s]]), nodes=12)
    pair = by_hand(torch.tensor([[1.0, -1.0]]))
    loss = ((pair(x) - x).square().sum(2) * chance).sum()
    assert chance.sum() == pytest.approx(1, abs=1e-5)
    assert loss == pytest.approx(s**2 / 3, rel=0.02)  # a kink: ReLU(x1 - x2)


def test_dense_features_keep_the_more_important_one() -> None:
    importance = torch.tensor([[1.0, 0.3]])
    toys = train_toys(
        torch.ones(4, 2), hidden=1, importance=importance, steps=200, lr=0.03, nodes=4
    )
    best = toys.best_of(4)
    norms = best.W.norm(dim=1)[0]
    assert norms[0] > 0.9
    assert norms[1] < 0.2
    assert best.loss[0] <= toys.loss.min() + 1e-9
    # dropping a feature of importance r, its mean in the bias: r (s/3 - s²/4)
    assert best.loss[0] == pytest.approx(0.3 / 12, rel=0.05)


def test_a_linear_model_is_principal_components() -> None:
    importance = torch.tensor([[1.0, 0.5, 0.2]])
    toys = train_toys(
        torch.ones(3, 3), hidden=2, importance=importance, kind="linear", steps=400, lr=0.03,
        nodes=3,
    )  # fmt: skip
    assert toys.best_of(3).loss[0] == pytest.approx(0.2 / 12, rel=0.05)


@pytest.mark.parametrize("kind", ["hidden_relu", "abs"])
def test_enough_neurons_compute_the_output(kind: str) -> None:
    toys = train_toys(torch.ones(2, 2), hidden=6, kind=kind, steps=600, lr=0.02, batch=128)
    assert toys.loss.min() < 0.02
    assert (toys.W_out.equal(toys.W.mT)) == (kind == "hidden_relu")


def test_the_same_seed_gives_the_same_models() -> None:
    once, again, other = (
        train_toys(torch.full((2, 3), 0.5), hidden=2, steps=3, seed=s) for s in (1, 1, 2)
    )
    assert once.W.equal(again.W)
    assert not once.W.equal(other.W)


def test_features_are_as_often_there_as_asked() -> None:
    density = torch.tensor([[0.1, 0.9], [1.0, 0.0]])
    x = draw_features(density, 20_000, torch.Generator().manual_seed(0))
    assert torch.allclose((x > 0).float().mean(1), density, atol=0.01)
    assert x[0, :, 0][x[0, :, 0] > 0].mean() == pytest.approx(0.5, abs=0.02)
    signed = draw_features(density, 20_000, torch.Generator().manual_seed(0), kind="abs")
    assert signed.mean() == pytest.approx(0, abs=0.02)


def test_sets_are_drawn_together_or_apart() -> None:
    density, generator = torch.full((1, 4), 0.3), torch.Generator().manual_seed(0)
    sets = [[0, 1], [2, 3]]
    together = draw_features(density, 5000, generator, sets=sets) > 0
    assert together[..., 0].equal(together[..., 1])
    assert not together[..., 0].equal(together[..., 2])
    apart = draw_features(density, 5000, generator, sets=sets, joint="apart") > 0
    assert not (apart[..., 0] & apart[..., 1]).any()
    assert torch.allclose(apart.float().mean((0, 1)), density[0], atol=0.03)


REFUSED = {
    "density": ({"density": torch.full((1, 2), 1.5)}, "densities from 1.5 to 1.5"),
    "apart": (
        {"density": torch.full((1, 2), 0.6), "sets": [[0, 1]], "joint": "apart"},
        r"at most one of \[0, 1\] is not zero, yet they are so with 1.2",
    ),
    "hidden": ({"hidden": 0}, "hidden=0"),
    "steps": ({"steps": 0}, "steps=0"),
    "rate": ({"lr": 0.0}, "lr=0"),
    "points": ({"density": torch.ones(1, 12), "nodes": 4}, "takes 244140625 points"),
}  # fmt: skip


@pytest.mark.parametrize(("kind", "joint"), [("relux", "together"), ("relu", "alone")])
def test_an_unknown_word_is_not_taken_for_another(kind: str, joint: str) -> None:
    with pytest.raises(OptionError, match="there is no .*\n.*Known: .*(relu|apart)"):
        toys._check_options(kind, joint, 1, 1, 1, 1, 0.1)


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_trained(case: str) -> None:
    options, message = REFUSED[case]
    with pytest.raises(OptionError, match=message):
        train_toys(**{"density": torch.ones(1, 2), "hidden": 1, "steps": 1, **options})
