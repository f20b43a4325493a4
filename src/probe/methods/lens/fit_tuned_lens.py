"""Training the tuned lens: translators that predict what the model will say in the end."""

import contextlib
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from probe.core.errors import ModelError, OptionError, ProbeWarning
from probe.core.model import Model
from probe.methods._predictions import kl, log_probs
from probe.methods._translators import TunedLens

_QUIET_SECONDS = 2.0
Corpus = Sequence[str] | Int[Tensor, "batch pos"]


def fit_tuned_lens(
    model: Model,
    corpus: Corpus,
    *,
    steps: int = 250,
    tokens_per_step: int = 512,
    lr: float = 1e-3,
    seed: int = 0,
    path: str | Path | None = None,
) -> TunedLens:
    """Train one affine translator for each layer but the last, and keep them.

    Minimises KL(model's output || lens), averaged over tokens, for each layer by itself, with
    Adam and a learning rate that falls linearly to zero, from the identity.

    Args:
        model: A model that ends in norm and unembedding.
        corpus: Texts, or rows of token ids without padding.
        steps: Optimisation steps.
        tokens_per_step: Tokens of each step, in whole rows, at least one.
        lr: Learning rate of the first step.
        seed: Decides the order of the rows. Same seed, same lens.
        path: Where to save; by default the user's cache, where the method ``tuned_lens`` looks.

    Returns:
        The lens, saved. Interrupted by Ctrl-C, what was trained so far, and a ProbeWarning.

    Raises:
        ModelError: The model does not end in norm and unembedding, or has a final norm that is
            neither LayerNorm nor RMSNorm.
        OptionError: An empty corpus, or a number below one.

    Cost: for each step one forward pass, and three unembeddings a layer of ``tokens_per_step``
    tokens; logits of one layer are held at a time.
    Source: Belrose et al. (2023), arXiv 2303.08112, section 3.
    """
    _check(corpus, steps=steps, tokens_per_step=tokens_per_step)
    start = TunedLens.identity(model)
    read = _Reader(model)
    A, b = start.A.requires_grad_(), start.b.requires_grad_()
    optimizer = torch.optim.Adam([A, b], lr=lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    batches, done = _batches(model, corpus, tokens_per_step, seed), 0
    try:
        with _bar(steps) as advance:
            while done < steps:
                resids = next(batches)
                if not done:
                    read.check(resids[-1])
                optimizer.zero_grad()
                loss = _accumulate(model, read, start, resids)
                optimizer.step()
                schedule.step()
                done += 1
                advance(done, f"KL {loss:.3f} nats")
    except KeyboardInterrupt:
        warnings.warn(
            f"stopped after {done} of {steps} steps; what was trained is kept",
            ProbeWarning,
            stacklevel=2,
        )
    lens = TunedLens(A.detach(), b.detach(), start.model, start.weight_hash, done)
    if done:
        lens.save(path)
    return lens


def _check(corpus: Corpus, **numbers: int) -> None:
    if len(corpus) == 0:
        raise OptionError("the corpus is empty", expected="texts, or token ids [batch, pos]")
    for name, number in numbers.items():
        if number < 1:
            raise OptionError(f"{name}={number}", expected="at least 1")


def _batches(
    model: Model, corpus: Corpus, tokens_per_step: int, seed: int
) -> Iterator[list[Float[Tensor, "token d_model"]]]:
    """The residual stream after every layer at some rows' tokens, without end."""
    generator = torch.Generator().manual_seed(seed)
    waiting: list[int] = []
    while True:
        rows: list[int] = []
        n_tokens = 0
        while not rows or n_tokens < tokens_per_step:
            waiting = waiting or torch.randperm(len(corpus), generator=generator).tolist()
            rows.append(waiting.pop())
            n_tokens += _length(model, corpus, rows[-1])
        chosen = corpus[rows] if isinstance(corpus, Tensor) else [corpus[row] for row in rows]
        trace = model.trace(chosen, "resid_post")
        real = torch.arange(trace.tokens.shape[1]) < trace.lengths[:, None]
        yield [trace["resid_post", layer][real] for layer in trace.layers("resid_post")]


def _length(model: Model, corpus: Corpus, row: int) -> int:
    return len(corpus[row]) if isinstance(corpus, Tensor) else len(
        model.tokenizer.encode(corpus[row])
    )  # fmt: skip


def _accumulate(
    model: Model, read: "_Reader", lens: TunedLens, resids: list[Float[Tensor, "token d_model"]]
) -> float:
    """Add each layer's gradient; returns the mean KL over layers, in nats."""
    final, total = log_probs(model, resids[-1]), 0.0
    for layer, resid in enumerate(resids[:-1]):
        with torch.enable_grad():
            loss = kl(final, read(lens.translate(layer, resid.float()))).mean()
            loss.backward()
        total += loss.item()
    return total / max(1, len(resids) - 1)


class _Reader:
    """The model's reading of a residual stream, with a gradient (``model.unembed`` has none).

    ``read_out`` wants the norm's denominator, which for LayerNorm and RMSNorm is the root mean
    square of what it divides; the epsilon under the root is left out.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self.W_U, self.b_U = model.weights.W_U.float(), model.weights.b_U.float()
        one = torch.ones(1, 1, device=model.device)
        flat = torch.ones(1, model.dims.d_model, device=model.device)
        steep = torch.linspace(-1, 1, model.dims.d_model, device=model.device)[None]
        heard = [model.read_out(x, one).abs().max() for x in (flat, steep)]
        self.centred = bool(heard[0] < 1e-3 * heard[1])

    def __call__(self, resid: Float[Tensor, "token d_model"]) -> Float[Tensor, "token d_vocab"]:
        """Log-probabilities."""
        divided = resid - resid.mean(-1, keepdim=True) if self.centred else resid
        scale = divided.pow(2).mean(-1, keepdim=True).sqrt()
        read = self.model.read_out(resid, scale).float() + self.model.read_out_bias.float()
        logits, cap = read @ self.W_U + self.b_U, self.model.dims.softcap
        return (logits if cap is None else cap * torch.tanh(logits / cap)).log_softmax(-1)

    @torch.no_grad()
    def check(self, resid: Float[Tensor, "token d_model"]) -> None:
        """Refuse a model that reads its own last residual stream otherwise."""
        gap = float(kl(log_probs(self.model, resid).float(), self(resid.float())).mean())
        if not gap < 1e-2:
            raise ModelError(
                f"the output of {self.model.name} departs by {gap:.2g} nats from a LayerNorm or "
                "RMSNorm and a matrix",
                expected="a model that ends in one of these",
            )


@contextlib.contextmanager
def _bar(total: int) -> Iterator[Callable[[int, str], None]]:
    """A progress bar on stderr, for what takes longer than two seconds."""
    from rich.console import Console
    from rich.progress import Progress

    bar, started = Progress(console=Console(stderr=True)), time.monotonic()
    shown = bar.add_task("fitting the tuned lens", total=total)
    running = False

    def advance(done: int, about: str) -> None:
        nonlocal running
        if not running and time.monotonic() - started > _QUIET_SECONDS:
            bar.start()
            running = True
        bar.update(shown, completed=done, description=f"fitting the tuned lens: {about}")

    try:
        yield advance
    finally:
        if running:
            bar.stop()
