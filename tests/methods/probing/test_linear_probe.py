"""A planted property is read, a coin's fall is not, and a leaking split is caught."""

import numpy as np
import pytest
from planted import planted, repeated, twins

import probe
from probe.core.errors import SiteError, TaskError
from probe.methods.probing.linear_probe import linear_probe
from probe.models.bridge import BridgeModel


@pytest.fixture(scope="module")
def model() -> BridgeModel:
    return planted()


def test_a_planted_property_is_read_where_it_is(model: BridgeModel) -> None:
    options = {"label": "{says}", "groups": "{word}", "layers": [1], "n_folds": 3}
    frame = linear_probe(model, twins(model), at=[0, -1], **options)
    mean = frame.groupby("at")[["value", "control", "chance"]].mean()
    assert mean["value"]["-1"] > 0.95
    assert mean["value"]["0"] < 0.75  # the first token is the same in every prompt
    assert abs(mean["control"]["-1"] - 0.5) < 0.25
    assert mean["chance"].max() < 0.6
    assert (frame["selectivity"] == frame["value"] - frame["control"]).all()


def test_coins_are_not_read_through_splits_by_group_and_are_through_a_leaking_one(
    model: BridgeModel,
) -> None:
    safe, leaking = [], []
    for seed in range(4):
        task = repeated(model, times=2, seed=seed)
        options = {"label": "{coin}", "groups": "{word}", "layers": [1], "n_folds": 3, "seed": seed}
        safe.append(linear_probe(model, task, **options)["value"].mean())
        if seed < 1:
            leaking.append(linear_probe(model, task, split="prompts", **options))
    # 4 × 48 words: two standard deviations of a fair coin are 0.07
    assert abs(np.mean(safe) - 0.5) < 0.1
    for frame in leaking:
        assert frame["value"].mean() > 0.8
        assert frame["control"].mean() > 0.8  # and so it is caught: nothing is selective
        assert abs(frame["selectivity"].mean()) < 0.15


def test_both_sides_of_a_pair_are_judged_together(model: BridgeModel) -> None:
    frame = linear_probe(model, twins(model, seed=1), layers=[0], n_folds=2)
    assert sorted(frame["side"].unique()) == ["clean", "corrupted"]
    assert (frame.groupby("batch")["fold"].nunique() == 1).all()


def test_labels_and_groups_come_back_in_a_rerun() -> None:
    names = {"France": "Paris", "Italy": "Rome", "Spain": "Madrid"}
    pairs = [
        {"clean": f"The {place} of {x}", "tags": {"country": x, "sort": sort}}
        for country, capital in names.items()
        for x, sort in ((country, "country"), (capital, "city"))
        for place in ("store", "capital")
    ]
    result = probe.run(
        "linear_probe", model="toy", task=probe.Task.from_pairs(pairs), label="{sort}",
        groups="{country}", layers=[0], n_folds=2,
    )  # fmt: skip
    assert set(result.frame["label"]) == {"city", "country"}
    result.save()
    again = probe.rerun(result.id)
    assert again.same, again.about


def test_what_is_not_there_is_refused(model: BridgeModel) -> None:
    with pytest.raises(SiteError, match="asks for layer 7"):
        linear_probe(model, twins(model), label="{says}", layers=[7])
    with pytest.raises(TaskError, match="is within one group"):
        linear_probe(model, twins(model), label="{says}", groups="{says}")
