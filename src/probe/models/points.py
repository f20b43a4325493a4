"""Which sites an architecture really has, and which of them can be edited: found by trying."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from probe.core.model import Dims, site_shape
from probe.core.site import KINDS, Site
from probe.models.hooks import Hook

if TYPE_CHECKING:
    from probe.models.bridge import BridgeModel

_READ_BACK_OR_NOT = ("attn_scores", "pattern", "router")


def named(hooks: Mapping[str, Any], dims: Dims) -> dict[Site, Any]:
    """The sites whose hooks the library names; it names some that carry nothing."""
    sites = [Site("embed"), Site("ln_final_scale")]
    sites += [
        Site(name, layer)
        for layer in range(dims.n_layers)
        for name, kind in KINDS.items()
        if kind.per_layer
    ]
    return {site: hooks[site.hook_name] for site in sites if site.hook_name in hooks}


def firing(model: "BridgeModel", points: Mapping[Site, Any]) -> dict[Site, Any]:
    """Of these, the ones that fire with what they should. One short forward pass."""
    n_pos = min(5, model.dims.n_ctx)
    tokens = torch.arange(2 * n_pos).view(2, n_pos) % model.dims.d_vocab
    seen: dict[Site, Tensor] = {}

    def note(site: Site) -> Hook:
        return lambda value: seen.__setitem__(site, value.detach())

    model.run_raw(tokens, [(site, note(site)) for site in points])
    return {
        site: point
        for site, point in points.items()
        if site in seen
        and tuple(seen[site].shape) == site_shape(site, model.dims, 2, n_pos)
        and _is_sound(site, seen, model.dims.causal)
    }


def inert(model: "BridgeModel", points: Mapping[Site, Any], tokens: Tensor) -> frozenset[str]:
    """Kinds that are computed but not read back: editing them would change nothing."""
    last_first = sorted(points, key=lambda site: site.order, reverse=True)
    first = {site.kind: site for site in last_first if site.kind in _READ_BACK_OR_NOT}
    plain = model.run_raw(tokens).logits
    return frozenset(
        kind
        for kind, site in first.items()
        if torch.equal(model.run_raw(tokens, [(site, lambda x: x.flip(-1))]).logits, plain)
    )


def _is_sound(site: Site, seen: Mapping[Site, Tensor], causal: bool) -> bool:
    """Whether a point carries what its site says.

    Of some encoders the bridge hands out the pattern twice; their second norm follows the MLP.
    """
    if site.kind == "mlp_resid" and not causal:
        return False
    pattern = seen.get(Site("pattern", site.layer)) if site.kind == "attn_scores" else None
    return pattern is None or torch.allclose(seen[site].softmax(-1), pattern, rtol=0, atol=0.02)
