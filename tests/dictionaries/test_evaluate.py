"""evaluate_sae against the same numbers made by hand on a toy model."""

import pytest
import torch
from random_dictionaries import dictionary
from torch import Tensor

import probe
from probe.core.edit import patch
from probe.core.errors import CorpusError, DictionaryError, OptionError, ProbeWarning
from probe.core.model import Model
from probe.core.result import Result
from probe.corpora import token_batches
from probe.dictionaries.dictionary import SparseDictionary
from probe.dictionaries.evaluate import METRICS, evaluate_sae
from probe.dictionaries.frontier import frontier

TEXTS = ["When Mary and John went to the store, John gave a drink to Mary. " * 4] * 2

pytestmark = pytest.mark.filterwarnings("ignore::probe.ProbeWarning")


def number(result: Result, metric: str, baseline: str | None = None) -> float:
    rows = result.frame[result.frame["metric"] == metric]
    if baseline:
        rows = rows[rows["baseline"] == baseline]
    assert len(rows) == 1
    return float(rows["value"].iloc[0])


def perfect(d: int, layer: int = 0) -> SparseDictionary:
    """2d features, x = relu(x) − relu(−x): reconstructs everything."""
    eye = torch.eye(d)
    tensors = {
        "W_enc": torch.cat([eye, -eye], 1), "W_dec": torch.cat([eye, -eye]),
        "b_enc": torch.zeros(2 * d), "b_dec": torch.zeros(d),
    }  # fmt: skip
    site = probe.Site("resid_post", layer)
    return SparseDictionary("perfect", "standard", "relu", (site,), (site,), tensors)


def constant(d: int, value: Tensor) -> SparseDictionary:
    """Reconstructs one vector, whatever it is given."""
    site = probe.Site("resid_post", 0)
    tensors = {
        "W_enc": torch.zeros(d, 4), "W_dec": torch.eye(4, d), "b_enc": -torch.ones(4),
        "b_dec": value,
    }  # fmt: skip
    return SparseDictionary("constant", "standard", "relu", (site,), (site,), tensors)


def test_a_perfect_dictionary_recovers_everything(toy: Model) -> None:
    result = evaluate_sae(perfect(toy.dims.d_model), toy, TEXTS, n_pos=16)
    assert number(result, "explained_variance") == pytest.approx(1)
    assert number(result, "l0") == pytest.approx(toy.dims.d_model)
    for baseline in ("zero", "mean"):
        assert number(result, "cross_entropy_recovered", baseline) == pytest.approx(1, abs=1e-4)
        assert number(result, "kl_recovered", baseline) == pytest.approx(1, abs=1e-4)
    assert number(result, "kl", "clean") == 0


def test_zero_and_the_mean_recover_nothing(toy: Model) -> None:
    d = toy.dims.d_model
    zero = evaluate_sae(constant(d, torch.zeros(d)), toy, TEXTS, n_pos=16)
    assert number(zero, "cross_entropy_recovered", "zero") == pytest.approx(0, abs=1e-5)
    assert number(zero, "kl_recovered", "zero") == pytest.approx(0, abs=1e-5)
    assert number(zero, "dead_share") == 1
    rows = []
    for batch in token_batches(probe.load_corpus(TEXTS), toy.tokenizer, n_pos=16):
        x = toy.trace(batch.tokens, "resid_post.0")["resid_post", 0]
        rows += x[~batch.special]
    mean = torch.stack(rows).double().mean(0).float()
    result = evaluate_sae(constant(d, mean), toy, TEXTS, n_pos=16)
    assert number(result, "explained_variance") == pytest.approx(0, abs=1e-4)
    assert number(result, "cross_entropy_recovered", "mean") == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("form", ["standard", "skip_transcoder", "crosscoder"])
def test_losses_are_those_of_runs_made_by_hand(toy: Model, form: str) -> None:
    sae = dictionary(form, d_in=toy.dims.d_model)
    result = evaluate_sae(sae, toy, TEXTS, n_pos=16, batch_size=64, skip_first=1)
    (batch,) = token_batches(probe.load_corpus(TEXTS), toy.tokenizer, n_pos=16, batch_size=64)
    counted = ~batch.special
    counted[:, 0] = False
    trace = toy.trace(batch.tokens, [*sae.reads, *sae.writes])
    x = torch.stack([trace[s] for s in sae.reads], 2) if sae.layered else trace[sae.reads[0]]
    made = sae.decode(sae.encode(x), x)
    edits = []
    for i, site in enumerate(sae.writes):
        new = made[:, :, i] if sae.layered else made
        edits.append(patch(site, torch.where(counted[..., None], new, trace[site])))
    runs = [toy.forward(batch.tokens, e, lengths=batch.lengths) for e in ([], edits)]
    clean, spliced = (logits[:, :-1].log_softmax(-1) for logits in runs)
    predicts = counted[:, :-1] & ~batch.special[:, 1:]
    target = batch.tokens[:, 1:, None]
    loss = -spliced.gather(-1, target)[..., 0][predicts].mean()
    kl = (clean.exp() * (clean - spliced)).sum(-1)[predicts].mean()
    assert number(result, "cross_entropy", "spliced") == pytest.approx(float(loss), rel=1e-4)
    assert number(result, "kl", "spliced") == pytest.approx(float(kl), rel=1e-3)
    assert number(result, "predictions") == int(predicts.sum())
    assert number(result, "tokens") == int(counted.sum())
    assert number(result, "skipped_tokens") == int((~batch.special[:, 0]).sum())


