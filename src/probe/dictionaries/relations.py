"""What a feature is near to: tokens it promotes, rows like its own, features it fires with."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors import safe_open
from torch import Tensor

from probe.core.dictionary import Dictionary
from probe.core.model import Model
from probe.dictionaries.firings import n_counted, read
from probe.dictionaries.moments import unit_rows
from probe.dictionaries.summaries import BINS, rounded

_IN_THE_STREAM = ("embed", "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
_BLOCK = 256
Pairs = list[tuple[int, float]]


def token_logits(sae: Dictionary, model: Model) -> Iterator[Float[Tensor, "feature d_vocab"]]:
    """Logits that a unit of each feature adds by the direct path, a block of features at a time.

    Decoder row through the final norm's gain (its denominator taken as 1, its bias left out) and
    the unembedding, less the mean over the vocabulary, which no probability depends on. Nothing is
    given for a dictionary whose rows are not in the residual stream. Of a crosscoder, the last
    layer's rows.
    """
    if sae.writes[-1].kind not in _IN_THE_STREAM or not model.health.get("reads_out"):
        return
    rows = sae.W_dec if sae.W_dec.ndim == 2 else sae.W_dec[-1]
    W_U = model.weights.W_U.float()
    for part in rows.detach().to(W_U).split(_BLOCK):
        one = torch.ones(len(part), 1, device=part.device)
        logits = model.read_out(part, one) @ W_U
        yield (logits - logits.mean(-1, keepdim=True)).cpu()


def token_lists(
    logits: Float[Tensor, "feature d_vocab"], most: int = 10
) -> list[tuple[Pairs, Pairs, list[int], list[float]]]:
    """Of each feature: tokens promoted, tokens suppressed, histogram of all, and its ends."""
    high, low = logits.topk(most), (-logits).topk(most)
    made = []
    for row in range(len(logits)):
        ends = [float(logits[row].min()), float(logits[row].max())]
        counts = torch.histc(logits[row], BINS, *ends).long().tolist()
        promoted = _pairs(high.indices[row], high.values[row])
        suppressed = _pairs(low.indices[row], -low.values[row])
        made.append((promoted, suppressed, counts, [rounded(end) for end in ends]))
    return made


def neighbours(sae: Dictionary, most: int = 10) -> Iterator[Pairs]:
    """Of each feature, the others by the cosine of their decoder rows."""
    unit = unit_rows(sae.W_dec)
    for start in range(0, len(unit), _BLOCK):
        cosines = unit[start : start + _BLOCK] @ unit.T
        here = torch.arange(len(cosines))
        cosines[here, here + start] = -2.0
        best = cosines.topk(min(most, len(unit) - 1))
        for row in range(len(cosines)):
            yield _pairs(best.indices[row], best.values[row])


def encoder_cosines(sae: Dictionary) -> Float[Tensor, " feature"] | None:
    """Of each feature, the cosine of what it reads with what it writes, if in one space."""
    if sae.reads != sae.writes:
        return None
    encoder = sae.W_enc.transpose(-1, -2)
    return (unit_rows(encoder) * unit_rows(sae.W_dec)).sum(1)


def correlated(
    files: Sequence[Path], d_sae: int, n_tokens: int, most: int = 5
) -> tuple[int, Iterator[Pairs]]:
    """Over how many tokens, and of each feature those it fires with most: Pearson's r, above 0."""
    chosen, n = [], 0
    for path in files:
        if n >= n_tokens:
            break
        chosen.append(path)
        n += n_counted(path)
    return n, _correlated(chosen, d_sae, n, most)


def _correlated(files: Sequence[Path], d_sae: int, n: int, most: int) -> Iterator[Pairs]:
    from scipy.sparse import csc_array

    firings = read(files, 0, d_sae)
    with safe_open(files[0], "pt") as file:
        width = file.get_slice("tokens").get_shape()[1]
    token = _numbered(firings.row.astype(np.int64) * width + firings.pos)
    shape = (int(token.max(initial=-1)) + 1, d_sae)
    x = csc_array((firings.value.astype(np.float64), token, firings.offsets), shape=shape)
    mean = x.sum(0) / n
    deviation = np.sqrt(np.maximum(x.power(2).sum(0) / n - mean**2, 0))
    for start in range(0, d_sae, _BLOCK):
        stop = min(start + _BLOCK, d_sae)
        together = (x[:, start:stop].T @ x).tocsr()
        for place, feature in enumerate(range(start, stop)):
            part = slice(together.indptr[place], together.indptr[place + 1])
            others, product = together.indices[part], together.data[part]
            keep = others != feature
            others, product = others[keep], product[keep]
            spread = deviation[feature] * deviation[others]
            r = (product / n - mean[feature] * mean[others]) / np.where(spread > 0, spread, np.inf)
            best = np.argsort(-r, kind="stable")[:most]
            yield [(int(others[i]), rounded(r[i])) for i in best if r[i] > 0]


def _numbered(place: Int[np.ndarray, " firing"]) -> Int[np.ndarray, " firing"]:
    """Places as numbers without gaps."""
    return np.unique(place, return_inverse=True)[1]


def _pairs(names: Tensor, numbers: Tensor) -> Pairs:
    return [(i, rounded(v)) for i, v in zip(names.tolist(), numbers.tolist(), strict=True)]
