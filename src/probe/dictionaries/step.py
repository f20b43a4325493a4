"""What goes into a training step and what comes out of it, for every architecture."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from probe.dictionaries.recipe import Recipe

Parameters = dict[str, Any]
"""Name → tensor. Row i of ``E`` and ``D`` is feature i's encoder and decoder; ``S`` is the skip."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Activations and what is to be reconstructed, centred and scaled.

    Attributes:
        x: What is encoded; of a crosscoder its layers side by side.
        y: What is reconstructed; the same tensor unless it is a transcoder's.
        layers: Layers side by side.
    """

    x: Float[Tensor, "row d_in"]
    y: Float[Tensor, "row d_out"]
    layers: int = 1

    @property
    def tied(self) -> bool:
        """Whether it is what is encoded that is reconstructed."""
        return self.x is self.y


@dataclass(frozen=True, eq=False)
class Outcome:
    """One step's losses and gradients.

    Attributes:
        losses: Terms of the loss; their sum is what is minimised.
        gradients: Of each parameter.
        fired: Rows in which each feature was active.
        squared_error: Σ‖y − ŷ‖² over the batch.
        smallest: The smallest activation above zero of a batch-top-k code.
    """

    losses: dict[str, float]
    gradients: Parameters
    fired: Int[Tensor, " feature"]
    squared_error: float
    smallest: float | None = None

    @property
    def loss(self) -> float:
        """What is minimised."""
        return sum(self.losses.values())


def initial_parameters(
    recipe: Recipe, d_in: int, d_out: int, *, tied: bool, layers: int = 1
) -> Parameters:
    """Random decoder directions; an autoencoder's encoder begins as its decoder's transpose."""
    generator = torch.Generator().manual_seed(recipe.seed)
    d_sae = recipe.d_sae
    D = torch.randn(d_sae, d_out, generator=generator)
    D /= decoder_norms(D, layers)[:, None]
    if not recipe.unit_decoder:
        D *= 0.1
    if tied:
        E = D.clone()
    else:
        E = torch.randn(d_sae, d_in, generator=generator)
        E /= E.norm(dim=-1, keepdim=True)
    parameters = {"E": E, "D": D, "b_dec": torch.zeros(d_out)}
    if recipe.architecture == "gated":
        parameters |= {name: torch.zeros(d_sae) for name in ("b_gate", "b_mag", "r_mag")}
    else:
        parameters["b_enc"] = torch.zeros(d_sae)
    if recipe.architecture == "jumprelu":
        # the paper's initial threshold is its bandwidth
        start = torch.tensor(recipe.bandwidth * d_in**0.5)
        parameters["log_threshold"] = start.log().repeat(d_sae)
    if recipe.skip:
        parameters["S"] = torch.zeros(d_out, d_in)
    return parameters


def decoder_norms(D: Float[Tensor, "feature d_out"], layers: int) -> Float[Tensor, " feature"]:
    """Norm of each decoder row; of a crosscoder the sum of its layers' norms."""
    return D.unflatten(1, (layers, -1)).norm(dim=-1).sum(-1)
