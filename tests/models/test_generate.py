"""Text continued with edits is what recomputing everything at each step would give."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import families
import pytest
import torch
from torch import Tensor

from probe.core.edit import Edit, ablate, patch, project_out, scale, steer
from probe.core.errors import EditError, ModelError, OptionError, ProbeWarning
from probe.core.model import Generation
from probe.models.bridge import BridgeModel
from probe.models.load import load_model

pytestmark = pytest.mark.slow  # a minute or so: left to make test

PROMPT = "t3 t4 t5 t6 t7 t8 t9 t3 t4"
NEW = 8


@cache
def model_of(name: str) -> BridgeModel:
    return load_model(families.build(name), tokenizer=families.tokenizer())


def ids_of(model: BridgeModel, text: str = PROMPT) -> list[int]:
    return model.tokenizer.encode(text)


@pytest.mark.parametrize("name", families.CAUSAL)
def test_without_edits_it_is_the_librarys_own_greedy_search(name: str) -> None:
    model, plain = model_of(name), families.build(name)
    ids = torch.tensor([ids_of(model)])
    theirs = plain.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=False,
        eos_token_id=1, pad_token_id=2,
    )[0, ids.shape[1] :].tolist()  # fmt: skip
    ours = model.generate(PROMPT, max_new_tokens=NEW)
    assert list(ours.tokens) == theirs
    assert ours.text == model.tokenizer.decode(theirs)
    assert ours.prompt == PROMPT


def recomputed(
    model: BridgeModel, edits: Sequence[Edit], at: str, n: int = NEW
) -> tuple[list[int], list[float]]:
    """The oracle: no cache, the whole text again for each token."""
    ids = ids_of(model)
    start, made, log_probs = len(ids), [], []
    while len(made) < n and made[-1:] != [model.tokenizer.eos_id]:
        length = len(ids)
        placed = []
        for edit in edits:
            axis = "query" if "query" in edit.site.axes else "pos"
            named = edit.positions(torch.tensor([start]))
            prompt = list(range(start)) if named is None else named[0].tolist()
            positions = prompt * (at != "new") + list(range(start, length)) * (at != "prompt")
            value = edit.value
            if isinstance(value, Tensor) and value.ndim == 3 and value.shape[1] == start:
                rest = value.new_zeros(1, length - start, value.shape[2])  # never read
                value = torch.cat([value, rest], 1)
            if positions:
                placed.append(Edit(edit.site, edit.rule, value, {**edit.where, axis: positions}))
        logits = model.forward(torch.tensor([ids]), placed, quiet=True)[0, -1]
        made.append(int(logits.argmax()))
        log_probs.append(float(logits.log_softmax(-1)[made[-1]]))
        ids.append(made[-1])
    return made, log_probs


def edits_for(model: BridgeModel) -> list[list[Edit]]:
    """At sites that fill the cache and at sites that do not, with and without positions."""
    width = model.dims.d_model
    direction = torch.linspace(-1, 1, width)
    sets = [
        [steer("resid_post.0", direction, 2.0)],
        [scale("z.1", 0.0, head=1), scale("attn_out.2", 1.5)],
        [scale("k.0", -1.0, kv_head=0), scale("v.1", 2.0)],
        [project_out("resid_pre.1", direction), ablate("mlp_out.1", d_model=[0, 3])],
        [scale("pattern.1", 0.5, head=2), ablate("pattern.0", key=7)],
        [scale("q.2", 0.2), steer("embed", direction)],
        [steer("resid_pre.2", direction), scale("resid_pre.2", 2.0)],
        [scale("resid_pre.2", 2.0), steer("resid_pre.2", direction)],
    ]
    return sets + [[scale("resid_mid.1", 0.3)]] * ("resid_mid" in model.sites)


@pytest.mark.parametrize("at", ["prompt", "new", "both"])
@pytest.mark.parametrize("name", ["gpt2", "neox", "llama", "gemma2", "gemma3", "mixtral"])
def test_the_cache_changes_nothing(name: str, at: str) -> None:
    model = model_of(name)
    plain = model.generate(PROMPT, max_new_tokens=NEW)
    for edits in edits_for(model):
        if at == "new" and any("pos" in edit.where for edit in edits):
            continue
        ours = model.generate(PROMPT, edits, max_new_tokens=NEW, at=at)
        tokens, log_probs = recomputed(model, edits, at)
        assert list(ours.tokens) == tokens
        torch.testing.assert_close(ours.log_probs, tuple(log_probs), rtol=1e-4, atol=1e-4)
        assert ours.log_probs != plain.log_probs, "the edits must do something"
        if at == "new":  # the first new token is read from the prompt, which nobody touched
            assert ours.tokens[0] == plain.tokens[0]
            assert ours.log_probs[0] == pytest.approx(plain.log_probs[0], abs=1e-5)


@pytest.mark.parametrize("at", ["prompt", "both"])
def test_positions_are_the_prompts(at: str) -> None:
    model = model_of("llama")
    other = model.trace("t9 t8 t7 t6 t5 t4 t3 t13 t14", "resid_post")["resid_post", 1]
    sets = [[scale("resid_post.0", -2.0, pos=[-1, 0])], [scale("attn_out.0", 4.0, pos=[2, 5])]]
    sets += [[patch("resid_post.1", other, pos=[-1, 3])]] * (at == "prompt")
    for edits in sets:
        ours = model.generate(PROMPT, edits, max_new_tokens=NEW, at=at)
        tokens, log_probs = recomputed(model, edits, at)
        assert list(ours.tokens) == tokens
        torch.testing.assert_close(ours.log_probs, tuple(log_probs), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("at", ["prompt", "new", "both"])
def test_to_scale_by_one_is_the_identity_and_is_reported(at: str) -> None:
    model = model_of("qwen3")
    same = [scale("resid_post.1", 1.0), scale("z.0", 1.0, head=2)]
    with pytest.warns(ProbeWarning) as caught:
        ours = model.generate(PROMPT, same, max_new_tokens=NEW, at=at)
    assert ours == model.generate(PROMPT, max_new_tokens=NEW)
    assert [str(w.message) for w in caught] == [
        "the edit of resid_post.1 (scale: 1.0) changed nothing",
        "the edit of z.0 (scale: 1.0) changed nothing",
    ]


def test_an_edit_that_changes_only_what_is_new_is_not_reported() -> None:
    model = model_of("gpt2")
    final = model.trace(PROMPT, "resid_post")["resid_post", 1]
    # the mean of the last position: nothing changes there in the prompt, everything afterwards
    there = patch("resid_post.1", final[:, -1:], pos=-1)
    ours = model.generate(PROMPT, [there], max_new_tokens=3, at="both")
    assert ours.tokens[0] == model.generate(PROMPT, max_new_tokens=3).tokens[0]


# --- drawing -------------------------------------------------------------------------------------


def test_a_seed_gives_the_same_text_again() -> None:
    model = model_of("llama")
    drawn = [model.generate(PROMPT, temperature=2.0, seed=seed).tokens for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_tokens_are_drawn_as_often_as_the_temperature_says() -> None:
    model = model_of("llama")
    logits = model.forward(torch.tensor([ids_of(model)]))[0, -1]
    probs = (logits / 1.5).softmax(-1)
    n = 400
    drawn = [
        model.generate(PROMPT, max_new_tokens=1, temperature=1.5, seed=seed) for seed in range(n)
    ]
    counts = torch.bincount(torch.tensor([one.tokens[0] for one in drawn]), minlength=len(probs))
    error = (counts / n - probs).abs() / (probs * (1 - probs) / n).sqrt().clamp(min=1e-3)
    assert error.max() < 5
    # what is reported is the model's own probability, whatever the temperature
    for one in drawn[:5]:
        assert one.log_probs[0] == pytest.approx(
            float(logits.log_softmax(-1)[one.tokens[0]]), abs=1e-5
        )


def test_top_k_draws_from_the_likeliest_alone() -> None:
    model = model_of("llama")
    best = model.forward(torch.tensor([ids_of(model)]))[0, -1].topk(3).indices.tolist()
    how: dict[str, Any] = {"max_new_tokens": 1, "temperature": 50.0}
    drawn = {model.generate(PROMPT, top_k=3, seed=s, **how).tokens[0] for s in range(60)}
    assert drawn == set(best)
    for seed in range(5):
        alone = model.generate(PROMPT, top_k=1, seed=seed, **how)
        assert alone.tokens[0] == best[0]
    everything = [model.generate(PROMPT, top_k=k, seed=7, **how) for k in (61, 10**6, None)]
    assert everything[0] == everything[1] == everything[2]


def test_it_ends_with_the_token_that_ends_a_text() -> None:
    model = model_of("llama")
    toward_end = steer("resid_post.2", 50 * model.weights.W_U[:, 1])
    ours = model.generate(PROMPT, [toward_end], at="new", max_new_tokens=NEW)
    assert ours.tokens[-1] == model.tokenizer.eos_id
    assert len(ours.tokens) == len(ours.log_probs) == 2


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"at": "prmopt"}, "at='prmopt'\nTry: did you mean \"prompt\""),
        ({"max_new_tokens": 0}, "max_new_tokens=0\nExpected: at least 1"),
        ({"temperature": -0.1}, r"temperature=-0\.1\nExpected: 0 for the likeliest token, or up"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"top_k": 0, "temperature": 1.0}, "top_k=0\nExpected: at least 1"),
        ({"top_k": 5}, r"top_k=5 at temperature 0, .*\nTry: temperature=1\.0"),
        (
            {"max_new_tokens": 56},
            "56 new tokens after a prompt of 9\nExpected: at most 64 together",
        ),
    ],
)
def test_options_out_of_range(how: dict[str, Any], says: str) -> None:
    with pytest.raises(OptionError, match=says):
        model_of("llama").generate(PROMPT, **how)


def test_the_context_may_be_filled() -> None:
    model = model_of("llama")
    tokens = model.generate(PROMPT, max_new_tokens=55).tokens
    assert len(tokens) == 55 or tokens[-1] == model.tokenizer.eos_id


def test_edits_that_cannot_be_made_at_new_positions() -> None:
    model = model_of("llama")
    whole = model.trace(PROMPT, "mlp_out")["mlp_out", 0]
    with pytest.raises(
        EditError, match=r"names pos=-1 and is to be made at every\n? ?new position"
    ):
        model.generate(PROMPT, [scale("mlp_out.0", 2.0, pos=-1)], at="new")
    for at in ("new", "both"):
        with pytest.raises(
            EditError, match=r'(?s)\(1, 9, 32\): another for each .*Try: at="prompt"'
        ):
            model.generate(PROMPT, [patch("mlp_out.0", whole)], at=at)
    with pytest.raises(EditError, match=r"positions \[9\] leaves prompt 0"):
        model.generate(PROMPT, [scale("mlp_out.0", 2.0, pos=9)])


def test_an_encoder_is_refused() -> None:
    with pytest.raises(ModelError, match="is an encoder and continues no text"):
        model_of("bert").generate("t3 t4")


def test_hooks_are_gone_afterwards_also_when_it_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("llama")
    ids = torch.tensor([ids_of(model)])
    before = model.forward(ids)
    model.generate(PROMPT, [scale("mlp_out.0", 2.0)], max_new_tokens=2)
    assert torch.equal(model.forward(ids), before)
    real, calls = Edit.apply, []

    def fails(edit: Edit, *rest: Any) -> Tensor:
        calls.append(edit)
        if len(calls) > 3:
            raise KeyboardInterrupt
        return real(edit, *rest)

    monkeypatch.setattr(Edit, "apply", fails)
    with pytest.raises(KeyboardInterrupt):
        model.generate(PROMPT, [scale("mlp_out.0", 2.0)], max_new_tokens=8)
    assert torch.equal(model.forward(ids), before)


def test_toy_writes_something(toy: BridgeModel) -> None:
    ours = toy.generate("When Mary and John went to", max_new_tokens=4)
    assert isinstance(ours, Generation)
    assert len(ours.tokens) == 4
    assert all(log_prob < 0 for log_prob in ours.log_probs)
