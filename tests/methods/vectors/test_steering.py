"""Directions between two sets of texts, against their formulas; features; what is refused."""

import dataclasses

import pytest
import torch
from random_dictionaries import dictionary

import probe

GOOD = ["what a lovely day", "so happy and glad", "the best of all"]
BAD = ["what an awful day", "so sad and sorry", "the worst of all of them"]


def states(toy: probe.Model, texts: list[str]) -> torch.Tensor:
    return torch.stack([toy.trace(t, ["resid_post.1"])["resid_post.1"][0, -1] for t in texts])


def test_mean_difference(toy: probe.Model) -> None:
    made = probe.steering_vector(toy, GOOD, BAD, layer=1)
    gap = states(toy, GOOD).mean(0) - states(toy, BAD).mean(0)
    torch.testing.assert_close(made.vector, gap)
    back = probe.steering_vector(toy, BAD, GOOD, layer=1)
    torch.testing.assert_close(back.vector, -gap)


def test_the_mean_over_tokens_leaves_special_ones_out(toy: probe.Model) -> None:
    made = probe.steering_vector(toy, GOOD[:1], BAD[:1], layer=1, read="mean")
    skip = len(toy.tokenizer.prefix)
    sides = [toy.trace(t, ["resid_post.1"])["resid_post.1"][0, skip:].mean(0)
             for t in (GOOD[0], BAD[0])]  # fmt: skip
    torch.testing.assert_close(made.vector, sides[0] - sides[1])


@pytest.mark.parametrize("how", ["principal_component", "probe"])
def test_other_directions_step_from_one_mean_to_the_other(toy: probe.Model, how: str) -> None:
    made = probe.steering_vector(toy, GOOD, BAD, layer=1, how=how)
    gap = states(toy, GOOD).mean(0) - states(toy, BAD).mean(0)
    unit = made.vector / made.vector.norm()
    assert made.norm == pytest.approx(float(gap @ unit), rel=1e-4)
    if how == "principal_component":
        differences = states(toy, GOOD) - states(toy, BAD)
        eigenvectors = torch.linalg.eigh(differences.T @ differences).eigenvectors
        assert abs(float(eigenvectors[:, -1] @ unit)) == pytest.approx(1, abs=1e-3)


def test_a_probe_parts_what_it_was_fitted_to(toy: probe.Model) -> None:
    made = probe.steering_vector(toy, GOOD, BAD, layer=1, how="probe")
    assert (states(toy, GOOD) @ made.vector).min() > (states(toy, BAD) @ made.vector).max()


def test_activation_addition_acts_at_the_front(toy: probe.Model) -> None:
    made = probe.steering_vector(toy, ["aa"], ["bb"], layer=0, how="activation_addition")
    good, bad = (toy.trace(text, ["resid_post.0"])["resid_post.0"][0] for text in ("aa", "bb"))
    torch.testing.assert_close(made.vector, good - bad)
    assert made.where == "front"


def test_a_feature_is_its_decoder_row(toy: probe.Model) -> None:
    sae = dictionary("standard", d_in=32)
    made = probe.feature_vector(toy, sae, 3, strength=2.0)
    torch.testing.assert_close(made.vector, sae.W_dec[3])
    assert made.site == sae.writes[0]
    with pytest.raises(probe.OptionError, match="feature 10000"):
        probe.feature_vector(toy, sae, 10000)
    with pytest.raises(probe.SiteError, match="writes at 2 sites"):
        probe.feature_vector(toy, dictionary("crosscoder", d_in=32), 0)


@pytest.mark.parametrize(
    ("positive", "negative", "how", "message"),
    [
        ([], BAD, "mean_difference", "the positive texts are"),
        (GOOD, BAD, "activation_addition", "one of each"),
        (GOOD, BAD[:2], "principal_component", "at least 2 pairs"),
        (GOOD, BAD[:1], "probe", "at least 2 of each"),
    ],
)
def test_texts_that_make_no_direction(
    toy: probe.Model, positive: list[str], negative: list[str], how: str, message: str
) -> None:
    with pytest.raises(probe.TaskError, match=message):
        probe.steering_vector(toy, positive, negative, layer=0, how=how)


def test_nothing_differs(toy: probe.Model) -> None:
    with pytest.raises(probe.OptionError, match="nothing differs"):
        probe.steering_vector(toy, GOOD, GOOD, layer=0)
    with pytest.raises(probe.SiteError, match="layer 5"):
        probe.steering_vector(toy, GOOD, BAD, layer=5)


def test_cost_is_the_divergence_from_the_bare_model(toy: probe.Model) -> None:
    vector = probe.steering_vector(toy, GOOD, BAD, layer=1)
    text = "The sun rose over the hill."
    frame = probe.vector_cost(toy, vector, [text], strengths=[0.0, 1.0, 4.0]).frame
    idle, strong = (frame[frame.strength == s] for s in (0.0, 4.0))
    assert (idle.value == 0).all()
    assert idle.loss.equals(idle.base_loss)
    ids = torch.tensor([toy.tokenizer.encode(text)])
    assert strong.token.tolist() == toy.tokenizer.strings(ids[0].tolist())
    base = toy.forward(ids)[0].double().log_softmax(-1)
    changed = toy.forward(ids, vector.at(strength=4.0).edits())[0].double().log_softmax(-1)
    kl = torch.nn.functional.kl_div(changed, base, log_target=True, reduction="none").sum(-1)
    assert strong.value.tolist() == pytest.approx(kl.tolist(), rel=1e-3, abs=1e-6)
    loss = torch.nn.functional.cross_entropy(changed[:-1], ids[0, 1:], reduction="none")
    assert strong.loss.tolist()[:-1] == pytest.approx(loss.tolist(), rel=1e-4)


def test_costs_and_controls_that_cannot_be(toy: probe.Model) -> None:
    vector = probe.steering_vector(toy, GOOD, BAD, layer=1)
    task = probe.icl_task("plural")
    with pytest.raises(probe.TaskError, match="the texts are"):
        probe.vector_cost(toy, vector, [])
    with pytest.raises(probe.OptionError, match="no longer numbers"):
        probe.vector_cost(toy, vector, ["The sun rose."], strengths=[1e38])
    with pytest.raises(probe.OptionError, match="no longer numbers"):
        probe.evaluate_vector(toy, vector, task, n=2, strengths=[1e38])
    with pytest.raises(probe.SiteError, match="layer 7"):
        probe.evaluate_vector(toy, vector, task, n=2, layers=[7])
    with pytest.raises(probe.OptionError, match='a control is called "none"'):
        probe.evaluate_vector(toy, vector, task, n=2, others={"none": vector})
    with pytest.raises(probe.OptionError, match="at least two, of different names"):
        probe.vector_cosines(toy, [vector, vector])


def test_controls_stand_where_the_vector_stands(toy: probe.Model) -> None:
    vector = probe.steering_vector(toy, GOOD, BAD, layer=1).at(where="last")
    other = dataclasses.replace(vector.at(layer=0, rule="set"), name="other")
    task = probe.icl_task("plural")
    result = probe.evaluate_vector(
        toy, vector, task, n=3, layers=[0, 1], strengths=[1.0, 2.0], others={"same": other}
    )
    wide = result.frame.pivot_table(
        index=["batch", "layer", "strength"], columns="condition", values="value"
    )
    assert wide["same"].equals(wide["vector"].rename("same"))
    assert len(wide) == 3 * 2 * 2
    assert len(result.plot().data) > 0
