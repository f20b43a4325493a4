"""Sparse probing, absorption and recovery on data whose answer is known."""

import numpy as np
import pytest
import torch
from random_dictionaries import dictionary

from probe.core.errors import DictionaryError, OptionError
from probe.core.model import Model
from probe.dictionaries.absorption import absorbed, absorption
from probe.dictionaries.moments import unit_rows
from probe.dictionaries.recovery import recovery
from probe.dictionaries.sparse_probing import k_sparse, sparse_probing


def test_recovery_finds_each_true_feature_in_any_order_and_no_other() -> None:
    true = torch.nn.functional.normalize(torch.randn(12, 8), dim=1)
    order = torch.randperm(12)
    found = recovery(3.0 * true[order], true)
    assert found["value"].tolist() == pytest.approx([1.0] * 12, abs=1e-5)
    assert order[found["feature"].tolist()].tolist() == list(range(12))
    eye = torch.eye(4)
    assert recovery(-eye, eye)["value"].tolist() == [0.0] * 4, "the other way is no recovery"
    assert recovery(dictionary("standard"), torch.randn(3, 8)).shape == (3, 3)
    with pytest.raises(DictionaryError, match="writes 8 dimensions, the true features have 5"):
        recovery(dictionary("standard"), torch.randn(3, 5))


def test_one_feature_that_holds_the_concept_is_enough_and_noise_is_not() -> None:
    rng = np.random.default_rng(0)
    y = np.arange(200) % 2
    features = np.abs(rng.normal(size=(200, 30)))
    features[:, 7] = y * 2 + 0.1 * rng.normal(size=200)
    x = rng.normal(size=(200, 10))
    frame = k_sparse(x, features, y, [1, 3], test_share=0.3, seed=0).set_index(["inputs", "k"])
    assert frame.loc[("features", 1), "value"] == 1.0
    assert frame.loc[("features", 1), "chosen"] == "7"
    assert frame.loc[("dimensions", 1), "value"] < 0.75
    assert frame["majority"].unique().tolist() == [0.5]


def test_texts_of_two_kinds_are_told_apart(toy: Model) -> None:
    texts = ["Mary gave a drink to John"] * 10 + ["the store was in the park"] * 10
    labels = [0] * 10 + [1] * 10
    sae = dictionary("standard", d_in=toy.dims.d_model)
    result = sparse_probing(sae, toy, texts, labels, ks=[1, 4])
    assert (result.frame["value"] == 1.0).all()
    assert len(result.plot().data) > 0
    with pytest.raises(OptionError, match=r"20 texts with 20 labels, 20 of them 0 and 0"):
        sparse_probing(sae, toy, texts, [0] * 20)
    with pytest.raises(OptionError, match=r"ks=\[0\]"):
        sparse_probing(sae, toy, texts, labels, ks=[0])


def letters_and_words(absorbing: bool) -> tuple:
    """Three letters on axes of their own; some words of letter 0 have a feature of their own.

    Where that feature absorbs, it writes the letter too, and the letter's feature is silent.
    """
    letters = np.repeat(np.arange(3), 60)
    x = 4 * torch.eye(3, 8)[letters] + 0.05 * torch.randn(180, 8)
    special = np.zeros(180, bool)
    special[:15] = True
    rows = torch.zeros(4, 8)
    rows[:3] = torch.eye(3, 8)
    rows[3, 5] = 1.0
    features = 4 * torch.eye(3, 4)[letters]
    x[special, 5] += 4
    features[special, 3] = 4.0
    if absorbing:
        rows[3, 0] = 1.0
        features[special, 0] = 0.0
    return x, features, unit_rows(rows), letters


def test_absorption_is_found_where_it_is_and_nowhere_else() -> None:
    torch.manual_seed(0)
    clean = absorbed(*letters_and_words(absorbing=False)).set_index("letter")
    assert clean["value"].max() == 0
    assert clean["full"].max() == 0
    found = absorbed(*letters_and_words(absorbing=True), max_split=1).set_index("letter")
    assert found.loc["a", "full"] == pytest.approx(15 / 60, abs=0.03)
    assert found.loc["a", "value"] == pytest.approx(15 / 60, abs=0.03)
    assert found.loc[["b", "c"], ["value", "full"]].to_numpy().max() == 0
    assert found["probe_f1"].min() > 0.99


def test_absorption_of_a_dictionary_of_a_model(toy: Model) -> None:
    words = [w for w in map(toy.tokenizer.string, range(toy.tokenizer.n_vocab)) if w[:1] == " "]
    words = [w for w in words if w[1:].isalpha()]
    sae = dictionary("standard", d_in=toy.dims.d_model)
    frame = absorption(sae, toy, words=words).frame
    assert frame["value"].between(0, 1).all()
    with pytest.raises(OptionError, match=r"1 words\nExpected: at least 16"):
        absorption(sae, toy, words=words[:1])
    with pytest.raises(OptionError, match=r"template='\{word\} is"):
        absorption(sae, toy, words=words, template="{word} is")
