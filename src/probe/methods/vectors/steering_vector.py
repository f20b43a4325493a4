"""A direction from two sets of texts that differ in one thing."""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from probe.core.errors import OptionError, TaskError, nearest
from probe.core.model import Model
from probe.core.provenance import Stopwatch, hash_text, of_call
from probe.core.site import Site, check_layer
from probe.core.trace import Trace
from probe.core.vector import VectorResult

How = Literal["mean_difference", "activation_addition", "principal_component", "probe"]
Read = Literal["last", "mean"]

HOWS: dict[str, str] = {
    "mean_difference": "mean over the positive texts less mean over the negative ones",
    "activation_addition": "difference of one pair, position by position, added at the front",
    "principal_component": "the axis along which the pairs differ most, as long as their mean gap",
    "probe": "normal of a logistic regression, as long as the gap between the two means along it",
}
"""How a direction is found → what it is."""


def steering_vector(
    model: Model,
    positive: Sequence[str],
    negative: Sequence[str],
    *,
    layer: int,
    how: How = "mean_difference",
    read: Read = "last",
    name: str = "steering vector",
) -> VectorResult:
    """Which direction leads from the negative texts to the positive ones?

    All directions have the length of the step between the two means along them, so strength 1
    moves an average negative text to where the positive ones are.

    Args:
        model: A causal model.
        positive: Texts with the property.
        negative: Texts without it. ``principal_component`` takes them in pairs.
        layer: Whose ``resid_post`` is read and steered.
        how: One of ``HOWS``.
        read: At the texts' last token, or the mean over their tokens (special ones left out);
            ``activation_addition`` reads every position.
        name: What the direction is called.

    Returns:
        A vector added at all positions; by ``activation_addition`` one added at the first
        positions of the prompt.

    Raises:
        TaskError: Texts that cannot be encoded, too few, or unpaired.
        SiteError: A layer that is not there.
        OptionError: An unknown way, or texts between which nothing differs.

    Cost: one forward pass over all texts, up to the layer.

    Source: Rimsky et al. 2024 (mean difference), Turner et al. 2023 (activation addition), Zou
    et al. 2023 (principal component of pairs).

    >>> from probe.api import load_model
    >>> steering_vector(load_model("toy"), ["so good"], ["so bad"], layer=0, name="mood").where
    'all'
    """
    watch, site = Stopwatch(), Site("resid_post", layer)
    check_layer(site, model.dims.n_layers)
    if how not in HOWS:
        raise OptionError(f'how="{how}"', remedy=nearest(how, HOWS))
    _check_texts(how, positive, negative)
    trace = model.trace([*positive, *negative], [site])
    if how == "activation_addition":
        found = _front(trace, site, len(model.tokenizer.suffix))
    else:
        both = _states(model, trace, site, read)
        found = _direction(both[: len(positive)], both[len(positive) :], how)
    if not found.any():
        raise OptionError(
            f"nothing differs between the positive and the negative texts at {site}",
            expected="texts of which one side has what the other has not",
        )
    texts = "\n".join([*positive, "", *negative])
    record = of_call(
        model, "steering_vector", watch, layer=layer, how=how, read=read, name=name,
        task={"name": name, "n": len(positive) + len(negative), "hash": hash_text(texts),
              "positive": list(positive), "negative": list(negative)},
    )  # fmt: skip
    where = "front" if how == "activation_addition" else "all"
    return VectorResult(name, found, site, "add", where, record)


def _check_texts(how: str, positive: Sequence[str], negative: Sequence[str]) -> None:
    for side, texts in (("positive", positive), ("negative", negative)):
        if isinstance(texts, str) or not texts:
            raise TaskError(f"the {side} texts are {texts!r}", expected="a list of at least one")
    if how == "activation_addition" and (len(positive), len(negative)) != (1, 1):
        raise TaskError(
            f"{len(positive)} positive and {len(negative)} negative texts",
            expected="one of each: activation addition keeps their positions apart",
            remedy='how="mean_difference"',
        )
    if how == "principal_component" and (len(positive) != len(negative) or len(positive) < 2):
        raise TaskError(
            f"{len(positive)} positive and {len(negative)} negative texts",
            expected="at least 2 pairs, the same number of each",
            remedy='how="mean_difference"',
        )
    if how == "probe" and min(len(positive), len(negative)) < 2:
        raise TaskError(
            f"{len(positive)} positive and {len(negative)} negative texts",
            expected="at least 2 of each to fit a probe",
        )


def _states(model: Model, trace: Trace, site: Site, read: str) -> Float[Tensor, "text d_model"]:
    if read == "last":
        return trace.sel(site, pos=-1).float().cpu()
    if read != "mean":
        raise OptionError(f'read="{read}"', remedy=nearest(read, ("last", "mean")))
    tokenizer = model.tokenizer
    skip, end = len(tokenizer.prefix), len(tokenizer.suffix)
    rows = [
        trace[site][row, skip : int(length) - end].float().mean(0)
        for row, length in enumerate(trace.lengths)
    ]
    return torch.stack(rows).cpu()


def _direction(
    positive: Float[Tensor, "text d_model"], negative: Float[Tensor, "text d_model"], how: str
) -> Float[Tensor, " d_model"]:
    gap = positive.mean(0) - negative.mean(0)
    if how == "mean_difference" or not gap.any():
        return gap
    if how == "principal_component":
        axis = torch.linalg.svd(positive - negative, full_matrices=False).Vh[0]
    else:
        axis = _normal(positive, negative)
    return (gap @ axis) * axis  # signs cancel: it points to the positive side


def _normal(
    positive: Float[Tensor, "text d_model"], negative: Float[Tensor, "text d_model"]
) -> Float[Tensor, " d_model"]:
    from sklearn.linear_model import LogisticRegression

    states = torch.cat([positive, negative])
    spread = states.std(0, correction=0).clamp(min=1e-6)
    scaled = ((states - states.mean(0)) / spread).numpy()
    sides = [1] * len(positive) + [0] * len(negative)
    probe = LogisticRegression(max_iter=1000).fit(scaled, sides)
    return torch.nn.functional.normalize(torch.tensor(probe.coef_[0]).float() / spread, dim=0)


def _front(trace: Trace, site: Site, suffix: int) -> Float[Tensor, "front d_model"]:
    """The shorter text says nothing past its end: there the longer one's state stands alone."""
    parts = trace[site].float().cpu()
    lengths = trace.lengths - suffix
    real = torch.arange(parts.shape[1]) < lengths[:, None]
    parts = parts * real[..., None]
    both = int(lengths.max())
    return (parts[0] - parts[1])[:both]
