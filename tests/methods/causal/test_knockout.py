"""Knockout: attention is gone where it was cut, and nowhere else."""

from typing import Any

import pytest
import torch
from torch import Tensor

from probe.core.edit import Edit
from probe.core.errors import OptionError, SiteError, TaskError
from probe.core.registry import METHODS
from probe.core.site import Site
from probe.core.task import Encoded, Task
from probe.methods.causal.knockout import _Edits, _pairs, knockout
from probe.methods.spans import in_turn, positions_of
from probe.models.bridge import BridgeModel
from probe.models.handbuilt import LAYOUTS, induction_model
from probe.models.load import load_model

pytestmark = pytest.mark.slow  # a minute or so: left to make test

CLEAN = [" The capital of France is in", " Tom said that the key of Madrid Spain is"]
TAGS = [" France", " Madrid Spain"]


def facts(model: BridgeModel, rows: tuple[int, ...] = (0, 1)) -> Encoded:
    return Task.from_pairs(
        [
            {"clean": CLEAN[i], "answer": " Paris", "wrong_answer": " Rome",
             "tags": {"where": TAGS[i]}}
            for i in rows
        ]
    ).encode(model)  # fmt: skip


def edits_of(encoded: Encoded, queries: Any, keys: Any, cut: str, layers: list[int]) -> list[Edit]:
    spans = positions_of(encoded, queries)
    made = _Edits(_pairs(encoded, spans, positions_of(encoded, keys)), in_turn(spans), cut)
    return [edit for layer in layers for edit in made(layer, None)]


