"""What the studies of dictionaries share: stores and trainings that a second run finds again."""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

import probe

DOCUMENTS, CHARACTERS, HELD_OUT = 600, 5000, 11
"""Of the everyday text, so much of each document; one in eleven held out, of both its halves."""

OUTLIERS = 10
"""Norms above so many medians count nowhere; the trainer's own rule."""


def texts(held_out: bool) -> list[str]:
    """Documents to learn from, or those held out: Python's library and generated English."""
    return [text for i, text in enumerate(documents(DOCUMENTS)) if (i % HELD_OUT == 0) == held_out]


@cache
def documents(limit: int) -> list[str]:
    return [d.text[:CHARACTERS] for d in probe.everyday_corpus(limit=limit)]


def root() -> Path:
    return Path(os.environ.get("PROBE_RUNS", "runs"))


def tag(*what: Any) -> str:
    """Eight letters that name these options."""
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:8]


def harvested(
    name: str, layer: int, tokens: int, n_pos: int, *, held_out: bool
) -> probe.ActivationStore:
    """Residuals after a layer, in half precision; the first token of each row is left out.

    Read with a bfloat16 model, which runs twice as fast and changes them by about a hundredth.
    """
    text = texts(held_out)
    out = root() / "activations" / f"{name}-{layer}-{tokens}-{tag(text)}"
    return probe.harvest(
        probe.load_model(name, dtype="bfloat16"), text, site="resid_post", layer=layer, out=out,
        n_tokens=tokens, n_pos=n_pos, skip_first=1, dtype="float16",
        tokens_per_shard=32_768,
    )  # fmt: skip


def trained(
    store: probe.ActivationStore, seed: int, settings: Sequence[dict], **options: Any
) -> list[probe.SparseDictionary]:
    """Dictionaries that differ in a setting, trained in one pass, or as they were found."""
    kind = options["architecture"]
    name = f"{store.path.name}-{kind}-{options['d_sae']}-{tag(list(settings), options)}-{seed}"
    return probe.train_saes(
        store, settings, out=root() / "dictionaries" / name, seed=seed, **options
    )


def array_store(x: torch.Tensor, name: str) -> probe.ActivationStore:
    """Rows of one's own as a store, or the store that is there."""
    out = root() / "activations" / f"{name}-{hashlib.sha256(x.numpy().tobytes()).hexdigest()[:8]}"
    if (out / "manifest.json").exists():
        return probe.ActivationStore(out)
    return probe.ActivationStore.from_array(x, out=out)


def usual(store: probe.ActivationStore) -> torch.Tensor:
    """Its activations but those of over ten times the median norm, which no dictionary learns."""
    x = store.head(store.names[0], store.n_rows)
    norms = x.norm(dim=-1)
    return x[norms <= OUTLIERS * norms.median()]


def quality(sae: probe.SparseDictionary, x: torch.Tensor) -> dict[str, float]:
    """What a dictionary makes of held-out activations: sums over all of them, divided once."""
    features = torch.cat([sae.encode(part) for part in x.split(2048)])
    made, x = sae.decode(features).double(), x.double()
    active = (features > 0).sum(1).double()
    error, mean = (x - made).square().sum(), x.mean(0)
    centred = made - mean
    return {
        "l0": float(active.mean()),
        "spread": float(active.std()),
        "mse": float(error / len(x)),
        "value": float(1 - error / (x - mean).square().sum()),
        "gamma": float(made.square().sum() / (made * x).sum()),
        "centred": float(centred.square().sum() / (centred * (x - mean)).sum()),
        "dead": float(sae.metadata["last"]["dead_share"]),
    }


