"""Sweeps that are stopped, interrupted or refused leave nothing behind but what was finished."""

from collections.abc import Callable

import pytest
import torch
from replay_cases import one_by_one, pairs_for
from torch import Tensor

from probe.core.edit import Edit, patch, project_out, scale
from probe.core.errors import EditError, ProbeWarning, SiteError
from probe.core.site import Site
from probe.models import replay
from probe.models.bridge import BridgeModel

pytestmark = pytest.mark.slow  # a minute or so: left to make test

SETS = [[scale(Site("z", layer), 0.5, head=head)] for layer in (0, 1) for head in range(4)]


def hooks_of(model: BridgeModel) -> int:
    """Hooks of any sort on any module."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
    return sum(len(getattr(module, kind)) for module in model.bridge.modules() for kind in kinds)


def test_a_report_that_says_no_keeps_what_was_finished(toy: BridgeModel) -> None:
    encoded = pairs_for(toy)
    want, heard = one_by_one(toy, encoded, SETS), []

    def report(done: int, total: int, unit: str) -> bool:
        heard.append((done, total, unit))
        return done < 10

    ours = toy.sweep(encoded, SETS, report=report, chunk_tokens=2 * encoded.clean.shape[1])
    assert heard == [(n, 24, "runs") for n in range(2, 11, 2)]
    finished = ~ours.isnan()
    assert int(finished.sum()) == 10
    torch.testing.assert_close(ours[finished], want[finished], rtol=1e-5, atol=1e-5)


def test_a_report_that_says_nothing_goes_on(toy: BridgeModel) -> None:
    encoded, heard = pairs_for(toy), []
    ours = toy.sweep(encoded, SETS, report=lambda *a: heard.append(a), chunk_tokens=1)
    assert len(heard) == heard[-1][0] == heard[-1][1] == 24
    assert not ours.isnan().any()


@pytest.mark.parametrize("resume", [True, False])
def test_an_interrupt_keeps_what_was_finished(
    toy: BridgeModel, monkeypatch: pytest.MonkeyPatch, resume: bool
) -> None:
    encoded = pairs_for(toy)
    want, before = one_by_one(toy, encoded, SETS), hooks_of(toy)
    calls: list[int] = []
    apply = Edit.apply

    def interrupted(edit: Edit, activation: Tensor, *rest: object) -> Tensor:
        calls.append(len(activation))
        if len(calls) == len(SETS) + 4:  # the dry runs, then inside the fourth block
            raise KeyboardInterrupt
        return apply(edit, activation, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Edit, "apply", interrupted)
    with pytest.warns(ProbeWarning, match="stopped after 3 of 24 edited runs; the cells not reach"):
        ours = toy.sweep(encoded, SETS, chunk_tokens=1, resume=resume)
    finished = ~ours.isnan()
    assert int(finished.sum()) == 3
    torch.testing.assert_close(ours[finished], want[finished], rtol=1e-5, atol=1e-5)
    assert hooks_of(toy) == before


@pytest.mark.parametrize("call", ["sweep", "whole", "forward", "trace"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, EditError])
def test_hooks_never_outlive_the_call(
    toy: BridgeModel, monkeypatch: pytest.MonkeyPatch, call: str, error: type[BaseException]
) -> None:
    encoded, before = pairs_for(toy), hooks_of(toy)
    plain = toy.forward(encoded.clean)
    calls: dict[str, Callable[[], object]] = {
        "sweep": lambda: toy.sweep(encoded, SETS[:1]),
        "whole": lambda: toy.sweep(encoded, SETS[:1], resume=False),
        "forward": lambda: toy.forward(encoded.clean, SETS[0], lengths=encoded.lengths),
        "trace": lambda: toy.trace(encoded, "resid_post", edits=SETS[0]),
    }
    calls[call]()
    assert hooks_of(toy) == before

    def fails(*_: object) -> Tensor:
        raise error("no")

    monkeypatch.setattr(replay, "check_edit", lambda *_: None)
    monkeypatch.setattr(Edit, "apply", fails)
    gives_what_it_has = call in ("sweep", "whole") and error is KeyboardInterrupt
    with pytest.warns(ProbeWarning) if gives_what_it_has else pytest.raises(error):
        calls[call]()
    assert hooks_of(toy) == before
    monkeypatch.undo()
    assert torch.equal(toy.forward(encoded.clean), plain)


def test_a_value_of_another_batch_is_refused_before_anything_runs(toy: BridgeModel) -> None:
    encoded = pairs_for(toy)
    width = encoded.clean.shape[1]
    for shape in (
        (2, width, 32),
        (4, width, 32),
        (3, width + 1, 32),
        (3, width, 31),
        (1, 3, 1, 32),
    ):
        with pytest.raises(EditError) as caught:
            toy.sweep(encoded, [SETS[0], [patch("mlp_out.1", torch.zeros(shape), pos=-1)]])
        text = str(caught.value)
        assert f"the value for mlp_out.1 has shape {shape}" in text
        assert f"{{'batch': 3, 'pos': {width}, 'd_model': 32}}" in text
        assert 'model.trace(task, ["mlp_out.1"])' in text


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (scale("z.1", 0.5, head=4), r"z\.1 names head \[4\]\nExpected: 0 to 3"),
        (scale("k.1", 0.5, kv_head=2), r"k\.1 names kv_head \[2\]\nExpected: 0 to 1"),
        (scale("resid_pre.0", 2.0, pos=3), r"resid_pre\.0 at positions \[3\] leaves prompt 1\nExp"),
        (
            project_out("mlp_out.0", torch.ones(5)),
            r"mlp_out\.0 has shape \(5,\)\nExpected: \(32,\)",
        ),
        (project_out("mlp_out.0", torch.zeros(32)), r"project out of mlp_out\.0 has norm 0\.0"),
    ],
)
def test_an_edit_that_cannot_be_made_is_refused_before_anything_runs(
    toy: BridgeModel, monkeypatch: pytest.MonkeyPatch, edit: Edit, says: str
) -> None:
    monkeypatch.setattr(replay, "record", lambda *_, **__: pytest.fail("it ran"))
    with pytest.raises(EditError, match=says):
        toy.sweep(pairs_for(toy), [*SETS, [edit]])


def test_a_site_that_is_not_read_back_is_refused(
    toy: BridgeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(toy, "_inert", frozenset({"attn_scores"}))
    with pytest.raises(EditError, match="computes attn_scores but does not read it back"):
        toy.sweep(pairs_for(toy), [[scale("attn_scores.0", 0.5)]])


def test_a_layer_that_is_not_there_is_refused(toy: BridgeModel) -> None:
    with pytest.raises(SiteError, match=r"toy has no z\.2, though other layers have z"):
        toy.sweep(pairs_for(toy), [[scale("z.2", 0.5)]])


def test_a_sweep_of_nothing(toy: BridgeModel) -> None:
    encoded = pairs_for(toy)
    assert toy.sweep(encoded, []).shape == (0, 3)
    unedited = one_by_one(toy, encoded, [[]])
    torch.testing.assert_close(toy.sweep(encoded, [[]]), unedited, rtol=1e-5, atol=1e-5)
