"""How features share dimensions: the room each takes, and which of them interfere."""

import networkx as nx
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

LEARNT = 0.5
"""A feature whose vector is shorter than this is not represented."""


def dimensionality(W: Float[Tensor, "toy hidden feature"]) -> Float[Tensor, "toy feature"]:
    """The share of a dimension each feature has to itself: ‖W_i‖² / Σ_j (Ŵ_i · W_j)².

    1 is a dimension of its own, 1/2 an antipodal pair, 0 not represented (Elhage et al. 2022).

    >>> import torch
    >>> dimensionality(torch.tensor([[[1.0, -1.0, 0.0], [0.0, 0.0, 1.0]]])).tolist()
    [[0.5, 0.5, 1.0]]
    """
    square = W.square().sum(1)
    overlap = (W.mT @ W).square().sum(2)
    return torch.where(square > 0, square**2 / overlap.clamp(min=1e-30), 0.0)


def dimensions_per_feature(W: Float[Tensor, "toy hidden feature"]) -> Float[Tensor, " toy"]:
    """Hidden dimensions for each feature that is represented: m / ‖W‖²."""
    return W.shape[1] / W.square().sum((1, 2))


def feature_cosines(W: Float[Tensor, "toy hidden feature"]) -> Float[Tensor, "toy feature feature"]:
    """Between the vectors of any two features; 0 with one that is nothing."""
    unit = W / W.norm(dim=1, keepdim=True).clamp(min=1e-12)
    return unit.mT @ unit


def feature_groups(W: Float[Tensor, "hidden feature"], least: float = 0.2) -> list[list[int]]:
    """Groups of represented features that interfere, directly or through others.

    Args:
        W: Of one model.
        least: Features interfere whose vectors have at least this |cosine|.

    >>> import torch
    >>> feature_groups(torch.tensor([[1.0, -1.0, 0.0], [0.0, 0.0, 1.0]]))
    [[0, 1], [2]]
    """
    learnt = (W.norm(dim=0) > LEARNT).nonzero()[:, 0].numpy()
    close = feature_cosines(W[None])[0].abs().numpy()[np.ix_(learnt, learnt)] >= least
    graph = nx.from_numpy_array(close)
    return sorted(sorted(int(learnt[i]) for i in part) for part in nx.connected_components(graph))
