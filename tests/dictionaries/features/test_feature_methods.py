"""Methods on features against splices, brute force, and models in which estimates are exact."""

from pathlib import Path

import numpy as np
import pytest
import torch
from random_dictionaries import dictionary

import probe
from probe.core.edit import Edit
from probe.core.errors import DictionaryError, OptionError, TaskError
from probe.core.model import Model
from probe.core.site import Site
from probe.core.splice import splice
from probe.core.task import Encoded, Task
from probe.dictionaries.dictionary import SparseDictionary
from probe.dictionaries.feature_edits import encode
from probe.dictionaries.features.feature_circuit import feature_circuit
from probe.dictionaries.named import named, toy_dictionary
from probe.tasks import load_task


@pytest.fixture(scope="module")
def ioi(toy: Model) -> Encoded:
    return load_task("ioi", n=3).encode(toy)


def test_changing_a_feature_is_a_splice_with_the_error_kept(toy: Model, ioi: Encoded) -> None:
    sae = toy_dictionary(toy)
    found = encode(toy, ioi, sae)
    for feature, to in ((4, 0.0), (9, 2.5)):
        ours = toy.forward(ioi.clean, [found.change(feature, to)], lengths=ioi.lengths)
        edit = splice(None, sae, features={feature: to})
        theirs = toy.forward(ioi.clean, [edit], lengths=ioi.lengths)
        for row, length in enumerate(ioi.lengths.tolist()):
            torch.testing.assert_close(
                ours[row, :length], theirs[row, :length], rtol=1e-3, atol=1e-4
            )


def test_activations_are_what_encode_gives(toy: Model, ioi: Encoded) -> None:
    sae = toy_dictionary(toy, 1)
    frame = probe.run("feature_activations", model=toy, task=ioi, dictionary="toy.1", top=7).frame
    x = toy.trace(ioi, "resid_post.1")["resid_post", 1]
    features = sae.encode(x)
    for row, part in frame.groupby("batch"):
        n = int(ioi.lengths[row])
        best = features[row, :n].max(0).values.topk(7).indices.tolist()
        assert part["feature"].unique().tolist() == best
        expected = features[row, part["pos"].to_numpy().copy(), part["feature"].to_numpy().copy()]
        np.testing.assert_allclose(part["value"], expected, rtol=1e-4, atol=1e-5)


def test_effects_are_differences_of_runs_made_by_hand(toy: Model, ioi: Encoded) -> None:
    sae = toy_dictionary(toy)
    frame = probe.run(
        "feature_effects", model=toy, task=ioi, dictionary="toy", features=[3, 8]
    ).frame.set_index(["batch", "feature", "measure"])
    rows = torch.arange(3)
    clean = toy.forward(ioi.clean, lengths=ioi.lengths, last_only=True)
    for feature in (3, 8):
        edit = splice(None, sae, features={feature: 0.0})
        logits = toy.forward(ioi.clean, [edit], lengths=ioi.lengths, last_only=True)
        p, q = clean.log_softmax(-1), logits.log_softmax(-1)
        loss = (p - q)[rows, ioi.need_answers()]
        kl = (p.exp() * (p - q)).sum(-1)
        for row in range(3):
            assert frame.loc[(row, feature, "loss"), "value"] == pytest.approx(
                float(loss[row]), abs=1e-4
            )
            assert frame.loc[(row, feature, "kl"), "raw"] == pytest.approx(float(kl[row]), abs=1e-4)
            assert frame.loc[(row, feature, "kl"), "unchanged"] == pytest.approx(0, abs=1e-6)


def test_steering_adds_the_decoder_row(toy: Model, ioi: Encoded) -> None:
    frame = probe.run(
        "feature_effects", model=toy, task=ioi, dictionary="toy", features=[2], how="steer",
        strength=3.0, measures=["logit_diff"],
    ).frame  # fmt: skip
    value = 3.0 * toy_dictionary(toy).W_dec[2]
    edit = probe.steer("resid_post.0", value)
    expected = toy.sweep(ioi, [[], [edit]], "logit_diff", base="clean")
    np.testing.assert_allclose(frame["value"], (expected[1] - expected[0]).cpu(), atol=1e-4)


