"""A vector as a thing: what it does to a run, saving, adding, and what it refuses."""

import math
from pathlib import Path

import pandas as pd
import pytest
import torch

import probe
from probe.core.provenance import Stopwatch, of_call
from probe.core.site import Site
from probe.core.vector import VectorResult

TOKENS = torch.tensor([[5, 6, 7, 8]])


def vector(toy: probe.Model, values: torch.Tensor | None = None, **how: object) -> VectorResult:
    given = torch.arange(32.0) - 15 if values is None else values
    fields: dict = {"site": Site("resid_post", 0), "rule": "add", "where": "all", **how}
    record = of_call(toy, "made", Stopwatch(), seed=3)
    return VectorResult("ramp", given, provenance=record, **fields)


def test_what_it_does_is_what_its_rule_says(toy: probe.Model) -> None:
    site = Site("resid_post", 0)
    before = toy.trace(TOKENS, [site])[site]
    ramp = torch.arange(32.0) - 15
    added = vector(toy, strength=2.0).apply(toy).trace(TOKENS, [site])[site]
    torch.testing.assert_close(added, before + 2 * ramp)
    last = vector(toy, rule="set", where="last").apply(toy).trace(TOKENS, [site])[site]
    torch.testing.assert_close(last[:, -1], ramp[None])
    torch.testing.assert_close(last[:, :-1], before[:, :-1])
    out = vector(toy, rule="project_out").apply(toy).trace(TOKENS, [site])[site]
    torch.testing.assert_close(out @ ramp, torch.zeros(1, 4), atol=1e-3, rtol=0)
    front = vector(toy, torch.stack([ramp * 0, ramp]), where="front")
    there = front.apply(toy).trace(TOKENS, [site])[site]
    torch.testing.assert_close(there[:, 1], before[:, 1] + ramp)
    torch.testing.assert_close(there[:, [0, 2, 3]], before[:, [0, 2, 3]])


@pytest.mark.filterwarnings("ignore:the edit of")
def test_strength_0_is_the_model_itself(toy: probe.Model) -> None:
    steered = vector(toy, strength=0.0).apply(toy)
    torch.testing.assert_close(steered.forward(TOKENS), toy.forward(TOKENS))
    assert (
        steered.generate("The cat", max_new_tokens=4).tokens
        == toy.generate("The cat", max_new_tokens=4).tokens
    )


def test_generation_keeps_steering_new_tokens(toy: probe.Model) -> None:
    strong = vector(toy, strength=5.0)
    made = strong.apply(toy).generate("The cat", max_new_tokens=6)
    by_hand = toy.generate("The cat", strong.edits(), max_new_tokens=6, at="both")
    assert made.tokens == by_hand.tokens
    at_last = strong.at(where="last").apply(toy).generate("The cat", max_new_tokens=6)
    assert at_last.tokens[0] != made.tokens[0] or at_last.tokens != made.tokens


def test_it_is_saved_and_comes_back(toy: probe.Model, tmp_path: Path) -> None:
    curve = pd.DataFrame({"layer": [0, 1], "accuracy": [0.5, 0.25]})
    made = vector(toy, strength=0.1).with_curve(curve)
    loaded = probe.load_vector(made.save(tmp_path / "there" / "ramp.safetensors"))
    torch.testing.assert_close(loaded.vector, made.vector, rtol=0, atol=0)
    assert loaded.provenance == made.provenance
    assert str(loaded) == str(made)
    assert loaded.strength == 0.1
    pd.testing.assert_frame_equal(loaded.curve, curve)
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["ramp.safetensors"]


def test_two_are_added_with_their_strengths(toy: probe.Model) -> None:
    both = vector(toy, strength=2.0) + vector(toy, strength=-0.5)
    torch.testing.assert_close(both.strength * both.vector, 1.5 * (torch.arange(32.0) - 15))
    with pytest.raises(probe.OptionError, match="two vectors that are added"):
        vector(toy, rule="set") + vector(toy)


@pytest.mark.parametrize("strength", [math.nan, math.inf])
def test_a_strength_that_is_no_number(toy: probe.Model, strength: float) -> None:
    with pytest.raises(probe.OptionError, match=f"strength {strength} of ramp"):
        vector(toy).at(strength=strength)


def test_a_strength_that_breaks_the_model(toy: probe.Model) -> None:
    strong = vector(toy).at(strength=1e38)
    with pytest.raises(probe.OptionError, match="no longer numbers under ramp at strength 1e"):
        strong.apply(toy).forward(TOKENS)
    with pytest.raises(probe.OptionError, match="a smaller strength"):
        strong.apply(toy).generate("The cat")


def test_places_that_are_not_there(toy: probe.Model) -> None:
    with pytest.raises(probe.SiteError, match="resid_post.9 asks for layer 9"):
        vector(toy).at(layer=9).apply(toy)
    with pytest.raises(probe.OptionError, match="is 8 wide, resid_post.0 of toy 32"):
        vector(toy, torch.ones(8)).apply(toy)
    with pytest.raises(probe.OptionError, match="one axis of finite numbers"):
        vector(toy, torch.full((32,), math.nan))
    with pytest.raises(probe.OptionError, match="one direction to project out"):
        vector(toy, torch.ones(2, 32), where="front", rule="project_out")
    with pytest.raises(probe.OptionError, match="vectors of one kind"):
        probe_both = vector(toy).apply(toy)
        type(probe_both)(toy, (vector(toy), vector(toy, where="last"))).generate("The cat")


def test_a_file_that_is_no_vector(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"not a tensor")
    for path in (tmp_path / "x.safetensors", tmp_path / "absent.safetensors"):
        with pytest.raises(probe.RunError, match="is no saved vector"):
            probe.load_vector(path)
