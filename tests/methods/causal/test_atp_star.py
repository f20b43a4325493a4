"""The two corrections, each against what it stands for, run one piece at a time."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from families import build, tokenizer

from probe.core.edit import patch
from probe.core.errors import ModelError, OptionError
from probe.core.model import Model
from probe.core.registry import METHODS
from probe.core.task import Encoded, Task
from probe.methods.attention_fix import key_effects
from probe.methods.causal.activation_patching import activation_patching
from probe.methods.causal.atp_star import atp_star
from probe.methods.causal.attribution_patching import attribution_patching
from probe.models.handbuilt import LAYOUTS, induction_model
from probe.models.load import load_model
from probe.tasks import load_task

pytestmark = pytest.mark.slow  # a minute of small models

PAIRS = [
    {"clean": "t3 t4 t5 t6 t7 t8 t9 t3 t4", "corrupted": "t3 t4 t5 t10 t7 t8 t9 t3 t4",
     "answer": "t5", "wrong_answer": "t6"},
    {"clean": "t10 t11 t12 t13", "corrupted": "t10 t14 t12 t13",
     "answer": "t14", "wrong_answer": "t3"},
]  # fmt: skip
PLAIN = {"qk_fix": False, "grad_drop": False}
FIX = {"qk_fix": True, "grad_drop": False}


@pytest.fixture(scope="module")
def toy() -> Model:
    return load_model("toy")


@pytest.fixture(scope="module")
def ioi(toy: Model) -> Encoded:
    return load_task("ioi", n=2).encode(toy)


# --- the QK fix --------------------------------------------------------------------------------


@pytest.mark.parametrize("sharpness", [1.0, 60.0])
def test_one_pass_over_the_scores_equals_a_softmax_for_each_key(sharpness: float) -> None:
    generator = torch.Generator().manual_seed(0)

    def draw() -> torch.Tensor:
        return torch.randn(2, 3, 7, 7, generator=generator, dtype=torch.float64)

    masked = ~torch.ones(7, 7).tril().bool()
    lowest = torch.finfo(torch.float32).min
    scores = (sharpness * draw()).masked_fill(masked, lowest)
    patched = (sharpness * draw()).masked_fill(masked, -torch.inf)
    slope = draw()
    before = scores.softmax(-1)
    right = []
    for key in range(7):
        one = scores.clone()
        one[..., key] = patched[..., key]
        right.append(((one.softmax(-1) - before) * slope).sum((-1, -2)))
    made = key_effects(scores, patched, slope)
    torch.testing.assert_close(made, torch.stack(right, -1), rtol=1e-9, atol=1e-12)


def test_leaving_a_saturated_key_loses_no_digits() -> None:
    """All but 1e-26 of the attention is on key 0, and the patch takes its score away."""
    scores = torch.tensor([[[[60.0, 0.0, 0.0]]]], dtype=torch.float64)
    patched = torch.tensor([[[[-60.0, 0.0, 0.0]]]], dtype=torch.float64)
    slope = torch.tensor([[[[0.0, 1.0, 3.0]]]], dtype=torch.float64)
    assert float(key_effects(scores, patched, slope)[0, 0, 0]) == pytest.approx(2.0, abs=1e-12)


@pytest.mark.filterwarnings("ignore:the edit of")
@pytest.mark.parametrize("name", ["gpt2", "llama", "neox", "qwen3", "gemma2"])
@pytest.mark.parametrize("kind", ["q", "k"])
def test_equals_patching_one_query_or_key_and_reading_the_attention(name: str, kind: str) -> None:
    model = load_model(build(name), tokenizer=tokenizer())
    task = Task.from_pairs(PAIRS[:1]).encode(model)
    for direction, corrupted in (("denoise", True), ("noise", False)):
        options = {"kind": kind, "direction": direction, "layers": [0, 2], "heads": [1]}
        single = atp_star(model, task, by="head_position", **FIX, **options)
        joint = atp_star(model, task, by="head", **FIX, **options)
        base, gradient = model.gradients(task, "pattern", corrupted=corrupted)
        source = model.trace(task, kind, corrupted=not corrupted)
        axis = "head" if kind == "q" else "kv_head"
        for frame, places in ((single, range(9)), (joint, [None])):
            right = []
            for layer in (0, 2):
                for pos in places:
                    where = {axis: 1} if pos is None else {axis: 1, "pos": pos}
                    edited = model.trace(
                        task, ("pattern", layer), corrupted=corrupted,
                        edits=[patch(f"{kind}.{layer}", source[kind, layer], **where)],
                    )  # fmt: skip
                    change = edited["pattern", layer] - base["pattern", layer]
                    right.append(float((change * gradient["pattern", layer]).sum()))
            assert np.abs(right).max() > 1e-3
            np.testing.assert_allclose(frame["signed"], right, atol=2e-5)
            np.testing.assert_allclose(frame["raw"], np.abs(right), atol=2e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_finds_the_query_whose_attention_is_saturated(layout: str) -> None:
    """The induction head's query at the last token decides, and the gradient does not see it."""
    built = induction_model(layout)
    model = load_model(built.hf, tokenizer=built.tokenizer)
    layer, head = built.heads["induction"]
    task = Task.from_pairs(
        [{"clean": "w3 w9 w4 w5 w6 w7 w4", "corrupted": "w3 w9 w4 w5 w6 w7 w6",
          "answer": "w5", "wrong_answer": "w7"}]
    ).encode(model)  # fmt: skip
    cell = {"kind": "q", "layers": [layer], "heads": [head]}
    exact = activation_patching(model, task, **cell)["value"].item()
    plain = atp_star(model, task, **cell, **PLAIN)["value"].item()
    fixed = atp_star(model, task, **cell, **FIX)["value"].item()
    assert exact == pytest.approx(1, abs=0.01)
    assert plain < 1e-3
    assert fixed > 0.5, (exact, plain, fixed)
    others = atp_star(model, task, kind="q", **FIX)
    assert (others.drop(index=layer * 4 + head)["value"] < 1e-3).all()


