"""Tiny transformers: as Hugging Face models, through the adapter, and how they are trained."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import probe
from probe.core.errors import CorpusError, ModelError, OptionError, SiteError
from probe.models import tiny
from probe.models.tiny.architecture import SmearedKeys, TinyForCausalLM
from probe.models.tiny.recipes import RECIPES, Recipe, completed, recipe
from probe.models.tiny.text import Rows, pack, train_tokenizer
from probe.models.tiny.train import batch_of, checkpoints, schedule, train, untrained

SMALL: dict[str, Any] = {
    "d_model": 16, "n_heads": 2, "d_head": 8, "d_mlp": 24, "n_ctx": 16, "steps": 6,
    "batch_size": 2, "warmup": 2,
}  # fmt: skip
WORDS = "cat dog bird fish cow horse mouse goat hen duck frog bee ant fox owl wolf bear elk".split()
TEXTS = [f"The {word} told the {word} what the {word} had said to her. " * 3 for word in WORDS] * 3


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tokenizer(TEXTS, 300)


@pytest.fixture(scope="module")
def rows(tokenizer: Any) -> Rows:
    return pack(TEXTS, tokenizer, SMALL["n_ctx"])


def weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def run(rows: Rows, out: Path, *, report: Any = lambda *about: None, **changes: Any) -> Path:
    wanted = recipe("attn-only-2l", **(SMALL | changes))
    return train(wanted, rows, seed=0, out=out, report=report)


# --- as models -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "changes", "absent"),
    [
        ("attn-only-2l", {}, {"mlp_out", "mlp_pre", "mlp_post", "ln2_scale", "resid_mid"}),
        ("solu-1l", {"positions": "learned"}, set()),
        pytest.param("gelu-1l", {"rotary_share": 0.5}, set(), marks=pytest.mark.slow),
        pytest.param("gelu-1l", {"rotary_share": 0}, set(), marks=pytest.mark.slow),
    ],
)
def test_they_pass_the_doctor_and_claim_what_they_have(
    tokenizer: Any, name: str, changes: dict[str, Any], absent: set[str]
) -> None:
    model = probe.load_model(
        untrained(recipe(name, **(SMALL | changes)), len(tokenizer), 0), tokenizer=tokenizer
    )
    assert model.health["ok"], model.health
    assert model.health["resumes"]
    assert absent.isdisjoint(model.sites)
    assert (model.dims.d_mlp == 0) == bool(absent) == ("mlp_out" not in model.sites)


def test_an_attention_only_model_says_why_it_has_no_neurons(tokenizer: Any) -> None:
    model = probe.load_model(
        untrained(recipe("attn-only-1l", **SMALL), len(tokenizer), 0), tokenizer=tokenizer
    )
    with pytest.raises(SiteError, match="has no mlp_post: it has attention only"):
        model.trace("The cat", "mlp_post")
    parts = probe.decompose(model, "The cat told the dog")
    assert {part.kind for part in parts.parts} == {"embed", "head"}
    torch.testing.assert_close(parts.vectors.sum(0), parts.resid, rtol=1e-4, atol=1e-5)


def test_solu_is_x_times_its_softmax_then_a_norm() -> None:
    hf = untrained(recipe("solu-1l", **SMALL), 50, 0)
    x = torch.randn(3, 24)
    solu = x * torch.exp(x) / torch.exp(x).sum(-1, keepdim=True)
    expected = solu / (solu.pow(2).mean(-1, keepdim=True) + hf.config.rms_norm_eps).sqrt()
    torch.testing.assert_close(hf.model.layers[0].mlp.act_fn(x), expected)


def test_a_smeared_key_mixes_in_the_key_before() -> None:
    layer = SmearedKeys(6, 8, bias=True, heads=2)
    with torch.no_grad():
        layer.alpha.copy_(torch.tensor([0.0, 50.0]))  # half and half; none
    x = torch.randn(1, 5, 6)
    plain = torch.nn.functional.linear(x, layer.weight, layer.bias)
    mixed = layer(x)
    torch.testing.assert_close(mixed[:, 1:, :4], (plain[:, 1:, :4] + plain[:, :-1, :4]) / 2)
    torch.testing.assert_close(mixed[..., 4:], plain[..., 4:])
    torch.testing.assert_close(mixed[:, 0], plain[:, 0])


def test_learned_positions_tell_places_apart_and_continue_from_a_cache() -> None:
    hf = untrained(recipe("attn-only-1l", **SMALL, positions="learned"), 50, 0).eval()
    same = torch.full((1, 6), 7)
    with torch.no_grad():
        logits = hf(same).logits[0]
        first = hf(same[:, :4], use_cache=True)
        rest = hf(same[:, 4:], past_key_values=first.past_key_values).logits[0]
    assert not torch.allclose(logits[0], logits[5], atol=1e-3)
    torch.testing.assert_close(rest, logits[4:])
    cos, sin = hf.model.rotary_emb(torch.zeros(1), torch.arange(6)[None])
    assert (cos == 1).all()
    assert (sin == 0).all()


# --- a share of the rotary pairs -----------------------------------------------------------------


def rotation(share: float, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines that a model of heads of 8 turns by: [position, dimension]."""
    hf = untrained(recipe("gelu-1l", **SMALL, rotary_share=share), 50, 0)
    cos, sin = hf.model.rotary_emb(torch.zeros(1), positions[None])
    return cos[0], sin[0]


