"""Dead features begun again at what is reconstructed worst (Towards Monosemanticity, appendix)."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from probe.dictionaries.dense import dense_residual
from probe.dictionaries.recipe import TOPK_FAMILY, Recipe
from probe.dictionaries.scaling import Data
from probe.dictionaries.sparse import sparse_residual
from probe.dictionaries.standard import standard_residual
from probe.dictionaries.step import Batch, Parameters

_INPUTS = 819_200
_ENCODER_SHARE = 0.2
_BATCH = 4096


@torch.no_grad()
def resample(
    p: Parameters, adam: torch.optim.Adam, data: Data, dead: Bool[Tensor, " feature"],
    recipe: Recipe, step: int, device: torch.device,
) -> None:  # fmt: skip
    """Give dead features new directions, in place.

    Inputs are drawn with probability ∝ loss², from 819 200, or as many as are learnt from between
    two resamplings where that is fewer. A dead feature's decoder row becomes the drawn input (less
    b_dec) at norm one, or at the mean norm of the live rows where rows are free; its encoder the
    same direction at 0.2 of the live encoders' mean norm; its bias 0; and Adam's moments of all
    three 0. (Of a transcoder the decoder's direction is the target's and the encoder's the
    input's.)
    """
    generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
    wanted = int(dead.sum())
    inputs = min(_INPUTS, data.store.n_rows, max(recipe.resample_every, _BATCH))
    size = min(_BATCH, inputs)
    batches = data.store.batches(size, names=data.names, seed=recipe.seed + 1, start=step)
    keys, x, y = torch.empty(0), torch.empty(0, data.d_in), torch.empty(0, data.d_out)
    for _ in range(inputs // size):
        batch = data.batch(next(batches), device)
        weight = row_errors(p, batch, recipe).pow(2).cpu().double()
        # the largest u^(1/weight) are a weighted draw, and need no second look at the rows
        u = torch.rand(len(weight), generator=generator, dtype=torch.float64)
        keys = torch.cat([keys, u.log() / weight.clamp(min=1e-30)])
        first = keys.topk(min(wanted, len(keys))).indices
        keys = keys[first]
        x = torch.cat([x, batch.x.cpu()])[first]
        y = torch.cat([y, batch.y.cpu()])[first]
    which = dead.nonzero()[:, 0][torch.randperm(len(x), generator=generator).to(device)]
    _begin_again(p, adam, which, ~dead, (x.to(device), y.to(device)), data.tied)


def row_errors(p: Parameters, batch: Batch, recipe: Recipe) -> Float[Tensor, " row"]:
    """‖y − ŷ‖² of each row."""
    if recipe.architecture in TOPK_FAMILY:
        return sparse_residual(p, batch, recipe).pow(2).sum(-1)
    residual = standard_residual if recipe.architecture == "standard" else dense_residual
    return residual(p, batch, recipe).pow(2).sum(-1)


def _begin_again(
    p: Parameters, adam: torch.optim.Adam, which: Tensor, live: Tensor,
    rows: tuple[Tensor, Tensor], tied: bool,
) -> None:  # fmt: skip
    x, y = rows
    if tied:
        x = y = y - p["b_dec"]
    norm = p["D"][live].norm(dim=-1).mean() if bool(live.any()) else 1.0
    size = p["E"][live].norm(dim=-1).mean() if bool(live.any()) else 1.0
    p["D"][which] = norm * torch.nn.functional.normalize(y, dim=-1)
    p["E"][which] = _ENCODER_SHARE * size * torch.nn.functional.normalize(x, dim=-1)
    biases = [name for name in p if p[name].ndim == 1 and name != "b_dec"]
    for name in biases:
        # a threshold begins at the live ones' mean
        p[name][which] = p[name][live].mean() if name == "log_threshold" else 0.0
    for name in ("D", "E", *biases):
        for moment in ("exp_avg", "exp_avg_sq"):
            adam.state[p[name]][moment][which] = 0.0
