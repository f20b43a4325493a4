"""One training step of the top-k family, with gradients written out: no dense code is made."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from probe.dictionaries.candidates import (
    batchtopk_by_candidates,
    candidates_pay,
    topk_by_candidates,
)
from probe.dictionaries.kernels import Code, Transposed, batchtopk_code, topk_code
from probe.dictionaries.recipe import Recipe
from probe.dictionaries.step import Batch, Outcome, Parameters


def sparse_step(
    p: Parameters,
    batch: Batch,
    recipe: Recipe,
    k: int,
    dead: Bool[Tensor, " feature"],
    guess: float | None = None,
) -> Outcome:
    """Losses and gradients of a topk, batchtopk or matryoshka_batchtopk dictionary.

    The loss is E‖y − ŷ‖² (Gao et al. 2024; Bussmann et al. 2024), summed over nested prefixes of
    the features for matryoshka (Bussmann et al. 2025), and AuxK where features are dead.

    Args:
        p: Parameters; not changed.
        batch: Activations and targets.
        recipe: Architecture and options.
        k: Active features of a row, or on average of a batch's.
        dead: Features that count as dead.
        guess: See ``batchtopk_code``.
    """
    read = batch.x - p["b_dec"] if batch.tied else batch.x
    code = _encoded(p, read, recipe, k, guess)
    base = _base(p, batch, recipe)
    ends = recipe.groups or (recipe.d_sae,)
    parts = [
        code.part(first, last) if len(ends) > 1 else (code, None)
        for first, last in zip((0, *ends), ends, strict=False)
    ]
    residuals = _residuals(parts, p["D"], base, batch.y)
    # a group's features are in its own reconstruction and in every wider one
    flow = [r * (2 / len(read)) for r in residuals]
    for i in range(len(flow) - 2, -1, -1):
        flow[i] = flow[i] + flow[i + 1]
    turned = code.transposed()
    by_code, by_decoder = _backwards(code, parts, flow, p["D"], turned)
    gradients = {"D": by_decoder, "b_dec": flow[0].sum(0)}
    gradients["E"] = turned.accumulate(by_code, read)
    gradients["b_enc"] = torch.zeros_like(p["b_enc"]).index_add_(0, code.features.long(), by_code)
    if recipe.skip:
        gradients["S"] = flow[0].T @ batch.x
    terms = [float(r.pow(2).sum(-1).mean()) for r in residuals]
    losses = {"reconstruction": terms[-1]}
    if len(terms) > 1:
        losses["inner"] = sum(terms[:-1])
    if recipe.revive == "auxk" and bool(dead.any()):
        losses["auxk"] = _add_auxk(p, gradients, batch, read, residuals[-1], recipe, dead)
    if batch.tied:  # the encoder reads x − b_dec
        gradients["b_dec"] = gradients["b_dec"] - gradients["b_enc"] @ p["E"]
    active = code.values > 0
    fired = torch.bincount(code.features[active], minlength=recipe.d_sae)
    positive = code.values[active]
    return Outcome(
        losses, gradients, fired, terms[-1] * len(read),
        float(positive.min()) if len(positive) else None,
    )  # fmt: skip


def sparse_residual(p: Parameters, batch: Batch, recipe: Recipe) -> Float[Tensor, "row d_out"]:
    """ŷ − y, of all features."""
    read = batch.x - p["b_dec"] if batch.tied else batch.x
    code = _encoded(p, read, recipe, recipe.k, None)
    return code.decode(p["D"]) + _base(p, batch, recipe) - batch.y


def _encoded(
    p: Parameters, read: Float[Tensor, "row d_in"], recipe: Recipe, k: int, guess: float | None
) -> Code:
    """The largest pre-activations, by candidates where that is faster."""
    E, b, count = p["E"], p["b_enc"], k * len(read)
    found = None
    if candidates_pay(read, len(E), k):
        if recipe.architecture == "topk":
            found = topk_by_candidates(read, E, b, k)
        elif guess is not None and guess > 0:
            found = batchtopk_by_candidates(read, E, b, count, guess)
    if found is not None:
        return found
    before = torch.addmm(b, read, E.T)
    return (
        topk_code(before, k)
        if recipe.architecture == "topk"
        else batchtopk_code(before, count, guess)
    )


def _base(p: Parameters, batch: Batch, recipe: Recipe) -> Tensor:
    """The reconstruction where no feature is active."""
    return p["b_dec"] + batch.x @ p["S"].T if recipe.skip else p["b_dec"]


def _residuals(
    parts: Sequence[tuple[Code, Tensor | None]], D: Tensor, base: Tensor, y: Tensor
) -> list[Float[Tensor, "row d_out"]]:
    """ŷ − y of each nested prefix of the features."""
    so_far = base - y
    found = []
    for part, _ in parts:
        so_far = so_far + part.decode(D)
        found.append(so_far)
    return found


def _backwards(
    code: Code, parts: Sequence[tuple[Code, Tensor | None]], flow: Sequence[Tensor], D: Tensor,
    turned: Transposed,
) -> tuple[Float[Tensor, " entry"], Float[Tensor, "feature d_out"]]:  # fmt: skip
    """The loss's gradient by the code and by the decoder, given that by each reconstruction."""
    (only, whole), g = parts[0], flow[0]
    if whole is None:
        return only.gradient(g, D), turned.accumulate(code.values, g)
    by_code, by_decoder = torch.empty_like(code.values), torch.zeros_like(D)
    for (part, inside), g in zip(parts, flow, strict=True):
        by_code[inside] = part.gradient(g, D)
        by_decoder += part.transposed().accumulate(part.values, g)
    return by_code, by_decoder


def _add_auxk(
    p: Parameters, gradients: Parameters, batch: Batch, read: Tensor, residual: Tensor,
    recipe: Recipe, dead: Tensor,
) -> float:  # fmt: skip
    """AuxK (Gao et al. 2024, appendix A.2): dead features predict what the live ones miss.

    Their d_in/2 largest pre-activations, ReLU'd, reconstruct e = y − ŷ (held still). The paper's
    losses are divided by their targets' variances; ours is not for the main term, so this one is
    multiplied by the variance of y: α · V(y) · E‖ê − e‖² / V(e). Adds to ``gradients``.
    """
    which = dead.nonzero()[:, 0]
    missing = -residual
    before = torch.addmm(p["b_enc"][which], read, p["E"][which].T)
    kept = before.topk(min(len(which), max(1, batch.x.shape[1] // 2)), dim=-1, sorted=False)
    acts = torch.zeros_like(before).scatter_(1, kept.indices, kept.values.relu())
    error = acts @ p["D"][which] - missing
    weight = recipe.aux_weight * _variance(batch.y) / _variance(missing).clamp(min=1e-12)
    g = error * (2 * weight / len(read))
    by_acts = (g @ p["D"][which].T) * (acts > 0)
    gradients["D"].index_add_(0, which, acts.T @ g)
    gradients["E"].index_add_(0, which, by_acts.T @ read)
    gradients["b_enc"].index_add_(0, which, by_acts.sum(0))
    return float(weight * error.pow(2).sum(-1).mean())


def _variance(x: Float[Tensor, "row d"]) -> Float[Tensor, ""]:
    return (x - x.mean(0)).pow(2).sum(-1).mean()
