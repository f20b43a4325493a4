"""Subspaces that are swapped between two runs, and how one is learnt that carries an answer."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from probe.core.edit import Edit, patch
from probe.core.metric import Metric
from probe.core.model import Model
from probe.core.progress import Report
from probe.core.site import Site
from probe.core.task import Encoded

Subspace = Float[Tensor, "dim k"]
"""Orthonormal columns."""


def random_subspace(dim: int, k: int, seed: int) -> Subspace:
    """Uniformly drawn.

    >>> basis = random_subspace(8, 2, seed=0)
    >>> bool(torch.allclose(basis.T @ basis, torch.eye(2), atol=1e-6))
    True
    """
    drawn = torch.randn(dim, k, generator=torch.Generator().manual_seed(seed))
    return torch.linalg.qr(drawn).Q


def swapped(
    base: Float[Tensor, "batch dim"], source: Float[Tensor, "batch dim"], basis: Subspace
) -> Float[Tensor, "batch dim"]:
    """The base with its part in the subspace taken from the source: b + R Rᵀ (s - b)."""
    return base + (source - base) @ basis @ basis.T


def swap(site: Site, value: Float[Tensor, "batch dim"], at: Int[Tensor, " batch"]) -> Edit:
    """The edit that puts these activations at a position of each prompt."""
    return patch(site, value[:, None], pos=at)


def at_position(
    model: Model, encoded: Encoded, site: Site, at: Int[Tensor, " batch"]
) -> tuple[Float[Tensor, "batch dim"], Float[Tensor, "batch dim"]]:
    """The activation of the clean and of the corrupted run there. Two forward passes."""
    rows = torch.arange(len(encoded))
    clean, corrupted = (
        model.trace(encoded, site, corrupted=flag)[site][rows, at].float() for flag in (False, True)
    )
    return clean, corrupted


def learn_subspace(
    model: Model,
    encoded: Encoded,
    site: Site,
    at: Int[Tensor, " batch"],
    k: int,
    *,
    steps: int,
    lr: float,
    batch_size: int,
    seed: int,
    report: Report | None = None,
) -> Subspace:
    """The k dimensions that, swapped between twins, swap the answer.

    Minimises the cross-entropy between the two answers, with the other run's right, by Adam on a
    matrix whose QR factor is the subspace; clean runs take from corrupted ones and the reverse.
    Two forward and backward passes of ``batch_size`` pairs a step.

    Source: Geiger et al. 2023, "Finding Alignments Between Interpretable Causal Variables and
    Distributed Neural Representations", arXiv 2303.02536.
    """
    clean, corrupted = at_position(model, encoded, site, at)
    free = random_subspace(clean.shape[1], k, seed).to(clean.device).requires_grad_()
    optimizer = torch.optim.Adam([free], lr=lr)
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        rows = torch.randperm(len(encoded), generator=generator)[:batch_size]
        part = encoded.rows(rows.tolist())
        with torch.enable_grad():
            basis = torch.linalg.qr(free).Q
            loss = torch.zeros((), device=clean.device)
            for flag, base, source in ((False, clean, corrupted), (True, corrupted, clean)):
                new = swapped(base[rows], source[rows], basis)
                slope = _slope(model, part, site, at[rows], new.detach(), corrupted=flag)
                loss = loss + (slope * new).sum() / len(rows)
            optimizer.zero_grad()
            loss.backward()
        optimizer.step()
        if report is not None and report(step + 1, steps, "steps") is False:
            break
    return torch.linalg.qr(free.detach()).Q


def _slope(
    model: Model,
    encoded: Encoded,
    site: Site,
    at: Int[Tensor, " batch"],
    value: Float[Tensor, "batch dim"],
    *,
    corrupted: bool,
) -> Float[Tensor, "batch dim"]:
    """The loss's gradient by the activation put there: all that must be known of the model."""
    metric = _LOSSES[corrupted]
    edits: Sequence[Edit] = [swap(site, value, at)]
    _, gradient = model.gradients(encoded, site, metric, corrupted=corrupted, edits=edits)
    return gradient[site][torch.arange(len(encoded)), at].float()


def _loss(towards: float) -> Metric:
    def function(logits: Tensor, encoded: Encoded, _: Tensor | None) -> Tensor:
        return torch.nn.functional.softplus(-towards * (logits[:, 0] - logits[:, 1]))

    return Metric(
        "swap_loss", "cross-entropy between the two answers", "nats", "the other answer likelier",
        "answers", function, needs_wrong=True,
    )  # fmt: skip


_LOSSES = {False: _loss(-1.0), True: _loss(1.0)}
"""By whether the base is the corrupted run: its answer becomes that of the other run."""
