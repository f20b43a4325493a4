"""Gradients against finite differences, and sweeps against one forward pass a cell."""

from collections.abc import Sequence

import families
import pytest
import torch

from probe.core.edit import Edit, ablate, patch, steer
from probe.core.errors import EditError
from probe.core.metric import METRICS, get_metric
from probe.core.site import KINDS, Site
from probe.core.task import Encoded, Task
from probe.models.bridge import BridgeModel
from probe.models.load import load_model

PAIRS = [
    {"clean": "t3 t4 t5 t9", "corrupted": "t3 t6 t5 t9", "answer": "t7", "wrong_answer": "t8"},
    {"clean": "t9 t4", "corrupted": "t9 t6", "answer": "t8", "wrong_answer": "t7"},
]
# TransformerLens says that an edited norm is computed by other operations, in the same formula.
NATIVE = "ignore:A forward hook edited hook_scale"
SOFT = ["logit_diff", "log_prob", "prob", "loss", "kl"]


@pytest.fixture(scope="module", params=["llama", "gpt2", "gemma2"])
def double(request: pytest.FixtureRequest) -> BridgeModel:
    """In float64, where finite differences are sharp."""
    return load_model(
        families.build(request.param), tokenizer=families.tokenizer(), dtype="float64"
    )


def encode(model: BridgeModel) -> Encoded:
    return Task.from_pairs(PAIRS).encode(model)


def metric_under(model: BridgeModel, encoded: Encoded, metric: str, edits: Sequence[Edit]) -> float:
    """The metric summed over examples, from a plain forward pass over the corrupted prompts."""
    chosen, rows = get_metric(metric), torch.arange(len(encoded))
    tokens, lengths = encoded.need_corrupted(), encoded.lengths
    logits = model.forward(tokens, edits, lengths=lengths, quiet=True)[rows, lengths - 1]
    clean = model.forward(encoded.clean, lengths=lengths)[rows, lengths - 1]
    ids = chosen.token_ids(encoded)
    read = logits if ids is None else logits.gather(1, ids)
    return float(chosen(read, encoded, clean).sum())


SCALES = {"ln1_scale", "ln2_scale", "ln_final_scale"}


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"router"} - SCALES))
def test_gradients_equal_finite_differences(double: BridgeModel, kind: str) -> None:
    encoded = encode(double)
    site = Site(kind, 1 if KINDS[kind].per_layer else None)
    value, grad = double.gradients(encoded, [site], corrupted=True)
    torch.manual_seed(0)
    step = 1e-5 * torch.randn_like(value[site])
    up, down = (
        metric_under(double, encoded, "logit_diff", [Edit(site, "add", sign * step)])
        for sign in (1, -1)
    )
    expected = float((grad[site] * step).sum()) * 2
    # norms are computed in float32 in these families, so differences are no sharper than that
    assert up - down == pytest.approx(expected, rel=0.05, abs=2e-6)


@pytest.mark.parametrize("metric", SOFT)
def test_each_metric_that_is_smooth_has_its_gradient(double: BridgeModel, metric: str) -> None:
    encoded, site = encode(double), Site("resid_post", 1)
    value, grad = double.gradients(encoded, [site], metric, corrupted=True)
    torch.manual_seed(1)
    step = 1e-5 * torch.randn_like(value[site])
    up, down = (
        metric_under(double, encoded, metric, [Edit(site, "add", sign * step)]) for sign in (1, -1)
    )
    expected = 2 * float((grad[site] * step).sum())
    assert abs(expected) > 1e-9
    assert up - down == pytest.approx(expected, rel=0.05, abs=2e-6)


def test_the_values_beside_gradients_are_those_of_a_trace(double: BridgeModel) -> None:
    encoded = encode(double)
    sites = ["embed", "resid_pre", "z", "pattern"]
    values, grads = double.gradients(encoded, sites)
    trace = double.trace(encoded, sites)
    assert set(values) == set(grads) == set(trace)
    for site in trace:
        torch.testing.assert_close(values[site], trace[site])
        assert not values[site].requires_grad
        assert not grads[site].requires_grad


