"""Many texts drawn at once are what drawing one at a time from full forward passes would give."""

import pytest
import torch

from probe.core.errors import OptionError

PROMPTS = ["When Mary", "When Mary and John went to the store", "The", "When Mary"]


def test_the_log_probabilities_are_the_models_own(toy):
    for made in toy.sample(PROMPTS, max_new_tokens=12, seed=3):
        ids = toy.tokenizer.encode(made.prompt)
        full = toy.forward(torch.tensor([ids + list(made.tokens)]))[0].log_softmax(-1)
        for i, (token, log_prob) in enumerate(zip(made.tokens, made.log_probs, strict=True)):
            assert log_prob == pytest.approx(float(full[len(ids) - 1 + i, token]), abs=1e-4)


def test_tokens_are_drawn_as_often_as_the_model_gives_them(toy):
    n = 4000
    drawn = [g.tokens[0] for g in toy.sample(["The"] * n, max_new_tokens=1, seed=1)]
    expected = toy.forward(torch.tensor([toy.tokenizer.encode("The")]))[0, -1].softmax(-1)
    share = torch.bincount(torch.tensor(drawn), minlength=len(expected)) / n
    spread = (expected * (1 - expected) / n).sqrt()
    assert ((share - expected).abs() < 5 * spread + 1 / n).all()


def test_seeds_decide_and_rows_stop_at_the_end_of_a_text(toy):
    first = toy.sample(PROMPTS * 8, max_new_tokens=40, seed=0)
    assert first == toy.sample(PROMPTS * 8, max_new_tokens=40, seed=0)
    assert first != toy.sample(PROMPTS * 8, max_new_tokens=40, seed=1)
    for text in first:
        ended = text.tokens[-1] == toy.tokenizer.eos_id
        assert ended or len(text.tokens) == 40
        assert toy.tokenizer.eos_id not in text.tokens[:-1]


def test_refusals(toy):
    with pytest.raises(OptionError, match="temperature above 0"):
        toy.sample(PROMPTS, temperature=0.0)
    with pytest.raises(OptionError, match="the model's context length"):
        toy.sample(PROMPTS, max_new_tokens=10_000)
