"""Labels, splits through which nothing leaks, and the probe against scikit-learn's own."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from probe.core.errors import OptionError, ProbeWarning, TaskError
from probe.core.model import Model
from probe.core.task import Encoded, Task
from probe.methods import labelled, probes
from probe.methods.labelled import Examples, examples, places
from probe.methods.probes import control_labels, fit, folds, interruptible, units


def encoded(toy: Model, tags: list[dict[str, str]]) -> Encoded:
    pairs = [{"clean": "When Mary" + " John" * i, "tags": t} for i, t in enumerate(tags)]
    return Task.from_pairs(pairs).encode(toy)


def made(labels: list[int], groups: list[int]) -> Examples:
    n = len(labels)
    return Examples(
        rows=np.arange(n),
        corrupted=np.zeros(n, dtype=bool),
        labels=np.array(labels),
        classes=tuple(str(one) for one in sorted(set(labels))),
        groups=np.array(groups),
    )


def test_labels_and_groups_are_texts_of_tags_and_answers(toy: Model) -> None:
    tags = [{"a": "x", "b": "1"}, {"a": "y", "b": "1"}, {"a": "x", "b": "2"}]
    data = examples(encoded(toy, tags), "{a}", "{b}")
    assert data.classes == ("x", "y")
    assert data.labels.tolist() == [0, 1, 0]
    assert data.groups.tolist() == [0, 0, 1]
    both = examples(encoded(toy, tags), "{a}-{b}", None)
    assert both.classes == ("x-1", "x-2", "y-1")
    assert both.groups.tolist() == [1, 2, 0] or len(set(both.groups)) == 3


def test_sides_are_two_examples_of_one_group(toy: Model) -> None:
    task = probes_task(toy)
    data = examples(task, "side", None)
    assert data.sides == ["clean", "clean", "corrupted", "corrupted"]
    assert data.groups[:2].tolist() == data.groups[2:].tolist()


def probes_task(toy: Model) -> Encoded:
    pairs = [
        {"clean": "Mary and John", "corrupted": "Mary and Tom", "answer": " Mary"},
        {"clean": "Tom and Anna", "corrupted": "Tom and Bill", "answer": " Tom"},
    ]
    return Task.from_pairs(pairs).encode(toy)


@settings(max_examples=40)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 9)), min_size=8, max_size=40),
    st.integers(2, 5),
    st.integers(0, 3),
)
def test_no_group_is_on_both_sides_and_each_example_is_judged_once(
    pairs: list[tuple[int, int]], n: int, seed: int
) -> None:
    labels = np.unique([label for label, _ in pairs], return_inverse=True)[1].tolist()
    data = made(labels, [group for _, group in pairs])
    try:
        parts = folds(data, n, "groups", seed)
    except TaskError:
        return  # a class within one group
    judged = np.concatenate([part.test for part in parts])
    assert sorted(judged.tolist()) == list(range(len(pairs)))
    for train, test in parts:
        assert len(train) + len(test) == len(pairs)
        assert not set(data.groups[train]) & set(data.groups[test])


def test_splitting_prompts_parts_groups() -> None:
    data = made([0, 0, 1, 1] * 4, [0, 0, 1, 1, 2, 2, 3, 3] * 2)
    parts = folds(data, 4, "prompts", 0)
    assert any(set(data.groups[a]) & set(data.groups[b]) for a, b in parts)


def test_control_labels_are_as_many_and_one_a_group() -> None:
    data = made([0, 0, 1, 1, 0, 0, 1, 1], [0, 0, 1, 1, 2, 2, 3, 3])
    for seed in range(5):
        dealt = control_labels(data, seed)
        assert sorted(dealt) == sorted(data.labels)
        assert all(len(set(dealt[data.groups == group])) == 1 for group in range(4))
    assert any((control_labels(data, seed) != data.labels).any() for seed in range(5))


def test_within_mixed_groups_control_labels_are_dealt_within() -> None:
    data = made([0, 1, 0, 1], [0, 0, 1, 1])
    for seed in range(5):
        dealt = control_labels(data, seed)
        assert all(sorted(dealt[data.groups == group]) == [0, 1] for group in (0, 1))


@pytest.mark.parametrize(("n", "dim"), [(60, 8), (30, 80)])
@pytest.mark.parametrize("n_classes", [2, 3])
def test_a_probe_is_scikit_learns_pipeline(
    monkeypatch: pytest.MonkeyPatch, n: int, dim: int, n_classes: int
) -> None:
    """Also where there are more dimensions than examples, and it works in the examples' span."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, n_classes, n)
    x = rng.normal(size=(n, dim)) * rng.uniform(0.1, 5, dim) + rng.normal(size=dim)
    x[:, :2] += labels[:, None]
    x[:, 3] = 1.0
    monkeypatch.setattr(probes, "_STRENGTHS", (0.1,))
    ours = fit(x, labels, np.arange(n), 0)
    theirs = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
    theirs.fit(x, labels)
    fresh = rng.normal(size=(200, dim)) * 3
    scores = fresh @ ours.weights.T + ours.bias
    right = theirs.decision_function(fresh).reshape(200, -1)
    centred = right - right.mean(1, keepdims=True) if n_classes > 2 else right
    scores = scores - scores.mean(1, keepdims=True) if n_classes > 2 else scores
    np.testing.assert_allclose(scores, centred, rtol=0.02, atol=0.02)
    assert (ours.predict(fresh) == theirs.predict(fresh)).mean() > 0.97
    assert len(ours.directions()) == n_classes - 1
    np.testing.assert_allclose(
        ours.directions() @ ours.directions().T, np.eye(n_classes - 1), atol=1e-9
    )