def test_what_comes_after_the_answer_has_no_gradient(double: BridgeModel) -> None:
    encoded = encode(double)
    _, grads = double.gradients(encoded, "resid_post.0")
    grad = grads["resid_post", 0]
    assert not grad[1, 2:].any(), "padding"
    assert grad[1, :2].abs().sum() > 0


def test_a_norms_denominator_has_no_gradient_to_offer(double: BridgeModel) -> None:
    with pytest.raises(EditError, match=r"no gradient is taken by ln1_scale\.1"):
        double.gradients(encode(double), "ln1_scale.1")


@pytest.mark.filterwarnings(NATIVE)
@pytest.mark.parametrize("base", ["corrupted", "clean"])
@pytest.mark.parametrize("metric", METRICS)
def test_a_sweep_is_one_forward_pass_a_cell(toy: BridgeModel, metric: str, base: str) -> None:
    pairs = [
        {"clean": "When Mary and", "corrupted": "When John and", "answer": " a",
         "wrong_answer": " the"},
        {"clean": "The dogs gave a ball to", "corrupted": "The cats gave a ball to",
         "answer": " Mary", "wrong_answer": " John"},
    ]  # fmt: skip
    encoded = Task.from_pairs(pairs).encode(toy)
    other = toy.trace(
        encoded, ["resid_post", "resid_mid", "z", "pattern"], corrupted=base == "clean"
    )
    cells: list[list[Edit]] = [
        [],
        [patch("resid_post.0", other["resid_post", 0], pos=-1)],
        [patch("resid_mid.1", other["resid_mid", 1], pos=1)],
        [patch("z.1.2", other["z", 1])],
        [ablate("z.0.1"), steer("resid_post.1", torch.ones(32), pos=-1)],
        [ablate("pattern.1.0")],
        [ablate("mlp_post.0", d_mlp=[3, 5], pos=[0, -1])],
        [Edit(Site("ln1_scale", 1), "scale", 2.0)],
        [Edit(Site("embed"), "scale", 0.5)],
        [Edit(Site("ln_final_scale"), "scale", 2.0)],
        [Edit(Site("k", 1), "set", 0.0, {"pos": torch.tensor([1, 2])})],
    ]
    swept = toy.sweep(encoded, cells, metric, base=base)
    chosen, rows = get_metric(metric), torch.arange(2)
    tokens = encoded.clean if base == "clean" else encoded.need_corrupted()
    reference = toy.forward(encoded.clean, lengths=encoded.lengths)[rows, encoded.last]
    for edits, found in zip(cells, swept, strict=True):
        logits = toy.forward(tokens, edits, lengths=encoded.lengths, quiet=True)
        read, ids = logits[rows, encoded.last], chosen.token_ids(encoded)
        expected = chosen(read if ids is None else read.gather(1, ids), encoded, reference)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_gradients_of_an_edited_run_are_those_at_the_edited_activation(
    double: BridgeModel,
) -> None:
    encoded = encode(double)
    site = Site("resid_post", 0)
    shift = steer(site, torch.ones(double.dims.d_model, dtype=torch.float64), 0.5, pos=-1)
    values, grads = double.gradients(encoded, site, corrupted=True, edits=[shift])
    plain, _ = double.gradients(encoded, site, corrupted=True)
    torch.testing.assert_close(values.sel(site, pos=-1), plain.sel(site, pos=-1) + 0.5)
    step = 1e-3
    generator = torch.Generator().manual_seed(0)
    nudge = torch.randn(double.dims.d_model, dtype=torch.float64, generator=generator)
    ahead, behind = (
        metric_under(
            double, encoded, "logit_diff", [shift, steer(site, nudge, sign * step, pos=-1)]
        )
        for sign in (1, -1)
    )
    slope = float((grads.sel(site, pos=-1) @ nudge).sum())
    # norms are computed in float32 in these families
    assert slope == pytest.approx((ahead - behind) / (2 * step), rel=0.01, abs=1e-3)