@pytest.mark.parametrize("name", ["toy", "toy_mha"])
def test_what_is_cut_is_gone_and_the_rest_is_as_it_was(
    request: pytest.FixtureRequest, name: str
) -> None:
    model: BridgeModel = request.getfixturevalue(name)
    encoded = facts(model)
    clean = model.trace(encoded, "pattern.0")["pattern", 0]
    for row, (queries, keys) in enumerate([([4, 5], [3]), ([8, 7], [6, 7])]):
        alone = encoded.rows([row])
        for cut in ("scores", "pattern"):
            edits = edits_of(alone, queries, "{where}", cut, [0])
            new = model.trace(alone, "pattern.0", edits=edits)["pattern", 0]
            old = clean[row : row + 1, :, : new.shape[2], : new.shape[3]].clone()
            pairs = torch.zeros_like(new, dtype=torch.bool)
            for query in queries:
                pairs[:, :, query, keys] = True
            assert (new[pairs] == 0).all()
            old[pairs] = 0.0
            if cut == "scores":  # what is left is as it was, made to sum to one
                old = old / old.sum(-1, keepdim=True)
            torch.testing.assert_close(new, old, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("cut", ["scores", "pattern"])
@pytest.mark.parametrize(("window", "around"), [(1, [1]), (2, [0, 1]), (5, [0, 1])])
def test_cells_are_plain_forward_passes(
    toy: BridgeModel, cut: str, window: int, around: list[int]
) -> None:
    encoded = facts(toy)
    frame = knockout(toy, encoded, queries=[-1, -2], keys="{where}", cut=cut, window=window)
    edits = edits_of(encoded, [-1, -2], "{where}", cut, around)
    want = difference(toy, encoded, edits)
    last = frame[frame["layer"] == 1]
    assert last["raw"].to_numpy() == pytest.approx(want.numpy(), abs=1e-5)
    assert last["clean"].to_numpy() == pytest.approx(difference(toy, encoded, []).numpy(), abs=1e-5)
    assert frame["value"].to_numpy() == pytest.approx((frame["raw"] - frame["clean"]).to_numpy())


def difference(model: BridgeModel, encoded: Encoded, edits: list[Edit]) -> Tensor:
    logits = model.forward(encoded.clean, edits, lengths=encoded.lengths, quiet=True)
    rows = torch.arange(len(encoded))
    last = logits[rows, encoded.last]
    return last[rows, encoded.answers] - last[rows, encoded.wrong_answers]


def test_heads_are_cut_one_by_one(toy: BridgeModel) -> None:
    encoded = facts(toy)
    frame = knockout(toy, encoded, keys="{where}", by="head", layers=[0], heads=[3, 1])
    assert frame["head"].tolist() == [3, 3, 1, 1]
    for head in (1, 3):
        edits = [
            Edit(edit.site, edit.rule, edit.value, {**edit.where, "head": head})
            for edit in edits_of(encoded, [-1], "{where}", "scores", [0])
        ]
        ours = frame[frame["head"] == head]["raw"].to_numpy()
        assert ours == pytest.approx(difference(toy, encoded, edits).numpy(), abs=1e-5)


def test_attention_that_was_not_there_is_no_loss(toy: BridgeModel) -> None:
    """Keys after their queries were never seen; beside one that was, they change nothing."""
    encoded = facts(toy, (0,))
    one = knockout(toy, encoded, queries=[4], keys=[3])
    more = knockout(toy, encoded, queries=[4], keys=[3, 5])
    assert one["raw"].to_numpy() == pytest.approx(more["raw"].to_numpy(), abs=1e-6)


def test_attended_is_the_probability_that_was_cut(toy: BridgeModel) -> None:
    encoded = facts(toy)
    pattern = toy.trace(encoded, "pattern")
    frame = knockout(toy, encoded, queries=[-1, -2], keys="{where}", by="head", window=2)
    for cell in frame.to_dict("records"):
        row, head = cell["batch"], cell["head"]
        around = [0, 1] if cell["layer"] == 1 else [0]
        queries = [int(encoded.lengths[row]) - 1, int(encoded.lengths[row]) - 2]
        keys = [[3], [6, 7]][row]
        mass = [
            sum(float(pattern["pattern", n][row, head, q, k]) for k in keys)
            for n in around
            for q in queries
        ]
        assert cell["attended"] == pytest.approx(sum(mass) / len(mass), abs=1e-6)
    whole = knockout(toy, encoded, queries=[-1, -2], keys="{where}", window=2)
    by_head = frame.groupby(["layer", "batch"])["attended"].mean()
    assert whole["attended"].to_numpy() == pytest.approx(by_head.to_numpy(), abs=1e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_it_finds_the_path_of_a_circuit_written_by_hand(layout: str) -> None:
    """w5 w6 ... w5 → w6: the last position reads from the one after the earlier w5."""
    built = induction_model(layout)
    model = load_model(built.hf, tokenizer=built.tokenizer)
    task = Task.from_pairs([{"clean": "w9 w5 w6 w7 w8 w5", "answer": "w6", "wrong_answer": "w7"}])
    encoded = task.encode(model)
    layer, head = built.heads["induction"]
    frame = knockout(model, encoded, keys=[2], by="head", metric="log_prob").set_index(
        ["layer", "head"]
    )
    assert frame["value"].idxmin() == (layer, head)
    others = frame.drop((layer, head))
    assert frame.loc[(layer, head), "value"] < -1
    assert others["value"].abs().max() < 0.05
    assert frame.loc[(layer, head), "attended"] > 0.99
    # ... and there the token before has been copied, by the previous-token head
    copied = knockout(model, encoded, queries=[2], keys=[1], by="head", metric="log_prob")
    assert copied.set_index(["layer", "head"])["value"].idxmin() == built.heads["previous"]
    far = knockout(model, encoded, keys=[4], metric="log_prob")
    assert far["value"].abs().max() < 0.05


@pytest.mark.parametrize(
    ("how", "error", "says"),
    [
        ({"keys": [0, 1], "queries": [1]}, OptionError,
         'position 1 of prompt 0 would attend to nothing in layer 0\n.*\nTry: cut="pattern"'),
        ({"keys": [5], "queries": [2]}, OptionError, "come before .*, in all prompts"),
        ({"keys": "{country}"}, TaskError, "no tag 'country'"),
        ({"keys": [11]}, OptionError, r"positions \[11\] of prompt 0"),
        ({"keys": [1], "layers": [2]}, SiteError, "asks for layer 2"),
        ({"keys": [1], "by": "head", "heads": [4]}, OptionError, "heads from 0 to 3"),
        ({"keys": [1], "layers": []}, OptionError, "at least one layer"),
        ({"keys": [1], "heads": [0]}, OptionError, 'by="layer"\nTry: by="head"'),
    ],
)  # fmt: skip
def test_what_cannot_be_cut_is_refused(
    toy: BridgeModel, how: dict, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        knockout(toy, facts(toy), **how)


def test_everything_may_be_cut_after_the_softmax(toy: BridgeModel) -> None:
    encoded = facts(toy, (0,))
    frame = knockout(toy, encoded, queries=[5], keys=[0, 1, 2, 3, 4, 5], cut="pattern")
    want = [
        float(difference(toy, encoded, [Edit(Site("z", n), "scale", 0.0, {"pos": 5})]))
        for n in range(2)
    ]
    assert frame["raw"].tolist() == pytest.approx(want, abs=1e-5)
    assert frame["attended"].tolist() == pytest.approx([1.0, 1.0], abs=1e-5)


@pytest.mark.parametrize("by", ["layer", "head"])
def test_columns_are_described_and_the_view_can_be_drawn(toy: BridgeModel, by: str) -> None:
    found = METHODS.get("knockout")
    frame = knockout(toy, facts(toy), keys="{where}", by=by)
    view = found.view_for(found.parse({"keys": [1], "by": by}))
    assert {*view.axes, view.number} <= set(found.columns_of(frame))
