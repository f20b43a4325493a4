"""Feature absorption: a feature for a concept that falls silent where a narrower one takes over."""

from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_lowercase

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from probe.core import provenance
from probe.core.dictionary import Dictionary
from probe.core.errors import OptionError
from probe.core.model import Model
from probe.core.result import Result, View
from probe.dictionaries.evaluate import record
from probe.dictionaries.moments import unit_rows
from probe.dictionaries.passes import check_fits, stacked
from probe.dictionaries.sparse_probing import most_different

_COLUMNS = {
    "letter": "first letter of the word",
    "n_words": "words of that letter that the letter's probe tells right",
    "features": "features that stand for the letter, found by sparse probing",
    "probe_f1": "F1 of the letter's probe on words held out",
    "value": "mean absorption fraction: how much of the letter other features carry, 0 to 1",
    "full": "share of words fully absorbed: the letter's features silent, another in their place",
}

F1_GAIN, SILENT = 0.03, 1e-8
FULL_COSINE, FULL_SHARE = 0.025, 0.4
PART_COSINE, PART_SHARE, ABSORBERS = 0.1, 0.4, 3
"""The thresholds of SAEBench's absorption score (Chanin et al. 2024; Karvonen et al. 2025)."""


def absorption(
    sae: Dictionary,
    model: Model,
    *,
    words: Sequence[str] | None = None,
    template: str = "The word is{word}",
    max_words: int = 2000,
    max_split: int = 10,
    seed: int = 0,
) -> Result:
    """How often do the features of a first letter leave a word's letter to another feature?

    A logistic probe for each letter is fitted to activations at the word's token. The features
    that stand for the letter are found by probing with k features, k grown while F1 gains more
    than 0.03. On words the probe tells right, a feature's projection is its activation times the
    cosine of its decoder row with the probe. Absorbed fully: the letter's features are silent,
    and the feature of largest projection has cosine ≥ 0.025 and ≥ 0.4 of the probe's projection.
    Fraction: what up to three others of cosine ≥ 0.1 carry, no more than the letter's own features
    leave unaccounted for, by that plus what those carry; 0 unless they carry ≥ 0.4 of what counts.

    Args:
        sae: A sparse autoencoder of the residual stream.
        model: The model it was made for.
        words: Words with their leading space, each one token; by default drawn from the
            vocabulary: a space and three or more ASCII letters.
        template: Where the word stands, last.
        max_words: The most words drawn.
        max_split: The most features that may stand for one letter.
        seed: Of the draw and the split.

    Raises:
        OptionError: Too few words, or a template that does not end in the word.

    Cost: one forward pass up to the dictionary's site over each word.
    """
    watch, started = provenance.Stopwatch(), provenance.now()
    check_fits(sae, model)
    chosen = _words(model, words, max_words, seed)
    if not template.endswith("{word}"):
        raise OptionError(f"template={template!r}", expected="a text that ends in {word}")
    x = _at_last(sae, model, [template.format(word=word) for word in chosen])
    letters = np.array([ascii_lowercase.index(word.strip()[0].lower()) for word in chosen])
    features = torch.cat([sae.encode(part) for part in x.to(sae.device).split(512)]).cpu()
    frame = absorbed(
        x.cpu().float(), features.float(), unit_rows(sae.W_dec), letters, max_split, seed
    )
    options = {"dictionary": sae.name, "n_words": len(chosen), "template": template, "seed": seed}
    view = View(kind="bar", x="letter")
    return Result(frame, _COLUMNS, view, record("absorption", model, options, watch, started))


def absorbed(
    x: Float[Tensor, "word d"],
    features: Float[Tensor, "word feature"],
    directions: Float[Tensor, "feature d"],
    letters: Int[np.ndarray, " word"],
    max_split: int = 10,
    seed: int = 0,
) -> pd.DataFrame:
    """The score from activations, feature activations and unit decoder rows; a row a letter.

    Letters of fewer than eight words are left out.
    """
    rng = np.random.default_rng(seed)
    test = rng.random(len(letters)) < 0.3
    rows = []
    for letter in np.unique(letters):
        y = letters == letter
        if y.sum() < 8 or y[test].sum() < 2 or y[~test].sum() < 2:
            continue
        probe, f1, right = _fit(x.numpy(), y, test)
        split = _split_features(features.numpy(), y, test, max_split)
        direction = torch.tensor(probe / np.linalg.norm(probe), dtype=torch.float32)
        score = Absorption(x, features, directions @ direction, direction, split)
        words = np.flatnonzero(right & y)
        parts = [score.of(int(word)) for word in words]
        value, full = np.array(parts, dtype=float).T if parts else (np.zeros(0), np.zeros(0))
        name = ascii_lowercase[letter]
        said = " ".join(map(str, split))
        rows.append((name, len(words), said, f1, _mean(value), _mean(full)))
    return pd.DataFrame(rows, columns=list(_COLUMNS))