def test_without_corrections_it_is_the_size_of_the_plain_estimate(toy: Model, ioi: Encoded) -> None:
    for kind in ("q", "v", "resid_pre"):
        plain = attribution_patching(toy, ioi, kind=kind)
        effect = plain["raw"] - plain["corrupted"]
        made = atp_star(toy, ioi, kind=kind, **PLAIN)
        np.testing.assert_allclose(made["signed"], effect, atol=1e-6)
        np.testing.assert_allclose(made["raw"], effect.abs(), atol=1e-6)
        gap = (plain["clean"] - plain["corrupted"])[:2].mean()
        np.testing.assert_allclose(made["value"], effect.abs() / abs(gap), atol=1e-6)


def test_the_fix_leaves_values_as_they_are(toy: Model, ioi: Encoded) -> None:
    for kind in ("v", "z", "mlp_post"):
        by = "neuron" if kind == "mlp_post" else "head"
        fixed, plain = (atp_star(toy, ioi, kind=kind, by=by, **how) for how in (FIX, PLAIN))
        assert fixed.equals(plain)


# --- GradDrop ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["z", "mlp_out", "v", "resid_mid", "resid_pre"])
def test_is_the_mean_size_of_slopes_with_one_block_held(kind: str) -> None:
    """Holding what a block writes while the node takes a small step.

    In double precision; the norms compute in single.
    """
    model = load_model(build("llama"), tokenizer=tokenizer(), dtype="float64")
    task = Task.from_pairs(PAIRS[:1]).encode(model)
    held = model.trace(task, ["attn_out", "mlp_out"], corrupted=True)
    step, n_layers = 2e-3, model.dims.n_layers
    frame = atp_star(model, task, kind=kind, by="layer", qk_fix=False)
    for layer in range(n_layers):
        clean, corrupted = (model.trace(task, (kind, layer), corrupted=c) for c in (False, True))
        towards = clean[kind, layer] - corrupted[kind, layer]
        sets = [
            [
                patch(f"{kind}.{layer}", corrupted[kind, layer] + sign * step * towards),
                *(
                    patch(f"{write}.{block}", held[write, block])
                    for write in ("attn_out", "mlp_out")
                ),
            ]
            for block in range(n_layers)
            for sign in (1, -1)
        ]
        moved = model.sweep(task, sets, base="corrupted", resume=False)[:, 0]
        slopes = (moved[::2] - moved[1::2]) / (2 * step)
        inside = not kind.startswith("resid")
        right = float(slopes.abs().sum()) / (n_layers - inside)
        made = frame[frame["layer"] == layer]["raw"].item()
        assert made == pytest.approx(right, rel=1e-3, abs=3e-4)
        assert made > 1e-2


