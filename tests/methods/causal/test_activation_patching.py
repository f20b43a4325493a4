"""Activation patching: TransformerLens gives the same numbers, and identities hold."""

import sys

import pandas as pd
import pytest
import torch
from torch import Tensor

from probe.core.edit import patch
from probe.core.errors import OptionError, SiteError, TaskError
from probe.core.progress import listening
from probe.core.registry import METHODS
from probe.core.task import Encoded, Task
from probe.methods.causal.activation_patching import activation_patching
from probe.methods.causal.attribution_patching import attribution_patching
from probe.models.bridge import BridgeModel

pytestmark = pytest.mark.slow  # a minute or so: left to make test

PAIRS = [
    (" Mary and John went to the store", " Mary and Tom went to the store"),
    (" Anna and Bill went to the park", " Anna and Paul went to the park"),
    (" Kate and Mark had fun", " Kate and Jane had fun"),
]


def pairs(model: BridgeModel, rows: tuple[int, ...] = (0, 1, 2)) -> Encoded:
    return Task.from_pairs(
        [
            {"clean": PAIRS[i][0], "corrupted": PAIRS[i][1], "answer": " Mary",
             "wrong_answer": " John"}
            for i in rows
        ]
    ).encode(model)  # fmt: skip


def grid(frame: pd.DataFrame, number: str = "value") -> Tensor:
    """[layer, x, batch] from the table."""
    axes = [a for a in ("layer", "head", "pos", "neuron") if a in frame]
    table = frame.pivot_table(index=axes, columns="batch", values=number)
    shape = [frame[a].nunique() for a in axes]
    return torch.tensor(table.to_numpy()).reshape(*shape, -1).float()


