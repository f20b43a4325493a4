"""The study of Towards Monosemanticity: its measures, its verdicts, and a run of it whole."""

from importlib import import_module
from itertools import pairwise
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse
from scipy.optimize import linprog


@pytest.fixture(scope="module")
def units() -> ModuleType:
    return import_module("units")


@pytest.fixture(scope="module")
def study() -> ModuleType:
    return import_module("monosemanticity")


# --- the dip -------------------------------------------------------------------------------------


def nearest_unimodal(x: np.ndarray) -> float:
    """The dip by its definition: a linear programme for each place of the mode."""
    x, n = np.sort(x), len(x)
    found = []
    for mode in range(n):
        # F at every point; at the mode before its jump and, last but one, after it; then the error
        rows: list[tuple[dict[int, float], float]] = []
        after, error = n, n + 1
        for i in range(n):
            top = after if i == mode else i
            rows.append(({top: -1, error: -1}, -(i + 1) / n))  # F(x) ≥ (i + 1)/n − d
            rows.append(({i: 1, error: -1}, i / n))  # F(x−) ≤ i/n + d
        rows.append(({mode: 1, after: -1}, 0.0))
        left = [(i, x[i]) for i in range(mode + 1)]
        right = [(after, x[mode]), *((i, x[i]) for i in range(mode + 1, n))]
        for chain, sign in ((left, 1), (right, -1)):
            rows += [({a: 1, b: -1}, 0.0) for (a, _), (b, _) in pairwise(chain)]
            for (a, p), (b, q), (c, r) in zip(chain, chain[1:], chain[2:], strict=False):
                one, two = sign / (q - p), sign / (r - q)
                rows.append(({a: -one, b: one + two, c: -two}, 0.0))
        matrix = np.zeros((len(rows), n + 2))
        for row, (terms, _) in enumerate(rows):
            for column, value in terms.items():
                matrix[row, column] = value
        cost = np.eye(n + 2)[error]
        bounds = [(0, 1)] * (n + 2)
        solved = linprog(cost, A_ub=matrix, b_ub=[limit for _, limit in rows], bounds=bounds)
        found.append(solved.fun)
    return min(found)


@pytest.mark.parametrize("seed", range(4))
def test_the_dip_is_the_distance_to_the_nearest_unimodal_distribution(
    units: ModuleType, seed: int
) -> None:
    random = np.random.default_rng(seed)
    x = random.normal(size=9) + 4 * (random.random(9) < 0.5)
    assert units.dip(x) == pytest.approx(nearest_unimodal(x), abs=1e-7)


def test_even_points_have_the_least_dip_and_two_clusters_nearly_the_most(units: ModuleType) -> None:
    assert units.dip(np.arange(20.0)) == pytest.approx(1 / 40)
    apart = np.concatenate([np.linspace(0, 0.01, 50), np.linspace(1, 1.01, 50)])
    assert units.dip(apart) == pytest.approx(0.25, abs=0.01)


def test_two_modes_are_told_from_one(units: ModuleType) -> None:
    random = np.random.default_rng(0)
    one, two = random.normal(size=120), np.repeat([-4.5, -2.5], 60) + random.normal(0, 0.2, 120)
    assert units.dip_test(one, draws=30) > 0.05 > units.dip_test(two, draws=30)
    assert units.between_modes(one) == 0.0
    assert units.between_modes(two) == pytest.approx(2.0, abs=0.2)


# --- what units fire on --------------------------------------------------------------------------


def test_correlations_are_pearsons(units: ModuleType) -> None:
    random = np.random.default_rng(0)
    a, b = (np.maximum(random.normal(size=(300, n)) - 1, 0) for n in (4, 6))
    b[:, 5] = 0.0
    for mixed in (b, np.where(random.random(b.shape) < 0.1, b, 0)):  # a dense and a sparse product
        found = units.correlations(sparse.csc_array(a), sparse.csc_array(mixed))
        wanted = np.corrcoef(a.T, mixed[:, :5].T)[:4, 4:]
        np.testing.assert_allclose(found[:, :5], wanted, atol=1e-10)
        assert np.all(found[:, 5] == 0)


def test_purity_is_of_the_tenth_on_which_a_unit_is_strongest(units: ModuleType) -> None:
    acts = np.zeros((400, 3))
    acts[:200, 0] = np.arange(200) + 1.0  # strongest on 180 to 199
    acts[:200, 1] = 1.0  # equally strong: the first 20
    acts[:50, 2] = 1.0  # fires too seldom
    token = np.where(np.arange(400) < 195, 7, 8)
    nowhere = np.full(400, -1)
    context = np.where(np.arange(400) >= 185, 0, -1)
    found = units.purity(sparse.csc_array(acts), (token, nowhere))
    assert found.tolist() == [15 / 20, 1.0]
    assert units.purity(sparse.csc_array(acts), (context,)).tolist() == [15 / 20, 0.0]
    assert units.purity(sparse.csc_array(acts), (token,), n=5).tolist() == [1.0, 1.0]


