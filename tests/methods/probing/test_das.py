"""The planted direction is found and its swap works; a random one does not."""

import numpy as np
import pytest
import torch
from planted import ANSWER, planted, twins

from probe.core.errors import OptionError, ProbeWarning, SiteError, TaskError
from probe.core.progress import listening
from probe.core.site import Site
from probe.core.task import Task
from probe.methods.alignment import learn_subspace, random_subspace, swapped
from probe.methods.probing.das import das
from probe.models.bridge import BridgeModel

pytestmark = pytest.mark.slow  # left to make test


@pytest.fixture(scope="module")
def model() -> BridgeModel:
    return planted()


def test_the_planted_direction_is_found_and_a_random_one_does_nothing(model: BridgeModel) -> None:
    frame = das(model, twins(model), layers=[1], steps=40, lr=0.05)
    mean = frame.groupby("subspace")[["value", "raw"]].mean()
    assert mean["value"]["learnt"] == mean["value"]["whole"] == 1.0
    assert mean["value"]["random"] < 0.2
    assert mean["raw"]["learnt"] > 0 > mean["raw"]["random"]
    assert frame.groupby("subspace")["k"].first().to_dict() == {
        "learnt": 1, "random": 1, "whole": 32,
    }  # fmt: skip


def test_its_basis_is_the_planted_direction(model: BridgeModel) -> None:
    task = twins(model)
    basis = learn_subspace(
        model, task, Site("resid_post", 0), task.last, 1, steps=40, lr=0.05, batch_size=24, seed=0
    )
    assert abs(float(basis[:, 0] @ ANSWER)) > 0.99


def test_training_and_judged_pairs_share_no_group(model: BridgeModel) -> None:
    task = twins(model)
    frame = das(model, task, layers=[1], steps=1, groups="{colour}")
    colours = {task.task.prompts[row].tags["colour"] for row in frame["batch"]}
    assert len(colours) == 1
    assert len(frame) == 24 * 2 * 3


def test_swapping_everything_is_the_source_and_nothing_the_base() -> None:
    base, source = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(swapped(base, source, torch.eye(8)), source)
    torch.testing.assert_close(swapped(base, source, torch.zeros(8, 1)), base)
    basis = random_subspace(8, 3, seed=1)
    part = swapped(base, source, basis)
    torch.testing.assert_close(part @ basis, source @ basis)
    rest = torch.eye(8) - basis @ basis.T
    torch.testing.assert_close(part @ rest, base @ rest)


def test_learning_can_be_stopped(model: BridgeModel) -> None:
    calls = []
    with (
        listening(lambda done, total, unit: calls.append((done, total)) or False),
        pytest.warns(ProbeWarning, match="stopped after 1 of 2 layers"),
    ):
        frame = das(model, twins(model), layers=[1, 2], steps=50)
    assert calls[0] == (1, 100)
    assert (2, 100) not in calls
    assert set(frame["layer"]) == {1}
    assert np.isfinite(frame["raw"]).all()


def test_what_cannot_be_swapped_is_refused(model: BridgeModel) -> None:
    task = twins(model)
    with pytest.raises(OptionError, match="z is parted into heads"):
        das(model, task, kind="z")
    with pytest.raises(OptionError, match="k=33 dimensions"):
        das(model, task, k=33)
    with pytest.raises(SiteError, match="asks for layer 9"):
        das(model, task, layers=[9])
    with pytest.raises(TaskError, match="one group"):
        das(model, task.rows([0]))
    alone = Task.from_pairs([{"clean": "t5 t12", "corrupted": "t5 t13", "answer": "t3"}])
    with pytest.raises(TaskError, match="has no wrong_answer"):
        das(model, alone.encode(model))
