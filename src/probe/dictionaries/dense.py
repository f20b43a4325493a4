"""One training step of the penalised architectures, by autograd."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from probe.dictionaries.recipe import Recipe
from probe.dictionaries.step import Batch, Outcome, Parameters, decoder_norms


def dense_step(
    parameters: Parameters, batch: Batch, recipe: Recipe, sparsity: float, dead: Tensor
) -> Outcome:
    """Losses and gradients of a standard, gated or jumprelu dictionary.

    - standard: E‖y − ŷ‖² + λ E Σ_i f_i ‖W_dec,i‖ (Bricken et al. 2023, Conerly et al. 2024).
    - gated: with π the gate's pre-activations, E‖y − ŷ‖² + λ E Σ_i ReLU(π_i)‖W_dec,i‖
      + E‖y − ŷ_frozen(ReLU(π))‖², the decoder of the last term held still (Rajamanoharan et al.
      2024a, section 3.2).
    - jumprelu: E‖y − ŷ‖² + λ E‖f‖₀, the step function on the pre-activations, thresholds
      exp(log_threshold) by the straight-through estimator (Rajamanoharan et al. 2024b, section 3).

    Args:
        parameters: ``E``, ``D``, biases and what the architecture has more; not changed.
        batch: Activations and targets.
        recipe: Architecture and options.
        sparsity: λ.
        dead: Features that count as dead; read by ghost gradients.
    """
    leaves = {name: value.detach().requires_grad_() for name, value in parameters.items()}
    with torch.enable_grad():
        losses, features, residual = _losses(leaves, batch, recipe, sparsity)
        if recipe.revive == "ghost" and bool(dead.any()):
            losses["ghost"] = _ghost_loss(leaves, batch, residual, losses["reconstruction"], dead)
        total = torch.stack(list(losses.values())).sum()
        found = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
    gradients = {
        name: torch.zeros_like(leaves[name]) if g is None else g
        for name, g in zip(leaves, found, strict=True)
    }
    active = features.detach() > 0
    return Outcome(
        {name: float(value.detach()) for name, value in losses.items()},
        gradients,
        active.sum(0),
        float(residual.detach().pow(2).sum()),
    )


@torch.no_grad()
def dense_residual(
    parameters: Parameters, batch: Batch, recipe: Recipe
) -> Float[Tensor, "row d_out"]:
    """ŷ − y."""
    return _losses(parameters, batch, recipe, 0.0)[2]


def _losses(
    p: Parameters, batch: Batch, recipe: Recipe, sparsity: float
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    read = batch.x - p["b_dec"] if batch.tied else batch.x
    product = read @ p["E"].T
    past = batch.x @ p["S"].T if recipe.skip else 0.0
    if recipe.architecture == "jumprelu":
        # the paper's bandwidth is for a mean squared norm of one
        width = recipe.bandwidth * batch.x.shape[1] ** 0.5
        before, threshold = product + p["b_enc"], p["log_threshold"].exp()
        features = JumpReLU.apply(before, threshold, width)
        penalty = Step.apply(before, threshold, width).sum(-1).mean()
    elif recipe.architecture == "gated":
        gate = product + p["b_gate"]
        features = torch.relu(product * p["r_mag"].exp() + p["b_mag"]) * (gate > 0)
        penalty = (gate.relu() * decoder_norms(p["D"], batch.layers)).sum(-1).mean()
    else:
        features = torch.relu(product + p["b_enc"])
        penalty = (features * decoder_norms(p["D"], batch.layers)).sum(-1).mean()
    residual = features @ p["D"] + p["b_dec"] + past - batch.y
    losses = {"reconstruction": residual.pow(2).sum(-1).mean(), "sparsity": sparsity * penalty}
    if recipe.architecture == "gated":
        frozen = torch.relu(product + p["b_gate"]) @ p["D"].detach() + p["b_dec"].detach() + past
        losses["gate"] = (frozen - batch.y).pow(2).sum(-1).mean()
    return losses, features, residual


def _ghost_loss(
    p: Parameters, batch: Batch, residual: Tensor, reconstruction: Tensor, dead: Tensor
) -> Float[Tensor, ""]:
    """Dead features predict the residual with exp of their pre-activations (Jermyn 2024).

    Their output is scaled to half the residual's norm, and the term to the size of the main loss;
    neither scale has a gradient.
    """
    read = batch.x - p["b_dec"] if batch.tied else batch.x
    ghosts = torch.exp(read @ p["E"][dead].T + p["b_enc"][dead]) @ p["D"][dead]
    missing = -residual.detach()
    scale = missing.norm(dim=-1, keepdim=True) / (2 * ghosts.detach().norm(dim=-1, keepdim=True))
    loss = (ghosts * scale.nan_to_num(0.0, 0.0) - missing).pow(2).sum(-1).mean()
    return loss * (reconstruction.detach() / loss.detach().clamp(min=1e-12))


def rectangle(u: Tensor) -> Tensor:
    """One where |u| < ½."""
    return (u.abs() < 0.5).to(u)


class JumpReLU(torch.autograd.Function):
    """z·1[z > θ]; by θ the straight-through −(θ/ε)K((z − θ)/ε)."""

    @staticmethod
    def forward(ctx: Any, before: Tensor, threshold: Tensor, width: float) -> Tensor:
        """Keep what is above its threshold."""
        ctx.save_for_backward(before, threshold)
        ctx.width = width
        return before * (before > threshold)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        """By z where it passes, by θ within the rectangle."""
        (grad,) = grads
        before, threshold = ctx.saved_tensors
        near = rectangle((before - threshold) / ctx.width)
        return grad * (before > threshold), (-(threshold / ctx.width) * near * grad).sum(0), None


class Step(torch.autograd.Function):
    """1[z > θ]; by θ the straight-through −(1/ε)K((z − θ)/ε), nothing by z."""

    @staticmethod
    def forward(ctx: Any, before: Tensor, threshold: Tensor, width: float) -> Tensor:
        """One where above the threshold."""
        ctx.save_for_backward(before, threshold)
        ctx.width = width
        return (before > threshold).to(before)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, None]:
        """By θ alone."""
        (grad,) = grads
        before, threshold = ctx.saved_tensors
        near = rectangle((before - threshold) / ctx.width)
        return None, (-(1 / ctx.width) * near * grad).sum(0), None
