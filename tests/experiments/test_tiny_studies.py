"""The studies on tiny models: read off made-up curves, and run whole at their smallest size."""

from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import probe


@pytest.fixture(scope="module")
def heads() -> ModuleType:
    return import_module("induction_heads")


@pytest.fixture(scope="module")
def curves() -> ModuleType:
    return import_module("tiny_curves")


@pytest.fixture(scope="module")
def framework() -> ModuleType:
    return import_module("framework")


def curve(icl: Any, induction: Any = None, loss: Any = None) -> pd.DataFrame:
    steps = np.arange(50, 1050, 50)
    zero = np.zeros(len(steps))
    return pd.DataFrame(
        {
            "step": steps,
            "icl": -icl(steps),
            "induction": zero if induction is None else induction(steps),
            "loss": zero if loss is None else loss(steps),
        }
    )


def sudden(steps: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-(steps - 500) / 20))


def test_losses_are_those_of_the_tokens_that_come() -> None:
    """A model sure by ln 3 nats that each token comes again: 3 chances in 12 where it does."""
    runs = import_module("tiny_runs")

    def forward(tokens: torch.Tensor, edits: Any, quiet: bool) -> torch.Tensor:
        return torch.nn.functional.one_hot(tokens, 10) * torch.tensor(3.0).log()

    rows = torch.tensor([[1, 1, 2]] * 5 + [[4, 5, 5]])
    losses = runs.token_losses(SimpleNamespace(forward=forward), rows).exp()
    torch.testing.assert_close(losses, torch.tensor([[4.0, 12]] * 5 + [[12.0, 4]]))


def test_a_sudden_rise_has_a_narrow_window_and_a_steady_one_a_wide_one(curves: ModuleType) -> None:
    steep, steady = curve(sudden), curve(lambda steps: steps / 1000)
    assert curves.width(*curves.window(steep, 0.7), steep) <= 0.1
    assert curves.width(*curves.window(steady, 0.7), steady) >= 0.65
    begin, end = curves.window(steep, 0.7)
    assert begin < 500 < end


def test_heads_that_form_elsewhere_are_outside(curves: ModuleType) -> None:
    made = curve(sudden, induction=lambda steps: (steps >= 500) * 1.0)
    late = curve(sudden, induction=lambda steps: (steps >= 900) * 1.0)
    window = curves.window(made, 0.7)
    assert curves.outside(curves.half_maximum(made), *window) == 0
    assert curves.outside(curves.half_maximum(late), *window) > 1


def test_only_a_bump_steepens(curves: ModuleType) -> None:
    smooth = curve(sudden, loss=lambda steps: 3 + 100 / steps)
    bumped = curve(sudden, loss=lambda steps: 3 + 100 / steps - sudden(steps))
    assert not curves.steepens(smooth, 400, 600)
    assert curves.steepens(bumped, 400, 600)


def test_icl_is_late_less_early(curves: ModuleType) -> None:
    losses = torch.full((3, 255), 4.0)
    losses[:, 200:] = 1.0
    assert curves.icl(losses) == pytest.approx(-3.0)


def test_gradual_learning_is_not_reproduced(heads: ModuleType) -> None:
    wide = probe.over_seeds([0.7, 0.72, 0.69])
    found = heads.ABRUPT.judge(
        {
            "window of 70 %, share of training": wide,
            "window of 50 %, share of training": probe.over_seeds([0.5, 0.5, 0.5]),
            "final ICL, one layer / two": probe.over_seeds([0.1, 0.1, 0.1]),
        }
    )
    assert found.verdict == "not reproduced"


@pytest.mark.parametrize(
    ("shares", "verdict"),
    [
        ([0.9, 0.8, 0.75], "reproduced"), ([0.9, 0.8, 0.65], "partly"),
        ([0.5, 0.6, 0.2], "partly"), ([0.2, 0.3, 0.9], "not reproduced"),
    ],
)  # fmt: skip
def test_smeared_keys_must_bring_most_of_what_two_layers_do(
    heads: ModuleType, shares: list[float], verdict: str
) -> None:
    share = {"final ICL, smeared one layer / two": probe.over_seeds(shares)}
    assert heads.SMEARED.judge(share).verdict == verdict


