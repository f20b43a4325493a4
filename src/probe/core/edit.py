"""Interventions as data: where to change an activation, and to what.

Edits at one site are applied in the order given; edits at different sites in the order in which
the forward pass reaches them.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor

from probe.core.errors import EditError
from probe.core.reconstruction import Reconstruction
from probe.core.site import Site

Rule = Literal["set", "add", "scale", "project_out", "splice"]
Indices = int | Sequence[int] | Int[Tensor, " batch"]


@dataclass(frozen=True, eq=False)
class Edit:
    """One change to one activation.

    Attributes:
        site: Where. ``site.head`` narrows it to one head.
        rule: ``set`` to the value, ``add`` the value, ``scale`` by it, ``project_out`` its
            direction, or ``splice`` in a dictionary's reconstruction of what stands there.
        value: A number, or a tensor that broadcasts against the whole activation; where only a
            part is edited, the same part of the value is used. So the recorded tensor of another
            run can be given whole.
        where: Axis name → indices. A negative ``pos`` counts from each prompt's own end. A
            ``pos`` tensor of shape [batch] names one position for each prompt.
        source: What the value was drawn from, for the record.
    """

    site: Site
    rule: Rule
    value: Tensor | float | Reconstruction = field(repr=False)
    where: Mapping[str, Indices] = field(default_factory=dict)
    source: str = ""

    def __post_init__(self) -> None:
        """Refuse axes the site does not have, and fold ``site.head`` into ``where``."""
        axes = self.site.axes
        for axis, wanted in self.where.items():
            if axis not in axes or axis == "batch":
                raise EditError(
                    f"{self.site} has no axis {axis!r} to edit",
                    expected=f"one of {axes[1:]}",
                )
            if not isinstance(wanted, int) and len(wanted) == 0:
                raise EditError(f"an edit of {self.site} names no {axis}", expected="at least one")
        if self.site.head is not None:
            axis = self.site.head_axis or "head"
            if axis in self.where:
                raise EditError(
                    f"an edit of {self.site} also names {axis} {self.where[axis]}",
                    expected=f"the {axis} once",
                    remedy=f"{self.site.whole} with {axis}={self.where[axis]}",
                )
            object.__setattr__(self, "where", {**self.where, axis: self.site.head})
            object.__setattr__(self, "site", self.site.whole)

    def apply(
        self,
        activation: Tensor,
        lengths: Int[Tensor, " batch"],
        rows: Int[Tensor, " part"] | None = None,
        start: int = 0,
    ) -> Tensor:
        """The activation with this change made; the one given is left as it is.

        Args:
            activation: The activation of the whole batch, or of a part of it.
            lengths: Real tokens of each prompt of the whole batch.
            rows: The prompts the activation's rows belong to, where it is a part.
            start: The first position it holds, where it begins later.
        """
        value = self._value(activation, rows, start)
        if not self.where:
            return self._changed(activation, value)
        index = self._mesh(activation, lengths if rows is None else lengths[rows], rows, start)
        picked = value[index] if isinstance(value, Tensor) and value.ndim > 1 else value
        edited = activation.clone()
        edited[index] = self._changed(activation[index], picked)
        return edited

    def positions(self, lengths: Int[Tensor, " batch"]) -> Int[Tensor, "batch number"] | None:
        """The positions of each prompt that are named, or None where all are edited."""
        axis = "query" if "query" in self.site.axes else "pos"
        return _positions(self.where[axis], lengths, self.site) if axis in self.where else None

    def _value(
        self, activation: Tensor, rows: Tensor | None, start: int
    ) -> Tensor | float | Reconstruction:
        if not isinstance(self.value, Tensor):
            return self.value
        value = self.value.to(device=activation.device, dtype=activation.dtype)
        if self.rule == "project_out":
            return value
        value = self._part(value, activation, rows, start)
        try:
            return value.expand_as(activation)
        except RuntimeError:
            raise EditError(
                f"the value for {self.site} has shape {tuple(self.value.shape)}",
                expected=f"{dict(zip(self.site.axes, activation.shape, strict=True))}, or a shape "
                "that broadcasts to it",
            ) from None

    def _part(self, value: Tensor, activation: Tensor, rows: Tensor | None, start: int) -> Tensor:
        """Of a value given for the whole batch, the part that belongs to these rows from start."""
        axes = self.site.axes[-value.ndim :] if value.ndim else ()
        for place, axis in enumerate(axes):
            if value.shape[place] == 1:
                continue
            if axis == "batch" and rows is not None:
                value = value.index_select(place, rows.to(value.device))
            elif axis in ("pos", "query") and start:
                value = value.narrow(place, start, value.shape[place] - start)
        return value

    def _changed(self, part: Tensor, value: Tensor | float | Reconstruction) -> Tensor:
        if isinstance(value, Reconstruction):
            return value.of(part)
        if self.rule == "set":
            return value.clone() if isinstance(value, Tensor) else torch.full_like(part, value)
        if self.rule == "add":
            return part + value
        if self.rule == "scale":
            return part * value
        direction = _unit(value, part, self.site)
        return part - (part @ direction)[..., None] * direction

    def _mesh(
        self, activation: Tensor, lengths: Tensor, rows: Tensor | None, start: int
    ) -> tuple[Tensor, ...]:
        axes, ndim = self.site.axes, activation.ndim
        mesh: list[Tensor] = []
        for place, (axis, size) in enumerate(zip(axes, activation.shape, strict=True)):
            shape = [1] * ndim
            if axis in ("pos", "query") and axis in self.where:
                wanted = self.where[axis]
                if isinstance(wanted, Tensor) and rows is not None:
                    wanted = wanted[rows.to(wanted.device)]
                index = _positions(wanted, lengths, self.site) - start
                if (index < 0).any():
                    raise EditError(
                        f"{self.site} is edited before position {start}, where it begins"
                    )
                shape[0], shape[place] = index.shape[0], index.shape[1]
            else:
                index = _indices(self.where.get(axis), size, axis, self.site)
                shape[place] = len(index)
            mesh.append(index.to(activation.device).view(shape))
        return tuple(mesh)


def _positions(wanted: Indices, lengths: Int[Tensor, " batch"], site: Site) -> Tensor:
    """Absolute positions, [batch, number]."""
    lengths = lengths.cpu()
    if isinstance(wanted, Tensor):
        index = wanted.cpu().long()
        index = index[:, None] if index.ndim == 1 else index
    else:
        row = [wanted] if isinstance(wanted, int) else list(wanted)
        index = torch.tensor(row).expand(len(lengths), -1)
    index = torch.where(index < 0, index + lengths[:, None], index)
    if ((index < 0) | (index >= lengths[:, None])).any():
        row = int(((index < 0) | (index >= lengths[:, None])).any(1).nonzero()[0])
        raise EditError(
            f"an edit of {site} at positions {index[row].tolist()} leaves prompt {row}",
            expected=f"0 to {int(lengths[row]) - 1}, or -{int(lengths[row])} to -1 from its end",
        )
    return index


def _indices(wanted: Indices | None, size: int, axis: str, site: Site) -> Tensor:
    if wanted is None:
        return torch.arange(size)
    row = torch.as_tensor([wanted] if isinstance(wanted, int) else wanted, dtype=torch.long)
    if ((row < -size) | (row >= size)).any():
        raise EditError(
            f"an edit of {site} names {axis} {row.tolist()}", expected=f"0 to {size - 1}"
        )
    return row % size


def _unit(value: Tensor | float, part: Tensor, site: Site) -> Tensor:
    if not isinstance(value, Tensor) or value.shape != part.shape[-1:]:
        shape = tuple(value.shape) if isinstance(value, Tensor) else value
        raise EditError(
            f"the direction to project out of {site} has shape {shape}",
            expected=f"({part.shape[-1]},)",
        )
    norm = value.norm()
    if not torch.isfinite(norm) or norm == 0:
        raise EditError(f"the direction to project out of {site} has norm {float(norm)}")
    return value / norm


def patch(site: Site | str, value: Tensor, **where: Indices) -> Edit:
    """Set an activation to that of another run.

    Args:
        site: Where, like ``"z.9.6"``.
        value: The other run's whole activation at that site, ``trace["z", 9]``.
        **where: Which part: ``pos=-1``, ``head=[6, 9]``, ``d_mlp=512``.

    >>> edit = patch("resid_post.0", torch.ones(1, 3, 2), pos=-1)
    >>> edit.apply(torch.zeros(1, 3, 2), torch.tensor([3]))[0].tolist()
    [[0.0, 0.0], [0.0, 0.0], [1.0, 1.0]]
    """
    return Edit(_site(site), "set", value, where, "patch")


def ablate(
    site: Site | str,
    kind: Literal["zero", "mean", "resample"] = "zero",
    reference: Tensor | None = None,
    *,
    seed: int = 0,
    **where: Indices,
) -> Edit:
    """Remove what an activation carries.

    Args:
        site: Where.
        kind: ``zero`` (off the model's distribution), ``mean`` over the other examples, or
            ``resample`` one other example.
        reference: The examples to draw from, ``trace[site]`` of the same batch; each example is
            left out of its own draw. Needed for mean and resample.
        seed: Chooses the resampled examples.
        **where: Which part.
    """
    site = _site(site)
    if kind == "zero":
        return Edit(site, "set", 0.0, where, "ablate: zero")
    if reference is None or len(reference) < 2:
        raise EditError(
            f"{kind} ablation of {site} has {0 if reference is None else len(reference)} examples "
            "to draw from",
            expected="at least 2, because an example is left out of its own draw",
            remedy='reference=model.trace(prompts, sites=[site])[site], or kind="zero"',
        )
    n = len(reference)
    if kind == "mean":
        others = (reference.sum(0, keepdim=True) - reference) / (n - 1)
        return Edit(site, "set", others, where, f"ablate: mean of the other {n - 1} examples")
    generator = torch.Generator().manual_seed(seed)
    shift = torch.randint(1, n, (n,), generator=generator)
    drawn = (torch.arange(n) + shift) % n
    return Edit(site, "set", reference[drawn], where, f"ablate: resample rows {drawn.tolist()}")


def steer(site: Site | str, direction: Tensor, strength: float = 1.0, **where: Indices) -> Edit:
    """Add a multiple of a direction."""
    return Edit(_site(site), "add", strength * direction, where, f"steer: {strength}")


def scale(site: Site | str, factor: float, **where: Indices) -> Edit:
    """Multiply an activation."""
    return Edit(_site(site), "scale", factor, where, f"scale: {factor}")


def project_out(site: Site | str, direction: Tensor, **where: Indices) -> Edit:
    """Remove the component along a direction, on the site's last axis."""
    return Edit(_site(site), "project_out", direction, where, "project out")


def by_site(edits: Iterable[Edit]) -> dict[Site, list[Edit]]:
    """Edits grouped by site, in the order the forward pass reaches them."""
    groups: dict[Site, list[Edit]] = {}
    for edit in sorted(edits, key=lambda edit: edit.site.order):
        groups.setdefault(edit.site, []).append(edit)
    return groups


def _site(site: Site | str) -> Site:
    return site if isinstance(site, Site) else Site.parse(site)
