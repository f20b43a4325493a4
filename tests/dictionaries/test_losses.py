"""Losses as the papers define them; each test fails on a departure known from published code."""

import math

import pytest
import torch

from probe.dictionaries.dense import JumpReLU, Step, dense_residual, dense_step
from probe.dictionaries.recipe import Recipe
from probe.dictionaries.resample import resample
from probe.dictionaries.scaling import Data
from probe.dictionaries.standard import standard_residual, standard_step
from probe.dictionaries.step import Batch, initial_parameters
from probe.dictionaries.store import ActivationStore
from probe.dictionaries.trainer import Trainer

ROWS, D, F = 40, 6, 15
NONE_DEAD = torch.zeros(F, dtype=torch.bool)


def setting(architecture: str, **more) -> tuple[Recipe, dict, Batch]:
    recipe = Recipe(architecture=architecture, d_sae=F, n_tokens=1000, **more)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(ROWS, D, generator=generator)
    p = initial_parameters(recipe, D, D, tied=True)
    for name in p:
        p[name] = p[name] + 0.2 * torch.randn(p[name].shape, generator=generator)
    return recipe, p, Batch(x, x)


def test_standard_penalises_activations_times_decoder_norms():
    recipe, p, batch = setting("standard")
    features = torch.relu((batch.x - p["b_dec"]) @ p["E"].T + p["b_enc"])
    residual = batch.x - features @ p["D"] - p["b_dec"]
    found = dense_step(p, batch, recipe, 3.0, NONE_DEAD)
    assert found.losses["reconstruction"] == pytest.approx(float(residual.pow(2).sum() / ROWS))
    penalty = sum(float(features[:, i].sum() * p["D"][i].norm()) for i in range(F)) / ROWS
    assert found.losses["sparsity"] == pytest.approx(3 * penalty, rel=1e-5)
    assert found.squared_error == pytest.approx(float(residual.pow(2).sum()), rel=1e-5)
    assert torch.equal(found.fired, (features > 0).sum(0))


def test_a_crosscoder_weighs_a_feature_by_the_sum_of_its_decoders_norms():
    recipe, p, batch = setting("standard")
    features = torch.relu((batch.x - p["b_dec"]) @ p["E"].T + p["b_enc"])
    norms = p["D"][:, :3].norm(dim=-1) + p["D"][:, 3:].norm(dim=-1)
    found = dense_step(p, Batch(batch.x, batch.x, layers=2), recipe, 1.0, NONE_DEAD)
    # Batch(x, x) is tied by identity
    assert found.losses["sparsity"] == pytest.approx(
        float((features * norms).sum() / ROWS), rel=1e-5
    )


@pytest.mark.parametrize("kind", ["autoencoder", "crosscoder", "skip transcoder"])
def test_a_sparse_standard_step_is_the_dense_one(kind: str, monkeypatch: pytest.MonkeyPatch):
    recipe, p, batch = setting("standard", skip=kind.startswith("skip"))
    p["b_enc"] = p["b_enc"] - 0.8
    y = batch.x.flip(0) if kind.startswith("skip") else batch.x
    batch = Batch(batch.x, y, layers=2 if kind == "crosscoder" else 1)
    wanted = dense_step(p, batch, recipe, 3.0, NONE_DEAD)
    assert 0 < int(wanted.fired.sum()) < 0.1 * ROWS * F
    for name in ("dense_step", "dense_residual"):  # it must not fall back on them
        monkeypatch.delattr(f"probe.dictionaries.standard.{name}")
    found = standard_step(p, batch, recipe, 3.0, NONE_DEAD)
    assert found.losses == pytest.approx(wanted.losses)
    assert found.squared_error == pytest.approx(wanted.squared_error)
    assert torch.equal(found.fired, wanted.fired)
    assert found.gradients.keys() == wanted.gradients.keys()
    for name, gradient in wanted.gradients.items():
        torch.testing.assert_close(found.gradients[name], gradient, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        standard_residual(p, batch, recipe), dense_residual(p, batch, recipe)
    )


