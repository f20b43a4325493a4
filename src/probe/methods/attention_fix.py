"""The attention a patched query or key would give, exactly."""

import warnings
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from probe.core.edit import patch
from probe.core.errors import ModelError, ProbeWarning
from probe.core.model import Model
from probe.core.site import Site
from probe.core.task import Encoded
from probe.core.trace import Trace

_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-8}


def patched_runs(
    model: Model,
    encoded: Encoded,
    kind: str,
    layers: Sequence[int],
    base: Trace,
    source: Trace,
    *,
    corrupted: bool,
    scores: bool,
) -> Trace:
    """Attention of every layer with that layer's queries (or keys) patched, and nothing else.

    One forward pass serves all layers: each layer's queries are patched, and then its heads'
    outputs are set back to the base run's, so that the next layer sees the base run. The model
    itself rotates, caps and masks, whatever its architecture.

    Args:
        model: The model.
        encoded: The prompts.
        kind: ``q`` or ``k``.
        layers: Which layers.
        base: The unpatched run, with ``kind``, ``z``, ``pattern`` (and ``attn_scores``).
        source: The run patched in, with ``kind``.
        corrupted: Whether the base run is the corrupted one.
        scores: Also give the scores before the softmax.

    Raises:
        ModelError: Scores are asked for, and their softmax is not the attention.
    """
    edits = [patch(Site(kind, layer), source[kind, layer]) for layer in layers]
    edits += [patch(Site("z", layer), base["z", layer]) for layer in layers]
    wanted = ["pattern", "attn_scores"] if scores else ["pattern"]
    sites = [Site(one, layer) for one in wanted for layer in layers]
    with warnings.catch_warnings():
        # Queries of equal prompts, or a head that reads nothing: no change is an answer here.
        warnings.simplefilter("ignore", ProbeWarning)
        patched = model.trace(
            encoded, sites, edits=edits, corrupted=corrupted, batch_size=len(encoded)
        )
    if scores:
        _check_softmax(model, base, layers)
    return patched


def key_effects(
    scores: Float[Tensor, "batch head query key"],
    patched: Float[Tensor, "batch head query key"],
    slope: Float[Tensor, "batch head query key"],
) -> Float[Tensor, "batch head key"]:
    """Σ over queries and keys of Δattention · slope when one key alone is patched, for each key.

    With the other keys' weights D = Σ_{k≠j} exp(s_k) and their mean slope m, key j's share goes
    from σ(s_j - log D) to σ(s'_j - log D), and what it gains the others lose in proportion:
    Σ_k Δp_k g_k = Δp_j (g_j - m). So one pass over the scores serves all keys, where patching one
    at a time would take as many softmaxes as there are keys. The sums leave j out by adding what
    is before and after it, since subtracting it would lose all digits where attention is
    saturated.

    Args:
        scores: Before the softmax, masked ones at most the type's minimum.
        patched: The same with every key patched: column j depends on key j alone.
        slope: Gradient by the attention probabilities.
    """
    top = scores.amax(-1, keepdim=True)
    weight = (scores - top).exp()
    others = _left_out(weight)
    mean = _left_out(weight * slope) / others
    before = torch.sigmoid(scores - top - others.log())
    after = torch.sigmoid(patched - top - others.log())
    # A query that sees one key only attends to it whatever its score.
    each = torch.where(others > 0, (after - before) * (slope - mean), 0.0)
    return each.sum(-2)


def _left_out(
    values: Float[Tensor, "batch head query key"],
) -> Float[Tensor, "batch head query key"]:
    """Sum over all keys but each."""
    none = torch.zeros_like(values[..., :1])
    before = torch.cat([none, values[..., :-1].cumsum(-1)], dim=-1)
    after = torch.cat([values[..., 1:].flip(-1).cumsum(-1).flip(-1), none], dim=-1)
    return before + after


def _check_softmax(model: Model, base: Trace, layers: Sequence[int]) -> None:
    limit = _TOLERANCE.get(model.dtype, 5e-2)
    for layer in layers:
        attention = base["attn_scores", layer].double().softmax(-1)
        gap = float((attention - base["pattern", layer].double()).abs().max())
        if gap > limit:
            raise ModelError(
                f"the softmax of {model.name}'s attn_scores.{layer} is not its attention: they "
                f"differ by up to {gap:.2g}",
                expected="a model whose attention is the softmax of its recorded scores",
                remedy='by="head", which patches all keys of a head at once, or qk_fix=False',
            )
