"""Ablation: what is drawn from is right, cells are plain forward passes, nothing leaks in."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor

from probe.core.edit import ablate, patch
from probe.core.errors import OptionError, TaskError
from probe.core.progress import listening
from probe.core.registry import METHODS
from probe.core.site import Site
from probe.core.task import Encoded, Task
from probe.methods.causal.ablation import _mean_of_others, _one_other, ablation
from probe.models.bridge import BridgeModel

pytestmark = pytest.mark.slow  # a minute or so: left to make test

EQUAL = [" Mary and John went to", " Anna and Bill said that", " the dog had fun at"]
RAGGED = [*EQUAL, " The capital of France is in", " Tom said"]


def prompts(model: BridgeModel, texts: Sequence[str] = RAGGED) -> Encoded:
    return Task.from_pairs(
        [{"clean": text, "answer": " Mary", "wrong_answer": " John"} for text in texts]
    ).encode(model)


def logit_diffs(model: BridgeModel, encoded: Encoded, edits: Sequence[Any]) -> Tensor:
    logits = model.forward(encoded.clean, edits, lengths=encoded.lengths, quiet=True)
    rows = torch.arange(len(encoded))
    last = logits[rows, encoded.last]
    return last[rows, encoded.answers] - last[rows, encoded.wrong_answers]


def number(frame: pd.DataFrame, name: str = "raw", **where: Any) -> Tensor:
    for column, value in where.items():
        frame = frame[frame[column] == value]
    return torch.tensor(frame.sort_values("batch")[name].to_numpy()).float()


@pytest.mark.parametrize("kind", ["z", "mlp_out", "pattern", "mlp_post", "v"])
@pytest.mark.parametrize("name", ["toy", "toy_mha"])
def test_on_equal_lengths_it_is_the_models_own_ablate(
    request: pytest.FixtureRequest, name: str, kind: str
) -> None:
    """An oracle of its own: Edit's constructor, one forward pass each."""
    model: BridgeModel = request.getfixturevalue(name)
    encoded = prompts(model, EQUAL)
    frame = ablation(model, encoded, kind=kind, by="layer", seed=3)
    there = model.trace(encoded, kind)
    for layer in range(2):
        for how in ("zero", "mean", "resample"):
            edit = ablate(Site(kind, layer), how, there[kind, layer], seed=3)
            want = logit_diffs(model, encoded, [edit])
            ours = number(frame, layer=layer, ablation=how)
            torch.testing.assert_close(ours, want, rtol=1e-5, atol=1e-5)


def test_cells_are_parts_of_the_layer(toy: BridgeModel) -> None:
    encoded = prompts(toy)
    z = toy.trace(encoded, "z")
    drawn = _mean_of_others(z["z", 1], encoded.lengths)
    heads = ablation(toy, encoded, kind="z", ablations=["mean"])
    for head in range(4):
        want = logit_diffs(toy, encoded, [patch(Site("z", 1, head), drawn)])
        ours = number(heads, layer=1, head=head)
        torch.testing.assert_close(ours, want, rtol=1e-5, atol=1e-5)
    places = ablation(toy, encoded, kind="z", by="position", ablations=["mean"])
    want = logit_diffs(toy, encoded, [patch("z.0", drawn, pos=1)])
    there = _mean_of_others(z["z", 0], encoded.lengths)
    want = logit_diffs(toy, encoded, [patch("z.0", there, pos=1)])
    torch.testing.assert_close(number(places, layer=0, pos=1), want, rtol=1e-5, atol=1e-5)
    neurons = ablation(
        toy, encoded, kind="mlp_post", by="neuron", layers=[1], neurons=[5], ablations=["zero"]
    )
    want = logit_diffs(toy, encoded, [ablate("mlp_post.1", d_mlp=5)])
    torch.testing.assert_close(number(neurons), want, rtol=1e-5, atol=1e-5)


def test_positions_past_a_prompts_end_have_no_row(toy: BridgeModel) -> None:
    encoded = prompts(toy)
    frame = ablation(toy, encoded, kind="attn_out", ablations=["resample"], layers=[0])
    assert frame.groupby("batch")["pos"].max().tolist() == encoded.last.tolist()
    assert frame["token"].tolist()[:2] == [" Mary", " Anna"]


def test_value_and_share_are_of_the_clean_metric(toy: BridgeModel) -> None:
    frame = ablation(toy, prompts(toy))
    clean = frame.drop_duplicates("batch")["clean"]
    assert frame["value"].to_numpy() == pytest.approx((frame["raw"] - frame["clean"]).to_numpy())
    assert frame["share"].to_numpy() == pytest.approx((frame["raw"] / clean.mean()).to_numpy())
    drawn = frame.drop_duplicates("ablation").set_index("ablation")["drawn_from"].to_dict()
    assert drawn == {"zero": 0, "mean": 4, "resample": 1}


