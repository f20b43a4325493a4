"""What the model did: named activations of one batch of tokens."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Int
from torch import Tensor

from probe.core.errors import SiteError, nearest
from probe.core.site import Site

SiteKey = str | Site | tuple


@dataclass(frozen=True, eq=False)
class Trace(Mapping[Site, Tensor]):
    """Site → tensor for one batch of prompts: only what was asked for, detached.

    Shorter prompts are padded on the right; what stands at padded positions means nothing.
    Use ``example`` for one prompt without padding, ``sel`` to pick by axis name.

    Attributes:
        activations: The recorded tensors, axes as in ``site.axes``.
        tokens: Token ids, padded on the right.
        lengths: Real tokens of each prompt.
        positions: The positions recorded, or None for all. Where given, the ``pos`` (and
            ``query``) axis counts entries of this list.
        str_tokens: Token strings of each prompt, without padding.
    """

    activations: dict[Site, Tensor] = field(repr=False)
    tokens: Int[Tensor, "batch pos"]
    lengths: Int[Tensor, " batch"]
    positions: tuple[int, ...] | None = None
    str_tokens: tuple[tuple[str, ...], ...] = ()

    def __getitem__(self, key: SiteKey) -> Tensor:
        """``trace["resid_post", 3]``, ``trace["z.9.6"]``, or ``trace[site]``.

        A bare per-layer kind, ``trace["resid_post"]``, stacks its recorded layers in front.
        """
        if isinstance(key, str) and key not in ("embed", "ln_final_scale") and "." not in key:
            return self.stack(key)
        site = self._site(key)
        whole = site.whole
        if whole not in self.activations:
            recorded = ", ".join(sorted({site.kind for site in self.activations}))
            raise SiteError(
                f"{site} was not recorded",
                expected=f"one of the recorded sites ({recorded})",
                remedy=f'record it: model.trace(..., sites=["{whole}"])',
            )
        value = self.activations[whole]
        if site.head is None:
            return value
        axis = whole.axes.index(whole.head_axis or "head")
        if site.head >= value.shape[axis]:
            raise SiteError(
                f"{site} asks for head {site.head}",
                expected=f"0 to {value.shape[axis] - 1}: {site.kind} has {value.shape[axis]} "
                f"{whole.head_axis}s",
            )
        return value.select(axis, site.head)

    def __iter__(self) -> Iterator[Site]:
        return iter(self.activations)

    def __len__(self) -> int:
        return len(self.activations)

    def __contains__(self, key: object) -> bool:
        if not isinstance(key, str | tuple | Site):
            return False
        if isinstance(key, str) and self.layers(key):
            return True
        try:
            return self._site(key).whole in self.activations
        except SiteError:
            return False

    @staticmethod
    def _site(key: SiteKey) -> Site:
        if isinstance(key, Site):
            return key
        return Site(*key) if isinstance(key, tuple) else Site.parse(key)

    def layers(self, kind: str) -> list[int]:
        """The recorded layers of a kind, in order."""
        return sorted(s.layer for s in self.activations if s.kind == kind and s.layer is not None)

    def stack(self, kind: str) -> Tensor:
        """All recorded layers of a kind, stacked on a new leading ``layer`` axis."""
        layers = self.layers(kind)
        if not layers:
            raise SiteError(
                f"no layer of {kind} was recorded",
                remedy=nearest(kind, sorted({site.kind for site in self.activations})),
            )
        return torch.stack([self.activations[Site(kind, layer)] for layer in layers])

    def sel(self, key: SiteKey, /, **indices: int | Sequence[int]) -> Tensor:
        """Pick by axis name: ``trace.sel("z.9", pos=-1, head=6)``.

        An integer drops its axis, a list keeps it. A negative ``pos`` or ``query`` counts from
        each prompt's own end, so ``pos=-1`` is the last real token also in a padded batch.
        """
        site = self._site(key)
        value, axes = self[site], list(site.axes)
        if site.head is not None:
            axes.remove(site.head_axis or "head")
        # Positions are looked up in each prompt's length, so prompts are chosen after them.
        for axis, index in sorted(indices.items(), key=lambda item: item[0] == "batch"):
            if axis not in axes:
                raise SiteError(f"{site} has no axis {axis!r}", expected=f"one of {tuple(axes)}")
            place = axes.index(axis)
            value = self._take(site, value, place, axis, index)
            if isinstance(index, int):
                axes.pop(place)
        return value

    def _take(
        self, site: Site, value: Tensor, place: int, axis: str, index: int | Sequence[int]
    ) -> Tensor:
        wanted = [index] if isinstance(index, int) else list(index)
        if axis in ("pos", "query") and place > 0:
            rows = torch.stack([self.rows(one) for one in wanted], dim=1).to(value.device)
            shape = [1] * value.ndim
            shape[0], shape[place] = rows.shape
            target = list(value.shape)
            target[place] = len(wanted)
            taken = value.gather(place, rows.view(shape).expand(target))
        else:
            size = value.shape[place]
            if not all(0 <= one < size for one in wanted):
                raise SiteError(f"{site} was asked for {axis} {index}", expected=f"0 to {size - 1}")
            taken = value.index_select(place, torch.tensor(wanted, device=value.device))
        return taken.squeeze(place) if isinstance(index, int) else taken

    def rows(self, pos: int) -> Int[Tensor, " batch"]:
        """Where position ``pos`` of each prompt stands on the recorded position axis."""
        absolute = self.lengths + pos if pos < 0 else torch.full_like(self.lengths, pos)
        outside = (absolute < 0) | (absolute >= self.lengths)
        if outside.any():
            row = int(outside.nonzero()[0])
            raise SiteError(
                f"position {pos} lies outside prompt {row}",
                expected=f"-{int(self.lengths[row])} to {int(self.lengths[row]) - 1}",
            )
        if self.positions is None:
            return absolute
        if pos in self.positions:
            return torch.full_like(absolute, self.positions.index(pos))
        raise SiteError(f"position {pos} was not recorded", expected=f"one of {self.positions}")

    def example(self, row: int) -> "Trace":
        """One prompt, its padding cut off."""
        length = int(self.lengths[row])
        cut = {
            site: _cut(value[row : row + 1], site.axes, length, self.positions)
            for site, value in self.activations.items()
        }
        return Trace(
            activations=cut,
            tokens=self.tokens[row : row + 1, :length],
            lengths=self.lengths[row : row + 1],
            positions=self.positions,
            str_tokens=self.str_tokens[row : row + 1],
        )

    @property
    def nbytes(self) -> int:
        """Bytes held, counting shared memory once."""
        storages = {
            v.untyped_storage().data_ptr(): v.untyped_storage() for v in self.activations.values()
        }
        return sum(storage.nbytes() for storage in storages.values())

    def __repr__(self) -> str:
        kinds = sorted({site.kind for site in self.activations})
        return (
            f"Trace({len(self.tokens)} prompts of up to {self.tokens.shape[1]} tokens, "
            f"{len(self.activations)} sites of {', '.join(kinds)}, {self.nbytes / 2**20:.1f} MiB)"
        )


def _cut(value: Tensor, axes: tuple[str, ...], length: int, positions: tuple | None) -> Tensor:
    for place, axis in enumerate(axes):
        if axis == "key" or (axis in ("pos", "query") and positions is None):
            value = value.narrow(place, 0, min(length, value.shape[place]))
    return value
