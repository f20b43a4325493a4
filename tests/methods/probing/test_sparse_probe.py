"""One planted unit is found among all, in the stream and in a dictionary."""

import importlib
from pathlib import Path

import numpy as np
import pytest
import torch
from planted import planted, twins

import probe
from probe.core.dictionary import Shelf
from probe.core.errors import DictionaryError, OptionError
from probe.core.site import Site
from probe.dictionaries.dictionary import SparseDictionary
from probe.methods.probing.sparse_probe import sparse_probe
from probe.models.bridge import BridgeModel

UNIT = 7
OPTIONS = {"label": "{says}", "groups": "{word}", "n_folds": 3}


@pytest.fixture(scope="module")
def model() -> BridgeModel:
    return planted(torch.eye(32)[UNIT])


@pytest.mark.parametrize("by", ["difference", "l1"])
def test_the_planted_unit_suffices(model: BridgeModel, by: str) -> None:
    options = OPTIONS | {"kind": "resid_post", "layers": [1], "by": by}
    frame = sparse_probe(model, twins(model), k=[1, 32], **options)
    one, every = (frame[frame["k"] == k] for k in (1, 32))
    assert one["value"].mean() == 1.0
    assert one["control"].mean() < 0.8
    assert set(one["units"]) == {str(UNIT)}
    np.testing.assert_array_equal(every["value"], every["control"])
    assert set(every["units"].str.split().map(len)) == {8}


def test_units_are_chosen_without_the_judged_examples(
    model: BridgeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module("probe.methods.probing.sparse_probe")
    sizes = []
    real = module._worth
    monkeypatch.setattr(
        module, "_worth", lambda x, labels, by: sizes.append(len(x)) or real(x, labels, by)
    )
    sparse_probe(model, twins(model), kind="resid_post", layers=[1], k=[1], **OPTIONS)
    assert sizes == [32, 32, 32]  # of 48 words


def test_features_of_a_dictionary_are_read_by_its_name(model: BridgeModel, tmp_path: Path) -> None:
    """Feature 2i is the positive part of unit i and 2i + 1 the negative."""
    W = torch.stack([torch.eye(32), -torch.eye(32)], dim=2).flatten(1)
    site = (Site("resid_post", 1),)
    weights = {"W_enc": W, "W_dec": W.T.clone(), "b_enc": torch.zeros(64), "b_dec": torch.zeros(32)}
    SparseDictionary("d", "standard", "relu", site, site, weights).save(tmp_path / "d")
    options = OPTIONS | {"dictionary": str(tmp_path / "d"), "k": [1]}
    frame = probe.run("sparse_probe", model=model, task=twins(model), **options).frame
    assert set(frame["units"]) <= {str(2 * UNIT), str(2 * UNIT + 1)}
    assert frame["value"].mean() == 1.0
    assert set(frame["layer"]) == {1}


def test_more_units_than_there_are_are_refused(model: BridgeModel) -> None:
    with pytest.raises(OptionError, match="k=33 of 32 units"):
        sparse_probe(model, twins(model), kind="resid_post", k=[33], **OPTIONS)


def test_without_the_api_there_is_nothing_to_open_dictionaries_with(
    model: BridgeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Shelf, "opener", None)
    with pytest.raises(DictionaryError, match="nothing to open dictionaries with"):
        sparse_probe(model, twins(model), dictionary="d", k=[1], **OPTIONS)