def test_gateds_auxiliary_loss_leaves_the_decoder_alone():
    recipe, p, batch = setting("gated")
    p["b_mag"] = torch.full((F,), -100.0)  # no feature is active: only the gate's terms are left
    found = dense_step(p, batch, recipe, 0.0, NONE_DEAD)
    assert found.losses["gate"] > 0
    assert float(found.gradients["D"].abs().max()) == 0.0
    leaf = {k: v.clone().requires_grad_() for k, v in p.items()}
    pi = torch.relu((batch.x - leaf["b_dec"]) @ leaf["E"].T + leaf["b_gate"])
    frozen = pi @ p["D"] + p["b_dec"]
    (frozen - batch.x).pow(2).sum(-1).mean().backward()
    torch.testing.assert_close(found.gradients["b_gate"], leaf["b_gate"].grad, rtol=1e-5, atol=1e-5)


def test_jumprelus_thresholds_feel_both_sides_of_the_rectangle():
    width, threshold = 0.2, torch.tensor([1.0])
    z = torch.tensor([[0.95], [1.05], [1.3], [0.5]])  # below, above, and two outside
    theta = threshold.clone().requires_grad_()
    Step.apply(z, theta, width).sum().backward()
    assert float(theta.grad) == pytest.approx(-2 / width)  # a kernel on one side gives half
    theta, before = threshold.clone().requires_grad_(), z.clone().requires_grad_()
    JumpReLU.apply(before, theta, width).sum().backward()
    assert float(theta.grad) == pytest.approx(-2 * 1.0 / width)
    assert before.grad[:, 0].tolist() == [0.0, 1.0, 1.0, 0.0]


def test_jumprelu_pays_lambda_for_each_active_feature_and_trains_log_thresholds():
    recipe, p, batch = setting("jumprelu", bandwidth=0.05)
    p["log_threshold"] = torch.full((F,), math.log(0.3))
    before = (batch.x - p["b_dec"]) @ p["E"].T + p["b_enc"]
    l0 = float((before > 0.3).sum()) / ROWS
    found = dense_step(p, batch, recipe, 0.7, NONE_DEAD)
    assert found.losses["sparsity"] == pytest.approx(0.7 * l0, rel=1e-5)
    near = ((before - 0.3).abs() < 0.025 * D**0.5).float()
    no_output = {**p, "D": torch.zeros_like(p["D"])}  # then only λ‖f‖₀ acts on the thresholds
    gradient = dense_step(no_output, batch, recipe, 0.7, NONE_DEAD).gradients["log_threshold"]
    expected = -0.7 * near.sum(0) / ROWS / (0.05 * D**0.5) * 0.3
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)


def test_ghosts_are_half_the_residuals_size_and_weigh_as_much_as_the_main_loss():
    recipe, p, batch = setting("standard", revive="ghost")
    dead = NONE_DEAD.clone()
    dead[:4] = True
    p["b_enc"][:4] = -50.0  # dead indeed
    found = dense_step(p, batch, recipe, 0.0, dead)
    assert found.losses["ghost"] == pytest.approx(found.losses["reconstruction"], rel=1e-5)
    plain = dense_step(p, batch, recipe, 0.0, NONE_DEAD)
    assert float(plain.gradients["E"][:4].abs().max()) == 0.0
    assert float(found.gradients["E"][:4].abs().max()) > 0.0
    torch.testing.assert_close(found.gradients["E"][4:], plain.gradients["E"][4:])


def resampled(tmp_path, losses: tuple[float, float], free: bool = False):
    """Two inputs, reconstructed with these losses, and many dead features to give them to."""
    near, far = (loss**0.5 for loss in losses)
    rows = torch.tensor([[near, 0.0], [0.0, far]]).repeat(500, 1)
    store = ActivationStore.from_array(rows, out=tmp_path)
    recipe = Recipe(
        architecture="standard", d_sae=402, n_tokens=10**6, revive="resample", normalise=False,
        unit_decoder=not free, batch_size=100,
    )  # fmt: skip
    data = Data.of(store, ("x",), ("x",), normalise=False)
    trainer = Trainer(recipe, data)
    p = trainer.parameters
    p["E"].zero_()
    p["D"][:2], p["E"][:2] = torch.eye(2), 3 * torch.eye(2)
    p["b_enc"].fill_(-100.0)
    trainer._update({name: torch.ones_like(value) * 1e-6 for name, value in p.items()})
    dead = torch.ones(402, dtype=torch.bool)
    dead[:2] = False
    resample(p, trainer.adam, data, dead, recipe, 7, torch.device("cpu"))
    return p, trainer, dead


