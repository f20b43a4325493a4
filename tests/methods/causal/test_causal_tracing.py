"""Causal tracing: cells equal plain forward passes, and what must be recovered is."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
import pytest
import torch

from probe.core.edit import Edit, patch
from probe.core.errors import OptionError, ProbeWarning, SiteError, TaskError
from probe.core.metric import get_metric
from probe.core.progress import listening
from probe.core.registry import METHODS
from probe.core.site import Site
from probe.core.task import Encoded, Task
from probe.methods.causal.causal_tracing import _noises, causal_tracing
from probe.models import replay
from probe.models.bridge import BridgeModel

pytestmark = pytest.mark.slow  # a minute of small models

CLEAN = [" The capital of France is", " Tom said that the key of Madrid Spain is in"]
SUBJECTS = [" France", " Madrid Spain"]
SPANS = [[3], [6, 7]]


def facts(model: BridgeModel, rows: Sequence[int] = (0, 1)) -> Encoded:
    return Task.from_pairs(
        [
            {"clean": CLEAN[i], "answer": " Paris", "wrong_answer": " Rome",
             "tags": {"subject": SUBJECTS[i]}}
            for i in rows
        ]
    ).encode(model)  # fmt: skip


def traced(model: BridgeModel, encoded: Encoded, **how: Any) -> pd.DataFrame:
    return causal_tracing(
        model, encoded, **{"subject": "{subject}", "draws": 3, "metric": "log_prob", **how}
    )


@pytest.mark.parametrize("kind", ["resid_post", "mlp_out", "attn_out"])
@pytest.mark.parametrize("window", [None, 1, 2])
@pytest.mark.parametrize("name", ["toy", "toy_mha"])
def test_each_cell_is_a_plain_forward_pass(
    request: pytest.FixtureRequest, name: str, kind: str, window: int | None
) -> None:
    model: BridgeModel = request.getfixturevalue(name)
    encoded = facts(model)
    frame = traced(model, encoded, kind=kind, window=window)
    clean = model.trace(encoded, kind)
    noises = _noises(model, encoded, SPANS, 3.0, 3, 0)
    metric, width = get_metric("log_prob"), window or {"resid_post": 1}.get(kind, 10)

    def run(edits: Sequence[Edit], row: int) -> float:
        logits = model.forward(encoded.clean, edits, lengths=encoded.lengths, quiet=True)
        read = logits[range(2), encoded.last]
        return float(metric(read, encoded)[row])

    assert len(frame) == 2 * int(encoded.lengths.sum())
    for cell in frame.to_dict("records"):
        layer, pos, row = cell["layer"], cell["pos"], cell["batch"]
        around = [n for n in range(layer - width // 2, layer - width // 2 + width) if 0 <= n < 2]
        back = [
            patch(Site(kind, n), clean[kind, n], pos=min(pos, int(encoded.last.min())))
            if row == 0
            else patch(Site(kind, n), clean[kind, n], pos=torch.tensor([0, pos]))
            for n in around
        ]
        noised = torch.tensor([run(noise, row) for noise in noises])
        restored = torch.tensor([run([*noise, *back], row) for noise in noises])
        assert cell["raw"] == pytest.approx(float(restored.mean()), abs=1e-5)
        assert cell["value"] == pytest.approx(float((restored - noised).mean()), abs=2e-5)
        assert cell["sd"] == pytest.approx(float((restored - noised).std()), abs=2e-5)
        assert cell["noised"] == pytest.approx(float(noised.mean()), abs=1e-5)
        assert cell["clean"] == pytest.approx(run([], row), abs=1e-5)
        assert cell["total"] == pytest.approx(cell["clean"] - cell["noised"], abs=1e-6)


def test_without_noise_there_is_no_effect(toy: BridgeModel) -> None:
    frame = traced(toy, facts(toy), noise=0.0)
    assert (frame[["value", "sd", "total"]].abs() < 1e-6).all(axis=None)


def test_restoring_all_of_a_layers_residual_recovers_everything(toy: BridgeModel) -> None:
    frame = traced(toy, facts(toy), by="layer")
    assert frame["total"].abs().min() > 1e-3
    assert frame["value"].to_numpy() == pytest.approx(frame["total"].to_numpy(), abs=1e-5)
    assert frame["layer"].tolist() == [0, 0, 1, 1]


def test_restoring_before_the_subject_changes_nothing(toy: BridgeModel) -> None:
    for kind in ("resid_post", "mlp_out", "attn_out"):
        frame = traced(toy, facts(toy), kind=kind)
        before = frame[frame["part"] == "before"]
        assert len(before) == 2 * (3 + 6)
        assert (before["value"].abs() < 1e-6).all()


def test_restoring_what_the_answer_is_read_from_recovers_everything(toy: BridgeModel) -> None:
    frame = traced(toy, facts(toy))
    end = frame[(frame["part"] == "last") & (frame["layer"] == 1)]
    assert len(end) == 2
    assert end["value"].to_numpy() == pytest.approx(end["total"].to_numpy(), abs=1e-5)


def test_parts_are_told_by_the_subject(toy: BridgeModel) -> None:
    frame = traced(toy, facts(toy), layers=[0])
    parts = frame.groupby("batch")["part"].apply(list)
    assert parts[0] == ["before"] * 3 + ["last subject", "last"]
    assert parts[1] == ["before"] * 6 + ["first subject", "last subject", "next", "last"]
    spelt = facts(toy, [1])
    middle = traced(toy, spelt, layers=[0], subject="key of Madrid")["part"].tolist()
    assert middle[4:9] == ["first subject", "middle subject", "last subject", "next", "further"]


def test_the_noise_is_as_large_as_asked_and_new_for_each(toy: BridgeModel) -> None:
    encoded = facts(toy)
    noises = _noises(toy, encoded, SPANS, 2.0, 400, 0)
    values = torch.stack([torch.cat([edit.value for edit in noise], 1) for noise in noises])
    assert values.shape == (400, 2, 2, 32)
    assert (values[:, 0, 1] == 0).all(), "the first subject has one token"
    used = torch.stack([values[:, 0, 0], values[:, 1, 0], values[:, 1, 1]])
    want = 2.0 * float(toy.weights.W_E.std())
    assert float(used.std()) == pytest.approx(want, rel=0.02)
    assert used.mean().abs() < 0.02 * want
    # no two draws, prompts or tokens share their noise
    flat = used.flatten(0, 1)
    assert len({tuple(row[:3].tolist()) for row in flat}) == len(flat)
    assert all(edit.positions(encoded.lengths) is not None for edit in noises[0])


def test_noise_is_measured_as_the_embedding_enters(gemma: BridgeModel) -> None:
    """Gemma multiplies its embeddings by the root of its width."""
    encoded = Task.from_pairs([{"clean": "t3 t4 t5", "answer": "t6"}]).encode(gemma)
    (noise,) = _noises(gemma, encoded, [[1]], 3.0, 1, 0)
    said = float(noise[0].source.split()[-1])
    assert said == pytest.approx(3 * 32**0.5 * float(gemma.weights.W_E.std()), rel=0.01)


@pytest.fixture(scope="module")
def gemma() -> BridgeModel:
    import families

    from probe.models.load import load_model

    return load_model(families.build("gemma2"), tokenizer=families.tokenizer())


def test_seeds_change_the_draws_and_more_draws_settle_the_mean(toy: BridgeModel) -> None:
    encoded = facts(toy, [0])
    how = {"layers": [1], "kind": "attn_out"}
    one, same, other = (traced(toy, encoded, **how, seed=s)["value"].tolist() for s in (0, 0, 1))
    assert one == same
    assert one[3:] != other[3:]
    assert traced(toy, encoded, **how, draws=1)["sd"].isna().all()


def test_a_prompt_is_traced_as_it_would_be_alone(toy: BridgeModel) -> None:
    together = traced(toy, facts(toy))
    alone = traced(toy, facts(toy, [1])).assign(batch=1)
    both = together.merge(alone, on=["batch", "layer", "pos", "token", "part"])
    assert len(both) == len(alone)
    assert both["raw_x"].to_numpy() == pytest.approx(both["raw_y"].to_numpy(), abs=1e-5)


def test_stopped_it_averages_over_the_draws_that_were_finished(toy: BridgeModel) -> None:
    """After the second of three draws of noise: what is left is two, and a warning."""
    encoded = facts(toy)
    calls: list[tuple[int, int]] = []

    def report(done: int, total: int, unit: str) -> bool:
        calls.append((done, total))
        return done < 2 * total / 3

    with listening(report), pytest.warns(ProbeWarning, match="over 2 of 3 draws of noise"):
        part = traced(toy, encoded, kind="attn_out", window=1)
    assert 3 * calls[-1][0] == 2 * calls[-1][1]
    whole = traced(toy, encoded, kind="attn_out", window=1)
    assert len(part) == len(whole)
    first = _noises(toy, encoded, SPANS, 3.0, 3, 0)[:2]
    alone = toy.sweep(encoded, first, "log_prob", base="clean").mean(0)
    at = part.groupby("batch")["noised"].first()
    assert at.to_numpy() == pytest.approx(alone.numpy(), abs=1e-5)


def test_stopped_in_the_first_draw_it_gives_the_finished_cells(
    toy: BridgeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = facts(toy)
    monkeypatch.setitem(replay._TOKENS_PER_CHUNK, "cpu", 20)  # several chunks of rows
    with listening(lambda *_: False), pytest.warns(ProbeWarning, match="over 1 of 20 draws"):
        part = traced(toy, encoded, draws=20)
    whole = traced(toy, encoded, draws=20)
    assert 0 < len(part) < len(whole)


@pytest.mark.parametrize(
    ("how", "error", "says"),
    [
        ({"subject": " Poland"}, TaskError, r"' Poland' does not stand in prompt 0: .*\|"),
        ({"subject": "{country}"}, TaskError, r"prompt 0 has no tag 'country'\nTry: .*subject"),
        ({"layers": [2]}, SiteError, "asks for layer 2"),
        ({"layers": []}, OptionError, "no layer is left to restore"),
    ],
)
def test_what_cannot_be_traced_is_refused(
    toy: BridgeModel, how: dict, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        traced(toy, facts(toy), **how)


@pytest.mark.parametrize("by", ["part", "position", "layer"])
def test_columns_are_described_and_the_view_can_be_drawn(toy: BridgeModel, by: str) -> None:
    found = METHODS.get("causal_tracing")
    frame = traced(toy, facts(toy), by=by)
    view = found.view_for(found.parse({"subject": "x", "by": by}))
    assert {*view.axes, view.number} <= set(found.columns_of(frame))


def test_only_the_parts_asked_for_are_traced(toy: BridgeModel) -> None:
    encoded = facts(toy)
    every, some = traced(toy, encoded), traced(toy, encoded, parts=["last subject", "last"])
    same = every[every["part"].isin(["last subject", "last"])].reset_index(drop=True)
    pd.testing.assert_frame_equal(same, some, atol=1e-6)


def test_parts_have_no_meaning_where_all_positions_are_restored(toy: BridgeModel) -> None:
    with pytest.raises(OptionError, match="all positions are restored at once"):
        traced(toy, facts(toy), by="layer", parts=["last"])


def test_parts_that_no_prompt_has_are_refused(toy: BridgeModel) -> None:
    with pytest.raises(OptionError, match="no prompt has a position that is one of them"):
        traced(toy, facts(toy, [0]), parts=["first subject", "middle subject"])