class Predictions:
    """Next-token predictions on held-out text, with something else in place of an activation.

    The first of a row and outliers stay as they are.

    Args:
        model: The model.
        layer: After which the residual stream is replaced.
        n_rows: Rows of text.
        n_pos: Tokens in a row.
    """

    def __init__(self, model: probe.Model, layer: int, n_rows: int, n_pos: int) -> None:
        ids = model.tokenizer.encode("\n\n".join(shuffled(texts(held_out=True))))
        self.model, self.site = model, f"resid_post.{layer}"
        self.tokens = torch.tensor(ids[: n_rows * n_pos]).view(n_rows, n_pos)
        self.x = model.trace(self.tokens, [self.site])[self.site]
        norms = self.x.norm(dim=-1, keepdim=True)
        self.replaced = norms <= OUTLIERS * norms.median()
        self.replaced[:, 0] = False
        self.clean = self._log_p()
        self.clean_loss = self._loss(self.clean)
        self.zero_loss = self.of(torch.zeros_like(self.x))[0]

    def of(self, new: torch.Tensor) -> tuple[float, float]:
        """Cross-entropy, and KL from the clean predictions, both in nats."""
        log_p = self._log_p(new)
        return self._loss(log_p), float(
            (self.clean.exp() * (self.clean - log_p)).sum(-1).double().mean()
        )

    def recovered(self, sae: probe.SparseDictionary) -> float:
        """Loss recovered by a reconstruction: 1 as the clean run, 0 as zeros."""
        loss = self.of(sae.decode(sae.encode(self.x)))[0]
        return (self.zero_loss - loss) / (self.zero_loss - self.clean_loss)

    def harm(self, sae: probe.SparseDictionary, seed: int) -> dict[str, float]:
        """What a reconstruction's error does, and what a random vector of its length does."""
        made = sae.decode(sae.encode(self.x))
        draw = torch.Generator().manual_seed(seed)
        noise = torch.nn.functional.normalize(torch.randn(made.shape, generator=draw), dim=-1)
        length = (made - self.x).norm(dim=-1, keepdim=True)
        loss, kl = self.of(made)
        random_loss, random_kl = self.of(self.x + noise * length)
        added = loss - self.clean_loss
        return {
            "KL, error / random": kl / random_kl,
            "loss added, error / random": added / (random_loss - self.clean_loss),
            "loss added by the error, nats": added,
            "KL of the error, nats": kl,
            "loss recovered against zeros": 1 - added / (self.zero_loss - self.clean_loss),
        }

    @property
    def n(self) -> int:
        """Predictions measured."""
        return self.clean.shape[:2].numel()

    def _log_p(self, new: torch.Tensor | None = None) -> torch.Tensor:
        """Of the tokens after the second, as it is or with another residual stream."""
        edits = [[] for _ in self.tokens.split(4)]
        if new is not None:
            kept = torch.where(self.replaced, new, self.x)
            edits = [[probe.patch(self.site, there)] for there in kept.split(4)]
        parts = [
            self.model.forward(rows, made)[:, 1:-1].log_softmax(-1)
            for rows, made in zip(self.tokens.split(4), edits, strict=True)
        ]
        return torch.cat(parts)

    def _loss(self, log_p: torch.Tensor) -> float:
        picked = log_p.gather(-1, self.tokens[:, 2:, None])
        return -float(picked.double().mean())


def shuffled(some: list[str]) -> list[str]:
    """In an order of no meaning, the same every time."""
    return [some[i] for i in np.random.default_rng(0).permutation(len(some))]


def at_l0(curve: pd.DataFrame, l0: float) -> float:
    """The error of a curve of dictionaries at an L0, linear between logarithms; NaN beyond it."""
    known = curve.sort_values("l0")
    found = np.interp(np.log(l0), np.log(known.l0), np.log(known.mse), np.nan, np.nan)
    return float(np.exp(found))


def ratios(table: pd.DataFrame, architecture: str, l0s: Sequence[float]) -> pd.DataFrame:
    """Error over TopK's at these L0, by seed and width, where both curves have them."""
    rows = []
    for (seed, d_sae), some in table.groupby(["seed", "d_sae"]):
        topk = some[(some.architecture == "topk") & (some.revive == "auxk")]
        own = some[some.architecture == architecture]
        for l0 in l0s if len(own) else ():
            about = {"seed": seed, "d_sae": d_sae, "l0": l0}
            rows.append(about | {"value": at_l0(own, l0) / at_l0(topk, l0)})
    return pd.DataFrame(rows, columns=["seed", "d_sae", "l0", "value"]).dropna()


def by_seed(frame: pd.DataFrame, of: Callable[[pd.DataFrame], float]) -> Any:
    """A number of each seed's rows; missing where there are none."""
    if frame.empty:
        return probe.exactly(np.nan)
    return probe.over_seeds([of(some) for _, some in frame.groupby("seed")])