# --- what is drawn -------------------------------------------------------------------------------


def test_the_mean_is_over_the_others_that_have_the_position() -> None:
    generator = torch.Generator().manual_seed(0)
    value = torch.randn(4, 5, 2, 3, generator=generator)
    lengths = torch.tensor([5, 2, 4, 4])
    ours = _mean_of_others(value, lengths)
    for row in range(4):
        for pos in range(int(lengths[row])):
            have = [o for o in range(4) if o != row and lengths[o] > pos]
            every = [value[o, p] for o in range(4) if o != row for p in range(int(lengths[o]))]
            want = value[have, pos].mean(0) if have else torch.stack(every).mean(0)
            torch.testing.assert_close(ours[row, pos], want)


def test_the_mean_ignores_padding_and_the_prompt_itself() -> None:
    value, lengths = torch.ones(3, 4, 2), torch.tensor([4, 2, 3])
    value[1, 2:] = torch.nan
    value[2, 3:] = torch.inf
    assert _mean_of_others(value, lengths).isfinite().all()
    before = _mean_of_others(value, lengths)[0].clone()
    value[0] = 1e6
    assert torch.equal(_mean_of_others(value, lengths)[0], before)


def test_a_resampled_prompt_is_another_and_its_tokens_are_real() -> None:
    n, width = 6, 4
    value = torch.arange(n).view(n, 1, 1) * 10.0 + torch.arange(width).view(1, width, 1)
    lengths = torch.tensor([4, 2, 3, 4, 1, 4])
    drawn_rows = set()
    for seed in range(30):
        drawn = _one_other(value, lengths, seed)[..., 0]
        other = (drawn // 10).long()
        assert (other == other[:, :1]).all(), "one prompt for all positions"
        assert (other[:, 0] != torch.arange(n)).all()
        pos = drawn % 10
        assert torch.equal(pos, torch.minimum(torch.arange(width), lengths[other] - 1).float())
        drawn_rows |= {(i, int(o)) for i, o in enumerate(other[:, 0])}
    assert len(drawn_rows) == n * (n - 1), "every other prompt is drawn sooner or later"
    assert torch.equal(_one_other(value, lengths, 4), _one_other(value, lengths, 4))


def test_prompts_that_are_all_alike_lose_nothing_to_the_mean(toy: BridgeModel) -> None:
    encoded = prompts(toy, EQUAL[:1] * 4)
    frame = ablation(toy, encoded, ablations=["mean", "resample"])
    assert frame["value"].abs().max() < 1e-5
    assert frame["share"].to_numpy() == pytest.approx(1.0, abs=1e-5)


def test_zero_needs_no_other_prompt_but_the_others_do(toy: BridgeModel) -> None:
    alone = prompts(toy, EQUAL[:1])
    assert len(ablation(toy, alone, ablations=["zero"])) == 8
    with pytest.raises(TaskError, match=r"mean and resample .*single prompt\nExpected: at least 2"):
        ablation(toy, alone)


def test_stopped_it_gives_the_finished_cells(toy: BridgeModel) -> None:
    encoded = prompts(toy)
    with listening(lambda *_: False):
        part = ablation(toy, encoded, kind="mlp_post", by="neuron")
    assert 0 < len(part) < 3 * 2 * 48 * 5
    assert part["value"].notna().all()


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"kind": "mlp_out", "by": "head"}, "mlp_out has no heads to sweep"),
        ({"kind": "zz"}, 'there is no site kind "zz"'),
        ({"layers": []}, "no cell is left to ablate"),
    ],
)
def test_what_cannot_be_swept_is_refused(toy: BridgeModel, how: dict, says: str) -> None:
    with pytest.raises(OptionError, match=says):
        ablation(toy, prompts(toy), **how)


def test_options_are_checked() -> None:
    found = METHODS.get("ablation")
    with pytest.raises(OptionError, match="ablations"):
        found.parse({"ablations": []})
    with pytest.raises(OptionError, match="'zero', 'mean' or 'resample'"):
        found.parse({"ablations": ["median"]})


@pytest.mark.parametrize("by", ["layer", "position", "head"])
def test_columns_are_described_and_kinds_are_kept_apart(toy: BridgeModel, by: str) -> None:
    found = METHODS.get("ablation")
    frame = ablation(toy, prompts(toy), by=by)
    view = found.view_for(found.parse({"by": by}))
    assert {*view.axes, view.number} <= set(found.columns_of(frame))
    assert "ablation" in view.axes
