"""The doctor finds what is wrong: each kind of damage fails the row that is there for it."""

from collections.abc import Iterator
from typing import Any

import families
import pytest
import torch
from loaded import load_family

from probe.core.errors import ProbeWarning
from probe.core.norms import LinearNorm
from probe.core.site import Site
from probe.models import doctor
from probe.models.bridge import BridgeModel
from probe.models.load import load_model


@pytest.fixture
def model() -> BridgeModel:
    """A model of this test's own, to be broken."""
    return load_model(families.build("llama"), tokenizer=families.tokenizer())


def reference(plain: Any) -> doctor.Reference:
    return doctor.observe(plain, 61, 64)


def failed(model: BridgeModel, plain: Any = None) -> set[str]:
    """The rows that fail against a plain model, by default an equal one."""
    plain = families.build("llama") if plain is None else plain
    return {row.name for row in doctor.examine(model, reference(plain)) if not row.ok}


def test_a_sound_model_fails_nothing(model: BridgeModel) -> None:
    assert failed(model) == set()


@pytest.mark.parametrize(
    ("weight", "expected"),
    [
        ("model.embed_tokens.weight", {"logits", "residuals", "patterns"}),
        ("model.layers.1.self_attn.q_proj.weight", {"logits", "residuals", "patterns"}),
        ("model.layers.2.mlp.down_proj.weight", {"logits", "residuals"}),
        ("lm_head.weight", {"logits"}),
    ],
)
def test_weights_that_changed_since_the_reference(
    model: BridgeModel, weight: str, expected: set[str]
) -> None:
    plain = families.build("llama")
    plain.get_parameter(weight).data += 0.05 * torch.randn(plain.get_parameter(weight).shape)
    found = failed(model, plain)
    assert expected <= found
    assert found & {"logits", "residuals", "patterns"} == expected


def test_one_weight_a_thousandth_off_is_found(model: BridgeModel) -> None:
    plain = families.build("llama")
    plain.model.layers[0].self_attn.o_proj.weight.data[0, 0] += 0.01
    assert "residuals" in failed(model, plain)


@pytest.mark.parametrize(("kind", "row"), [("resid_pre", "residuals"), ("pattern", "patterns")])
def test_a_hook_that_is_off_by_one_layer(model: BridgeModel, kind: str, row: str) -> None:
    points = model._points
    for layer in range(2):
        points[Site(kind, layer)] = points[Site(kind, layer + 1)]
    assert row in failed(model)


def test_heads_in_another_order(model: BridgeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    trace = model.trace

    def permuted(*args: Any, **how: Any) -> Any:
        made = trace(*args, **how)
        for site in made:
            if site.kind == "pattern":
                made.activations[site] = made.activations[site].flip(1)
        return made

    monkeypatch.setattr(model, "trace", permuted)
    assert "patterns" in failed(model)


def test_a_bridge_whose_edits_reach_nothing(
    model: BridgeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "edit_hooks", lambda *_: [])
    assert failed(model) == {"changing a pattern changes the logits"}


def test_a_bridge_that_computes_otherwise_when_it_is_hooked(
    model: BridgeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = model.run_raw

    def rounded(tokens: Any, hooks: Any = (), **how: Any) -> Any:
        out = run(tokens, hooks, **how)
        if hooks:
            out.logits = out.logits.half().float()
        return out

    monkeypatch.setattr(model, "run_raw", rounded)
    assert "hooked equals unhooked" in failed(model)


@pytest.fixture
def without_position_ids(monkeypatch: pytest.MonkeyPatch) -> Iterator[BridgeModel]:
    """TransformerLens' own way with left-padded rows: positions count the padding."""
    model = load_model(families.build("gpt2"), tokenizer=families.tokenizer())
    call = model._hf.forward

    def forget(**inputs: Any) -> Any:
        inputs.pop("position_ids", None)
        return call(**inputs)

    monkeypatch.setattr(model._hf, "forward", forget)
    return model


def test_positions_that_count_the_padding(without_position_ids: BridgeModel) -> None:
    assert failed(without_position_ids, families.build("gpt2")) == {"left padding"}


def test_padding_that_leaks_into_the_batch(
    model: BridgeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = model.run_raw

    def leaking(tokens: Any, *args: Any, **how: Any) -> Any:
        out = run(tokens, *args, **how)
        out.logits = out.logits + (len(tokens) > 1) * 0.01
        return out

    monkeypatch.setattr(model, "run_raw", leaking)
    assert {"batch invariance", "left padding"} <= failed(model)


def test_an_output_matrix_that_is_not_the_models(
    model: BridgeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    W_O = model.weights.W_O
    monkeypatch.setattr(model.weights, "W_O", lambda layer: W_O(layer).flip(0))
    assert failed(model) == {"heads add up"}


def test_a_norm_whose_gain_was_misread(model: BridgeModel) -> None:
    norm = model._ln_final
    model._ln_final = LinearNorm(norm.gain + 1, norm.bias, norm.centred)
    assert failed(model) == {"final norm"}


def test_a_model_that_does_not_end_in_norm_and_matrix_fails_a_row_and_is_no_crash(
    model: BridgeModel,
) -> None:
    model.health["reads_out"] = False
    assert failed(model) == {"unembedding"}


def test_not_a_number_is_a_failure() -> None:
    assert not doctor._within("logits", float("nan"), 1e-4, "").ok


def test_the_verdict_is_part_of_the_models_health() -> None:
    model = load_family("llama").model
    assert model.health["ok"] is True
    assert model.health["failed"] == []
    assert model.health["checks"]["logits"] <= 1e-5


def test_a_model_that_fails_says_so_when_it_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(doctor._LIMIT, torch.float32, -1.0)
    with pytest.warns(ProbeWarning, match=r"failed the checks of \['logits', 'residuals'") as said:
        model = load_model("toy")
    assert "`probe doctor toy` shows by how much" in str(said[0].message)
    assert model.health["ok"] is False


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_compared_with_float32(dtype: str) -> None:
    model = load_model("toy", dtype=dtype)
    rows = {row.name: row for row in model.checks}
    assert model.health["ok"]
    assert "KL" in str(rows["dtype drift"].value)
    assert "dtype drift" not in {row.name for row in load_model("toy").checks}


def test_drift_is_the_kl_from_the_full_precision_logits() -> None:
    exact, half = torch.randn(1, 4, 9), torch.randn(1, 4, 9)
    ref = doctor.Reference([[1]], [half], [], [], [exact])
    kl = torch.nn.functional.kl_div(
        half.log_softmax(-1), exact.log_softmax(-1), log_target=True, reduction="none"
    )
    row = doctor._drift(ref)
    assert f"KL {float(kl.sum(-1).max()):.2g} nats" in str(row.value)
    assert row.ok == bool(kl.sum(-1).max() < 1)