def test_counted_bigrams_reach_the_entropy_of_a_chain(framework: ModuleType) -> None:
    """Tokens drawn from known transitions: the counted table comes near their entropy."""
    chain = torch.rand(5, 5, generator=torch.Generator().manual_seed(0)).pow(3)
    chain /= chain.sum(1, keepdim=True)
    draw = torch.Generator().manual_seed(1)
    rows = torch.zeros(200, 60, dtype=torch.long)
    for place in range(1, 60):
        rows[:, place] = torch.multinomial(chain[rows[:, place - 1]], 1, generator=draw)[:, 0]
    counts, table = framework.counted_bigrams(
        SimpleNamespace(train=rows[:150], held_out=rows[150:])
    )
    assert counts.sum() == 150 * 59
    truth = framework.loss_of(chain.log(), rows[150:])
    assert framework.loss_of(table, rows[150:]) == pytest.approx(truth, abs=0.02)


def test_a_table_is_fitted_by_logits_of_its_own_rank_and_worse_by_fewer(
    framework: ModuleType,
) -> None:
    draw = torch.Generator().manual_seed(0)
    factors = [torch.randn(*shape, generator=draw).double() for shape in ((6, 2), (2, 6))]
    table, often = (factors[0] @ factors[1]).log_softmax(-1), torch.arange(6.0)
    torch.testing.assert_close(framework.of_rank(table, often, 2), table)
    assert (framework.of_rank(table, often, 1) - table).abs().max() > 0.1


def test_pairs_after_a_key_are_counted(framework: ModuleType) -> None:
    rows = torch.tensor([[0, 5, 6, 7, 6, 7], [0, 6, 7, 5, 1, 2], [0, 6, 7, 6, 7, 1]])
    seen = framework.seen_after(rows, 5, 8)
    assert seen[6, 7] == 2
    assert seen[1, 2] == 1
    assert seen[7, 5] == 0


def test_the_largest_composition_must_come_from_the_sender(framework: ModuleType) -> None:
    k = pd.DataFrame({"sender_head": [3, 3, 5], "head": [0, 2, 2], "value": [0.1, 0.4, 0.3]})
    assert framework.receives_most(k, 3) == 2
    assert framework.receives_most(k, 5) is None


@pytest.mark.slow
# A smeared key reads the token before, padding too; the studies never pad.
@pytest.mark.filterwarnings(r"ignore:.*smeared.*failed the checks of \['left padding'\]")
@pytest.mark.parametrize("name", ["framework", "induction_heads"])
def test_they_run_at_their_smallest_size(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROBE_RUNS", str(tmp_path))
    module = import_module(name)
    size: dict[str, Any] = {"seeds": 1, "changes": {"steps": 2}, "documents": 60}
    size |= {"n": 2} if name == "framework" else {"measured": 4, "larger": "attn-only-2l"}
    frame = getattr(module, name).run(size).findings.frame
    assert "reproduced" not in set(frame.verdict[frame.over == "seeds"])
    assert len(set(frame.claim)) >= 7


@pytest.mark.slow
def test_shipped_models_of_two_layers_have_an_induction_head_and_of_one_none() -> None:
    runs = import_module("tiny_runs")
    tokens = runs.prefix_tokens(runs.text_of(400, shipped=True).train)
    one, two = (runs.models(f"attn-only-{n}l", None, range(3), None) for n in (1, 2))
    assert len(one) == len(two) == 3
    for model in one:
        assert runs.prefix_matching(model, tokens).max() < 0.1
        assert runs.prefix_matching(model, tokens, first=False).max() < 0.1
    for model in two:
        early, late = runs.prefix_matching(model, tokens)
        assert early.max() < 0.1
        assert late.max() > 0.6
        head = int(late.argmax())
        assert runs.prefix_matching(model, tokens, first=False)[1, head] > 0.6
        for beside in ("duplicate", "preceding"):
            assert runs.prefix_matching(model, tokens, score=beside)[1, head] < 0.1
