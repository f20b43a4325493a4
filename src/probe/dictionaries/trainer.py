"""A training in progress: parameters, optimizer, counters, and a checkpoint that holds them all."""

import json
import math
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from probe.core.errors import DictionaryError
from probe.dictionaries.dense import dense_step
from probe.dictionaries.recipe import TOPK_FAMILY, Recipe
from probe.dictionaries.resample import resample
from probe.dictionaries.scaling import Data
from probe.dictionaries.sparse import sparse_step
from probe.dictionaries.standard import standard_step
from probe.dictionaries.step import Batch, Outcome, Parameters, initial_parameters
from probe.dictionaries.writing import write_tensors

CHECKPOINT = "checkpoint.safetensors"
_GUESS = 0.9
"""Of the last batch's smallest activation: probably below this one's."""


class Trainer:
    """One dictionary being trained; a batch at a time.

    Args:
        recipe: What and how.
        data: What on.
        device: Where.
        parameters: Initial ones, instead of random ones by the recipe's seed.
    """

    def __init__(
        self,
        recipe: Recipe,
        data: Data,
        device: torch.device | str = "cpu",
        parameters: Parameters | None = None,
    ) -> None:
        self.recipe, self.data, self.device = recipe, data, torch.device(device)
        first = parameters or initial_parameters(
            recipe, data.d_in, data.d_out, tied=data.tied, layers=len(data.reads)
        )
        self.parameters = {name: v.to(self.device, copy=True) for name, v in first.items()}
        self.adam = torch.optim.Adam(
            list(self.parameters.values()), lr=recipe.lr, betas=recipe.adam_betas, fused=True
        )
        self.step = 0
        self.silent = torch.zeros(recipe.d_sae, dtype=torch.int64, device=self.device)
        self.threshold = math.nan
        self.smallest = math.nan
        self.resamplings = 0
        self.history: list[dict[str, Any]] = []
        self.window = _Window(recipe.d_sae, data.d_out, self.device)
        self.density = torch.zeros(recipe.d_sae)

    @property
    def done(self) -> bool:
        """Whether every batch has been seen."""
        return self.step >= self.recipe.n_steps

    @property
    def dead(self) -> Bool[Tensor, " feature"]:
        """Features that have not been active for long."""
        return self.silent >= self.recipe.dead_after

    def learn(self, batch: Batch) -> Outcome:
        """One step on one batch.

        Raises:
            DictionaryError: A loss that is not finite; parameters are as they were before it.
        """
        recipe = self.recipe
        outcome = self._outcome(batch)
        if not math.isfinite(outcome.loss):
            raise DictionaryError(
                f"the loss is {outcome.loss} at step {self.step} of {recipe.n_steps}",
                expected="a finite loss",
                remedy=f"a learning rate below {recipe.lr:g}, or normalise=True; the last "
                "checkpoint is from before",
            )
        self._update(outcome.gradients)
        self.silent = torch.where(outcome.fired > 0, 0, self.silent + len(batch.x))
        if outcome.smallest is not None:
            self.smallest, rate = outcome.smallest, recipe.threshold_rate
            start = outcome.smallest if math.isnan(self.threshold) else self.threshold
            self.threshold = (1 - rate) * start + rate * outcome.smallest
        self.window.add(outcome, batch.y)
        self.step += 1
        self._maybe_resample()
        return outcome

    def _outcome(self, batch: Batch) -> Outcome:
        recipe, step = self.recipe, self.step
        if recipe.architecture in TOPK_FAMILY:
            guess = None if math.isnan(self.smallest) else _GUESS * self.smallest
            return sparse_step(self.parameters, batch, recipe, recipe.k_at(step), self.dead, guess)
        one_step = standard_step if recipe.architecture == "standard" else dense_step
        return one_step(self.parameters, batch, recipe, recipe.sparsity_at(step), self.dead)

    @torch.no_grad()
    def _update(self, gradients: Parameters) -> None:
        D, unit = self.parameters["D"], self.recipe.unit_decoder
        if unit:  # the part along a row would only be undone by making it of norm one again
            rows = D / D.norm(dim=-1, keepdim=True)
            g = gradients["D"]
            gradients["D"] = g - (g * rows).sum(-1, keepdim=True) * rows
        for name, value in self.parameters.items():
            value.grad = gradients[name]
        if self.recipe.clip:
            torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.recipe.clip)
        self.adam.param_groups[0]["lr"] = self.recipe.lr_at(self.step)
        self.adam.step()
        if unit:
            D /= D.norm(dim=-1, keepdim=True)

    def _maybe_resample(self) -> None:
        recipe = self.recipe
        due = min(4, self.step * recipe.batch_size // recipe.resample_every)
        if recipe.revive != "resample" or due <= self.resamplings or self.done:
            return
        self.resamplings = due  # where none is dead, the next to die waits for the next time
        if bool(self.dead.any()):
            resample(
                self.parameters, self.adam, self.data, self.dead, recipe, self.step, self.device
            )
            self.silent[self.dead] = 0

    def log(self) -> dict[str, Any]:
        """What the batches since the last log were like; kept in the history."""
        found, self.density = self.window.summary()
        row = {
            "step": self.step,
            "tokens": self.step * self.recipe.batch_size,
            "lr": self.recipe.lr_at(self.step - 1),
            "dead_share": float(self.dead.float().mean()),
            **found,
        }
        self.history.append(row)
        return row

    def state(self, rate: float) -> str:
        """What the progress bar says beside its numbers."""
        text = f"steps, {rate:.0f} activations/s"
        if self.history:
            h = self.history[-1]
            text += f", loss {h['loss']:.4g}, L0 {h['l0']:.1f}, EV {h['explained_variance']:.3f}"
            text += f", dead {h['dead_share']:.1%}"
        return text

    # --- checkpoints -------------------------------------------------------------------------

    def save(self, path: Path, about: str) -> None:
        """All that decides what follows, in one file; ``about`` names the training."""
        tensors = {f"parameter.{name}": value for name, value in self.parameters.items()}
        for name, value in self.parameters.items():
            for key, state in self.adam.state[value].items():
                tensors[f"adam.{name}.{key}"] = torch.as_tensor(state)
        tensors |= {"silent": self.silent, "density": self.density, **self.window.tensors()}
        facts = {
            "about": about, "step": self.step, "threshold": self.threshold,
            "smallest": self.smallest, "resamplings": self.resamplings, "history": self.history,
            "window": self.window.facts(),
        }  # fmt: skip
        write_tensors(path, tensors, {"facts": json.dumps(facts)})

    def load(self, path: Path, about: str) -> None:
        """Go on from a checkpoint.

        Raises:
            DictionaryError: A damaged checkpoint, or one of another training.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt", device=str(self.device)) as file:
                facts = json.loads((file.metadata() or {})["facts"])
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise DictionaryError(
                f"{path} is damaged: {error}", expected="a checkpoint",
                remedy="remove it to begin again",
            ) from None  # fmt: skip
        if facts["about"] != about:
            raise DictionaryError(
                f"{path} is of another training",
                expected="the same store and options, with which it goes on to the same weights",
                remedy="another folder, or remove it",
            )
        for name, value in self.parameters.items():
            value.copy_(tensors[f"parameter.{name}"])
            prefix = f"adam.{name}."
            state = {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}
            if state:
                self.adam.state[value] = state
        self.step, self.history = facts["step"], facts["history"]
        self.threshold, self.smallest = facts["threshold"], facts["smallest"]
        self.resamplings = facts["resamplings"]
        self.silent, self.density = tensors["silent"], tensors["density"].cpu()
        self.window.restore(tensors, facts["window"])


class _Window:
    """Sums since the last log, in float64."""

    def __init__(self, d_sae: int, d_out: int, device: torch.device) -> None:
        self.fired = torch.zeros(d_sae, dtype=torch.int64, device=device)
        self.total = torch.zeros(d_out, dtype=torch.float64, device=device)
        self.power = self.error = 0.0
        self.rows = self.batches = 0
        self.losses: dict[str, float] = {}

    def add(self, outcome: Outcome, y: Float[Tensor, "row d_out"]) -> None:
        """Count one batch."""
        self.fired += outcome.fired
        self.total += y.sum(0, dtype=torch.float64)
        self.power += float(y.pow(2).sum(dtype=torch.float64))
        self.error += outcome.squared_error
        self.rows, self.batches = self.rows + len(y), self.batches + 1
        for name, value in outcome.losses.items():
            self.losses[name] = self.losses.get(name, 0.0) + value

    def summary(self) -> tuple[dict[str, Any], Float[Tensor, " feature"]]:
        """Means over the window, which begins anew, and each feature's density in it."""
        variance = self.power - float((self.total / self.rows).pow(2).sum()) * self.rows
        density = (self.fired / self.rows).float().cpu()
        losses = {name: value / self.batches for name, value in self.losses.items()}
        found = {
            "loss": sum(losses.values()),
            "losses": losses,
            "l0": float(self.fired.sum()) / self.rows,
            "explained_variance": 1 - self.error / variance if variance else math.nan,
        }
        self.__init__(len(self.fired), len(self.total), self.fired.device)
        return found, density

    def tensors(self) -> dict[str, Tensor]:
        """Sums that are tensors, for a checkpoint."""
        return {"window.fired": self.fired, "window.total": self.total}

    def facts(self) -> dict[str, Any]:
        """Sums that are numbers."""
        return {name: getattr(self, name) for name in _NUMBERS}

    def restore(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Go on from a checkpoint's sums."""
        self.fired, self.total = tensors["window.fired"], tensors["window.total"]
        for name in _NUMBERS:
            setattr(self, name, facts[name])


_NUMBERS = ("power", "error", "rows", "batches", "losses")