def test_special_tokens_count_for_nothing_and_are_reported(toy: Model) -> None:
    result = evaluate_sae(perfect(toy.dims.d_model), toy, ["a b c d"] * 3, n_pos=8, ce_tokens=0)
    batches = list(token_batches(probe.load_corpus(["a b c d"] * 3), toy.tokenizer, n_pos=8))
    text = sum(int((~b.special).sum()) for b in batches)
    assert number(result, "tokens") == text
    assert number(result, "special_tokens") == sum(int(b.lengths.sum()) for b in batches) - text
    assert number(result, "special_tokens") > 0
    assert "cross_entropy" not in set(result.frame["metric"])


def test_outliers_do_not_count_and_stay_as_they_were(toy: Model) -> None:
    """A dictionary that is wrong about them alone: their norms are above the limit."""
    sae = constant(toy.dims.d_model, torch.zeros(toy.dims.d_model))
    (batch,) = token_batches(probe.load_corpus(TEXTS), toy.tokenizer, n_pos=16, batch_size=64)
    x = toy.trace(batch.tokens, "resid_post.0")["resid_post", 0]
    norms = x.norm(dim=-1)[~batch.special]
    times = 1.02
    unusual = int((norms > times * float(norms.median())).sum())
    assert unusual > 0
    result = evaluate_sae(sae, toy, TEXTS, n_pos=16, batch_size=64, outliers=times)
    assert number(result, "outlier_tokens") == unusual
    assert number(result, "tokens") == len(norms) - unusual
    trained = type(sae)(**{**sae.__dict__, "metadata": {"options": {"outliers": times}}})
    again = evaluate_sae(trained, toy, TEXTS, n_pos=16, batch_size=64)
    assert number(again, "kl", "spliced") == number(result, "kl", "spliced")
    whole = evaluate_sae(trained, toy, TEXTS, n_pos=16, batch_size=64, outliers=0.0)
    assert number(whole, "outlier_tokens") == 0
    assert number(whole, "kl", "spliced") != number(result, "kl", "spliced")


def test_what_was_skipped_in_training_is_skipped_here(toy: Model) -> None:
    sae = dictionary("standard", d_in=toy.dims.d_model)
    sae = type(sae)(**{**sae.__dict__, "metadata": {"made": {"skip_first": 2}}})
    result = evaluate_sae(sae, toy, TEXTS, n_pos=16, ce_tokens=0)
    assert result.provenance.passed["skip_first"] == 2
    assert number(result, "skipped_tokens") > 2
    whole = evaluate_sae(sae, toy, TEXTS, n_pos=16, ce_tokens=0, skip_first=0)
    left = number(whole, "tokens") - number(result, "tokens")
    assert left == number(result, "skipped_tokens")


def test_a_result_says_what_it_measured_is_saved_and_comes_back(toy: Model) -> None:
    sae = dictionary("jumprelu", d_in=toy.dims.d_model)
    result = evaluate_sae(sae, toy, TEXTS, n_pos=16)
    assert set(result.frame["metric"]) == set(METRICS)
    assert (result.frame["metric"] == "density").sum() == sae.d_sae
    assert len(result.plot().data) > 0
    result.save()
    assert probe.load_result(result.id).frame["value"].equals(result.frame["value"])


def test_a_frontier_has_a_point_a_dictionary(toy: Model) -> None:
    evaluations = [
        evaluate_sae(dictionary(form, d_in=toy.dims.d_model), toy, TEXTS, n_pos=16)
        for form in ("standard", "topk")
    ]
    found = frontier(evaluations, metric="explained_variance")
    assert found.frame["l0"].tolist() == [number(r, "l0") for r in evaluations]
    assert found.frame["value"].tolist() == [number(r, "explained_variance") for r in evaluations]
    assert len(found.plot().data) > 0
    recovered = frontier(evaluations, baseline="mean").frame["value"].tolist()
    assert recovered == [number(r, "cross_entropy_recovered", "mean") for r in evaluations]


def test_mistakes_are_named(toy: Model) -> None:
    sae = dictionary("standard", d_in=toy.dims.d_model)
    with pytest.raises(DictionaryError, match=r"encodes 5 dimensions, and resid_post.1 of toy has"):
        evaluate_sae(dictionary("standard", d_in=5), toy, TEXTS)
    with pytest.raises(CorpusError, match=r"no token of list counts"):
        evaluate_sae(sae, toy, [""], n_pos=16)
    with pytest.raises(OptionError, match=r"n_pos=0.*\nExpected: at least 1 of each"):
        evaluate_sae(sae, toy, TEXTS, n_pos=0)
    with pytest.raises(OptionError, match=r"skip_first=16\nExpected: 0 to 15"):
        evaluate_sae(sae, toy, TEXTS, n_pos=16, skip_first=16)
    with pytest.raises(OptionError, match=r"a frontier of nothing"):
        frontier([])
    with pytest.raises(OptionError, match=r"metric='l1'(.|\n)*explained_variance"):
        frontier([], metric="l1")
    one, other = (evaluate_sae(sae, toy, t, n_pos=16, ce_tokens=0) for t in (TEXTS, tuple(TEXTS)))
    with pytest.raises(OptionError, match=r"evaluated on 2 texts: list, tuple"):
        frontier([one, other])
    with pytest.raises(OptionError, match=r"holds no kl_recovered against 'zero'"):
        frontier([one], metric="kl_recovered")
    lost = type(sae)(**{**sae.__dict__, "reads": (), "writes": ()})
    with pytest.raises(DictionaryError, match=r"does not say which activations it encodes"):
        evaluate_sae(lost, toy, TEXTS)


def test_what_cannot_be_measured_is_said(toy: Model) -> None:
    d = toy.dims.d_model
    with pytest.warns(ProbeWarning, match=r"relative_bias cannot be measured here"):
        evaluate_sae(constant(d, torch.zeros(d)), toy, TEXTS, n_pos=16, ce_tokens=0)
