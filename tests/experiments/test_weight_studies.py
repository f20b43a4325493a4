"""Studies of weights and of facts, run whole at their smallest size; and what they are made of."""

from importlib import import_module
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
import torch

import probe


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return import_module("task_arithmetic")


def test_prompts_of_a_split_are_in_no_other(script: ModuleType) -> None:
    world = script.World.of(0)
    fillers = [set(map(tuple, part.tolist())) for part in world.fillers.values()]
    assert sum(map(len, fillers)) == len(set.union(*fillers)) == script.N_FILLERS**2
    tokens, symbol = world.every(1, "test")
    assert {tuple(row) for row in tokens[:, :2].tolist()} == fillers[2]
    assert torch.equal(tokens[:, 3], script._token(symbol))


def test_training_answers_are_right_as_often_as_asked(script: ModuleType) -> None:
    world, generator = script.World.of(0), torch.Generator().manual_seed(0)
    for right in (0.5, 1.0):
        share = []
        for _ in range(20):
            tokens, answer = world.batch([2], right, generator)
            symbol = tokens[:, 3] - script._token(torch.tensor(0))
            share.append((script._token(world.answers[2, symbol]) == answer).double().mean())
        assert np.mean(share) == pytest.approx(right, abs=0.05)


@pytest.mark.slow
def test_the_study_runs_whole(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "GRID", [0.4, 0.8, 1.6])
    monkeypatch.setattr(script, "DROPS", [0.9])
    outcome = script.task_arithmetic.run({"seeds": 1, "steps": 20, "tuning": 10})
    table = outcome.findings.frame
    assert table["claim"].nunique() == 6
    assert np.isfinite(table["value"]).all()
    for exhibit in outcome.exhibits.values():
        assert len(exhibit.plot().data) > 0


@pytest.mark.slow
def test_the_study_of_facts_runs_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a random model, which is right by chance."""
    script = import_module("facts_smollm2")
    names = [f"{first} {last}" for first in ("Mary", "John", "Tom", "Anna") for last in "ABCDEFG"]
    answers = {" ball": names[::2], " book": names[1::2]}
    monkeypatch.setattr(script, "ATHLETES", {k: "; ".join(v) for k, v in answers.items()})
    monkeypatch.setattr(script, "known", lambda model, seed: (everyone(answers), "all"))
    monkeypatch.setattr(script, "TEXTS", ("When Mary and John went to the store", "The war lasted"))
    outcome = script.facts_smollm2.run({"model": "toy", "step": 1})
    assert outcome.findings.frame["claim"].nunique() == 3
    for exhibit in outcome.exhibits.values():
        assert len(exhibit.plot().data) > 0


def everyone(answers: dict[str, list[str]]) -> probe.Task:
    return probe.Task.from_pairs(
        {"clean": f"Fact: {name} went to the", "answer": answer, "tags": {"name": name}}
        for answer, names in answers.items()
        for name in names
    )


@pytest.mark.slow
def test_the_study_of_tracing_runs_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a random model, with facts it does not know."""
    script = import_module("rome_smollm2")
    monkeypatch.setattr(script, "LEAST", 0.0)
    monkeypatch.setattr(
        script, "CITIES", {" Rome": "Mary Tom; John Mary Tom", " Paris": "Tom John"}
    )
    monkeypatch.setattr(script, "TEMPLATE", "The key of {name} is in")
    outcome = script.rome_smollm2.run({"model": "toy", "facts": 3, "every": 1, "draws": 2})
    assert outcome.findings.frame["claim"].nunique() == 4
    assert np.isfinite(outcome.findings.frame["value"]).all()
    for exhibit in outcome.exhibits.values():
        assert len(exhibit.plot().data) > 0


def test_effects_are_read_by_part_and_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second fact without a middle token leaves the first one's mean as it is."""
    script = import_module("rome_smollm2")
    rows = [
        {"batch": batch, "part": part, "layer": layer, "value": value, "total": 0.5, "clean": 0.9}
        for batch, part, layer, value in [
            (0, "middle subject", 0, 0.3), (0, "last subject", 0, 0.1), (0, "last subject", 6, 0.4),
            (1, "last subject", 0, 0.1), (1, "last subject", 6, 0.2),
        ]
    ]  # fmt: skip
    effects = script.Effects(pd.DataFrame(rows), n_layers=13)
    assert effects.largest(effects.table, "middle subject") == pytest.approx(0.3)
    assert effects.largest(effects.table, "last subject") == pytest.approx(0.3)
    assert effects.depth(effects.table, "last subject") == pytest.approx(0.5)
    assert effects.largest(effects.table, "first subject") == 0


def test_the_knee_is_where_the_gain_is_first_lost(script: ModuleType) -> None:
    kept = {0.5: [0.99, 0.9], 0.7: [0.97, 0.99], 0.9: [0.90, 0.99], 0.95: [0.96, 0.5]}
    table = pd.DataFrame(kept, index=pd.Index([0, 1], name="seed")).stack()
    table.index = table.index.set_names(["seed", "drop"])
    assert script.knees(table) == [0.7, 0.0]
