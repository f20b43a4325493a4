"""Train a tiny transformer, with checkpoints along the way; a killed run goes on to the same bits.

The folder of a run::

    training.json         recipe, seed, hash of the text, versions of what trained it
    losses.safetensors    training loss of every step, in nats
    state.safetensors     weights and optimizer moments to go on from
    step-000100/          a Hugging Face model folder for each checkpoint
    step-004000/          the last is the trained model

What a step learns from depends on the seed and the step alone, so nothing random is carried over.
The bits are those of one kind of processor: another rounds sums in another order, and by the end of
a training that is as much as another seed.
"""

import contextlib
import json
import math
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from probe.core.errors import ModelError, OptionError, ProbeWarning
from probe.core.progress import Report, progress_bar
from probe.core.provenance import versions
from probe.models.tiny.architecture import TinyConfig, TinyForCausalLM
from probe.models.tiny.recipes import Recipe, completed, recipe
from probe.models.tiny.text import Rows

_STATE = "state.safetensors"
_SAVE_EVERY = 100
"""Steps that a killed run loses at most."""


def checkpoints(steps: int, every: int = 50) -> list[int]:
    """When to keep a checkpoint: at powers of two up to ``every``, then at its multiples.

    >>> checkpoints(120)
    [0, 1, 2, 4, 8, 16, 32, 50, 100, 120]
    """
    powers = [2**n for n in range(int(math.log2(every)) + 1) if 2**n < every]
    kept = {0, *powers, *range(every, steps + 1, every), steps}
    return sorted(step for step in kept if step <= steps)


def untrained(recipe: Recipe, vocabulary: int, seed: int) -> TinyForCausalLM:
    """The model of a recipe as it is before the first step."""
    config = TinyConfig(
        vocab_size=vocabulary,
        hidden_size=recipe.d_model,
        intermediate_size=recipe.d_mlp if recipe.activation else 0,
        num_hidden_layers=recipe.n_layers,
        num_attention_heads=recipe.n_heads,
        num_key_value_heads=recipe.n_heads,
        head_dim=recipe.d_head,
        max_position_embeddings=recipe.n_ctx,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=None,
        activation=recipe.activation,
        mlp_norm=recipe.mlp_norm,
        positions=recipe.positions,
        rotary_share=recipe.rotary_share,
        smeared=recipe.smeared,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _drawn(TinyForCausalLM(config))  # with scaled_dot_product_attention, the default


@torch.no_grad()
def _drawn(hf: TinyForCausalLM) -> TinyForCausalLM:
    """First weights: a stream that is the token's, heads that prefer random distances.

    What blocks write begins small. The biases of queries and keys, turned by the rotation, are a
    random score for each distance; small ones would make every head begin as an average over the
    whole context, from which one learns slowly.
    """
    for name, weight in hf.named_parameters():
        if "embed" in name:
            weight.normal_(std=0.5)
        elif name.endswith(("o_proj.weight", "down_proj.weight")):
            weight.normal_(std=0.1 * weight.shape[1] ** -0.5)
        elif name.endswith("proj.weight"):
            weight.normal_(std=weight.shape[1] ** -0.5)
        elif name.endswith("proj.bias"):
            weight.normal_(std=2.0)
    return hf


def train_tiny(name: str, rows: Rows, *, seed: int = 0, out: str | Path, **changes: Any) -> Path:
    """Train a tiny transformer, or go on with a training that was cut short.

    Args:
        name: Of a recipe: ``attn-only-2l``, ``gelu-1l``, ...
        rows: From ``tiny_rows``.
        seed: Of the first weights and of the order of rows.
        out: The folder of the run. The same call on the folder of a killed run continues it.
        changes: Other values for fields of the recipe: ``steps=500``, ``positions="learned"``.

    Returns:
        The folder of the trained model, for ``load_model``; earlier ones are beside it.

    Raises:
        OptionError: No such recipe.
        ModelError: The folder holds a run with another recipe, seed or text; a loss that is not
            finite; somebody who listens stopped it.

    Cost: minutes; a forward and a backward pass for each step.
    """
    wanted = recipe(name, **changes)
    if rows.train.shape[1] != wanted.n_ctx:
        raise OptionError(
            f"rows of {rows.train.shape[1]} tokens for a context of {wanted.n_ctx}",
            remedy=f"tiny_rows(documents, n_ctx={wanted.n_ctx})",
        )
    with progress_bar(f"training {name}") as report:
        return train(wanted, rows, seed=seed, out=Path(out), report=report)


def train(recipe: Recipe, rows: Rows, *, seed: int, out: Path, report: Report) -> Path:
    """``train_tiny`` on a recipe. The report may stop it: what is done is kept, to go on from."""
    record = {"recipe": recipe.model_dump(), "seed": seed, "text": rows.text_hash}
    run = _Run(untrained(recipe, len(rows.tokenizer), seed), recipe, record, rows.tokenizer, out)
    start = run.resume()
    keep = set(checkpoints(recipe.steps))
    with torch.enable_grad():
        for step in range(start, recipe.steps):
            if step in keep:
                run.keep(step)
            loss = run.step(step, batch_of(rows.train, step, recipe.batch_size, seed))
            if not math.isfinite(loss):
                raise ModelError(f"the loss of step {step} is {loss}", remedy="a smaller lr")
            stopped = report(step + 1, recipe.steps, f"steps, loss {loss:.2f}") is False
            if stopped or (step + 1) % _SAVE_EVERY == 0 or step + 1 == recipe.steps:
                run.save(step + 1)
            if stopped:
                raise ModelError(
                    f"training was stopped after step {step + 1}", remedy="the same call goes on"
                )
    return run.finish()


def batch_of(rows: Tensor, step: int, size: int, seed: int) -> Int[Tensor, "batch pos"]:
    """The rows of one step: each epoch is a shuffle of its own, and no row comes twice in it."""
    places = [divmod(step * size + i, len(rows)) for i in range(size)]
    chosen = [int(_shuffle(len(rows), seed, epoch)[place]) for epoch, place in places]
    return rows[chosen].long()


@lru_cache(maxsize=2)
def _shuffle(n: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))