def test_the_estimate_is_the_slope_of_a_small_change(toy: Model, ioi: Encoded) -> None:
    frame = probe.run(
        "feature_attribution", model=toy, task=ioi, dictionary="toy", top=3, random=1
    ).frame
    found = encode(toy, ioi, toy_dictionary(toy))
    step = 0.05
    for row in frame[frame["node"] == "feature"].itertuples():
        feature = int(row.feature)
        here = found.features[..., feature]
        sets = [[found.change(feature, here * (1 + s))] for s in (step, -step)]
        ahead, behind = toy.sweep(ioi, sets, "logit_diff", base="clean")[:, row.batch].tolist()
        slope = -(ahead - behind) / (2 * step)
        assert row.estimate == pytest.approx(slope, rel=0.05, abs=2e-3)


def test_the_exact_effect_is_that_of_a_splice_and_the_error_has_a_row(
    toy: Model, ioi: Encoded
) -> None:
    sae = toy_dictionary(toy)
    frame = probe.run(
        "feature_attribution", model=toy, task=ioi, dictionary="toy", top=2, random=2
    ).frame
    for row in frame[frame["node"] == "feature"].itertuples():
        edit = splice(None, sae, features={int(row.feature): 0.0})
        values = toy.sweep(ioi, [[], [edit]], "logit_diff", base="clean")[:, row.batch]
        assert row.value == pytest.approx(float(values[1] - values[0]), abs=1e-4)
    alone = toy.sweep(ioi, [[], [splice(None, sae, keep_error=False)]], "logit_diff", base="clean")
    errors = frame[frame["node"] == "error"]
    np.testing.assert_allclose(errors["value"], (alone[1] - alone[0]).cpu(), atol=1e-4)
    part = frame[(frame["batch"] == 0) & (frame["node"] == "feature")]
    r = np.corrcoef(part["estimate"], part["value"])[0, 1]
    assert part["correlation"].iloc[0] == pytest.approx(r)


def test_where_the_metric_is_linear_estimate_and_exact_are_one(toy: Model, ioi: Encoded) -> None:
    """After the last layer the logit difference is linear but for the norm: small changes agree."""
    frame = probe.run(
        "feature_attribution", model=toy, task=ioi, dictionary="toy.1", to="corrupted", top=6
    ).frame
    features = frame[frame["node"] == "feature"]
    assert np.corrcoef(features["estimate"], features["value"])[0, 1] > 0.95


def test_features_and_error_estimates_make_up_the_whole_patch(toy: Model, ioi: Encoded) -> None:
    """Σ over features and error of the estimate is the gradient's product with the difference."""
    frame = probe.run(
        "feature_attribution", model=toy, task=ioi, dictionary="toy", to="corrupted", top=48,
        random=0,
    ).frame  # fmt: skip
    site = Site("resid_post", 0)
    here, slope = (t[site] for t in toy.gradients(ioi, site, "logit_diff"))
    there = toy.trace(ioi, site, corrupted=True)[site]
    whole = ((there - here) * slope).sum((1, 2))
    np.testing.assert_allclose(
        frame.groupby("batch")["estimate"].sum(), whole.cpu(), rtol=1e-3, atol=1e-4
    )


def test_a_transcoder_is_attributed_through_what_it_writes(
    toy: Model, ioi: Encoded, tmp_path: Path
) -> None:
    sae = dictionary("transcoder", d_in=toy.dims.d_model, layer=0)
    sae = SparseDictionary(**{**sae.__dict__, "reads": (Site("resid_mid", 0),)})
    sae.save(tmp_path / "t")
    frame = probe.run(
        "feature_attribution", model=toy, task=ioi, dictionary=str(tmp_path / "t"), top=2, random=0
    ).frame
    row = frame[frame["node"] == "feature"].iloc[0]
    found = sae.encode(toy.trace(ioi, "resid_mid.0")["resid_mid", 0])[..., int(row["feature"])]
    edit = Edit(sae.writes[0], "add", -found[..., None] * sae.W_dec[int(row["feature"])])
    values = toy.sweep(ioi, [[], [edit]], "logit_diff", base="clean")[:, row["batch"]]
    assert row["value"] == pytest.approx(float(values[1] - values[0]), abs=1e-4)


