"""One training step of the standard architecture, gradients written out: sparse where its code is.

After the first steps ReLU leaves a few hundredths of the features active. Beyond the encoder's
product only these are touched, as in the top-k family.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from probe.dictionaries.dense import dense_residual, dense_step
from probe.dictionaries.kernels import Code, coded
from probe.dictionaries.recipe import Recipe
from probe.dictionaries.step import Batch, Outcome, Parameters, decoder_norms

_DENSE = 0.1
"""Active features, as a share, above which dense products are the faster."""


def standard_step(
    p: Parameters, batch: Batch, recipe: Recipe, sparsity: float, dead: Tensor
) -> Outcome:
    """Losses and gradients of a standard dictionary: those of ``dense_step``, faster.

    Args:
        p: Parameters; not changed.
        batch: Activations and targets.
        recipe: Architecture and options.
        sparsity: λ.
        dead: Features that count as dead; read by ghost gradients, which are dense.
    """
    read = batch.x - p["b_dec"] if batch.tied else batch.x
    code = None if recipe.revive == "ghost" else _encoded(p, read)
    if code is None:
        return dense_step(p, batch, recipe, sparsity, dead)
    weight, norms = sparsity / len(read), decoder_norms(p["D"], batch.layers)
    residual = _residual(p, code, batch, recipe)
    flow, turned = residual * (2 / len(read)), code.transposed()
    features = code.features.long()
    by_code = code.gradient(flow, p["D"]) + weight * norms[features]
    totals = torch.zeros_like(norms).index_add_(0, features, code.values)
    gradients = {
        "D": turned.accumulate(code.values, flow)
        + weight * totals[:, None] * _directions(p["D"], batch.layers),
        "E": turned.accumulate(by_code, read),
        "b_enc": torch.zeros_like(p["b_enc"]).index_add_(0, features, by_code),
        "b_dec": flow.sum(0),
    }
    if recipe.skip:
        gradients["S"] = flow.T @ batch.x
    if batch.tied:  # the encoder reads x − b_dec
        gradients["b_dec"] = gradients["b_dec"] - gradients["b_enc"] @ p["E"]
    squared_error = float(residual.pow(2).sum())
    losses = {
        "reconstruction": squared_error / len(read),
        "sparsity": weight * float(totals @ norms),
    }
    fired = torch.bincount(features, minlength=recipe.d_sae)
    return Outcome(losses, gradients, fired, squared_error)


@torch.no_grad()
def standard_residual(p: Parameters, batch: Batch, recipe: Recipe) -> Float[Tensor, "row d_out"]:
    """ŷ − y."""
    code = _encoded(p, batch.x - p["b_dec"] if batch.tied else batch.x)
    if code is None:
        return dense_residual(p, batch, recipe)
    return _residual(p, code, batch, recipe)


def _encoded(p: Parameters, read: Float[Tensor, "row d_in"]) -> Code | None:
    """The active features; None where they are too many to be worth collecting."""
    before = torch.addmm(p["b_enc"], read, p["E"].T)
    active = (before > 0).flatten()
    if int(active.count_nonzero()) > _DENSE * active.numel():
        return None
    places = active.nonzero()[:, 0]
    return coded(places, before.flatten()[places], (len(before), before.shape[1]))


def _residual(
    p: Parameters, code: Code, batch: Batch, recipe: Recipe
) -> Float[Tensor, "row d_out"]:
    past = batch.x @ p["S"].T if recipe.skip else 0.0
    return code.decode(p["D"]) + p["b_dec"] + past - batch.y


def _directions(D: Float[Tensor, "feature d_out"], layers: int) -> Float[Tensor, "feature d_out"]:
    """The gradient of ``decoder_norms``: each layer's row at norm one."""
    return torch.nn.functional.normalize(D.unflatten(1, (layers, -1)), dim=-1).flatten(1)
