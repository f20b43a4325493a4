"""``trace`` records what was asked for, where it was asked for, and refuses what will not fit."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from probe.core.edit import patch
from probe.core.errors import OptionError, SiteError, SizeError, TaskError
from probe.core.site import KINDS, Site
from probe.core.task import Task
from probe.models import recorder
from probe.models.bridge import BridgeModel

RAGGED = ["When Mary and John went to the store", "The cat", "dogs and cats gave a drink to Mary"]
PAIR = {"clean": "When Mary gave", "corrupted": "When John gave", "answer": " a"}


def test_only_what_was_asked_for_is_recorded(toy: BridgeModel) -> None:
    trace = toy.trace(RAGGED, sites=["resid_post", ("z", 1), "pattern.0", "embed", ("z", 1)])
    expected = ["embed", "resid_post.0", "resid_post.1", "z.1", "pattern.0"]
    assert sorted(map(str, trace)) == sorted(expected)


def test_every_kind_has_its_named_axes(toy: BridgeModel) -> None:
    assert toy.sites == set(KINDS) - {"router"}
    for kind in toy.sites:
        layered = KINDS[kind].per_layer
        value = toy.trace(RAGGED, sites=kind)[(kind, 0) if layered else kind]
        sizes = [toy.dims.size(axis, batch=3, pos=value.shape[1]) for axis in KINDS[kind].axes]
        if "query" in KINDS[kind].axes:
            sizes = [3, toy.dims.n_heads, *value.shape[2:]]
        assert list(value.shape) == sizes, kind


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"router"}))
def test_chosen_positions_are_those_of_the_whole_trace(toy: BridgeModel, kind: str) -> None:
    whole, part = toy.trace(RAGGED, kind), toy.trace(RAGGED, kind, positions=[1, -1])
    axis = "query" if "query" in KINDS[kind].axes else "pos"
    for site in part:
        expected = whole.sel(site, **{axis: [1, -1]})
        torch.testing.assert_close(part[site], expected, rtol=0, atol=0)


def test_a_negative_position_is_each_prompts_own(toy: BridgeModel) -> None:
    last = toy.trace(RAGGED, "resid_post.1", positions=[-1])["resid_post", 1][:, 0]
    for row, text in enumerate(RAGGED):
        alone = toy.trace(text, "resid_post.1")["resid_post", 1][0, -1]
        torch.testing.assert_close(last[row], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 99])
def test_streaming_over_batches_changes_nothing(toy: BridgeModel, batch_size: int) -> None:
    sites = ["resid_post", "pattern", "z"]
    whole = toy.trace(RAGGED, sites)
    streamed = toy.trace(RAGGED, sites, batch_size=batch_size)
    assert streamed.str_tokens == whole.str_tokens
    for site in whole:
        torch.testing.assert_close(streamed[site], whole[site], rtol=1e-5, atol=1e-5)


def test_half_precision_is_how_it_is_stored_not_how_it_is_computed(toy: BridgeModel) -> None:
    whole = toy.trace(RAGGED, "resid_post")
    for batch_size in (None, 1):
        half = toy.trace(RAGGED, "resid_post", dtype=torch.float16, batch_size=batch_size)
        assert half["resid_post"].dtype is torch.float16
        assert 2 * half.nbytes == whole.nbytes
        torch.testing.assert_close(
            half["resid_post"], whole["resid_post"].half(), rtol=2e-3, atol=2e-3
        )


def test_what_is_recorded_is_detached_and_stays_as_it_was(toy: BridgeModel) -> None:
    trace = toy.trace(RAGGED, ["resid_pre", "attn_out", "pattern"])
    before = {site: value.clone() for site, value in trace.items()}
    toy.trace(RAGGED[::-1], ["resid_pre", "attn_out", "pattern"])
    for site, value in trace.items():
        assert not value.requires_grad
        assert torch.equal(value, before[site])


def test_the_forward_pass_stops_after_the_last_site(toy: BridgeModel) -> None:
    calls: list[str] = []
    handle = toy.block(1).register_forward_pre_hook(lambda *_: calls.append("ran"))
    try:
        toy.trace("When Mary", "resid_post.0")
        assert calls == []
        toy.trace("When Mary", "resid_post.1")
        assert calls == ["ran"]
    finally:
        handle.remove()


def test_the_two_halves_of_a_task(toy: BridgeModel) -> None:
    encoded = Task.from_pairs([PAIR]).encode(toy)
    clean, corrupted = toy.trace(encoded, "embed"), toy.trace(encoded, "embed", corrupted=True)
    assert clean.str_tokens == (("When", " Mary", " gave"),)
    assert corrupted.str_tokens == (("When", " John", " gave"),)
    torch.testing.assert_close(clean["embed"], toy.weights.W_E[encoded.clean])
    torch.testing.assert_close(corrupted["embed"], toy.weights.W_E[encoded.need_corrupted()])


def test_values_recorded_under_an_edit_are_the_edited_ones(toy: BridgeModel) -> None:
    value = torch.randn(1, 8, 32)
    edit = patch("resid_post.0", value)
    trace = toy.trace(RAGGED[0], ["resid_post", "resid_pre"], edits=[edit])
    torch.testing.assert_close(trace["resid_post", 0], value)
    torch.testing.assert_close(trace["resid_pre", 1], value)
    plain = toy.trace(RAGGED[0], "resid_post")["resid_post", 1]
    assert not torch.allclose(trace["resid_post", 1], plain, atol=1e-2)


# --- what will not fit ---------------------------------------------------------------------------


def test_too_much_is_refused_before_anything_is_run(
    toy: BridgeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*_: object, **__: object) -> None:
        pytest.fail("the model was run")

    monkeypatch.setattr(recorder, "free_bytes", lambda device: 1000)
    monkeypatch.setattr(toy, "run_raw", run)
    with pytest.raises(SizeError, match=r"this trace takes 0\.0 GiB: 2 sites, 3 prompts") as error:
        toy.trace(RAGGED, "resid_post")
    assert "80% of the memory that is free on cpu" in str(error.value)
    assert "positions=[-1], dtype=torch.float16" in str(error.value)


@pytest.mark.parametrize("positions", [None, [-1], [0, -1]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("kind", ["z", "pattern", "k", "mlp_post", "ln1_scale", "embed"])
def test_the_estimate_is_the_bytes_it_takes(
    toy: BridgeModel,
    monkeypatch: pytest.MonkeyPatch,
    positions: Sequence[int] | None,
    dtype: torch.dtype,
    kind: str,
) -> None:
    need = toy.trace(RAGGED, kind, positions=positions, dtype=dtype).nbytes
    monkeypatch.setattr(recorder, "_SHARE_OF_MEMORY", 1.0)
    monkeypatch.setattr(recorder, "free_bytes", lambda device: need)
    toy.trace(RAGGED, kind, positions=positions, dtype=dtype)
    monkeypatch.setattr(recorder, "free_bytes", lambda device: need - 1)
    with pytest.raises(SizeError):
        toy.trace(RAGGED, kind, positions=positions, dtype=dtype)


# --- what cannot be ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sites", "said"),
    [
        ([], "no site was asked for"),
        ("resid_pst", 'did you mean "resid_post"'),
        ("router", "toy has no router: it is no mixture of experts"),
        (("z", 2), "0 to 1: the model has 2 layers"),
        (("z", 1, 4), "0 to 3: z has 4 heads"),
        (("k", 1, 2), "0 to 1: k has 2 kv_heads"),
        (Site("resid_post", 7), "resid_post.7 asks for layer 7"),
    ],
)
def test_sites_that_are_not_there(toy: BridgeModel, sites: object, said: str) -> None:
    with pytest.raises(SiteError) as error:
        toy.trace("When Mary", sites)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"positions": []}, "no position was asked for"),
        ({"positions": [8]}, "position 8 lies outside prompt 0"),
        ({"positions": [2]}, "position 2 lies outside prompt 1"),
        ({"positions": [-9]}, "position -9 lies outside prompt 0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": -1}, "at least one prompt"),
        ({"dtype": torch.int64}, "a floating type, like torch.float16"),
    ],
)
def test_ways_of_recording_that_cannot_be(toy: BridgeModel, how: dict[str, Any], said: str) -> None:
    with pytest.raises((SiteError, OptionError)) as error:
        toy.trace(RAGGED, "z", **how)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("prompts", "said"),
    [
        ([], "no prompt was given"),
        ("", "the prompt '' has no tokens"),
        (["The cat", ""], "at least one token of text"),
        ("cat " * 97, "at most 96, the model's context length"),
        ("a\ud800b", "character 1 of the prompt is a lone surrogate (U+D800)"),
        (torch.tensor([[3, 555]]), "token ids from 3 to 555\nExpected: 0 to 554"),
        (torch.tensor([[-1, 3]]), "token ids from -1 to 3"),
        (torch.zeros(1, 97, dtype=torch.long), "97 tokens\nExpected: at most 96"),
        (torch.zeros(0, 3, dtype=torch.long), "tokens of shape (0, 3)"),
        (torch.zeros(1, 0, dtype=torch.long), "tokens of shape (1, 0)"),
    ],
)
def test_prompts_that_cannot_be_read(toy: BridgeModel, prompts: object, said: str) -> None:
    with pytest.raises(TaskError) as error:
        toy.trace(prompts, "z")
    assert said in str(error.value)


@pytest.mark.parametrize(
    "text", ["a\0b", "\x1b[31mred\r\n", "<b>&amp;</b>", "$x$", ":red[x]", "שלום " * 8, "🏴󠁧󠁢󠁥󠁮󠁧󠁿"]
)
def test_any_text_is_read_as_it_stands(toy: BridgeModel, text: str) -> None:
    trace = toy.trace(text, "resid_post.1")
    assert toy.tokenizer.decode(trace.tokens[0].tolist()) == text
    assert torch.isfinite(trace["resid_post", 1]).all()


def test_ten_thousand_characters_are_refused_by_their_number_of_tokens(toy: BridgeModel) -> None:
    with pytest.raises(TaskError, match="the prompt has 20000 tokens") as error:
        toy.trace("ש" * 10_000, "z")
    assert "split it every 96 tokens" in str(error.value)