def test_the_strength_is_chosen_on_groups_that_were_held_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Copies of one example must not vouch for each other."""
    seen = []
    real = probes._parted

    def watched(labels, kept, n, seed):
        for part in real(labels, kept, n, seed):
            seen.append((set(kept[part.train]), set(kept[part.test])))
            yield part

    monkeypatch.setattr(probes, "_parted", watched)
    x = np.random.default_rng(0).normal(size=(24, 4))
    fit(x, np.tile([0, 1], 12), np.repeat(np.arange(8), 3), 0)
    assert seen
    assert all(not train & test for train, test in seen)


def test_one_class_alone_is_always_predicted() -> None:
    x = np.random.default_rng(0).normal(size=(6, 3))
    probe = fit(x, np.ones(6, dtype=int), np.arange(6), 0)
    assert probe.predict(x).tolist() == [1] * 6
    assert len(probe.directions()) == 0


def test_units_of_a_split() -> None:
    data = made([0, 1], [7, 7])
    assert units(data, "groups").tolist() == [7, 7]
    assert units(data, "prompts").tolist() == [0, 1]


@pytest.mark.parametrize(
    ("tags", "label", "groups", "error", "words"),
    [
        ([{"a": "x"}, {"a": "y"}], "{b}", None, TaskError, "prompt 0 has no tag 'b'"),
        ([{"a": "x"}, {"a": "x"}], "{a}", None, TaskError, "every prompt has the label 'x'"),
        ([{"a": "x"}, {"a": "y"}], "a", None, OptionError, "label='a' names no tag"),
        ([{"a": "x"}, {"a": "y"}], "{a}", "same", OptionError, "groups='same' names no tag"),
        (
            [{"a": "x", "g": "1"}, {"a": "y", "g": "1"}], "{a}", "{g}", TaskError,
            "all 2 prompts are one group",
        ),
        ([{"a": "x"}, {"a": "y"}], "side", None, TaskError, "no corrupted prompts"),
    ],
)  # fmt: skip
def test_labels_that_cannot_be_are_refused(
    toy: Model,
    tags: list[dict[str, str]],
    label: str,
    groups: str | None,
    error: type[Exception],
    words: str,
) -> None:
    with pytest.raises(error, match=words):
        examples(encoded(toy, tags), label, groups)


def test_a_class_within_one_group_is_refused() -> None:
    with pytest.raises(TaskError, match="class '1' is within one group"):
        folds(made([0, 0, 1, 1], [0, 1, 2, 2]), 2, "groups", 0)


def test_places_are_named_and_found(toy: Model) -> None:
    task = encoded(toy, [{"a": "x"}, {"a": "y"}])
    last = task.last.tolist()
    assert places(task, [-1, 0]) == {"-1": last, "0": [0, 0]}
    assert places(task, " Mary") == {"last of  Mary": [1, 1]}


@pytest.mark.parametrize(
    ("kind", "layers", "words"),
    [
        ("resid", None, 'no site kind "resid"'),
        ("pattern", None, "no vector for each layer and position"),
        ("embed", None, "no vector for each layer and position"),
        ("resid_post", [], "no layer is left"),
    ],
)
def test_sites_that_cannot_be_probed_are_refused(
    toy: Model, kind: str, layers: list[int] | None, words: str
) -> None:
    with pytest.raises(OptionError, match=words):
        labelled.sites(toy, kind, layers)


def test_what_was_made_before_ctrl_c_is_kept_and_nothing_is_nothing() -> None:
    made: list[int] = []
    with pytest.raises(KeyboardInterrupt), interruptible(made, 3, "layers"):
        raise KeyboardInterrupt
    with (
        pytest.warns(ProbeWarning, match="stopped after 1 of 3 layers"),
        interruptible(made, 3, "layers"),
    ):
        made.append(1)
        raise KeyboardInterrupt