@dataclass(frozen=True, eq=False)
class Absorption:
    """One letter's score, word by word.

    Attributes:
        x: Activations.
        features: Feature activations.
        cosines: Of each decoder row with the letter's probe.
        direction: The probe, of length one.
        split: The features that stand for the letter.
    """

    x: Float[Tensor, "word d"]
    features: Float[Tensor, "word feature"]
    cosines: Float[Tensor, " feature"]
    direction: Float[Tensor, " d"]
    split: Sequence[int]

    def of(self, word: int) -> tuple[float, bool]:
        """Absorption fraction, and whether it is full."""
        found = self.features[word]
        carried = found * self.cosines
        whole = float(self.x[word] @ self.direction)
        own = list(self.split)
        others = carried.clone()
        others[own] = -torch.inf
        top = int(others.argmax())
        full = (
            bool((found[own] < SILENT).all())
            and float(self.cosines[top]) >= FULL_COSINE
            and whole > 0
            and float(others[top]) >= FULL_SHARE * whole
        )
        mine = max(float(carried[own].sum()), 0.0)
        able = torch.where(self.cosines >= PART_COSINE, others, -torch.inf)
        best = able.topk(min(ABSORBERS, len(able))).values
        theirs = float(best[best > 0].sum())
        if whole <= 0 or theirs + mine <= 0 or theirs < PART_SHARE * (theirs + mine):
            return 0.0, full
        taken = min(theirs, max(whole - mine, 0.0))
        return (taken / (taken + mine) if taken + mine > 0 else 0.0), full


def _fit(
    x: NDArray[np.floating], y: NDArray[np.bool_], test: NDArray[np.bool_]
) -> tuple[NDArray[np.floating], float, NDArray[np.bool_]]:
    """A letter's probe as a direction, its F1 on words held out, and the words it tells right."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import f1_score

    size = float(np.sqrt((x[~test] ** 2).mean())) or 1.0
    probe = LogisticRegression(max_iter=1000, class_weight="balanced").fit(
        x[~test] / size, y[~test]
    )
    said = probe.predict(x / size)
    return probe.coef_[0], float(f1_score(y[test], said[test])), said == y


def _split_features(
    features: NDArray[np.floating], y: NDArray[np.bool_], test: NDArray[np.bool_], most: int
) -> list[int]:
    """Features that stand for the letter: one more as long as F1 gains."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import f1_score

    order = most_different(features[~test], y[~test].astype(int))
    kept, best = 1, -1.0
    for k in range(1, most + 1):
        seen = features[:, order[:k]]
        seen = seen / (seen[~test].std(0) + 1e-9)
        probe = LogisticRegression(max_iter=500, class_weight="balanced").fit(seen[~test], y[~test])
        f1 = float(f1_score(y[test], probe.predict(seen[test])))
        if k > 1 and f1 - best <= F1_GAIN:
            break
        kept, best = k, f1
    return [int(i) for i in order[:kept]]


def _words(model: Model, words: Sequence[str] | None, most: int, seed: int) -> list[str]:
    if words is None:
        every = [model.tokenizer.string(i) for i in range(model.tokenizer.n_vocab)]
        words = [w for w in every if _is_word(w)]
        rng = np.random.default_rng(seed)
        words = [words[i] for i in sorted(rng.permutation(len(words))[:most])]
    words = [w for w in words if w.strip()[:1].lower() in ascii_lowercase and w.strip()]
    if len(words) < 16:
        raise OptionError(
            f"{len(words)} words", expected="at least 16 that begin with a letter",
            remedy='words=[" apple", ...]',
        )  # fmt: skip
    for word in words:
        model.tokenizer.need_single(word)
    return list(words)


def _is_word(text: str) -> bool:
    return text[:1] == " " and len(text) > 3 and text[1:].isascii() and text[1:].isalpha()


def _at_last(sae: Dictionary, model: Model, prompts: list[str]) -> Float[Tensor, "word d"]:
    parts = []
    for start in range(0, len(prompts), 128):
        trace = model.trace(prompts[start : start + 128], list(sae.reads), positions=[-1])
        parts.append(stacked(sae, trace, sae.reads)[:, 0])
    return torch.cat(parts)


def _mean(values: NDArray[np.floating]) -> float:
    return float(values.mean()) if len(values) else 0.0