@pytest.mark.parametrize("model_name", ["toy", "toy_mha"])
@pytest.mark.parametrize(
    ("kind", "theirs"),
    [
        ("resid_pre", "get_act_patch_resid_pre"),
        ("attn_out", "get_act_patch_attn_out"),
        ("mlp_out", "get_act_patch_mlp_out"),
        ("z", "get_act_patch_attn_head_out_all_pos"),
        ("q", "get_act_patch_attn_head_q_all_pos"),
        ("pattern", "get_act_patch_attn_head_pattern_all_pos"),
    ],
)
def test_transformer_lens_gives_the_same(
    request: pytest.FixtureRequest, model_name: str, kind: str, theirs: str
) -> None:
    from transformer_lens import patching

    model: BridgeModel = request.getfixturevalue(model_name)
    encoded = pairs(model, (0, 1))

    def metric(logits: Tensor) -> Tensor:
        read = logits[:, -1].gather(1, torch.stack([encoded.answers, encoded.wrong_answers], 1))
        return (read[:, 0] - read[:, 1]).mean()

    bridge = model.bridge
    with torch.no_grad():
        _, cache = bridge.run_with_cache(encoded.clean)
        want = getattr(patching, theirs)(bridge, encoded.corrupted, cache, metric)
    frame = activation_patching(model, encoded, kind=kind)
    torch.testing.assert_close(grid(frame, "raw").mean(-1), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("direction", ["denoise", "noise"])
@pytest.mark.parametrize("kind", ["resid_pre", "resid_post"])
def test_a_layers_whole_residual_carries_everything(
    toy: BridgeModel, kind: str, direction: str
) -> None:
    encoded = pairs(toy)
    frame = activation_patching(toy, encoded, kind=kind, by="layer", direction=direction)
    there = frame["clean"] if direction == "denoise" else frame["corrupted"]
    assert frame["raw"].to_numpy() == pytest.approx(there.to_numpy(), abs=1e-5)
    means = frame.groupby("layer")["value"].mean()
    assert means.to_numpy() == pytest.approx(1.0 if direction == "denoise" else 0.0, abs=1e-5)


def test_the_embedding_is_swept_by_position(toy: BridgeModel) -> None:
    """Rotary positions are not added to it, so it is the first residual stream."""
    encoded = pairs(toy)
    cells = activation_patching(toy, encoded, kind="embed")
    first = activation_patching(toy, encoded, kind="resid_pre", layers=[0])
    close = {"rtol": 1e-5, "atol": 1e-5, "equal_nan": True}  # ragged: no cell past an end
    torch.testing.assert_close(grid(cells, "raw"), grid(first, "raw"), **close)
    whole = activation_patching(toy, encoded, kind="embed", by="layer")
    assert whole["raw"].to_numpy() == pytest.approx(whole["clean"].to_numpy(), abs=1e-5)
    estimate = attribution_patching(toy, encoded, kind="embed")
    same = attribution_patching(toy, encoded, kind="resid_pre", layers=[0])
    torch.testing.assert_close(grid(estimate), grid(same), **close)


def test_before_the_first_difference_nothing_moves(toy: BridgeModel) -> None:
    encoded = pairs(toy)
    assert encoded.first_difference is not None
    frame = activation_patching(toy, encoded, kind="resid_post")
    first = frame["batch"].map(dict(enumerate(encoded.first_difference.tolist())))
    before = frame[frame["pos"] < first]
    assert len(before) and (before["value"] == 0).all()
    assert (before["raw"] == before["corrupted"]).all()
    at_last = frame[
        (frame["layer"] == 1) & (frame["pos"] == frame["batch"].map({0: 6, 1: 6, 2: 4}))
    ]
    assert at_last["raw"].to_numpy() == pytest.approx(at_last["clean"].to_numpy(), abs=1e-5)


def test_numbers_are_normalised_by_the_mean_gap(toy: BridgeModel) -> None:
    frame = activation_patching(toy, pairs(toy), kind="z")
    one = frame.drop_duplicates("batch")
    gap = (one["clean"] - one["corrupted"]).mean()
    want = (frame["raw"] - frame["corrupted"]) / gap
    assert frame["value"].to_numpy() == pytest.approx(want.to_numpy(), abs=1e-6)


def test_prompts_of_other_lengths_are_patched_as_they_would_be_alone(toy: BridgeModel) -> None:
    together = activation_patching(toy, pairs(toy), kind="mlp_out")
    for row in range(3):
        alone = activation_patching(toy, pairs(toy, (row,)), kind="mlp_out")
        part = together[together["batch"] == row].reset_index(drop=True)
        assert part["token"].tolist() == alone["token"].tolist()
        assert part["raw"].to_numpy() == pytest.approx(alone["raw"].to_numpy(), abs=1e-5)


def test_a_direction_and_what_is_across_it_add_up(toy: BridgeModel) -> None:
    """Along every axis at once is the whole patch; along one, only its own component moves."""
    encoded, along = pairs(toy), torch.linspace(-1, 2, 32)
    clean = toy.trace(encoded, "resid_pre.1")["resid_pre", 1]
    corrupted = toy.trace(encoded, "resid_pre.1", corrupted=True)["resid_pre", 1]
    unit = along / along.norm()
    value = corrupted + ((clean - corrupted) @ unit)[..., None] * unit
    want = toy.sweep(encoded, [[patch("resid_pre.1", value)]])[0]
    how = {"kind": "resid_pre", "by": "layer", "layers": [1]}
    frame = activation_patching(toy, encoded, **how, along=along.tolist())
    assert frame["raw"].to_numpy() == pytest.approx(want.numpy(), abs=1e-5)
    twice = activation_patching(toy, encoded, **how, along=(-3 * along).tolist())
    assert twice["raw"].to_numpy() == pytest.approx(want.numpy(), abs=1e-5)


def test_chosen_cells_are_those_of_the_whole_sweep(toy: BridgeModel) -> None:
    encoded = pairs(toy)
    whole = activation_patching(toy, encoded, kind="z", by="head_position")
    part = activation_patching(
        toy, encoded, kind="z", by="head_position", layers=[1], heads=[0, 3], positions=[2, 4]
    )
    key = ["batch", "layer", "head", "pos"]
    both = part.merge(whole, on=key, suffixes=("", "_whole"))
    assert len(both) == len(part) == 3 * 2 * 2
    assert both["value"].to_numpy() == pytest.approx(both["value_whole"].to_numpy(), abs=1e-6)


def test_grouped_query_keys_are_swept_by_their_own_heads(toy: BridgeModel) -> None:
    frame = activation_patching(toy, pairs(toy), kind="k")
    assert sorted(frame["head"].unique()) == [0, 1]


def test_neurons_are_patched_one_by_one(toy: BridgeModel) -> None:
    encoded = pairs(toy)
    frame = activation_patching(toy, encoded, kind="mlp_post", by="neuron", layers=[0], neurons=[7])
    source = toy.trace(encoded, "mlp_post.0")["mlp_post", 0]
    want = toy.forward(
        encoded.corrupted, [patch("mlp_post.0", source, d_mlp=7)], lengths=encoded.lengths,
        last_only=True,
    )  # fmt: skip
    want = want[range(3), encoded.answers] - want[range(3), encoded.wrong_answers]
    assert frame["raw"].to_numpy() == pytest.approx(want.numpy(), abs=1e-5)


def test_stopped_it_gives_the_finished_cells(toy: BridgeModel) -> None:
    encoded = pairs(toy)
    toy_chunks = []

    def stop(done: int, total: int, unit: str) -> bool:
        toy_chunks.append((done, total))
        return False

    whole = activation_patching(toy, encoded, kind="z")
    with listening(stop):
        part = activation_patching(toy, encoded, kind="z")
    assert len(part) == toy_chunks[0][0] <= len(whole)
    both = part.merge(whole, on=["batch", "layer", "head"])
    assert both["value_x"].to_numpy() == pytest.approx(both["value_y"].to_numpy(), abs=1e-6)


@pytest.mark.parametrize(
    ("how", "error", "says"),
    [
        ({"kind": "mlp_out", "by": "head"}, OptionError, "mlp_out has no heads to sweep"),
        ({"kind": "z", "by": "neuron"}, OptionError, "z has no neurons"),
        ({"kind": "resid"}, OptionError, 'no site kind "resid"\nTry: did you mean "resid_pre"'),
        ({"kind": "z", "heads": [4]}, OptionError, "head 4 is out of range\nExpected: 0 to 3"),
        ({"layers": [2]}, SiteError, "asks for layer 2"),
        ({"layers": []}, OptionError, "no cell is left to patch"),
        ({"along": [1.0, 2.0]}, OptionError, "the direction has 2 entries .*\nExpected: 32"),
        ({"metric": "logit_dif"}, OptionError, 'did you mean "logit_diff"'),
    ],
)
def test_what_cannot_be_swept_is_refused(
    toy: BridgeModel, how: dict, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        activation_patching(toy, pairs(toy), **how)


def test_prompts_with_one_metric_are_refused(
    toy: BridgeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = sys.modules[activation_patching.__module__]
    monkeypatch.setattr(module, "baselines", lambda *_: (torch.ones(3), torch.ones(3)))
    with pytest.raises(
        TaskError, match="logit_diff is 1 on the clean and on the corrupted prompts"
    ):
        activation_patching(toy, pairs(toy))


@pytest.mark.parametrize("by", ["layer", "position", "head", "head_position"])
def test_columns_are_described_and_the_view_can_be_drawn(toy: BridgeModel, by: str) -> None:
    found = METHODS.get("activation_patching")
    frame = activation_patching(toy, pairs(toy), kind="z", by=by)
    view = found.view_for(found.parse({"kind": "z", "by": by}))
    assert set(view.axes) <= set(found.columns_of(frame))
