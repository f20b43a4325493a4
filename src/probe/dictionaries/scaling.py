"""Centring and scaling of activations for training, and folding them away afterwards."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from probe.core.errors import DictionaryError
from probe.core.site import Site
from probe.dictionaries.dictionary import SparseDictionary
from probe.dictionaries.recipe import Recipe
from probe.dictionaries.step import Batch, Parameters
from probe.dictionaries.store import ActivationStore

_SAMPLE = 65_536


@dataclass(frozen=True, eq=False)
class Scaling:
    """x ↦ (x − mean) / scale, chosen so that the mean squared norm becomes the width."""

    mean: Float[Tensor, " d"]
    scale: float

    @classmethod
    def measure(cls, rows: Float[Tensor, "row d"]) -> "Scaling":
        """From a sample."""
        mean = rows.double().mean(0)
        power = float((rows.double() - mean).pow(2).sum(-1).mean())
        if power == 0:
            raise DictionaryError("all activations are the same", expected="something to learn")
        return cls(mean.float(), (power / rows.shape[1]) ** 0.5)

    @classmethod
    def none(cls, width: int) -> "Scaling":
        """The identity."""
        return cls(torch.zeros(width), 1.0)

    def apply(self, x: Float[Tensor, "row d"]) -> Float[Tensor, "row d"]:
        """Centred and scaled, in float32."""
        return (x.float() - self.mean.to(x.device)) / self.scale


@dataclass(frozen=True, eq=False)
class Data:
    """A store as training reads it.

    Attributes:
        store: The activations.
        reads: Names of the tensors that are encoded, several for a crosscoder.
        writes: Names of those that are reconstructed.
        scalings: Of each name.
        limits: Norms above which a row is left out, by name.
    """

    store: ActivationStore
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    scalings: Mapping[str, Scaling]
    limits: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        store: ActivationStore,
        reads: tuple[str, ...],
        writes: tuple[str, ...],
        *,
        normalise: bool,
        outliers: float = 0.0,
    ) -> "Data":
        """Measure scalings and limits on the first rows, which are a random sample.

        Args:
            store: The activations.
            reads: Names of what is encoded.
            writes: Names of what is reconstructed.
            normalise: Centre and scale.
            outliers: Leave out rows whose norm is above so many times the median, 0 for none.
        """
        scalings, limits = {}, {}
        for name in dict.fromkeys((*reads, *writes)):
            rows = store.head(name, _SAMPLE)
            norms = rows.norm(dim=-1)
            limit = outliers * float(norms.median())
            if limit > 0:
                limits[name] = limit
                rows = rows[norms <= limit]
            scalings[name] = Scaling.measure(rows) if normalise else Scaling.none(rows.shape[1])
        return cls(store, reads, writes, scalings, limits)

    @property
    def tied(self) -> bool:
        """Whether it is what is encoded that is reconstructed."""
        return self.reads == self.writes

    @property
    def d_in(self) -> int:
        """Width of what is encoded, layers side by side."""
        return sum(self.store.width(name) for name in self.reads)

    @property
    def d_out(self) -> int:
        """Width of what is reconstructed, layers side by side."""
        return sum(self.store.width(name) for name in self.writes)

    @property
    def names(self) -> list[str]:
        """The tensors of the store that are read."""
        return list(self.scalings)

    def batch(self, rows: Mapping[str, Tensor], device: torch.device) -> Batch:
        """Rows of the store, centred and scaled, outliers left out."""
        kept = torch.ones(len(next(iter(rows.values()))), dtype=torch.bool)
        for name, limit in self.limits.items():
            kept &= rows[name].float().norm(dim=-1) <= limit
        if not bool(kept.all()):
            rows = {name: value[kept] for name, value in rows.items()}
        ready = {
            name: scaling.apply(rows[name].to(device)) for name, scaling in self.scalings.items()
        }
        x = _beside([ready[name] for name in self.reads])
        y = x if self.tied else _beside([ready[name] for name in self.writes])
        return Batch(x, y, len(self.reads))

    def fold(
        self, p: Parameters, recipe: Recipe, threshold: float, name: str, metadata: dict[str, Any]
    ) -> SparseDictionary:
        """The finished dictionary, for activations as they are.

        With f ↦ c·f for a common c, decoder rows keep their norms: c is the targets' scale.
        """
        s_in = torch.cat([_full(self.scalings[n]) for n in self.reads])
        s_out = torch.cat([_full(self.scalings[n]) for n in self.writes])
        mean_in = torch.cat([self.scalings[n].mean for n in self.reads])
        mean_out = torch.cat([self.scalings[n].mean for n in self.writes])
        cpu = {key: value.detach().cpu() for key, value in p.items()}
        c = float(s_out.mean())
        encoder = cpu["E"] / s_in * c
        tensors = {
            "W_enc": encoder.T,
            "W_dec": cpu["D"] * s_out / c,
            "b_dec": cpu["b_dec"] * s_out + mean_out,
        }
        for bias in ("b_enc", "b_gate", "b_mag"):
            if bias in cpu:
                tensors[bias] = cpu[bias] * c - (0 if self.tied else encoder @ mean_in)
        if "r_mag" in cpu:
            tensors["r_mag"] = cpu["r_mag"]
            if not self.tied:
                shift = encoder @ mean_in
                tensors["b_mag"] = cpu["b_mag"] * c - shift * cpu["r_mag"].exp()
        if "S" in cpu:
            tensors["W_skip"] = cpu["S"] * s_out[:, None] / s_in
            tensors["b_dec"] = tensors["b_dec"] - tensors["W_skip"] @ mean_in
        activation = {"standard": "relu", "gated": "gated", "topk": "topk"}.get(
            recipe.architecture, "jumprelu"
        )
        if activation == "jumprelu":
            at = cpu["log_threshold"].exp() if "log_threshold" in cpu else threshold
            tensors["threshold"] = torch.zeros(recipe.d_sae) + at * c
        if len(self.reads) > 1:
            for key in ("W_enc", "W_dec", "b_dec"):
                tensors[key] = _layered(key, tensors[key], len(self.reads))
        sites = [[self.store.site(n) for n in names] for names in (self.reads, self.writes)]
        reads, writes = (tuple(s for s in some if isinstance(s, Site)) for some in sites)
        return SparseDictionary(
            name, recipe.architecture, activation, reads, writes,
            {key: value.contiguous() for key, value in tensors.items()},
            k=recipe.k if activation == "topk" else None, centred=self.tied, metadata=metadata,
        )  # fmt: skip


def _beside(tensors: list[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors, dim=1)


def _full(scaling: Scaling) -> Float[Tensor, " d"]:
    return torch.full_like(scaling.mean, scaling.scale)


def _layered(key: str, value: Tensor, layers: int) -> Tensor:
    """Layers side by side as layers on an axis of their own, in front."""
    if key == "W_enc":
        return value.unflatten(0, (layers, -1))
    if key == "b_dec":
        return value.unflatten(0, (layers, -1))
    return value.unflatten(1, (layers, -1)).transpose(0, 1)