def test_mass_is_summed_activation(units: ModuleType) -> None:
    acts = np.ones((200, 1))
    acts[150:] = 3.0
    label = np.where(np.arange(200) < 150, -1, 4)
    assert units.in_one(sparse.csc_array(acts), label).tolist() == [pytest.approx(0.5)]
    assert units.in_one(sparse.csc_array(acts), np.full(200, -1)).tolist() == [0.0]


class Pieces(list):
    """A tokenizer of these pieces."""

    def decode(self, ids: list[int]) -> str:
        return "".join(self[i] for i in ids)


def test_a_context_is_a_kind_of_line(units: ModuleType) -> None:
    pieces = Pieces(["<bos>", "a", " b", "\n", "# c", "om", "\n", "x", "#"])
    found = units.contexts(torch.arange(9)[None], pieces, {"b": " b$", "comment": r"^#.*$"})
    assert found.tolist() == [-1, 0, -1, 1, 1, -1, -1, -1]


# --- verdicts ------------------------------------------------------------------------------------


def made_up(units: ModuleType, seed: int, good: bool) -> SimpleNamespace:
    """One seed as the paper would have it, or the opposite."""
    up = 1.0 if good else -1.0
    random = np.random.default_rng(0 if good else seed)  # the same in each seed, or another
    acts = sparse.csc_array(np.maximum(random.normal(size=(400, 5)), 0))
    noise = np.random.default_rng(100 + seed).normal(size=(400, 5))
    numbers = {
        "zero": 0.6 + 0.2 * up, "mean": 0.9, "l0": 15.0, "dead": 0.1 - 0.09 * up,
        "dead, plain": 0.1, "dip": 0.3 - 0.29 * up, "modes": 1 + 0.5 * up, "single": 0.3,
        "single, blank": 0.3 + 0.2 * up, "l0, blank": 9.0, "split 512": 5, "split 2048": 5 + up,
        "split 4096": 5 + 2 * up, "features, median": 0.5 + 0.4 * up, "neurons, 90 %": 0.5,
        "neurons, median": 0.3, "features, of 50": 0.8, "neurons, of 50": 0.4,
        "features, judged": 100,
    }  # fmt: skip
    contexts = pd.DataFrame(
        [
            {"context": name, "unit": unit, "seed": seed, "share": 0.01,
             "in_context": 0.97 if good else 0.9, "value": value}
            for name in ("talk", "import", "header")
            for unit, value in (("feature", 0.8), ("neuron", 0.3))
        ]
    )  # fmt: skip
    return SimpleNamespace(
        seed=seed, numbers=numbers, features=acts, contexts=contexts,
        neurons=sparse.csc_array(np.maximum(noise, 0)), densities=random.normal(-3, 0.3, 50),
    )  # fmt: skip


@pytest.mark.slow  # two seconds: every number has its bootstrap
@pytest.mark.parametrize(("good", "wanted"), [(True, "reproduced"), (False, "not reproduced")])
def test_verdicts_follow_the_numbers(
    study: ModuleType, units: ModuleType, good: bool, wanted: str
) -> None:
    found = [made_up(units, seed, good) for seed in range(3)]
    judged = [*study.of_dictionaries(found, "4: 15"), *study.of_features(found)]
    assert [finding.verdict for finding in judged] == [wanted] * 8
    for exhibit in (study.densities(found), study.by_context(found)):
        assert set(exhibit.frame.columns) == set(exhibit.columns)


@pytest.mark.slow
def test_between_the_lines_it_is_partly(study: ModuleType, units: ModuleType) -> None:
    found = [made_up(units, seed, good=True) for seed in range(3)]
    for one in found:
        one.numbers |= {"zero": 0.6, "dead": 0.2, "dead, plain": 0.5, "features, median": 0.4}
    judged = [*study.of_dictionaries(found, ""), *study.of_features(found)]
    assert [finding.verdict for finding in judged[:2]] == ["partly", "partly"]
    assert judged[3].verdict == "partly"
    found[0].numbers["l0"] = found[1].numbers["l0"] = 25.0  # outside what the rule is about
    assert next(study.of_dictionaries(found, "")).verdict == "not reproduced"


@pytest.mark.slow
def test_it_runs_at_its_smallest_and_finds_what_it_made_again(
    study: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROBE_RUNS", str(tmp_path))
    size = {
        "seeds": 2, "changes": {"steps": 2, "d_mlp": 8}, "documents": 45, "store": 2500, "rows": 6,
        "n_tokens": 2000, "batch_size": 100, "lr": 1e-3, "grid": [64, 4],
    }  # fmt: skip
    first = study.monosemanticity.run(size)
    table = first.findings.frame
    assert table.claim.nunique() == 8
    assert "reproduced" not in set(table[table.over == "seeds"].verdict)  # two seeds are too few
    for exhibit in first.exhibits.values():
        assert exhibit.plot().data
    made = times(tmp_path)
    again = study.monosemanticity.run(size).findings.frame
    assert times(tmp_path) == made
    pd.testing.assert_frame_equal(table, again)


def times(folder: Path) -> dict[Path, int]:
    """When models, shards and dictionaries were written."""
    written = [path for path in folder.rglob("*.safetensors") if path.stem != "losses"]
    assert {path.stem for path in written} >= {"model", "shard-00000", "sae_weights"}
    return {path: path.stat().st_mtime_ns for path in written}
