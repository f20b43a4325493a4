"""A run recorded so that edited ones can be resumed from it at any layer and position.

It knows no architecture. The library's own loop runs the suffix once over the prefix's cache; the
keyword arguments each block received then are used again, with more rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from probe.core.edit import Edit
from probe.core.site import Site

if TYPE_CHECKING:
    from probe.models.bridge import BridgeModel


@dataclass(eq=False)
class Run:
    """The run that rows depart from, recorded as far as they need it."""

    tokens: Int[Tensor, "batch pos"]
    lengths: Int[Tensor, " batch"]
    resid: list[Float[Tensor, "batch pos d_model"]]
    """Into each block, and after the last."""
    cache: list[tuple[Tensor, Tensor]]
    """Keys and values of each layer, as the library caches them."""
    edits: Sequence[Edit] = ()
    """Made in this run, of what enters the first block; all else about it is unedited."""


def record(
    model: "BridgeModel",
    tokens: Tensor,
    lengths: Tensor,
    *,
    edits: Sequence[Edit] = (),
    with_cache: bool = True,
) -> Run:
    """One forward pass that keeps the residual stream into every block, and keys and values."""
    n_layers = model.dims.n_layers
    resid: dict[Site, Tensor] = {}
    sites = [Site("resid_pre", layer) for layer in range(n_layers)]
    sites.append(Site("resid_post", n_layers - 1))

    def keep(site: Site) -> Any:
        return lambda value: resid.__setitem__(site, value)

    # edits first: what is kept of the first site is what they made of it
    hooks = [*model.edit_hooks(edits, lengths, quiet=True), *((site, keep(site)) for site in sites)]
    cache = plain_cache() if with_cache else None
    model.run_raw(tokens, hooks, lengths=lengths, cache=cache)
    pairs = [(layer.keys, layer.values) for layer in cache.layers] if cache is not None else []
    return Run(tokens, lengths, [resid[site] for site in sites], pairs, edits)


@dataclass(eq=False)
class Received:
    """What the library handed to one block beside hidden states, to be given again to more rows."""

    layer: int
    args: tuple
    kwargs: dict[str, Any]
    batch: int

    def for_rows(
        self, run: Run, examples: Tensor, start: int, hidden: Tensor
    ) -> tuple[tuple, dict[str, Any]]:
        """The same arguments for these rows, their hidden states and their share of the cache."""
        frozen = None
        if start:
            keys, values = run.cache[self.layer]
            index = examples.to(keys.device)
            frozen = Frozen(keys[index, :, :start], values[index, :, :start])

        def again(value: Any) -> Any:
            if isinstance(value, Tensor):
                # One row serves all by broadcasting; a row for each prompt is picked by prompt.
                picks = value.ndim > 1 and value.shape[0] == self.batch > 1
                return value[examples.to(value.device)] if picks else value
            if isinstance(value, tuple):
                return tuple(again(one) for one in value)
            return frozen if _is_cache(value) else value

        args = (hidden, *(again(value) for value in self.args))
        return args, {name: again(value) for name, value in self.kwargs.items()}


class Frozen:
    """A cache that answers with the recorded prefix and what is new, and keeps nothing."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self._keys, self._values = keys, values

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Prefix and new, for one layer."""
        return torch.cat([self._keys, keys], dim=2), torch.cat([self._values, values], dim=2)

    def get_seq_length(self, *_: Any) -> int:
        """Length of the prefix."""
        return self._keys.shape[2]


def capture(model: "BridgeModel", run: Run, start: int) -> list[Received]:
    """Run the suffix once over the prefix's cache and note what each block is given."""
    cache = None
    if start:
        cache = plain_cache()
        for layer, (keys, values) in enumerate(run.cache):
            cache.update(keys[:, :, :start], values[:, :, :start], layer)
    received: list[Received] = []
    handles = []

    def note(layer: int) -> Any:
        def hook(module: Any, args: tuple, kwargs: dict[str, Any]) -> None:
            hidden = args[0] if args else kwargs["hidden_states"]
            rest = {name: value for name, value in kwargs.items() if name != "hidden_states"}
            received.append(Received(layer, args[1:], rest, len(hidden)))

        return hook

    try:
        for layer in range(model.dims.n_layers):
            block = model.block(layer)
            handles.append(block.register_forward_pre_hook(note(layer), with_kwargs=True))
        model.run_raw(run.tokens[:, start:], (), cache=cache)
    finally:
        for handle in handles:
            handle.remove()
    return received


def plain_cache() -> Any:
    """A cache that keeps every position, also of sliding-window layers."""
    from transformers import DynamicCache

    return DynamicCache()


def _is_cache(value: Any) -> bool:
    from transformers import Cache

    return isinstance(value, Cache)