def test_resampling_draws_by_the_square_of_the_loss(tmp_path):
    p, trainer, dead = resampled(tmp_path, losses=(1.0, 2.0))
    share = float((p["D"][dead][:, 1] > 0.5).float().mean())
    # without replacement from 500 of each, 400 draws at odds 1 : 4 (1 : 2 by the loss itself)
    assert 0.66 < share < 0.85
    norms = p["E"][dead].norm(dim=-1)
    torch.testing.assert_close(norms, torch.full_like(norms, 0.2 * 3.0), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(p["D"][dead].norm(dim=-1), torch.ones(400), rtol=1e-3, atol=1e-3)
    assert float(p["b_enc"][dead].abs().max()) == 0.0
    for name in ("D", "E", "b_enc"):
        state = trainer.adam.state[p[name]]
        assert float(state["exp_avg"][dead].abs().max()) == 0.0
        assert float(state["exp_avg"][~dead].abs().max()) > 0.0


def test_resampling_looks_at_no_more_than_was_learnt_from_since_the_last(tmp_path, monkeypatch):
    from probe.dictionaries import resample as module

    store = ActivationStore.from_array(torch.randn(20_000, 2), out=tmp_path)
    recipe = Recipe(
        architecture="standard", d_sae=8, n_tokens=10**6, revive="resample", resample_every=8192
    )
    trainer = Trainer(recipe, Data.of(store, ("x",), ("x",), normalise=False))
    trainer._update({name: torch.zeros_like(v) for name, v in trainer.parameters.items()})
    seen, errors = [], module.row_errors
    monkeypatch.setattr(
        module, "row_errors", lambda p, b, r: seen.append(len(b.x)) or errors(p, b, r)
    )
    dead = torch.arange(8) < 2
    resample(trainer.parameters, trainer.adam, trainer.data, dead, recipe, 1, torch.device("cpu"))
    assert sum(seen) == 8192


def test_a_time_to_resample_at_which_none_is_dead_is_over(tmp_path, monkeypatch):
    store = ActivationStore.from_array(torch.randn(64, 4), out=tmp_path)
    recipe = Recipe(
        architecture="standard", d_sae=8, n_tokens=1000, batch_size=10, revive="resample",
        resample_every=100, dead_after=150,
    )  # fmt: skip
    at = []
    monkeypatch.setattr("probe.dictionaries.trainer.resample", lambda *given: at.append(given[5]))
    trainer = Trainer(recipe, Data.of(store, ("x",), ("x",), normalise=False))
    trainer.parameters["b_enc"].fill_(-100.0)  # dead from step 15 on
    batches = trainer.data.store.batches(10)
    while not trainer.done:
        trainer.learn(trainer.data.batch(next(batches), torch.device("cpu")))
    assert at == [20, 40]  # not 15 once 10 has passed; 30 comes 100 tokens after 20


def test_schedules_rise_and_fall_where_they_should():
    recipe = Recipe(
        architecture="topk", d_sae=F, k=4, k_start=12, n_tokens=100_000, batch_size=1000, lr=1.0,
        lr_warm_up=0.1, lr_decay=0.2, sparsity_warm_up=0.5, sparsity=2.0,
    )  # fmt: skip
    assert [recipe.lr_at(s) for s in (0, 9, 50, 80, 90, 99)] == pytest.approx(
        [0.1, 1.0, 1.0, 1.0, 0.5, 0.05]
    )
    assert [recipe.k_at(s) for s in (0, 25, 50, 99)] == [12, 8, 4, 4]
    assert [recipe.sparsity_at(s) for s in (0, 25, 50, 99)] == [0.0, 1.0, 2.0, 2.0]
