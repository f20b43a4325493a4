"""The same loss curve as SAELens' trainer, from the same weights and batches.

Equal in float64. In float32 a rounding decides now and then which of two features is the k-th, and
from there two topk runs part. That is no difference of trainers: SAELens' parts as far from itself
when the dimensions are numbered in another order, which changes nothing but the order of its sums.
"""

import warnings
from typing import Any

import pytest
import torch

from probe.dictionaries.recipe import Recipe
from probe.dictionaries.scaling import Data
from probe.dictionaries.step import Batch, Parameters, initial_parameters
from probe.dictionaries.store import ActivationStore
from probe.dictionaries.trainer import Trainer

D_IN, D_SAE, K, BATCH, STEPS = 64, 512, 16, 256, 200


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    generator = torch.Generator().manual_seed(0)
    true = torch.nn.functional.normalize(torch.randn(200, D_IN, generator=generator), dim=-1)
    shown = torch.rand(20_000, 200, generator=generator) < 0.05
    return ActivationStore.from_array(shown.float() @ true * 3, out=tmp_path_factory.mktemp("s"))


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["topk", "batchtopk", "standard"])
def test_loss_curves_agree_to_1e_4_over_200_steps(architecture, store):
    ours = probes(store, architecture, torch.float64)
    theirs = saelens(store, architecture, torch.float64)
    assert apart(ours, theirs) < 1e-4


@pytest.mark.slow
def test_topk_in_float32_parts_no_farther_than_saelens_from_itself(store):
    ours, theirs = (run(store, "topk", torch.float32) for run in (probes, saelens))
    orders = [torch.randperm(D_IN, generator=torch.Generator().manual_seed(s)) for s in range(3)]
    reordered = [saelens(store, "topk", torch.float32, order) for order in orders]
    by_rounding = max(apart(other, theirs) for other in reordered)
    assert by_rounding > 1e-4
    assert apart(ours, theirs) < 3 * by_rounding


def apart(a: list[float], b: list[float]) -> float:
    """Largest relative difference of two loss curves."""
    return max(abs(x - y) / y for x, y in zip(a, b, strict=True))


def recipe(architecture: str) -> Recipe:
    own: dict[str, Any] = (
        {"sparsity": 0.3} if architecture == "standard" else {"k": K, "revive": "none"}
    )
    return Recipe(
        architecture=architecture, d_sae=D_SAE, n_tokens=BATCH * STEPS, batch_size=BATCH, lr=1e-3,
        lr_warm_up=0, lr_decay=0, sparsity_warm_up=0, normalise=False, unit_decoder=False,
        outliers=0, clip=1.0, **own,
    )  # fmt: skip


def beginning(architecture: str, dtype: torch.dtype) -> Parameters:
    first = initial_parameters(recipe(architecture), D_IN, D_IN, tied=True)
    return {name: value.to(dtype) for name, value in first.items()}


def probes(store: ActivationStore, architecture: str, dtype: torch.dtype) -> list[float]:
    """Probe's loss at each step."""
    data = Data.of(store, ("x",), ("x",), normalise=False)
    trainer = Trainer(recipe(architecture), data, parameters=beginning(architecture, dtype))
    rows, losses = store.batches(BATCH, seed=0), []
    for _ in range(STEPS):
        x = next(rows)["x"].to(dtype)
        losses.append(trainer.learn(Batch(x, x)).loss)
    return losses


def saelens(
    store: ActivationStore, architecture: str, dtype: torch.dtype, order: torch.Tensor | None = None
) -> list[float]:
    """SAELens' loss at each step; ``order``: that of the dimensions."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import sae_lens
        from sae_lens.config import SAETrainerConfig
        from sae_lens.training.sae_trainer import SAETrainer
    order = torch.arange(D_IN) if order is None else order
    own = (
        {"l1_coefficient": 0.3}
        if architecture == "standard"
        else {"k": K, "rescale_acts_by_decoder_norm": False}
    )
    config = {
        "topk": sae_lens.TopKTrainingSAEConfig,
        "batchtopk": sae_lens.BatchTopKTrainingSAEConfig,
        "standard": sae_lens.StandardTrainingSAEConfig,
    }[architecture](d_in=D_IN, d_sae=D_SAE, dtype=str(dtype).removeprefix("torch."), **own)
    sae = sae_lens.TrainingSAE.get_sae_class_for_architecture(architecture)(config)
    p = beginning(architecture, dtype)
    with torch.no_grad():
        sae.W_enc.copy_(p["E"].T[order])
        sae.W_dec.copy_(p["D"][:, order])
        sae.b_enc.copy_(p["b_enc"])
        sae.b_dec.copy_(p["b_dec"][order])
    how = SAETrainerConfig(
        total_training_samples=BATCH * STEPS, train_batch_size_samples=BATCH, lr=1e-3, lr_end=1e-3
    )
    trainer = SAETrainer(how, sae, data_provider=iter([]))
    rows, losses = store.batches(BATCH, seed=0), []
    for _ in range(STEPS):
        x = next(rows)["x"].to(dtype)[:, order]
        losses.append(float(trainer.step(x).loss.detach()))
        trainer.n_training_steps += 1
    return losses
