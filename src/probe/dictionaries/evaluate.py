"""What a dictionary is worth: reconstruction, sparsity, and what the model keeps of its output."""

import warnings
from math import isinf
from typing import Any

import pandas as pd
import torch

from probe.core import provenance
from probe.core.dictionary import Dictionary
from probe.core.errors import CorpusError, ProbeWarning
from probe.core.model import Model
from probe.core.progress import progress_bar
from probe.core.result import Result, View
from probe.dictionaries.faithfulness import RUNS, Losses, measure_losses
from probe.dictionaries.moments import Moments, largest_cosines
from probe.dictionaries.passes import CorpusLike, Text, activations, encoded, text_of

COLUMNS = {
    "metric": "what was measured; see METRICS",
    "baseline": "what stood there instead, for what is compared with a baseline; missing elsewhere",
    "feature": "feature of the dictionary, for its density; missing elsewhere",
    "value": "the number, in the metric's unit; missing where a denominator is zero",
    "about": "what it means, with its unit",
}

METRICS = {
    "explained_variance": "1 − E‖x − x̂‖² / (E‖x‖² − ‖E x‖²), over the whole set: 1 is perfect",
    "squared_error": "E‖x − x̂‖², squared units of the activation",
    "cosine": "mean cosine of x̂ with x",
    "norm_ratio": "mean of ‖x̂‖ / ‖x‖: below 1, the reconstruction is shrunk",
    "relative_bias": "E‖x̂‖² / E(x̂·x): below 1, a longer x̂ would be nearer to x",
    "l0": "mean number of features that fire on a token, as the dictionary encodes here",
    "l1": "mean sum of feature activations",
    "dead_share": "share of features that fire on none of these tokens",
    "dense_share": "share of features that fire on more than a tenth of them",
    "decoder_cosine": "mean over features of the largest cosine with another feature's decoder row",
    "cross_entropy": "loss of the next token, nats; baseline says what stands at the site",
    "kl": "KL from the clean run's prediction, nats; baseline says what stands at the site",
    "cross_entropy_recovered": "(loss of baseline − loss of splice) / (loss of baseline − clean)",
    "kl_recovered": "(KL of baseline − KL of splice) / KL of baseline",
    "density": "share of tokens on which the feature fires",
    "tokens": "tokens that counted for reconstruction and sparsity",
    "predictions": "predictions that counted for cross-entropy and KL",
    "special_tokens": "tokens left out: BOS, separators and other special ones; not reconstructed",
    "skipped_tokens": "tokens left out at the beginning of rows; not reconstructed",
    "outlier_tokens": "tokens left out for the norm of their activation; not reconstructed",
}
"""Metric → what it means."""
LEFT_OUT = ("special_tokens", "skipped_tokens", "outlier_tokens")


def evaluate_sae(
    sae: Dictionary,
    model: Model,
    corpus: CorpusLike,
    *,
    n_tokens: int | None = 100_000,
    ce_tokens: int = 20_000,
    n_pos: int = 128,
    batch_size: int = 8,
    skip_first: int | None = None,
    outliers: float | None = None,
) -> Result:
    """Measure a dictionary on text it was not trained on.

    Sums are taken over the whole set in double precision, and divided once. Special tokens count
    for nothing and stay as they were when the reconstruction is spliced in; how many they are is
    among the rows. L0 is that of inference: a batch-top-k dictionary's is not its k.

    Args:
        sae: A sparse autoencoder, transcoder or crosscoder.
        model: The model it was made for.
        corpus: Held-out text: a corpus, a file, or texts.
        n_tokens: Stop after the batch in which so many tokens have counted; None for all.
        ce_tokens: The same for predictions; 0 leaves cross-entropy and KL out.
        n_pos: Tokens the model sees at once.
        batch_size: Rows of text in a forward pass.
        skip_first: Tokens at the beginning of each row that do not count, because a model without
            BOS gives the first a huge activation. None for what the dictionary was trained with.
        outliers: Tokens whose activation's norm is more than so many times the median do not count
            and stay as they were; 0 to count all, None for what the dictionary was trained with.

    Returns:
        One row a metric, and one a feature for densities. ``METRICS`` says what each means.

    Raises:
        DictionaryError: A dictionary of another width, or one that names no site.
        CorpusError: No token that counts.

    Cost: a forward pass up to the dictionary's site over the tokens; over those of ``ce_tokens``
    four whole ones and one up to the site.
    """
    watch, started = provenance.Stopwatch(), provenance.now()
    text = text_of(
        sae, model, corpus, n_tokens=n_tokens, n_pos=n_pos, batch_size=batch_size,
        skip_first=skip_first, outliers=outliers,
    )  # fmt: skip
    with progress_bar("evaluating") as report:
        moments, left_out = _moments(sae, model, text, report)
        losses = Losses()
        if ce_tokens:
            losses = measure_losses(sae, model, text, moments.mean.float(), ce_tokens, report)
    frame = _frame(_rows(sae, moments, losses, left_out), moments)
    options = {
        "dictionary": sae.name, "architecture": sae.architecture, "corpus": text.corpus.name,
        "reads": [str(s) for s in sae.reads], "writes": [str(s) for s in sae.writes],
        "d_sae": sae.d_sae, "n_tokens": n_tokens, "ce_tokens": ce_tokens, "n_pos": n_pos,
        "skip_first": text.skip_first, "norm_limit": None if isinf(text.limit) else text.limit,
    }  # fmt: skip
    view = View(kind="table", x="metric", text="about")
    return Result(frame, COLUMNS, view, record("evaluate_sae", model, options, watch, started))