def test_all_pairs_turn_as_llamas_do_and_none_not_at_all() -> None:
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    places = torch.tensor([0, 1, 7, 200])
    hf = untrained(recipe("gelu-1l", **SMALL), 50, 0)
    llama = LlamaRotaryEmbedding(hf.config)(torch.zeros(1), places[None])
    for own, theirs in zip(rotation(1.0, places), llama, strict=True):
        assert torch.equal(own, theirs[0])
    cos, sin = rotation(0.0, places)
    assert torch.equal(cos, torch.ones(4, 8))
    assert torch.equal(sin, torch.zeros(4, 8))


@pytest.mark.parametrize(("share", "turning"), [(0.75, 3), (0.5, 2), (0.25, 1)])
def test_the_fastest_pairs_turn_at_their_full_speeds(share: float, turning: int) -> None:
    places = torch.tensor([0, 1, 7, 200])
    cos, sin = (part.double().numpy() for part in rotation(share, places))
    for pair in range(4):
        angle = places.numpy() * 10_000 ** (-2 * pair / 8) * (pair < turning)
        for dimension in (pair, pair + 4):
            assert cos[:, dimension] == pytest.approx(np.cos(angle), abs=1e-5)
            assert sin[:, dimension] == pytest.approx(np.sin(angle), abs=1e-5)


def test_a_saved_model_turns_what_it_turned(tmp_path: Path) -> None:
    hf = untrained(recipe("gelu-1l", **SMALL, rotary_share=0.25), 50, 0)
    hf.save_pretrained(tmp_path)
    again = TinyForCausalLM.from_pretrained(tmp_path)
    assert again.config.rotary_share == 0.25
    assert torch.equal(again.model.rotary_emb.inv_freq, torch.tensor([1.0, 0, 0, 0]))
    torch.testing.assert_close(
        again(torch.arange(9)[None]).logits, hf(torch.arange(9)[None]).logits
    )


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_one_layer_without_positions_is_blind_to_the_order_of_what_came_before(
    share: float,
) -> None:
    hf = untrained(recipe("attn-only-1l", **SMALL, rotary_share=share), 50, 0).eval()
    tokens = torch.arange(3, 13)[None]
    moved = torch.cat([tokens[:, :-1].flip(1), tokens[:, -1:]], 1)
    with torch.no_grad():
        one, other = hf(tokens).logits[0, -1], hf(moved).logits[0, -1]
    assert torch.allclose(one, other, atol=1e-5) == (share == 0)


def test_learned_positions_have_no_pairs_to_leave_out() -> None:
    with pytest.raises(OptionError, match='rotary_share=0.5 with learned .*\n.*positions="rotary"'):
        recipe("gelu-1l", rotary_share=0.5, positions="learned")


# --- training ------------------------------------------------------------------------------------


def test_a_killed_run_goes_on_to_the_same_bits(rows: Rows, tmp_path: Path) -> None:
    whole = run(rows, tmp_path / "whole")
    with pytest.raises(ModelError, match="was stopped after step 3\n.*same call goes on"):
        run(rows, tmp_path / "cut", report=lambda done, total, unit: done < 3)
    halves = run(rows, tmp_path / "cut")
    one, other = weights(whole), weights(halves)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    names = [folder.name for folder in sorted((tmp_path / "cut").glob("step-*"))]
    assert names == [f"step-{step:06d}" for step in checkpoints(6)]


