"""Task vectors in weights: what fine-tuning changed, as something to add, negate, scale, compare.

Source: Ilharco et al. 2023, "Editing Models with Task Arithmetic".
"""

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from probe.core.errors import OptionError, ProbeWarning
from probe.core.result import View
from probe.models.aligned import Aligned, Missing
from probe.models.checkpoints import Checkpoint, open_checkpoint, write_checkpoint

By = Literal["layer", "tensor"]
_LAYER = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True, eq=False)
class WeightVector:
    """A sum of differences between checkpoints, each with a factor; numbers stay on disk.

    ``a + b``, ``a - b``, ``-a`` and ``0.5 * a`` are vectors again, so an analogy is
    ``c + (b - a)``. A difference that is taken away again is gone exactly.
    """

    terms: tuple[tuple[float, Checkpoint, Checkpoint], ...]

    def __add__(self, other: "WeightVector") -> "WeightVector":
        factors: dict[tuple[Path, Path], tuple[float, Checkpoint, Checkpoint]] = {}
        for factor, pre, tuned in (*self.terms, *other.terms):
            key = (pre.folder, tuned.folder)
            before = factors[key][0] if key in factors else 0.0
            factors[key] = (before + factor, pre, tuned)
        return WeightVector(tuple(factors.values()))

    def __mul__(self, factor: float) -> "WeightVector":
        return WeightVector(tuple((factor * old, pre, tuned) for old, pre, tuned in self.terms))

    __rmul__ = __mul__

    def __neg__(self) -> "WeightVector":
        return -1.0 * self

    def __sub__(self, other: "WeightVector") -> "WeightVector":
        return self + -other

    def __repr__(self) -> str:
        parts = [f"{factor:g}·({tuned.name} - {pre.name})" for factor, pre, tuned in self.terms]
        return f"WeightVector({' + '.join(parts)})"

    def record(self) -> list[dict[str, object]]:
        """Its terms in plain words, from which ``recorded`` makes it again."""
        return [
            {"factor": factor, "pre": str(pre.folder), "tuned": str(tuned.folder)}
            for factor, pre, tuned in self.terms
        ]

    @classmethod
    def recorded(cls, terms: Sequence[Mapping[str, Any]]) -> "WeightVector":
        """The vector of a record, if its folders are still there."""
        return cls(
            tuple(
                (float(t["factor"]), open_checkpoint(t["pre"]), open_checkpoint(t["tuned"]))
                for t in terms
            )
        )

    @property
    def pre(self) -> Checkpoint:
        """The checkpoint that was tuned, of the first term."""
        return self.terms[0][1]

    @property
    def checkpoints(self) -> list[Checkpoint]:
        """All it is made of."""
        return [one for _, pre, tuned in self.terms for one in (pre, tuned)]

    def numbers(self, name: str, rows: slice) -> Tensor:
        """Some rows of one tensor, in double precision."""
        total = torch.zeros(())
        for factor, pre, tuned in self.terms:
            if factor:
                total = total + factor * (tuned.numbers(name, rows) - pre.numbers(name, rows))
        return total if total.ndim else torch.zeros_like(self.pre.numbers(name, rows)) + total

    def apply(
        self,
        base: "str | Path | Checkpoint | None" = None,
        *,
        out: str | Path,
        scale: float = 1.0,
        missing: Missing = "refuse",
    ) -> Path:
        """Write θ + scale · τ as a model folder that transformers and ``load_model`` open.

        Computed in double precision and rounded once to the format of ``base``. So the vector
        added to its own ``pre`` gives ``tuned`` bit for bit, and taken from ``tuned`` gives ``pre``
        (float32 and below; weights of one tensor entry not 2^29 apart). On another base, adding
        and then subtracting is off by at most one unit in the last place of the larger of the
        entry before and after.

        Args:
            base: The checkpoint it is added to; by default the one that was tuned.
            out: The new folder; one that is there is not written over.
            scale: λ. Negative to forget.
            missing: ``refuse`` checkpoints that do not match; ``keep`` the base's tensor where
                another lacks it or has another shape.

        Raises:
            ModelError: Checkpoints that do not match, or numbers that are not finite.
            OptionError: A folder that is there already.
            SizeError: A disk that is too full.
        """
        chosen = self.pre if base is None else open_checkpoint(base)
        aligned = Aligned([chosen, *self.checkpoints], missing)
        record = {
            "how": "add",
            "base": str(chosen.folder),
            "scale": scale,
            "terms": self.record(),
        }

        def add(name: str, rows: slice) -> Tensor:
            return chosen.numbers(name, rows) + scale * self.numbers(name, rows)

        return write_checkpoint(chosen, out, aligned.keeping(add), record, names=aligned.names)


