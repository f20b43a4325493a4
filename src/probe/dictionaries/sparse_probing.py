"""How much of a concept a handful of features holds: probes that see k features."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray

from probe.core import provenance
from probe.core.dictionary import Dictionary
from probe.core.errors import OptionError
from probe.core.model import Model
from probe.core.progress import progress_bar
from probe.core.result import Result, View
from probe.corpora import load_corpus
from probe.dictionaries.evaluate import record
from probe.dictionaries.passes import Text, activations, check_fits

_COLUMNS = {
    "inputs": "what the probe sees: k features, k dimensions of the activation, or all of it",
    "k": "how many; missing where it sees everything",
    "value": "accuracy on texts the probe was not fitted to; the larger class alone is `majority`",
    "majority": "accuracy of always naming the larger class",
    "n_test": "texts tested",
    "chosen": "the features or dimensions chosen, best first",
}


def sparse_probing(
    sae: Dictionary,
    model: Model,
    texts: Sequence[str],
    labels: Sequence[int],
    *,
    ks: Sequence[int] = (1, 2, 5, 16),
    test_share: float = 0.3,
    n_pos: int = 128,
    seed: int = 0,
) -> Result:
    """Tell two classes of text apart by k features, by k dimensions, by the whole activation.

    A text is the mean of its tokens' activations. The k are those whose means differ most between
    the classes on the texts the probe is fitted to (Gurnee et al. 2023); the probe is a logistic
    regression on standardised inputs.

    Args:
        sae: The dictionary.
        model: The model it was made for.
        texts: The texts; of each the first ``n_pos`` tokens are read.
        labels: 0 or 1 for each.
        ks: Numbers of features.
        test_share: Share of texts kept for testing.
        n_pos: Tokens of a text.
        seed: Of the split.

    Raises:
        OptionError: Labels that are not one 0 or 1 a text, or a class with fewer than four texts.

    Cost: one forward pass up to the dictionary's site over the texts.
    """
    _check(texts, labels, ks, sae)
    watch, started = provenance.Stopwatch(), provenance.now()
    x, features = _means(sae, model, texts, n_pos)
    rows = k_sparse(x, features, np.asarray(labels), ks, test_share=test_share, seed=seed)
    options = {"dictionary": sae.name, "n_texts": len(texts), "ks": list(ks), "n_pos": n_pos,
               "test_share": test_share, "seed": seed}  # fmt: skip
    view = View(kind="line", x="k", color="inputs")
    return Result(rows, _COLUMNS, view, record("sparse_probing", model, options, watch, started))


def k_sparse(
    x: Float[np.ndarray, "text d"],
    features: Float[np.ndarray, "text feature"],
    y: Int[np.ndarray, " text"],
    ks: Sequence[int],
    *,
    test_share: float,
    seed: int,
) -> pd.DataFrame:
    """The probes' accuracies, one row each."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import train_test_split
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    train, test = train_test_split(
        np.arange(len(y)), test_size=test_share, random_state=seed, stratify=y
    )
    rows = []
    for name, values in (("features", features), ("dimensions", x)):
        best = most_different(values[train], y[train])
        for k in ks:
            rows.append((name, min(k, len(best)), values[:, best[:k]], best[:k]))
    rows.append(("activation", None, x, np.arange(0)))
    found = []
    for name, k, values, chosen in rows:
        probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        probe.fit(values[train], y[train])
        accuracy = float(probe.score(values[test], y[test]))
        found.append((name, k, accuracy, " ".join(map(str, chosen[:10]))))
    frame = pd.DataFrame(found, columns=["inputs", "k", "value", "chosen"])
    frame["k"] = frame["k"].astype("Int64")
    share = float(y[test].mean())
    frame.insert(3, "majority", max(share, 1 - share))
    frame.insert(4, "n_test", len(test))
    return frame


def most_different(
    values: Float[np.ndarray, "text feature"], y: Int[np.ndarray, " text"]
) -> NDArray[np.intp]:
    """Columns by how far apart the two classes' means are, in units of the column's deviation."""
    apart = np.abs(values[y == 1].mean(0) - values[y == 0].mean(0))
    return np.argsort(-apart / (values.std(0) + 1e-12), kind="stable")


def _means(
    sae: Dictionary, model: Model, texts: Sequence[str], n_pos: int
) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """Mean activation and mean feature activations of each text's first tokens."""
    d = sae.W_enc.shape[:-1].numel()
    x, features = torch.zeros(len(texts), d), torch.zeros(len(texts), sae.d_sae)
    check_fits(sae, model)
    with progress_bar("reading texts") as report:
        for number, text in enumerate(texts):
            one = Text(load_corpus([text]), 1, n_pos, 1, 0)
            for seen in activations(sae, model, one):
                x[number] = seen.reads.flatten(1).float().mean(0).cpu()
                features[number] = sae.encode(seen.reads.to(sae.device)).float().mean(0).cpu()
            report(number + 1, len(texts), "texts")
    return x.numpy(), features.numpy()


def _check(texts: Sequence[str], labels: Sequence[int], ks: Sequence[int], sae: Dictionary) -> None:
    counts = [sum(label == wanted for label in labels) for wanted in (0, 1)]
    if len(labels) != len(texts) or sum(counts) != len(texts) or min(counts) < 4:
        raise OptionError(
            f"{len(texts)} texts with {len(labels)} labels, {counts[0]} of them 0 and {counts[1]} "
            "of them 1",
            expected="one label a text, 0 or 1, and at least four of each",
        )
    if not ks or min(ks) < 1 or max(ks) > sae.d_sae:
        raise OptionError(f"ks={list(ks)}", expected=f"numbers from 1 to {sae.d_sae}")
