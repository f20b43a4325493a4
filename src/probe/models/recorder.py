"""What one trace collects over its batches, and whether it will fit."""

from collections.abc import Sequence

import torch
from torch import Tensor

from probe.core.errors import OptionError, SiteError, SizeError
from probe.core.model import Dims, site_shape
from probe.core.site import Site
from probe.core.trace import Trace
from probe.models.hooks import Hook, Stop

_SHARE_OF_MEMORY = 0.8


class Recorder:
    """Collects the values of one trace over its batches."""

    def __init__(
        self,
        sites: Sequence[Site],
        dims: Dims,
        device: torch.device,
        tokens: Tensor,
        lengths: Tensor,
        positions: Sequence[int] | None,
        dtype: torch.dtype,
    ) -> None:
        self.sites = sorted(sites, key=lambda site: site.order)
        self.dims, self.device = dims, device
        self.tokens, self.lengths, self.dtype = tokens, lengths, dtype
        self.positions = None if positions is None else tuple(positions)
        if self.positions == ():
            raise SiteError("no position was asked for", remedy="positions=[-1], or None for all")
        if not dtype.is_floating_point:
            raise OptionError(f"dtype={dtype}", expected="a floating type, like torch.float16")
        self.values: dict[Site, Tensor] = {}

    def check_fits(self) -> None:
        """Refuse before any memory is taken."""
        batch, width = self.tokens.shape
        elements = 0
        for site in self.sites:
            shape = site_shape(site, self.dims, batch, width)
            size = 1
            for axis, length in zip(site.axes, shape, strict=True):
                kept = self.positions is not None and axis in ("pos", "query")
                size *= len(self.positions or ()) if kept else length
            elements += size
        need = elements * self.dtype.itemsize
        free = free_bytes(self.device)
        if need > _SHARE_OF_MEMORY * free:
            raise SizeError(
                f"this trace takes {need / 2**30:.1f} GiB: {len(self.sites)} sites, {batch} "
                f"prompts of up to {width} tokens, {str(self.dtype).removeprefix('torch.')}",
                expected=f"at most {_SHARE_OF_MEMORY * free / 2**30:.1f} GiB, "
                f"{_SHARE_OF_MEMORY:.0%} of the memory that is free on {self.device}",
                remedy="fewer sites, positions=[-1], dtype=torch.float16, or fewer prompts",
            )

    def hooks(self, rows: slice) -> list[tuple[Site, Hook]]:
        """Hooks that record one batch; the last one stops the forward pass."""
        left = set(self.sites)

        def record(site: Site) -> Hook:
            def hook(value: Tensor) -> None:
                self._store(site, self._select(site, value, rows), rows)
                left.discard(site)
                if not left:
                    raise Stop

            return hook

        return [(site, record(site)) for site in self.sites]

    def _select(self, site: Site, value: Tensor, rows: slice) -> Tensor:
        value = value.detach()
        if self.positions is None:
            return value
        axis = next((a for a in ("pos", "query") if a in site.axes), None)
        if axis is None:
            return value
        lengths = self.lengths[rows]
        return Trace({site: value}, self.tokens[rows], lengths).sel(
            site, **{axis: list(self.positions)}
        )

    def _store(self, site: Site, value: Tensor, rows: slice) -> None:
        total = len(self.tokens)
        if len(value) == total:  # one batch: nothing to copy, unless it is a part of something
            whole = value.untyped_storage().nbytes() == value.nbytes
            value = value.to(self.dtype)
            self.values[site] = value if whole else value.clone()
            return
        if site not in self.values:
            shape = (total, *value.shape[1:])
            self.values[site] = value.new_zeros(shape, dtype=self.dtype)
        self.values[site][rows] = value.to(self.dtype)


def free_bytes(device: torch.device) -> int:
    """Memory that could be taken now."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    import psutil

    return psutil.virtual_memory().available
