"""The same loss curve as SAELens' trainer, from the same weights and batches.

In float64: in float32 a rounding decides now and then which of two features is the k-th, and from
there the two topk runs part (by 2e-3 after 200 steps; batchtopk and standard stay within 1e-4).
"""

import warnings

import pytest
import torch

from probe.dictionaries.recipe import Recipe
from probe.dictionaries.scaling import Data
from probe.dictionaries.step import Batch, initial_parameters
from probe.dictionaries.store import ActivationStore
from probe.dictionaries.trainer import Trainer

D_IN, D_SAE, K, BATCH, STEPS = 64, 512, 16, 256, 200


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["topk", "batchtopk", "standard"])
def test_loss_curves_agree_to_1e_4_over_200_steps(architecture, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import sae_lens
        from sae_lens.config import SAETrainerConfig
        from sae_lens.training.sae_trainer import SAETrainer
    generator = torch.Generator().manual_seed(0)
    true = torch.nn.functional.normalize(torch.randn(200, D_IN, generator=generator), dim=-1)
    shown = torch.rand(20_000, 200, generator=generator) < 0.05
    x = shown.float() @ true * 3
    store = ActivationStore.from_array(x, out=tmp_path)
    own = {"sparsity": 0.3} if architecture == "standard" else {"k": K, "revive": "none"}
    recipe = Recipe(
        architecture=architecture, d_sae=D_SAE, n_tokens=BATCH * STEPS, batch_size=BATCH, lr=1e-3,
        lr_warm_up=0, lr_decay=0, sparsity_warm_up=0, normalise=False, unit_decoder=False,
        outliers=0, clip=1.0, **own,
    )  # fmt: skip
    data = Data.of(store, ("x",), ("x",), normalise=False)
    first = initial_parameters(recipe, D_IN, D_IN, tied=True)
    trainer = Trainer(recipe, data, parameters={n: v.double() for n, v in first.items()})
    sizes = {"d_in": D_IN, "d_sae": D_SAE}
    theirs = {
        "topk": sae_lens.TopKTrainingSAEConfig,
        "batchtopk": sae_lens.BatchTopKTrainingSAEConfig,
        "standard": sae_lens.StandardTrainingSAEConfig,
    }[architecture](
        **sizes,
        dtype="float64",
        **(
            {"l1_coefficient": 0.3}
            if architecture == "standard"
            else {"k": K, "rescale_acts_by_decoder_norm": False}
        ),
    )
    sae = sae_lens.TrainingSAE.get_sae_class_for_architecture(architecture)(theirs)
    p = trainer.parameters
    with torch.no_grad():
        sae.W_enc.copy_(p["E"].T)
        sae.W_dec.copy_(p["D"])
        sae.b_enc.copy_(p["b_enc"])
        sae.b_dec.copy_(p["b_dec"])
    rows = store.batches(BATCH, seed=0)
    config = SAETrainerConfig(
        total_training_samples=BATCH * STEPS, train_batch_size_samples=BATCH, lr=1e-3, lr_end=1e-3
    )
    other = SAETrainer(config, sae, data_provider=iter([]))
    worst = 0.0
    for _ in range(STEPS):
        batch = next(rows)
        x64 = batch["x"].double()
        ours = trainer.learn(Batch(x64, x64)).loss
        expected = float(other.step(x64).loss.detach())
        other.n_training_steps += 1
        worst = max(worst, abs(ours - expected) / expected)
    assert worst < 1e-4, worst