def test_only_some_layers_give_the_same_numbers() -> None:
    model = load_model(build("llama"), tokenizer=tokenizer())
    task = Task.from_pairs(PAIRS).encode(model)
    for kind in ("z", "q", "resid_pre"):
        every = atp_star(model, task, kind=kind)
        some = atp_star(model, task, kind=kind, layers=[2, 1])
        for layer in (1, 2):
            np.testing.assert_allclose(
                some[some["layer"] == layer]["value"],
                every[every["layer"] == layer]["value"],
                atol=1e-6,
            )


def test_finds_the_head_whose_direct_and_later_effects_cancel() -> None:
    """Layer 1 is scaled until what it adds to head 0.1's effect undoes the head's direct one."""
    cell = {"kind": "z", "layers": [0], "heads": [1]}

    def at(size: float) -> tuple[Model, Encoded, float]:
        hf = build("llama")
        hf.model.layers = hf.model.layers[:2]
        hf.config.num_hidden_layers = 2
        hf.model.layers[1].self_attn.o_proj.weight.data *= size
        hf.model.layers[1].mlp.down_proj.weight.data *= size
        model = load_model(hf, tokenizer=tokenizer(), dtype="float64")
        task = Task.from_pairs(PAIRS[:1]).encode(model)
        return model, task, atp_star(model, task, **cell, **PLAIN)["signed"].item()

    low, high = _crossing(lambda size: at(size)[2])
    for _ in range(12):
        middle = (low + high) / 2
        same = np.sign(at(middle)[2]) == np.sign(at(low)[2])
        low, high = (middle, high) if same else (low, middle)
    model, task, signed = at(low)
    direct = atp_star(model, task, **cell, qk_fix=False)["raw"].item()
    assert direct > 0.01
    assert abs(signed) < 0.02 * direct


def _crossing(slope: Callable[[float], float]) -> tuple[float, float]:
    """Two sizes between which the slope changes its sign."""
    sizes = [-4.0, -1.0, 1.0, 4.0]
    signs = [np.sign(slope(size)) for size in sizes]
    place = next(i for i in range(len(sizes) - 1) if signs[i] != signs[i + 1])
    return sizes[place], sizes[place + 1]


# --- the rest ----------------------------------------------------------------------------------


def test_two_pairs_give_the_raw_numbers_of_each_alone() -> None:
    model = load_model(build("llama"), tokenizer=tokenizer())
    task = Task.from_pairs(PAIRS).encode(model)
    for kind in ("q", "k"):
        both = atp_star(model, task, kind=kind, by="head_position")
        for row in (0, 1):
            alone = atp_star(model, task.rows([row]), kind=kind, by="head_position")
            np.testing.assert_allclose(both[both["batch"] == row]["raw"], alone["raw"], atol=1e-5)


def test_one_dimension_of_a_query_has_no_fix(toy: Model, ioi: Encoded) -> None:
    with pytest.raises(OptionError, match="qk_fix=False"):
        atp_star(toy, ioi, kind="q", by="neuron")


def test_scores_that_are_not_read_by_a_softmax_are_refused(
    toy: Model, ioi: Encoded, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = type(toy).gradients

    def doubled(self: Model, *args: object, **how: object) -> object:
        base, gradient = real(self, *args, **how)
        for site in base:
            if site.kind == "attn_scores":
                base.activations[site] = 2 * base[site]
        return base, gradient

    monkeypatch.setattr(type(toy), "gradients", doubled)
    with pytest.raises(ModelError, match="not its attention"):
        atp_star(toy, ioi, kind="k", by="position")
    atp_star(toy, ioi, kind="k", by="head")


def test_the_view_is_of_sizes() -> None:
    chosen = METHODS.get("atp_star")
    view = chosen.view_for(chosen.parse({"kind": "q"}))
    assert (view.x, view.y, view.scale) == ("head", "layer", "activation")