def weight_task_vector(
    pre: "str | Path | Checkpoint", tuned: "str | Path | Checkpoint"
) -> WeightVector:
    """What fine-tuning changed: τ = θ_tuned - θ_pre, tensor by tensor.

    Args:
        pre: The checkpoint before: a folder of safetensors, a hub id, a .gguf file or ``smollm2``.
        tuned: The checkpoint after.

    Raises:
        ModelError: Checkpoints with other tensors or shapes, named; files that cannot be read.
    """
    before, after = open_checkpoint(pre), open_checkpoint(tuned)
    Aligned([before, after])
    return WeightVector(((1.0, before, after),))


# --- comparing -----------------------------------------------------------------------------------

COLUMNS = {
    "layer": "layer; missing for a tensor that belongs to none",
    "tensor": "tensor, without its layer",
    "vector": "task vector",
    "pair": "the two task vectors compared",
    "value": "Euclidean norm of the change, or cosine between two changes, -1 to 1; 0 where "
    "nothing changed",
    "relative": "norm of the change, relative to the norm of the same weights before",
}


def norms(vectors: Mapping[str, WeightVector], by: By = "layer") -> pd.DataFrame:
    """How far each vector moves each layer or tensor."""
    rows = []
    for (layer, tensor), gram in _grams(vectors, by).items():
        place = _place(layer, tensor, by)
        for i, name in enumerate(vectors):
            norm, before = gram[i, i] ** 0.5, gram[-1, -1] ** 0.5
            relative = norm / before if before else 0.0
            rows.append(place | {"vector": name, "value": norm, "relative": relative})
    return _table(rows)


def cosines(vectors: Mapping[str, WeightVector], by: By = "layer") -> pd.DataFrame:
    """How alike the directions are in which each two vectors move each layer or tensor."""
    if len(vectors) < 2:
        raise OptionError(f"cosines of {len(vectors)} vectors", expected="at least two")
    rows = []
    for (layer, tensor), gram in _grams(vectors, by).items():
        place = _place(layer, tensor, by)
        for i, name in enumerate(vectors):
            for j, other in list(enumerate(vectors))[i + 1 :]:
                length = (gram[i, i] * gram[j, j]) ** 0.5
                value = gram[i, j] / length if length else 0.0
                rows.append(place | {"pair": f"{name} · {other}", "value": value})
    return _table(rows)


def view(measure: str, by: By) -> View:
    """How either table is drawn."""
    if by == "layer":
        color = "vector" if measure == "norm" else "pair"
        return View(kind="line", x="layer", y="value", color=color)
    if measure == "norm":
        return View(
            kind="heatmap", x="tensor", y="layer", color="value", facet="vector", scale="activation"
        )
    return View(kind="heatmap", x="tensor", y="layer", color="value", facet="pair")


def _grams(vectors: Mapping[str, WeightVector], by: By) -> dict[tuple[int | None, str], np.ndarray]:
    """Inner products of all vectors, and last of the weights before, for each layer or tensor."""
    if not vectors:
        raise OptionError("no vector was given", expected="at least one")
    pre = next(iter(vectors.values())).pre
    if len({one.pre.folder for one in vectors.values()}) > 1:
        warnings.warn(
            "these vectors start from different checkpoints: their cosines mean little",
            ProbeWarning,
            stacklevel=3,
        )
    aligned = Aligned([pre, *(one for vector in vectors.values() for one in vector.checkpoints)])
    grams: dict[tuple[int | None, str], np.ndarray] = {}
    for name, rows in aligned.pieces():
        found = _LAYER.search(name)
        layer = int(found[1]) if found else None
        if by == "layer" and layer is None:
            continue
        tensor = "" if by == "layer" else _LAYER.sub(".", name, count=1)
        parts = [vector.numbers(name, rows).flatten() for vector in vectors.values()]
        stack = torch.stack([*parts, pre.numbers(name, rows).flatten()])
        key = (layer, tensor)
        grams[key] = grams.get(key, 0.0) + (stack @ stack.T).numpy()
    return grams


def _place(layer: int | None, tensor: str, by: By) -> dict[str, object]:
    return {"layer": layer} if by == "layer" else {"layer": layer, "tensor": tensor}


def _table(rows: list[dict[str, object]]) -> pd.DataFrame:
    frame = pd.DataFrame(rows)
    frame["layer"] = frame["layer"].astype("Int64")
    return frame
