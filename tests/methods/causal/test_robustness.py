"""Robustness: shares are counts, effects start where the run began, subsets are honest."""

from typing import Any

import pandas as pd
import pytest

import probe.api
from probe.core.errors import OptionError, TaskError
from probe.core.registry import METHODS
from probe.core.task import Encoded, Task
from probe.methods.causal.robustness import _effect, _shares, robustness
from probe.models.bridge import BridgeModel

pytestmark = pytest.mark.slow  # a minute of small models

NAMES = ["John", "Tom", "Anna", "Bill", "Kate", "Mark"]
OTHERS = ["Rose", "Jane", "Paul", "Rose", "Paul", "Jane"]


@pytest.fixture(autouse=True)
def every_method_is_known() -> None:
    assert "ablation" in probe.api.methods()


def pairs(model: BridgeModel) -> Encoded:
    return Task.from_pairs(
        [
            {"clean": f" Mary and {name} went to the store", "answer": " Mary",
             "corrupted": f" Mary and {other} went to the store", "wrong_answer": f" {name}",
             "tags": {"template": str(i // 4)}}
            for i, (name, other) in enumerate(zip(NAMES, OTHERS, strict=True))
        ]
    ).encode(model)  # fmt: skip


def shares(model: BridgeModel, **how: Any) -> pd.DataFrame:
    defaults: dict[str, Any] = {"metrics": None, "seeds": 0, "k": 2, "options": {"kind": "z"}}
    return robustness(model, pairs(model), **{**defaults, **how})


def of(frame: pd.DataFrame, varied: str) -> pd.DataFrame:
    return frame[frame["varied"] == varied].set_index(["layer", "head"])


def test_shares_are_counts_of_the_strongest() -> None:
    runs = [pd.Series({(0, 0): 3.0, (0, 1): -2.0, (1, 0): 0.5, (1, 1): 0.1})]
    runs += [pd.Series({(0, 0): 0.1, (0, 1): -9.0, (1, 0): 4.5, (1, 1): -0.3})]
    for run in runs:
        run.index.names = ["layer", "head"]
    frame = _shares("metric", runs, k=2)
    assert frame["cell"].tolist() == [
        "layer 0 head 1", "layer 0 head 0", "layer 1 head 0", "layer 1 head 1",
    ]  # fmt: skip
    assert frame["value"].tolist() == [1.0, 0.5, 0.5, 0.0]
    assert frame["effect"].tolist() == pytest.approx(
        [(-2 / 3 - 1) / 2, (1 + 0.1 / 9) / 2, (0.5 / 3 + 0.5) / 2, (0.1 / 3 - 0.3 / 9) / 2]
    )
    assert (frame["n"] == 2).all() and (frame["k"] == 2).all()


def test_a_cell_that_a_run_does_not_have_is_not_among_its_strongest() -> None:
    runs = [pd.Series([1.0, 2.0], pd.Index([0, 1], name="pos"))]
    runs += [pd.Series([5.0], pd.Index([0], name="pos"))]
    frame = _shares("template", runs, k=1).set_index("pos")
    assert frame["value"].to_dict() == {0: 0.5, 1: 0.5}


def test_each_variant_is_the_method_itself(toy: BridgeModel) -> None:
    metrics = ["logit_diff", "log_prob", "prob"]
    frame = of(shares(toy, metrics=metrics, k=3), "metric")
    tops = []
    for metric in metrics:
        own = METHODS.get("activation_patching").function(
            toy, pairs(toy), kind="z", by="head", metric=metric
        )
        size = own.groupby(["layer", "head"])["value"].mean().abs()
        tops.append(set(size.nlargest(3).index))
    want = {cell: sum(cell in top for top in tops) / 3 for cell in frame.index}
    assert frame["value"].to_dict() == pytest.approx(want)
    assert (frame["n"] == 3).all()
    assert frame["value"].sum() == pytest.approx(3)


def test_noising_begins_at_the_clean_run(toy: BridgeModel) -> None:
    """There a cell that does nothing has value 1: it must not come out on top."""
    own = METHODS.get("activation_patching").function(
        toy, pairs(toy), kind="z", by="head", direction="noise"
    )
    effect = (own["raw"] - own["clean"]).groupby([own["layer"], own["head"]]).mean().abs()
    frame = of(shares(toy, directions=["noise", "noise"], k=3), "direction")
    assert set(frame[frame["value"] == 1].index) == set(effect.nlargest(3).index)
    both = of(shares(toy, directions=["denoise", "noise"], k=3), "direction")
    assert set(both["n"]) == {2}


def test_effects_are_from_where_the_run_began() -> None:
    frame = pd.DataFrame({"value": [9.0], "raw": [5.0], "clean": [4.0], "corrupted": [1.0]})
    assert _effect(frame, {"direction": "denoise"}, "value").tolist() == [4.0]
    assert _effect(frame, {}, "value").tolist() == [4.0]
    assert _effect(frame, {"direction": "noise"}, "value").tolist() == [1.0]
    assert _effect(frame.drop(columns="corrupted"), {}, "value").tolist() == [1.0]
    traced = frame.drop(columns="corrupted").assign(noised=3.0)
    assert _effect(traced, {}, "value").tolist() == [2.0]
    assert _effect(frame[["value"]], {}, "value").tolist() == [9.0]


def test_kinds_of_ablation_are_tried_one_by_one(toy: BridgeModel) -> None:
    kinds = ["zero", "mean", "resample"]
    frame = of(shares(toy, sweep="ablation", ablations=kinds, k=1, options={}), "ablations")
    own = METHODS.get("ablation").function(toy, pairs(toy))
    means = own.groupby(["ablation", "layer", "head"])["value"].mean().abs()
    best = [means[kind].idxmax() for kind in kinds]
    assert frame["value"].to_dict() == pytest.approx(
        {cell: best.count(cell) / 3 for cell in frame.index}
    )


def test_templates_divide_the_prompts(toy: BridgeModel) -> None:
    frame = of(shares(toy, template="template", k=1), "template")
    tops = []
    for rows in ([0, 1, 2, 3], [4, 5]):
        own = METHODS.get("activation_patching").function(
            toy, pairs(toy).rows(rows), kind="z", by="head"
        )
        tops.append(own.groupby(["layer", "head"])["value"].mean().abs().idxmax())
    assert frame["value"].to_dict() == {c: tops.count(c) / 2 for c in frame.index}


def test_halves_are_random_and_repeatable(toy: BridgeModel) -> None:
    one = shares(toy, seeds=3)
    pd.testing.assert_frame_equal(one, shares(toy, seeds=3))
    other = shares(toy, seeds=3, seed=1)
    assert of(one, "seed")["effect"].sort_index().tolist() != of(other, "seed")[
        "effect"
    ].sort_index().tolist()  # fmt: skip
    assert set(of(one, "seed")["n"]) == {3}


def test_all_counts_every_run_once(toy: BridgeModel) -> None:
    frame = shares(toy, metrics=["logit_diff", "prob"], seeds=3)
    parts = [of(frame, name) for name in ("metric", "seed")]
    together = sum(part["value"] * part["n"] for part in parts) / 5
    assert of(frame, "all")["value"].sort_index().to_numpy() == pytest.approx(
        together.sort_index().to_numpy()
    )
    assert set(of(frame, "all")["n"]) == {5}


@pytest.mark.parametrize(
    ("sweep", "options", "axes"),
    [
        ("activation_patching", {"kind": "resid_pre"}, ["layer", "pos"]),
        ("activation_patching", {"kind": "z", "by": "head_position"}, ["layer", "head", "pos"]),
        ("attribution_patching", {"kind": "z"}, ["layer", "head"]),
        ("causal_tracing", {"subject": "and", "draws": 1}, ["layer", "part"]),
        ("knockout", {"keys": [0], "by": "head"}, ["layer", "head"]),
    ],
)
def test_other_sweeps(toy: BridgeModel, sweep: str, options: dict, axes: list[str]) -> None:
    frame = shares(toy, sweep=sweep, options=options, seeds=2)
    assert set(axes) <= set(frame) and frame["value"].between(0, 1).all()
    assert frame[frame["varied"] == "seed"]["value"].sum() == pytest.approx(2)
    METHODS.get("robustness").columns_of(frame)


@pytest.mark.parametrize(
    ("how", "error", "says"),
    [
        (
            {"sweep": "ablations"},
            OptionError,
            'no method "ablations"\nTry: did you mean "ablation"',
        ),
        ({"sweep": "logit_lens"}, OptionError, "logit_lens sweeps no cells"),
        ({"sweep": "robustness"}, OptionError, "robustness sweeps no cells"),
        ({"options": {"knd": "z"}, "seeds": 2}, OptionError, 'no option "knd"'),
        ({"ablations": ["zero"], "seeds": 2}, OptionError, 'no option "ablations" to vary'),
        ({"template": "topic"}, TaskError, "prompt 0 has no tag 'topic'"),
        ({"seeds": 1}, OptionError, "fewer than two runs to compare"),
    ],
)
def test_what_cannot_be_varied_is_refused(
    toy: BridgeModel, how: dict, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        shares(toy, **how)


def test_too_few_prompts_to_halve(toy: BridgeModel) -> None:
    with pytest.raises(TaskError, match="random halves of 3 prompts\nExpected: at least 4"):
        robustness(toy, pairs(toy).rows([0, 1, 2]), options={"kind": "z"})


def test_it_draws_and_describes(toy: BridgeModel) -> None:
    result = probe.api.run(
        "robustness", model=toy, task=pairs(toy), options={"kind": "z"}, seeds=2, k=2
    )
    assert result.view.kind == "bar"
    assert result.plot().data
