"""A direction in activations as a thing of its own: what it is, where it acts, how strongly."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import pandas as pd
import torch
from jaxtyping import Float, Int
from pydantic import ValidationError
from torch import Tensor

from probe.core.edit import Edit
from probe.core.errors import OptionError, RunError
from probe.core.model import Generation, Model
from probe.core.provenance import Provenance
from probe.core.site import Site, check_layer
from probe.core.trace import Trace

Rule = Literal["add", "set", "project_out"]
Where = Literal["last", "all", "front"]

_FORMAT = "probe-vector-1"
_GENERATES_AT = {"last": "prompt", "all": "both", "front": "prompt"}


@dataclass(frozen=True, eq=False)
class VectorResult:
    """A vector and its place in a model.

    Attributes:
        name: What it is, in a word or two.
        vector: The direction, with the length it was found at. At ``front``, one for each of the
            first positions.
        site: Where it acts: ``resid_post`` of a layer, or any site as wide.
        rule: ``add`` it, ``set`` the activation to it, or ``project_out`` its direction.
        where: ``last``: the prompt's last token alone. ``all``: every position, new ones too.
            ``front``: the first positions of the prompt, each with a vector of its own.
        strength: What it is multiplied by; ``project_out`` knows none.
        provenance: How it came to be.
        curve: What was measured to choose its place, such as accuracy by layer; may be empty.
    """

    name: str
    vector: Float[Tensor, " d_model"] | Float[Tensor, "front d_model"] = field(repr=False)
    site: Site
    rule: Rule
    where: Where
    provenance: Provenance = field(repr=False)
    strength: float = 1.0
    curve: pd.DataFrame = field(default_factory=pd.DataFrame, repr=False)

    def __post_init__(self) -> None:
        """Refuse what could only give numbers that are none."""
        if not math.isfinite(self.strength):
            raise OptionError(f"strength {self.strength} of {self.name}", expected="a number")
        front = self.where == "front"
        if self.vector.ndim != 1 + front or not torch.isfinite(self.vector).all():
            raise OptionError(
                f"the vector {self.name} has shape {tuple(self.vector.shape)}, "
                f"{int((~torch.isfinite(self.vector)).sum())} of its entries not finite",
                expected=f"{'position and width' if front else 'one axis'} of finite numbers",
            )
        if front and self.rule == "project_out":
            raise OptionError(
                f"{self.name} has a vector for each of the first positions",
                expected="one direction to project out",
            )

    @property
    def layer(self) -> int:
        """The layer it acts at."""
        if self.site.layer is None:
            raise OptionError(f"{self.name} acts at {self.site}, which has no layer")
        return self.site.layer

    @property
    def norm(self) -> float:
        """Its Euclidean length, before the strength."""
        return float(self.vector.norm())

    def at(
        self,
        *,
        layer: int | None = None,
        strength: float | None = None,
        rule: Rule | None = None,
        where: Where | None = None,
    ) -> "VectorResult":
        """The same vector elsewhere, stronger, or otherwise used."""
        return replace(
            self,
            site=self.site if layer is None else replace(self.site, layer=layer),
            strength=self.strength if strength is None else strength,
            rule=rule or self.rule,
            where=where or self.where,
        )

    def named(self, name: str, vector: Tensor | None = None) -> "VectorResult":
        """Another vector in the same place, without this one's curve."""
        other = self.vector if vector is None else vector
        return replace(self, name=name, vector=other, curve=pd.DataFrame())

    def with_curve(self, curve: pd.DataFrame) -> "VectorResult":
        """The same vector with what was measured to choose its place."""
        return replace(self, curve=curve)

    def edits(self) -> list[Edit]:
        """What it does to a run."""
        value = self.vector if self.rule == "project_out" else self.strength * self.vector
        source = f"{self.name}, {self.rule} {self.strength:g}"
        if self.where == "front":
            rows = [(pos, row) for pos, row in enumerate(value) if row.any() or self.rule == "set"]
            return [Edit(self.site, self.rule, row, {"pos": pos}, source) for pos, row in rows]
        where: dict[str, int] = {"pos": -1} if self.where == "last" else {}
        return [Edit(self.site, self.rule, value, where, source)]

    def apply(self, model: Model) -> "Steered":
        """The model with this vector in it, until the answer is dropped."""
        return Steered(model, (self,))

    def check(self, model: Model) -> None:
        """Refuse a model it does not fit."""
        check_layer(self.site, model.dims.n_layers)
        width = model.dims.size(self.site.axes[-1], batch=1, pos=1)
        if self.vector.shape[-1] != width:
            raise OptionError(
                f"{self.name} is {self.vector.shape[-1]} wide, {self.site} of {model.name} {width}",
                expected="a vector of this model",
            )

    def cosine(self, other: "VectorResult") -> float:
        """Of the angle between the two, -1 to 1."""
        return float(torch.cosine_similarity(self.vector.ravel(), other.vector.ravel(), dim=0))

    def __add__(self, other: "VectorResult") -> "VectorResult":
        """Both at once, in this one's place; each with its strength."""
        if self.rule != "add" or other.rule != "add":
            raise OptionError(
                f"{self.name} is to {self.rule}, {other.name} to {other.rule}",
                expected="two vectors that are added",
                remedy='vector.at(rule="add")',
            )
        both = self.strength * self.vector + other.strength * other.vector
        return replace(self.named(f"{self.name} + {other.name}", both), strength=1.0)

    def save(self, path: str | Path) -> Path:
        """Write it as a safetensors file, its record in the header."""
        from safetensors.torch import save_file

        path = Path(path)
        header = {
            "format": _FORMAT,
            "name": self.name,
            "site": str(self.site),
            "rule": self.rule,
            "where": self.where,
            "strength": repr(self.strength),
            "provenance": self.provenance.model_dump_json(),
            "curve": self.curve.to_json(orient="split"),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part")
        save_file({"vector": self.vector.contiguous().cpu()}, part, metadata=header)
        part.replace(path)
        return path

    @classmethod
    def load(cls, path: str | Path) -> "VectorResult":
        """Read what ``save`` wrote.

        Raises:
            RunError: No such file, or not a vector.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(path), "pt") as opened:
                header, vector = opened.metadata() or {}, opened.get_tensor("vector")
            return cls._read(header, vector)
        except (OSError, SafetensorError, KeyError, ValueError, ValidationError) as error:
            raise RunError(
                f"{path} is no saved vector: {error}", expected="a file that vector.save() wrote"
            ) from None

    @classmethod
    def _read(cls, header: Mapping[str, str], vector: Tensor) -> "VectorResult":
        curve = json.loads(header["curve"])
        rules: dict[str, Rule] = {rule: rule for rule in get_args(Rule)}
        places: dict[str, Where] = {where: where for where in get_args(Where)}
        return cls(
            name=header["name"],
            vector=vector,
            site=Site.parse(header["site"]),
            rule=rules[header["rule"]],
            where=places[header["where"]],
            strength=float(header["strength"]),
            provenance=Provenance.model_validate_json(header["provenance"]),
            curve=pd.DataFrame(curve["data"], columns=curve["columns"]),
        )

    def __repr__(self) -> str:
        return (
            f"VectorResult({self.name}: {self.rule} at {self.site}, {self.where} position"
            f"{'s' if self.where == 'all' else ''}, norm {self.norm:.3g}, "
            f"strength {self.strength:g})"
        )


@dataclass(frozen=True)
class Steered:
    """A model with vectors in it. The model itself is as it was.

    Attributes:
        model: The model.
        vectors: What is put in, in this order at one site.
    """

    model: Model
    vectors: tuple[VectorResult, ...]

    def __post_init__(self) -> None:
        """Refuse a vector that does not fit."""
        for vector in self.vectors:
            vector.check(self.model)

    @property
    def edits(self) -> list[Edit]:
        """What all vectors do to a run."""
        return [edit for vector in self.vectors for edit in vector.edits()]

    def forward(
        self, tokens: Int[Tensor, "batch pos"], *, lengths: Int[Tensor, " batch"] | None = None
    ) -> Float[Tensor, "batch pos d_vocab"]:
        """Logits. Raises OptionError where a strength drives them to what are no numbers."""
        logits = self.model.forward(tokens, self.edits, lengths=lengths)
        check_finite(logits, self.vectors)
        return logits

    def trace(self, prompts: Any, sites: Any, **how: Any) -> Trace:
        """As ``model.trace``."""
        return self.model.trace(prompts, sites, edits=self.edits, **how)

    def generate(self, prompt: str, **how: Any) -> Generation:
        """As ``model.generate``; a vector at the last token acts on the prompt alone."""
        places = {_GENERATES_AT[vector.where] for vector in self.vectors}
        if len(places) > 1:
            raise OptionError(
                "one vector acts at the last token of the prompt and another at all positions",
                expected="vectors of one kind",
                remedy='vector.at(where="all")',
            )
        ids = self.model.tokenizer.prompt(prompt, self.model.dims.n_ctx)
        self.forward(torch.tensor([ids]))
        return self.model.generate(prompt, self.edits, **{"at": places.pop(), **how})


def check_finite(logits: Tensor, vectors: Sequence[VectorResult]) -> None:
    """Refuse logits that are no numbers, naming the strength that made them so."""
    if torch.isfinite(logits).all():
        return
    told = ", ".join(f"{v.name} at strength {v.strength:g} (norm {v.norm:.3g})" for v in vectors)
    raise OptionError(
        f"the model's logits are no longer numbers under {told}",
        expected="a strength at which the model still computes",
        remedy="a smaller strength",
    )