def schedule(step: int, recipe: Recipe) -> float:
    """Share of the highest learning rate: rises over the warm-up, stays, falls to a tenth."""
    rise = (step + 1) / max(1, recipe.warmup)
    fall = (recipe.steps - step) / (recipe.cooldown * recipe.steps)
    return min(1.0, rise, max(0.1, fall))


def _optimizers(hf: TinyForCausalLM, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the blocks' matrices, AdamW for the rest."""
    named = dict(hf.model.layers.named_parameters())
    matrices = [weight for weight in named.values() if weight.ndim == 2]
    biases = [weight for name, weight in named.items() if name.endswith("bias")]
    taken = {id(weight) for weight in (*matrices, *biases)}
    rest = [weight for weight in hf.parameters() if id(weight) not in taken]
    groups = [{"params": rest, "highest": recipe.lr}, {"params": biases, "highest": 6 * recipe.lr}]
    adam = torch.optim.AdamW(
        [group for group in groups if group["params"]],
        betas=(0.9, 0.98),
        weight_decay=recipe.weight_decay,
    )
    if not matrices:
        return [adam]
    hidden = [{"params": matrices, "highest": recipe.matrix_lr}]
    return [torch.optim.Muon(hidden, weight_decay=recipe.weight_decay), adam]


class _Run:
    """One training: what changes from step to step, and its folder."""

    def __init__(
        self, hf: TinyForCausalLM, recipe: Recipe, record: dict[str, Any], tokenizer: Any, out: Path
    ) -> None:
        self.hf, self.recipe, self.record = hf.train(), recipe, record
        self.tokenizer, self.out = tokenizer, out
        self.losses = torch.full((recipe.steps,), torch.nan)
        self.optimizers = _optimizers(hf, recipe)

    def step(self, step: int, tokens: Int[Tensor, "batch pos"]) -> float:
        """Learn from one batch; products are in bfloat16, weights and moments in float32."""
        for group in (group for one in self.optimizers for group in one.param_groups):
            group["lr"] = group["highest"] * schedule(step, self.recipe)
        with torch.autocast("cpu", torch.bfloat16):
            logits = self.hf(input_ids=tokens, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(
            logits[:, :-1].float().flatten(0, 1), tokens[:, 1:].flatten()
        )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.hf.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.losses[step] = loss.item()
        return loss.item()

    def resume(self) -> int:
        """Take up a run that was cut short; the step to go on with."""
        try:
            made = self._claim()
            if not (self.out / _STATE).is_file():
                return 0
            done = self._take_up(load_file(self.out / _STATE))
        except OSError as error:
            raise ModelError(
                f"cannot train in {self.out}: {error}", remedy="a folder that can be written to"
            ) from None
        except (ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            raise ModelError(
                f"the training in {self.out} is damaged: {error}",
                remedy="another folder, or remove this one to train again",
            ) from None
        other = [f"{k} {made[k]}, now {v}" for k, v in versions().items() if made.get(k, v) != v]
        if other and done < self.recipe.steps:
            warnings.warn(
                f"the training in {self.out} was begun with {'; '.join(other)}: it goes on, but to "
                "other bits than in one piece",
                ProbeWarning,
                stacklevel=2,
            )
        return done

    def _claim(self) -> dict[str, str]:
        """Make the folder this run's, or see that it is; the versions it was begun with."""
        card = self.out / "training.json"
        if not card.is_file():
            self.out.mkdir(parents=True, exist_ok=True)
            about = json.dumps({**self.record, "versions": versions()}, indent=1) + "\n"
            _write(card, lambda part: part.write_text(about, "utf-8"))
        found = json.loads(card.read_text("utf-8"))
        found["recipe"] = completed(found["recipe"])
        if differing := [key for key in self.record if found.get(key) != self.record[key]]:
            raise ModelError(
                f"{self.out} holds a run with another {', '.join(differing)}",
                expected="an empty folder, or the same run cut short",
            )
        return found["versions"]

    def _take_up(self, saved: dict[str, Tensor]) -> int:
        """Weights, moments and losses as they were saved; how many steps are done."""
        self.losses = saved["losses"]
        for name, weight in self.hf.named_parameters():
            weight.data.copy_(saved.pop(f"weight.{name}"))
        for number, optimizer in enumerate(self.optimizers):
            state = optimizer.state_dict()
            for key, value in saved.items():
                of, place, part = key.split("/") if "/" in key else ("", "", "")
                if of == str(number):
                    state["state"].setdefault(int(place), {})[part] = value
            optimizer.load_state_dict(state)
        return int(saved["done"])

    def save(self, done: int) -> None:
        """Everything to go on from."""
        state = {"losses": self.losses, "done": torch.tensor(done)}
        for name, weight in self.hf.named_parameters():
            state[f"weight.{name}"] = weight.data
        for number, optimizer in enumerate(self.optimizers):
            for place, parts in optimizer.state_dict()["state"].items():
                state |= {f"{number}/{place}/{part}": value for part, value in parts.items()}
        _write(self.out / _STATE, lambda part: save_file(state, part))

    def keep(self, step: int) -> Path:
        """A checkpoint: a folder that loads by itself."""
        folder = self.out / f"step-{step:06d}"
        if not folder.exists():
            _write(folder, self._save_folder)
        return folder

    def _save_folder(self, part: Path) -> None:
        with _quiet():
            self.hf.save_pretrained(part)
        self.tokenizer.save_pretrained(part)

    def finish(self) -> Path:
        """The trained model."""
        losses = {"losses": self.losses}
        _write(self.out / "losses.safetensors", lambda part: save_file(losses, part))
        return self.keep(self.recipe.steps)


def _write(path: Path, write: Callable[[Path], Any]) -> None:
    """Write under another name first: what has its name is whole."""
    room = Path(tempfile.mkdtemp(prefix=".part-", dir=path.parent))
    try:
        write(room / path.name)
        (room / path.name).replace(path)
    finally:
        shutil.rmtree(room, ignore_errors=True)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars of the library's own for what takes a millisecond."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
