"""The sign of heads' eigenvalues between tokens, beside that of random matrices."""

from collections.abc import Callable

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from probe.core.model import Model
from probe.core.progress import progress_bar
from probe.methods.lowrank import LowRank, positive_share, product

COLUMNS = {
    "layer": "block, counted from 0",
    "head": "query head",
    "value": "sum of the eigenvalues' real parts over the sum of their sizes, -1 to 1",
    "baseline": "the same of random matrices of a head's shape, mean over the draws",
    "low": "2.5th percentile of the draws",
    "high": "97.5th percentile of the draws",
}

Draw = Callable[[int, int, torch.Generator], LowRank]
"""Layer, how many, and a source of chance → random circuits."""


def frame(
    model: Model,
    of_layer: Callable[[int], LowRank],
    random: Draw,
    ends: Float[Tensor, "d_model d_model"],
    *,
    draws: int,
    seed: int,
    first: int = 0,
) -> pd.DataFrame:
    """One row a head.

    Args:
        model: Whose heads.
        of_layer: Layer → the circuits of its heads in the residual stream.
        random: The same of random matrices.
        ends: What joins a circuit's end to its beginning through the vocabulary.
        draws: Random circuits a layer.
        seed: Of the random circuits.
        first: Layer to begin with.
    """
    dims, generator = model.dims, torch.Generator().manual_seed(seed)
    frames = []
    with progress_bar("eigenvalues") as report:
        for layer in range(first, dims.n_layers):
            drawn = _share(random(layer, draws, generator), ends)
            columns = {
                "layer": layer,
                "head": range(dims.n_heads),
                "value": _share(of_layer(layer), ends).cpu().numpy(),
                "baseline": float(drawn.mean()),
                "low": float(drawn.quantile(0.025)),
                "high": float(drawn.quantile(0.975)),
            }
            frames.append(pd.DataFrame(columns))
            if report(layer + 1 - first, dims.n_layers - first, "layers") is False:
                break
    return pd.concat(frames, ignore_index=True)


def _share(circuit: LowRank, ends: Tensor) -> Float[Tensor, " circuit"]:
    return positive_share(LowRank(circuit.left, product(circuit.right, ends)).eigenvalues)