def test_a_finished_run_is_not_trained_again(rows: Rows, tmp_path: Path) -> None:
    steps: list[int] = []
    found = {run(rows, tmp_path / "run", report=lambda *about: steps.append(about[0]))
             for _ in range(2)}  # fmt: skip
    assert len(found) == 1
    assert steps == [1, 2, 3, 4, 5, 6]


def test_a_checkpoint_loads_as_a_model_of_its_own(rows: Rows, tmp_path: Path) -> None:
    model = probe.load_model(run(rows, tmp_path / "run"))
    assert model.spec.architecture == TinyForCausalLM.__name__
    assert model.tokenizer.bos
    assert model.dims.n_layers == 2


def test_it_learns(rows: Rows, tmp_path: Path) -> None:
    said: list[str] = []
    run(rows, tmp_path / "run", steps=40, report=lambda *about: said.append(about[2]))
    first, last = (float(text.rsplit(" ", 1)[1]) for text in (said[0], said[-1]))
    assert last < first - 1


def test_another_seed_is_another_model_and_the_same_seed_the_same() -> None:
    a, b, c = (untrained(RECIPES["attn-only-1l"], 50, seed).lm_head.weight for seed in (0, 0, 1))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_a_folder_with_another_run_is_refused(rows: Rows, tmp_path: Path) -> None:
    run(rows, tmp_path / "run", steps=1)
    with pytest.raises(ModelError, match="holds a run with another recipe"):
        run(rows, tmp_path / "run", steps=2)


def older(folder: Path) -> bytes:
    """Take from a run's record the field that recipes did not have at first."""
    card = folder / "training.json"
    record = json.loads(card.read_text("utf-8"))
    del record["recipe"]["rotary_share"]
    card.write_text(json.dumps(record), "utf-8")
    return card.read_bytes()


def test_a_run_recorded_before_a_field_was_new_is_still_the_same_run(
    rows: Rows, tmp_path: Path
) -> None:
    done: list[int] = []
    trained = run(rows, tmp_path, steps=2)
    card, model = older(tmp_path), (trained / "model.safetensors").stat()
    again = run(rows, tmp_path, steps=2, report=lambda *about: done.append(about[0]))
    assert (again, done) == (trained, [])
    assert (again / "model.safetensors").stat() == model
    assert (tmp_path / "training.json").read_bytes() == card
    with pytest.raises(ModelError, match="holds a run with another recipe"):
        run(rows, tmp_path, steps=2, rotary_share=0.5)


def test_a_run_cut_short_before_a_field_was_new_goes_on(rows: Rows, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="was stopped after step 1"):
        run(rows, tmp_path, steps=2, report=lambda *about: False)
    older(tmp_path)
    done: list[int] = []
    run(rows, tmp_path, steps=2, report=lambda *about: done.append(about[0]))
    assert done == [2]


def test_a_run_that_goes_on_with_other_versions_says_so(rows: Rows, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="was stopped after step 1"):
        run(rows, tmp_path, report=lambda *about: False)
    card = tmp_path / "training.json"
    record = json.loads(card.read_text("utf-8"))
    card.write_text(json.dumps(record | {"versions": {"torch": "1.0"}}), "utf-8")
    with pytest.warns(probe.ProbeWarning, match="begun with torch 1.0, now "):
        run(rows, tmp_path)
    run(rows, tmp_path)  # which is done: nothing is mixed


@pytest.mark.parametrize("name", ["training.json", "state.safetensors"])
def test_a_damaged_training_is_named(rows: Rows, tmp_path: Path, name: str) -> None:
    run(rows, tmp_path, steps=1)
    (tmp_path / name).write_bytes(b"{}")
    with pytest.raises(ModelError, match=f"training in {tmp_path} is damaged"):
        run(rows, tmp_path, steps=1)


def test_a_training_that_cannot_be_kept_says_why(rows: Rows, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match="cannot train in .*Not a directory"):
        run(rows, tmp_path / "file" / "run", steps=1)


