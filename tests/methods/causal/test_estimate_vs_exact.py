"""Both numbers are those of the methods compared; ranks and correlations against pandas."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from families import build, tokenizer

from probe.core.errors import OptionError, TaskError
from probe.core.model import Model
from probe.core.task import Encoded, Task
from probe.methods.causal.activation_patching import activation_patching
from probe.methods.causal.atp_star import atp_star
from probe.methods.causal.attribution_patching import attribution_patching
from probe.methods.causal.estimate_vs_exact import _ranked, estimate_vs_exact
from probe.models.load import load_model
from probe.tasks import load_task

pytestmark = pytest.mark.slow  # a minute or so: left to make test


@pytest.fixture(scope="module")
def toy() -> Model:
    return load_model("toy")


@pytest.fixture(scope="module")
def ioi(toy: Model) -> Encoded:
    return load_task("ioi", n=3).encode(toy)


def _means(frame: pd.DataFrame, axes: list[str], number: pd.Series) -> pd.Series:
    return frame.assign(number=number).groupby(axes)["number"].mean()


@pytest.mark.parametrize("direction", ["denoise", "noise"])
@pytest.mark.parametrize(("kind", "by"), [("z", "head"), ("resid_pre", "position")])
def test_both_numbers_are_the_methods_own(
    toy: Model, ioi: Encoded, kind: str, by: str, direction: str
) -> None:
    options = {"kind": kind, "by": by, "direction": direction}
    made = estimate_vs_exact(toy, ioi, **options)
    axes = ["layer", "pos" if by == "position" else "head"]
    made = made.set_index(axes).sort_index()
    for column, run in (("value", activation_patching), ("estimate", attribution_patching)):
        frame = run(toy, ioi, **options)
        gap = (frame["clean"] - frame["corrupted"])[:3].mean()
        start = frame["corrupted"] if direction == "denoise" else frame["clean"]
        right = _means(frame, axes, (frame["raw"] - start) / gap)
        np.testing.assert_allclose(made[column], right, atol=1e-5)


def test_sizes_are_compared_with_sizes(toy: Model, ioi: Encoded) -> None:
    made = estimate_vs_exact(toy, ioi, kind="q", estimator="atp_star").set_index(["layer", "head"])
    star = atp_star(toy, ioi, kind="q")
    exact = activation_patching(toy, ioi, kind="q")
    gap = abs((exact["clean"] - exact["corrupted"])[:3].mean())
    right = _means(exact, ["layer", "head"], (exact["raw"] - exact["corrupted"]).abs() / gap)
    np.testing.assert_allclose(made["value"].sort_index(), right, atol=1e-5)
    np.testing.assert_allclose(
        made["estimate"].sort_index(), _means(star, ["layer", "head"], star["value"]), atol=1e-5
    )


def test_ranks_are_of_sizes_and_the_missed_are_those_the_estimate_ranks_lower() -> None:
    rows = pd.DataFrame(
        {
            "batch": [0, 1] * 4,
            "layer": [0, 0, 1, 1, 2, 2, 3, 3],
            "estimate": [1.0, 1.0, -4.0, -4.0, 0.0, 0.0, 2.0, 2.0],
            "value": [1.0, 0.0, -1.0, -7.0, 6.0, 4.0, 0.0, 0.0],
        }
    )
    made = _ranked(rows, ["layer"], top=2)
    assert made["layer"].tolist() == [2, 1, 0, 3]
    assert made["value"].tolist() == [5.0, -4.0, 0.5, 0.0]
    assert made["rank_exact"].tolist() == [1, 2, 3, 4]
    assert made["rank_estimate"].tolist() == [4, 1, 3, 2]
    assert made["missed"].tolist() == [True, False, False, False]
    assert made["spearman"].unique() == pytest.approx([0.2])
    assert made["pearson"].unique() == pytest.approx(
        [np.corrcoef([0.0, -4.0, 1.0, 2.0], [5.0, -4.0, 0.5, 0.0])[0, 1]]
    )


def test_correlations_are_missing_where_nothing_varies(toy: Model, ioi: Encoded) -> None:
    made = estimate_vs_exact(toy, ioi, kind="z", layers=[1], heads=[2])
    assert len(made) == 1
    assert made[["spearman", "pearson"]].isna().all(axis=None)


def test_a_cell_that_a_prompt_does_not_have_is_a_mean_over_those_that_do() -> None:
    model = load_model(build("llama"), tokenizer=tokenizer())
    pairs = [
        {"clean": "t3 t4 t5 t6 t7", "corrupted": "t3 t4 t9 t6 t7", "answer": "t5",
         "wrong_answer": "t6"},
        {"clean": "t10 t11", "corrupted": "t12 t11", "answer": "t14", "wrong_answer": "t3"},
    ]  # fmt: skip
    task = Task.from_pairs(pairs).encode(model)
    made = estimate_vs_exact(model, task, kind="resid_pre", layers=[1])
    exact = activation_patching(model, task, kind="resid_pre", layers=[1])
    exact["effect"] = exact["raw"] - exact["corrupted"]
    gap = (exact["clean"] - exact["corrupted"])[:2].mean()
    last = made[made["pos"] == 4]["value"].item()
    assert last == pytest.approx(exact[exact["pos"] == 4]["effect"].item() / gap, abs=1e-5)


def test_bad_options_are_refused(toy: Model, ioi: Encoded) -> None:
    with pytest.raises(OptionError, match="no cell is left"):
        estimate_vs_exact(toy, ioi, layers=[])
    pair = {"clean": "Mary gave John", "corrupted": "Mary had John", "answer": " a"}
    task = Task.from_pairs([pair | {"wrong_answer": " the"}]).encode(toy)
    task = replace(task, corrupted=task.clean)
    with pytest.raises(TaskError, match="metric differs"):
        estimate_vs_exact(toy, task)


@pytest.mark.slow
def test_on_ioi_the_estimate_ranks_the_heads_of_smollm2() -> None:
    model = load_model("smollm2")
    made = estimate_vs_exact(model, load_task("ioi", n=8).encode(model), kind="z")
    assert len(made) == 270
    assert made["spearman"].iloc[0] > 0.85
    assert made["pearson"].iloc[0] > 0.8
