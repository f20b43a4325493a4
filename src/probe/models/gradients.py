"""What a small change of each activation would do to the metric: one backward pass."""

import contextlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from probe.core.edit import Edit
from probe.core.errors import EditError, OptionError
from probe.core.metric import Metric
from probe.core.site import Site, SiteLike, expand_sites
from probe.core.task import Encoded
from probe.core.trace import Trace
from probe.models.hooks import Hook, Stop

if TYPE_CHECKING:
    from probe.models.bridge import BridgeModel


def gradients(
    model: "BridgeModel",
    encoded: Encoded,
    sites: "Iterable[SiteLike] | SiteLike",
    metric: Metric,
    *,
    corrupted: bool,
    stop_at: "Iterable[SiteLike] | SiteLike",
    edits: Sequence[Edit],
) -> tuple[Trace, Trace]:
    """Activations, and the gradient of each example's metric by them."""
    metric.check(encoded)
    wanted = [model.editable(site).whole for site in expand_sites(sites, model.dims.n_layers)]
    cut = {model.known(site).whole for site in expand_sites(stop_at, model.dims.n_layers)}
    for site in (*wanted, *cut):
        if site.kind.endswith("_scale"):  # the bridge computes it outside the graph
            raise EditError(f"no gradient is taken by {site}", expected="a site of the stream")
    tokens, lengths = model.tokens_of(encoded, corrupted)
    reference = None
    if metric.needs_reference:
        reference = model.forward(encoded.clean, lengths=lengths, last_only=True)
    kept: dict[Site, Tensor] = {}

    def keep(site: Site) -> Hook:
        def hook(value: Tensor) -> Tensor:
            value = value if value.requires_grad else value.detach().requires_grad_()
            if site.kind == "mlp_resid":  # the stream itself, which also passes the MLP by
                value = value.view_as(value)
            kept[site] = value
            return value.detach() if site in cut else value

        return hook

    # The graph begins at the first residual stream: weights carry no gradient.
    first = Site("resid_pre", 0)
    order = sorted({*wanted, *cut, first}, key=lambda site: site.order)
    hooks = model.edit_hooks(edits, lengths, quiet=True) + [(s, keep(s)) for s in order]
    logits = _last_logits(model, tokens, lengths, hooks)
    ids = metric.token_ids(encoded)
    if ids is not None:
        logits = logits.gather(1, ids.to(logits.device))
    total = metric(logits, encoded, reference).sum()
    if not cut and not total.requires_grad:
        raise OptionError(
            f"{metric.name} has no gradient", expected="a metric that varies smoothly"
        )
    grads: Sequence[Tensor | None] = [None] * len(wanted)
    if total.requires_grad:  # else stop_at left nothing to differentiate by
        grads = torch.autograd.grad(total, [kept[site] for site in wanted], allow_unused=True)
    made = {
        site: torch.zeros_like(kept[site]) if grad is None else grad
        for site, grad in zip(wanted, grads, strict=True)
    }
    values = {site: kept[site].detach() for site in wanted}
    strings = tuple(tuple(encoded.str_tokens(i, corrupted=corrupted)) for i in range(len(tokens)))
    return (
        Trace(values, tokens, lengths, None, strings),
        Trace(made, tokens, lengths, None, strings),
    )


def _last_logits(
    model: "BridgeModel", tokens: Tensor, lengths: Tensor, hooks: Sequence[tuple[Site, Hook]]
) -> Float[Tensor, "batch d_vocab"]:
    """Logits of each row's last real token; no other is unembedded where that can be left out."""
    rows, last = torch.arange(len(tokens), device=model.device), lengths.to(model.device) - 1
    if not model.reads_out or any(site.kind == "ln_final_scale" for site, _ in hooks):
        return model.run_raw(tokens, hooks, lengths=lengths, grad=True).logits[rows, last]
    final: list[Tensor] = []

    def stop(resid: Tensor) -> None:
        final.append(resid[rows, last])
        raise Stop

    end = Site("resid_post", model.dims.n_layers - 1)
    with contextlib.suppress(Stop):
        model.run_raw(tokens, [*hooks, (end, stop)], lengths=lengths, grad=True)
    return model.logits_of(final[0])