@pytest.mark.parametrize("name", tiny.shipped())
def test_shipped_models_are_of_their_recipe(name: str) -> None:
    record = json.loads((tiny.folder(name) / "training.json").read_text("utf-8"))
    assert completed(record["recipe"]) == recipe(name.split("-seed")[0]).model_dump()


def test_what_a_record_has_besides_is_not_passed_over() -> None:
    record = RECIPES["gelu-1l"].model_dump()
    assert completed(record | {"unheard_of": 1}) == record | {"unheard_of": 1}


def test_rows_of_another_length_are_refused(rows: Rows, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="rows of 16 tokens for a context of 256"):
        probe.train_tiny("attn-only-1l", rows, out=tmp_path)


def test_a_loss_that_is_not_finite_ends_the_run(rows: Rows, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="the loss of step .* is nan\n.*smaller lr"):
        run(rows, tmp_path / "run", lr=1e30, matrix_lr=1e30, steps=20)


def test_each_epoch_deals_every_row_once() -> None:
    rows = torch.arange(10)[:, None]
    dealt = torch.cat([batch_of(rows, step, 2, seed=3) for step in range(10)]).flatten()
    assert sorted(dealt[:10].tolist()) == sorted(dealt[10:].tolist()) == list(range(10))
    assert dealt[:10].tolist() != dealt[10:].tolist()


def test_the_learning_rate_rises_stays_and_falls() -> None:
    wanted = Recipe(n_layers=1, steps=100, warmup=10, cooldown=0.5)
    shares = [schedule(step, wanted) for step in range(100)]
    assert shares[0] == pytest.approx(0.1)
    assert set(shares[9:51]) == {1.0}
    assert shares[75] == pytest.approx(0.5)
    assert min(shares[51:]) == pytest.approx(0.1)


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(OptionError, match='there is no recipe "attn-only-3l"\n.*attn-only-2l'):
        recipe("attn-only-3l")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"stepz": 3}, 'attn-only-2l has no option "stepz"\n.*"steps"'),
        ({"steps": 0}, "steps=0: .*greater"),
        ({"steps": "x"}, "steps='x'"),
        ({"positions": "alibi"}, "'rotary' or 'learned'"),
    ],
)
def test_a_field_no_recipe_has_and_a_value_it_cannot_have(changes: Any, said: str) -> None:
    with pytest.raises(OptionError, match=said):
        recipe("attn-only-2l", **changes)


# --- text ----------------------------------------------------------------------------------------


def test_rows_begin_with_bos_and_stay_within_a_document(tokenizer: Any) -> None:
    documents = [f"{number} " * 40 for number in range(100, 150)]
    found = pack(documents, tokenizer, 12)
    assert (found.train[:, 0] == tokenizer.bos_token_id).all()
    for row in (*found.train, *found.held_out):
        words = tokenizer.decode(row[1:]).split()
        assert len(set(words[1:-1])) == 1, words
    assert len(found.text_hash) == 16
    assert found.text_hash != pack(documents[::-1], tokenizer, 12).text_hash


def test_rows_are_made_of_texts_too_and_hold_a_token_after_bos(tokenizer: Any) -> None:
    texts = ["word " * 40] * 21
    rows = probe.tiny_rows(texts, n_ctx=4, tokenizer=tokenizer)
    assert rows.train.shape[1] == 4
    with pytest.raises(OptionError, match="n_ctx=1"):
        probe.tiny_rows(texts, n_ctx=1)


def test_too_little_text_is_refused(tokenizer: Any) -> None:
    with pytest.raises(
        CorpusError, match="2 documents gave .* rows to learn from and 0 to measure"
    ):
        pack(TEXTS[:2], tokenizer, 8)


# --- shipped -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["attn-only-1l", "toy"])
def test_a_revision_is_of_the_hub(name: str) -> None:
    with pytest.raises(ModelError, match='has no revision "main"'):
        probe.load_model(name, revision="main")


@pytest.mark.slow
@pytest.mark.parametrize("name", tiny.shipped())
def test_shipped_models_load_by_name_and_pass_the_doctor(name: str) -> None:
    model = probe.load_model(name)
    assert model.health["ok"], model.health
    assert name in probe.models()
    record = json.loads((tiny.folder(name) / "training.json").read_text("utf-8"))
    assert {"recipe", "seed", "text", "versions"} <= record.keys()
