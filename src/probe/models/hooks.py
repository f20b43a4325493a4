"""Hooks: functions of one activation, put where it passes for the length of one call."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor

from probe.core.site import Site

Hook = Callable[[Tensor], Tensor | None]
"""Given an activation on its named axes; returns what stands there instead, or None."""


class Stop(Exception):  # noqa: N818  (a signal, not an error)
    """Raised by the last hook that anybody waits for."""


def placed(hooks: Sequence[tuple[Site, Hook]], *, causal: bool) -> Iterator[tuple[Site, Hook]]:
    """Hooks on the points where they act.

    The bridge's ``resid_mid`` is the MLP's input: a change there would leave the stream that
    passes the MLP by as it was. So the stream is changed where attention writes to it; what
    ``attn_out`` records after such an edit is what would have written it.
    """
    for site, hook in hooks:
        if site.kind == "resid_mid" and causal:
            before: list[Tensor] = []
            yield Site("resid_pre", site.layer), before.append
            yield Site("attn_out", site.layer), _added_to(before, hook)
        else:
            yield site, hook


def _added_to(before: list[Tensor], hook: Hook) -> Hook:
    """A hook on a sum as a hook on its second term."""

    def on_term(term: Tensor) -> Tensor | None:
        first = before.pop()
        new = hook(first + term)
        return None if new is None else new - first

    return on_term


def as_torch_hook(point: Any, hook: Hook, shape: tuple[int, int]) -> Callable[..., Any]:
    """A hook on named axes as a hook on whatever layout the bridge keeps at this point."""
    conversion = getattr(point, "hook_conversion", None)

    def torch_hook(module: Any, inputs: Any, output: Tensor) -> Tensor | None:
        value = output if conversion is None else conversion.convert(output)
        if value.ndim == 2:  # a router sees the batch as one row of tokens
            value = value.unflatten(0, shape)
        new = hook(value)
        if new is None:
            return None
        if conversion is not None:
            return conversion.revert(new)
        return new.view(output.shape)

    return torch_hook
