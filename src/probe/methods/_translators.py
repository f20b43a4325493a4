"""The tuned lens' translators: one affine map a layer, kept and found again by the model's hash."""

import os
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from probe.core.errors import ModelError, OptionError, RunError
from probe.core.model import Model
from probe.core.provenance import user_dir

_FORMAT = "probe tuned lens 1"


@dataclass(frozen=True, eq=False)
class TunedLens:
    """``resid + resid @ A + b`` for every layer but the last, which is read as it is.

    Attributes:
        A: What is added to the identity.
        b: Offsets.
        model: The name of the model it was fitted to.
        weight_hash: That model's weights.
        steps: Optimisation steps done; 0 for the identity.
    """

    A: Float[Tensor, "translator d_model d_model"] = field(repr=False)
    b: Float[Tensor, "translator d_model"] = field(repr=False)
    model: str
    weight_hash: str
    steps: int = 0

    @classmethod
    def identity(cls, model: Model) -> "TunedLens":
        """The lens before training, which is the logit lens."""
        n, width = model.dims.n_layers - 1, model.dims.d_model
        A = torch.zeros(n, width, width, device=model.device)
        return cls(A, A.new_zeros(n, width), model.name, _hash(model))

    def translate(
        self, layer: int, resid: Float[Tensor, "*any d_model"]
    ) -> Float[Tensor, "*any d_model"]:
        """What the last residual stream would be, judging by this layer's."""
        if layer == len(self.A):
            return resid
        return resid + resid @ self.A[layer].to(resid) + self.b[layer].to(resid)

    def save(self, path: str | Path | None = None) -> Path:
        """Write to a file, by default in the user's cache, where ``find`` looks for it."""
        path = cached(self.weight_hash) if path is None else Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        about = {"format": _FORMAT, "model": self.model, "weight_hash": self.weight_hash,
                 "steps": str(self.steps)}  # fmt: skip
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        tensors = {"A": self.A.cpu().contiguous(), "b": self.b.cpu().contiguous()}
        try:
            save_file(tensors, part, metadata=about)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
        return path

    @classmethod
    def load(cls, path: str | Path, model: Model) -> "TunedLens":
        """Read a lens fitted to this model.

        Raises:
            OptionError: There is no such file.
            RunError: The file is damaged or is something else.
            ModelError: It was fitted to another model.
        """
        path = Path(path)
        if not path.is_file():
            raise OptionError(f"there is no tuned lens at {path}", remedy="fit_tuned_lens(...)")
        try:
            with safe_open(path, "pt", device=str(model.device)) as file:
                about = file.metadata() or {}
                if about.get("format") != _FORMAT:
                    raise RunError(f"{path} is no tuned lens", expected=f'format "{_FORMAT}"')
                A, b = file.get_tensor("A"), file.get_tensor("b")
        except SafetensorError as error:
            raise RunError(
                f"cannot read {path}: {error}", remedy="delete it, and fit the lens again"
            ) from None
        lens = cls(A, b, about["model"], about["weight_hash"], int(about["steps"]))
        if lens.weight_hash != _hash(model):
            raise ModelError(
                f"the lens at {path} was fitted to {lens.model} (weights {lens.weight_hash})",
                expected=f"a lens for {model.name} (weights {_hash(model)})",
            )
        return lens

    @classmethod
    def find(cls, model: Model) -> "TunedLens":
        """The lens in the user's cache, or the identity where none was fitted."""
        path = cached(_hash(model))
        return cls.load(path, model) if path.is_file() else cls.identity(model)

    def __str__(self) -> str:
        return f"trained {self.steps} steps" if self.steps else "identity, not trained"


def cached(weight_hash: str) -> Path:
    """Where the lens of these weights is kept."""
    return user_dir("cache") / "tuned_lens" / f"{weight_hash}.safetensors"


def _hash(model: Model) -> str:
    return str(model.spec.model_dump()["weight_hash"])
