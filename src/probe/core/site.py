"""Where in the model: the address of an activation, and the one table of axis names.

This is the only file that spells TransformerLens' hook names.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from probe.core.errors import SiteError, nearest

AXES: dict[str, str] = {
    "batch": "prompt within the batch",
    "pos": "token position",
    "query": "position attended from",
    "key": "position attended to",
    "head": "attention head (query head)",
    "kv_head": "key/value head, shared by several query heads in grouped-query models",
    "layer": "block, counted from 0",
    "d_model": "residual stream dimension",
    "d_head": "dimension within a head",
    "d_mlp": "MLP neuron",
    "d_vocab": "token of the vocabulary",
    "feature": "feature of a dictionary",
    "expert": "expert of a mixture",
    "scale": "one number for each position (a normalisation denominator)",
}
"""Axis name → meaning. The same words name columns, figure axes and labels everywhere."""


class Kind(NamedTuple):
    """One kind of activation: its hook, its axes and what it is."""

    hook: str
    axes: tuple[str, ...]
    about: str

    @property
    def per_layer(self) -> bool:
        """Whether every block has one."""
        return "{layer}" in self.hook


_RESID = ("batch", "pos", "d_model")
_HEADS, _KV_HEADS = ("batch", "pos", "head", "d_head"), ("batch", "pos", "kv_head", "d_head")
_SQUARE = ("batch", "head", "query", "key")
_MLP = ("batch", "pos", "d_mlp")
_SCALE = ("batch", "pos", "scale")

KINDS: dict[str, Kind] = {
    "embed": Kind("hook_embed", _RESID, "token embedding"),
    "resid_pre": Kind("blocks.{layer}.hook_resid_pre", _RESID, "residual stream into a block"),
    "resid_mid": Kind(
        "blocks.{layer}.hook_resid_mid", _RESID, "residual between attention and MLP"
    ),
    "mlp_resid": Kind(
        "blocks.{layer}.ln2.hook_in", _RESID, "residual as the MLP reads it, before its norm"
    ),
    "resid_post": Kind("blocks.{layer}.hook_resid_post", _RESID, "residual stream after a block"),
    "attn_out": Kind("blocks.{layer}.hook_attn_out", _RESID, "what attention adds to the residual"),
    "mlp_out": Kind("blocks.{layer}.hook_mlp_out", _RESID, "what the MLP adds to the residual"),
    "q": Kind("blocks.{layer}.attn.hook_q", _HEADS, "queries, before any rotation"),
    "k": Kind("blocks.{layer}.attn.hook_k", _KV_HEADS, "keys, before any rotation"),
    "v": Kind("blocks.{layer}.attn.hook_v", _KV_HEADS, "values"),
    "z": Kind("blocks.{layer}.attn.hook_z", _HEADS, "head outputs before the output projection"),
    "pattern": Kind("blocks.{layer}.attn.hook_pattern", _SQUARE, "attention probabilities"),
    "attn_scores": Kind("blocks.{layer}.attn.hook_attn_scores", _SQUARE, "scores before softmax"),
    "mlp_in": Kind("blocks.{layer}.mlp.hook_in", _RESID, "what the MLP reads, after its norm"),
    "mlp_pre": Kind("blocks.{layer}.mlp.hook_pre", _MLP, "neurons before the activation function"),
    "mlp_post": Kind("blocks.{layer}.mlp.hook_post", _MLP, "neurons, as read by the output matrix"),
    "ln1_scale": Kind("blocks.{layer}.ln1.hook_scale", _SCALE, "denominator of the first norm"),
    "ln2_scale": Kind("blocks.{layer}.ln2.hook_scale", _SCALE, "denominator of the second norm"),
    "ln_final_scale": Kind("ln_final.hook_scale", _SCALE, "denominator of the final norm"),
    "router": Kind(
        "blocks.{layer}.mlp.gate.hook_out", ("batch", "pos", "expert"), "router logits of a mixture"
    ),
}
"""Site kind → hook, axes and meaning."""

_BY_HOOK = {kind.hook: name for name, kind in KINDS.items()}

SiteLike = "Site | str | tuple[str, int] | tuple[str, int, int]"


@dataclass(frozen=True, slots=True)
class Site:
    """The address of an activation: kind, layer, and (to narrow it) one head.

    >>> Site("z", 9, 6)
    Site('z.9.6')
    >>> Site.parse("resid_post.3") == Site("resid_post", 3)
    True
    >>> Site("z", 9, 6).axes
    ('batch', 'pos', 'head', 'd_head')
    """

    kind: str
    layer: int | None = None
    head: int | None = None

    def __post_init__(self) -> None:
        """Refuse an address that could name nothing."""
        if self.kind not in KINDS:
            raise SiteError(
                f'"{self.kind}" is not a kind of site',
                expected="one of the site kinds",
                remedy=nearest(self.kind, KINDS),
            )
        kind = KINDS[self.kind]
        if kind.per_layer != (self.layer is not None):
            need = "a layer" if kind.per_layer else "no layer"
            raise SiteError(
                f"{self.kind} was given layer {self.layer}",
                expected=f"{self.kind} takes {need}",
                remedy=f'write "{self.kind}{".0" if kind.per_layer else ""}"',
            )
        if self.head is not None and self.head_axis is None:
            raise SiteError(f"{self.kind} has no heads", expected=f"axes {kind.axes}")

    @property
    def axes(self) -> tuple[str, ...]:
        """Axis names of the tensor that lives here."""
        return KINDS[self.kind].axes

    @property
    def head_axis(self) -> str | None:
        """``head``, ``kv_head``, or None where there are no heads."""
        return next((axis for axis in self.axes if axis in ("head", "kv_head")), None)

    @property
    def hook_name(self) -> str:
        """The TransformerLens hook that carries it."""
        return KINDS[self.kind].hook.format(layer=self.layer)

    @property
    def whole(self) -> "Site":
        """The same site with all its heads."""
        return replace(self, head=None)

    @property
    def order(self) -> tuple[int, int]:
        """Sort key: the order in which a forward pass reaches sites."""
        place = list(KINDS).index(self.kind)
        if self.layer is None:
            return (-1, place) if self.kind == "embed" else (10**9, place)
        return (self.layer, _PLACE_IN_BLOCK.index(self.kind))

    def __str__(self) -> str:
        return ".".join(
            str(part) for part in (self.kind, self.layer, self.head) if part is not None
        )

    def __repr__(self) -> str:
        return f"Site({str(self)!r})"

    @classmethod
    def parse(cls, text: str) -> "Site":
        """Read ``kind``, ``kind.layer``, ``kind.layer.head`` or a TransformerLens hook name.

        >>> Site.parse("blocks.3.attn.hook_z")
        Site('z.3')
        """
        pattern = re.sub(r"^blocks\.(\d+)\.", "blocks.{layer}.", text)
        if pattern in _BY_HOOK:
            layer = re.match(r"blocks\.(\d+)\.", text)
            return cls(_BY_HOOK[pattern], int(layer[1]) if layer else None)
        kind, *numbers = text.split(".")
        if len(numbers) > 2 or not all(number.isdecimal() for number in numbers):
            raise SiteError(
                f'cannot read "{text}" as a site',
                expected="kind, kind.layer or kind.layer.head, like z.9.6",
                remedy=nearest(kind, KINDS),
            )
        return cls(kind, *(int(number) for number in numbers))


_PLACE_IN_BLOCK = [
    "resid_pre", "ln1_scale", "q", "k", "v", "attn_scores", "pattern", "z", "attn_out", "resid_mid",
    "mlp_resid", "ln2_scale", "mlp_in", "router", "mlp_pre", "mlp_post", "mlp_out", "resid_post",
]  # fmt: skip


def expand_sites(sites: "Iterable[SiteLike] | SiteLike", n_layers: int) -> list[Site]:
    """Turn what a user writes into Sites: a bare per-layer kind means every layer.

    >>> expand_sites(["resid_post", ("z", 1), "pattern.0"], n_layers=2)
    [Site('resid_post.0'), Site('resid_post.1'), Site('z.1'), Site('pattern.0')]
    """
    if isinstance(sites, str | Site) or (
        isinstance(sites, tuple) and len(sites) > 1 and isinstance(sites[1], int)
    ):
        sites = [sites]
    found: dict[Site, None] = {}
    for site in sites:
        for one in _expand(site, n_layers):
            check_layer(one, n_layers)
            found[one] = None
    return list(found)


def _expand(site: "SiteLike", n_layers: int) -> Sequence[Site]:
    if isinstance(site, Site):
        return [site]
    if isinstance(site, tuple):
        return [Site(*site)]
    if isinstance(site, str) and site in KINDS and KINDS[site].per_layer:
        return [Site(site, layer) for layer in range(n_layers)]
    return [Site.parse(str(site))]


def check_layer(site: Site, n_layers: int) -> None:
    """Refuse a layer that the model does not have."""
    if site.layer is not None and not 0 <= site.layer < n_layers:
        raise SiteError(
            f"{site} asks for layer {site.layer}",
            expected=f"0 to {n_layers - 1}: the model has {n_layers} layers",
        )