def test_nodes_of_a_circuit_make_up_the_activation(toy: Model, ioi: Encoded) -> None:
    """All features and the error of a site set to 0, to first order: −activation · gradient."""
    frame = feature_circuit(toy, ioi, dictionaries=["toy.0"], top=48)
    site = Site("resid_post", 0)
    here, slope = (t[site] for t in toy.gradients(ioi, site, "logit_diff"))
    assert frame["value"].sum() == pytest.approx(
        -float((here * slope).sum((1, 2)).mean()), rel=1e-3
    )
    assert set(frame["kind"]) == {"node"}


def test_edges_out_of_a_node_make_up_what_the_next_site_loses(toy: Model, ioi: Encoded) -> None:
    """Summed over all nodes of the next site: the change of its activation times its gradient."""
    frame = feature_circuit(toy, ioi, dictionaries=["toy.1", "toy.0"], top=48)
    edges = frame[(frame["kind"] == "edge") & (frame["from_feature"] == 7)]
    assert len(edges) == 49
    found = encode(toy, ioi, toy_dictionary(toy))
    site = Site("resid_post", 1)
    here, slope = (t[site] for t in toy.gradients(ioi, site, "logit_diff"))
    there = toy.trace(ioi, site, edits=[found.change(7, 0.0)])[site]
    real = found.real[..., None]
    change = float(((there - here) * slope * real).sum((1, 2)).mean())
    assert edges["value"].sum() == pytest.approx(change, rel=1e-3, abs=1e-5)


def test_a_dictionary_is_found_by_folder(toy: Model, tmp_path: Path) -> None:
    sae = toy_dictionary(toy)
    sae.save(tmp_path / "mine")
    assert torch.equal(named(str(tmp_path / "mine"), toy).W_dec, sae.W_dec)
    result = probe.run(
        "feature_activations", model=toy, prompt="the store", dictionary=str(tmp_path / "mine")
    )
    assert result.provenance.passed["dictionary"] == str(tmp_path / "mine")


def test_mistakes_are_named(toy: Model, ioi: Encoded, tmp_path: Path) -> None:
    with pytest.raises(DictionaryError, match="there is no dictionary at 'nothing'"):
        probe.run("feature_activations", model=toy, task=ioi, dictionary="nothing")
    with pytest.raises(OptionError, match=r"features=\[48\] of toy.0\nExpected: at least one, fr"):
        probe.run("feature_effects", model=toy, task=ioi, dictionary="toy", features=[48])
    with pytest.raises(OptionError, match=r"measures=\[\]\nExpected: at least one of"):
        probe.run("feature_effects", model=toy, task=ioi, dictionary="toy", measures=[])
    with pytest.raises(OptionError, match=r"resid_post.0, resid_post.0\nExpected: one dictionary"):
        probe.run("feature_circuit", model=toy, task=ioi, dictionaries=["toy", "toy.0"])
    dictionary("crosscoder", d_in=toy.dims.d_model).save(tmp_path / "cross")
    with pytest.raises(DictionaryError, match="writes at 2 sites\nExpected: a sparse"):
        probe.run("feature_activations", model=toy, task=ioi, dictionary=str(tmp_path / "cross"))
    alone = Task.from_pairs([{"clean": "the store", "answer": " Mary"}])
    with pytest.raises(TaskError, match="has no corrupted prompts"):
        probe.run("feature_attribution", model=toy, task=alone, dictionary="toy", to="corrupted",
                  metric="log_prob")  # fmt: skip