def record(
    what: str, model: Model, options: dict[str, Any], watch: provenance.Stopwatch, started: str
) -> provenance.Provenance:
    """How a number about a dictionary came to be."""
    return provenance.Provenance(
        run_id=provenance.new_run_id(), started=started, method=what, passed=options, defaulted={},
        versions=provenance.versions(), git=provenance.git_state(),
        wall_seconds=round(watch.seconds, 3), peak_bytes=provenance.peak_bytes(),
        **provenance.describe(model),
    )  # fmt: skip


def _moments(sae: Dictionary, model: Model, text: Text, report: Any) -> tuple[Moments, list[int]]:
    """The sums, and how many tokens were special, skipped and outliers."""
    moments, special, skipped, unusual = Moments(sae.d_sae), 0, 0, 0
    for seen in activations(sae, model, text):
        real = torch.arange(seen.batch.tokens.shape[1]) < seen.batch.lengths[:, None]
        special += int((seen.batch.special & real).sum())
        usual = text.counted(seen.batch)
        skipped += int((~seen.batch.special & ~usual).sum())
        unusual += int((usual & ~seen.counted).sum())
        for part, features in encoded(sae, seen):
            x = seen.reads[part].to(sae.device)
            moments.add(seen.writes[part], sae.decode(features, x), features)
        total = text.n_tokens or moments.n
        if report(min(moments.n, total), total, "tokens") is False:
            break
    if not moments.n:
        raise CorpusError(
            f"no token of {text.corpus.name} counts",
            expected=f"text, in rows of more than skip_first={text.skip_first} tokens",
        )
    return moments, [special, skipped, unusual]


def _rows(
    sae: Dictionary, moments: Moments, losses: Losses, left_out: list[int]
) -> list[tuple[str, str | None, float]]:
    rows: list[tuple[str, str | None, float]] = []
    rows += [(name, None, value) for name, value in moments.numbers().items()]
    rows.append(("decoder_cosine", None, float(largest_cosines(sae.W_dec).mean())))
    if losses.n:
        for baseline in ("zero", "mean"):
            shares = losses.recovered(baseline)
            rows += [
                ("cross_entropy_recovered", baseline, shares[0]),
                ("kl_recovered", baseline, shares[1]),
            ]
        for run in RUNS:
            rows.append(("cross_entropy", run, losses.cross_entropy[run] / losses.n))
            rows.append(("kl", run, losses.kl[run] / losses.n))
    counts = {"tokens": moments.n, "predictions": losses.n}
    counts |= dict(zip(LEFT_OUT, left_out, strict=True))
    return rows + [(name, None, float(count)) for name, count in counts.items()]


def _frame(rows: list[tuple[str, str | None, float]], moments: Moments) -> pd.DataFrame:
    whole = [(name, baseline, None, value) for name, baseline, value in rows]
    each = [("density", None, i, value) for i, value in enumerate(moments.density.tolist())]
    frame = pd.DataFrame(whole + each, columns=["metric", "baseline", "feature", "value"])
    frame["feature"] = frame["feature"].astype("Int64")
    undefined = frame["metric"][frame["value"].isna()].unique()
    if len(undefined):
        warnings.warn(
            f"{', '.join(undefined)} cannot be measured here: a denominator is zero",
            ProbeWarning,
            stacklevel=3,
        )
    return frame.assign(about=frame["metric"].map(METRICS))
