"""What the model reads is lost with its direction; what it does not read is only unreadable."""

import pytest
from planted import planted, twins

from probe.core.errors import OptionError, TaskError
from probe.methods.probing.erasure import erasure
from probe.models.bridge import BridgeModel


@pytest.fixture(scope="module")
def model() -> BridgeModel:
    return planted()


def table(model: BridgeModel, label: str) -> dict[tuple[str, str, int], float]:
    frame = erasure(model, twins(model), label=label, groups="{word}", layer=1, rounds=2)
    size = frame.assign(value=frame["value"].abs())
    return size.groupby(["measure", "directions", "removed"])["value"].mean().to_dict()


def test_erasing_what_the_model_reads_takes_accuracy_and_behaviour(model: BridgeModel) -> None:
    mean = table(model, "{says}")
    assert mean["accuracy", "probe", 0] > 0.95
    assert mean["accuracy", "probe", 2] < 0.7
    assert mean["accuracy", "random", 2] > 0.9
    assert mean["logit_diff", "probe", 2] < 0.3 * mean["logit_diff", "probe", 0]
    assert mean["logit_diff", "random", 2] > 0.8 * mean["logit_diff", "random", 0]


def test_erasing_what_it_does_not_read_takes_accuracy_alone(model: BridgeModel) -> None:
    mean = table(model, "{colour}")
    assert mean["accuracy", "probe", 0] > 0.95
    assert mean["accuracy", "probe", 2] < 0.75
    assert mean["logit_diff", "probe", 2] > 0.8 * mean["logit_diff", "probe", 0]


def test_nothing_removed_is_the_unedited_run(model: BridgeModel) -> None:
    task = twins(model)
    frame = erasure(model, task, label="{says}", rounds=1)
    plain = model.sweep(task, [[]], "logit_diff", base="clean")[0]
    rows = frame[(frame["measure"] == "logit_diff") & (frame["removed"] == 0)]
    for row in rows.itertuples():
        assert row.value == pytest.approx(float(plain[row.batch]), abs=1e-5)


def test_what_cannot_be_erased_is_refused(model: BridgeModel) -> None:
    task = twins(model)
    with pytest.raises(OptionError, match="v is parted into heads"):
        erasure(model, task, label="{says}", kind="v")
    with pytest.raises(TaskError, match="is within one group"):
        erasure(model, task, label="{says}", groups="{says}")
    with pytest.raises(OptionError, match='no metric "logits"'):
        erasure(model, task, label="{says}", metric="logits")
