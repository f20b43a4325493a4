"""How much of a model's predictions survives when it must live on the reconstruction."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from probe.core.dictionary import Dictionary
from probe.core.edit import Edit, patch
from probe.core.model import Model
from probe.core.progress import Report
from probe.core.trace import Trace
from probe.corpora import TokenBatch
from probe.dictionaries.passes import Text, stacked

RUNS = ("clean", "spliced", "zero", "mean")


@dataclass
class Losses:
    """Sums over predictions.

    Attributes:
        n: Predictions of a token that counts, made at a token that counts.
        cross_entropy: Run → sum of the losses, nats.
        kl: Run → sum of the KL from the clean run's prediction, nats.
    """

    n: int = 0
    cross_entropy: dict[str, float] = field(default_factory=lambda: dict.fromkeys(RUNS, 0.0))
    kl: dict[str, float] = field(default_factory=lambda: dict.fromkeys(RUNS, 0.0))

    def add(self, run: str, cross_entropy: Tensor, kl: Tensor) -> None:
        """Count the predictions of one run."""
        self.cross_entropy[run] += float(cross_entropy.double().sum())
        self.kl[run] += float(kl.double().sum())

    def recovered(self, baseline: str) -> tuple[float, float]:
        """Share of cross-entropy and of KL recovered: 1 as the clean run, 0 as the baseline."""
        ce, kl = self.cross_entropy, self.kl
        gap = ce[baseline] - ce["clean"]
        return (
            (ce[baseline] - ce["spliced"]) / gap if gap else float("nan"),
            (kl[baseline] - kl["spliced"]) / kl[baseline] if kl[baseline] else float("nan"),
        )


def measure_losses(
    sae: Dictionary,
    model: Model,
    text: Text,
    mean: Float[Tensor, " d_out"],
    n_tokens: int,
    report: Report,
) -> Losses:
    """Losses of the clean run, and with the sites replaced by the reconstruction, zero, the mean.

    Only tokens that count are replaced: special ones, those skipped and outliers stay as they
    were.

    Cost: four forward passes over the tokens, and one up to the dictionary's sites.
    """
    losses = Losses()
    mean = mean.to(device=model.device, dtype=model.dtype)
    for batch in text.batches(model):
        _add(losses, sae, model, text, batch, mean)
        if report(min(losses.n, n_tokens), n_tokens, "predictions") is False:
            break
        if losses.n >= n_tokens:
            break
    return losses


def _add(
    losses: Losses,
    sae: Dictionary,
    model: Model,
    text: Text,
    batch: TokenBatch,
    mean: Float[Tensor, " d_out"],
) -> None:
    sites = list(dict.fromkeys([*sae.reads, *sae.writes]))
    trace = model.trace(batch.tokens, sites, batch_size=len(batch.tokens))
    counted = text.counted(batch) & text.usual(stacked(sae, trace, sae.reads))
    predicts = counted[:, :-1] & ~batch.special[:, 1:]
    if not predicts.any():
        return
    edits = replacements(sae, trace, counted, mean)
    targets = batch.tokens[:, 1:].to(model.device)[predicts]
    clean: Tensor | None = None
    for run in RUNS:
        logits = model.forward(batch.tokens, edits[run](), lengths=batch.lengths)
        log_p = logits[:, :-1][predicts].float().log_softmax(-1)
        clean = log_p if clean is None else clean
        loss = -log_p.gather(1, targets[:, None])[:, 0]
        kl = (clean.exp() * (clean - log_p)).sum(-1)
        losses.add(run, loss, kl)
    losses.n += len(targets)


def replacements(
    sae: Dictionary,
    trace: Trace,
    counted: Bool[Tensor, "batch pos"],
    mean: Float[Tensor, " d_out"],
) -> dict[str, Callable[[], list[Edit]]]:
    """Run → what makes its edits: tensors over the whole batch, made one run at a time."""
    x = stacked(sae, trace, sae.reads)
    there = {site: trace[site] for site in sae.writes}
    layered = sae.W_dec.ndim == 3
    means = dict(zip(sae.writes, mean.chunk(len(sae.writes)), strict=True))
    keep = counted.to(x.device)[..., None]

    def edits(value_of: Callable[[int], Tensor]) -> list[Edit]:
        made = []
        for place, (site, old) in enumerate(there.items()):
            new = torch.where(keep, value_of(place).to(old.dtype), old.flatten(2))
            made.append(patch(site, new.view_as(old)))
        return made

    def spliced() -> list[Edit]:
        whole = sae.decode(sae.encode(x.to(sae.device)), x.to(sae.device)).to(x.device)
        return edits(lambda place: whole[:, :, place] if layered else whole)

    return {
        "clean": list,
        "spliced": spliced,
        "zero": lambda: edits(lambda _: torch.zeros((), device=x.device)),
        "mean": lambda: edits(lambda place: means[sae.writes[place]]),
    }
