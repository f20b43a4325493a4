"""The linear estimate: against small steps of the exact patch, TransformerLens, and identities."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from families import CAUSAL, build, tokenizer
from transformer_lens.tools.analysis.attribution_patching import attribution_patch

from probe.core.edit import patch
from probe.core.errors import EditError, OptionError, TaskError
from probe.core.metric import METRICS, get_metric
from probe.core.model import Model
from probe.core.registry import METHODS
from probe.core.site import Site
from probe.core.task import Encoded, Task
from probe.methods.causal.activation_patching import activation_patching
from probe.methods.causal.attribution_patching import attribution_patching
from probe.models.load import load_model
from probe.tasks import load_task

pytestmark = pytest.mark.slow  # a minute or so: left to make test

PAIRS = [
    {"clean": "t3 t4 t5 t6 t7 t8 t9 t3 t4", "corrupted": "t3 t4 t5 t10 t7 t8 t9 t3 t4",
     "answer": "t5", "wrong_answer": "t6"},
    {"clean": "t10 t11 t12 t13", "corrupted": "t10 t14 t12 t13",
     "answer": "t14", "wrong_answer": "t3"},
]  # fmt: skip
KINDS = ["resid_pre", "attn_out", "mlp_out", "z", "q", "k", "v", "pattern"]


@pytest.fixture(scope="module")
def toy() -> Model:
    return load_model("toy")


@pytest.fixture(scope="module")
def ioi(toy: Model) -> Encoded:
    return load_task("ioi", n=3).encode(toy)


@pytest.mark.parametrize("name", CAUSAL)
def test_is_the_slope_of_a_small_step_towards_the_other_run(name: str) -> None:
    """In double precision where the library has it; most norms compute in single."""
    dtype = "float32" if name == "mixtral" else "float64"
    model = load_model(build(name), tokenizer=tokenizer(), dtype=dtype)
    task = Task.from_pairs(PAIRS).encode(model)
    step = 2e-3
    for kind in KINDS:
        clean, corrupted = (model.trace(task, (kind, 1), corrupted=flag) for flag in (False, True))
        towards = clean[kind, 1] - corrupted[kind, 1]
        where = {Site(kind, 1).head_axis: 1} if Site(kind, 1).head_axis else {"pos": -1}
        both = [
            [patch((Site(kind, 1)), corrupted[kind, 1] + sign * step * towards, **where)]
            for sign in (1, -1)
        ]
        ahead, behind = model.sweep(task, both, base="corrupted")
        options = {"heads": [1]} if "pos" not in where else {"by": "position"}
        frame = attribution_patching(model, task, kind=kind, layers=[1], **options)
        if "pos" in where:
            frame = frame[frame["pos"] == frame["batch"].map(dict(enumerate(task.last.tolist())))]
            frame = frame.sort_values("batch")
        slope = (frame["raw"] - frame["corrupted"]).to_numpy()
        np.testing.assert_allclose(
            slope, ((ahead - behind) / (2 * step)).numpy(), rtol=1e-3, atol=5e-4, err_msg=kind
        )


@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_a_small_difference_is_patched_as_estimated_cell_by_cell(direction: str) -> None:
    """Where the runs are close the estimate is the exact number: sign, scale, cells and order."""
    hf = build("llama")
    embedding = hf.model.embed_tokens.weight.data
    embedding[6] = embedding[10] + 1e-3 * embedding[6]
    model = load_model(hf, tokenizer=tokenizer(), dtype="float64")
    task = Task.from_pairs(PAIRS[:1]).encode(model)
    for kind, by in (("resid_pre", "position"), ("k", "head_position"), ("mlp_post", "neuron")):
        options = {"kind": kind, "by": by, "direction": direction, "layers": [2, 0]}
        estimate = attribution_patching(model, task, **options)
        exact = activation_patching(model, task, **options)
        assert list(estimate.columns) == list(exact.columns)
        axes = ["batch", "layer", *(a for a in ("head", "pos", "neuron") if a in exact)]
        assert estimate[axes].equals(exact[axes])
        np.testing.assert_allclose(estimate["value"], exact["value"], atol=1e-2)
        np.testing.assert_allclose(estimate["clean"], exact["clean"], atol=1e-9)
        np.testing.assert_allclose(estimate["corrupted"], exact["corrupted"], atol=1e-9)
        assert exact["value"].std() > 0.01


def test_agrees_with_transformerlens_at_every_node() -> None:
    model = load_model(build("gpt2"), tokenizer=tokenizer())
    task = Task.from_pairs(PAIRS[:1]).encode(model)
    # TransformerLens takes the gradient from the weights on; ours carry none.
    model.bridge.original_model.get_input_embeddings().weight.requires_grad_(True)
    answer, wrong = int(task.need_answers()[0]), int(task.need_wrong_answers()[0])
    result = attribution_patch(
        model.bridge, task.clean, task.need_corrupted(),
        lambda logits: logits[0, -1, answer] - logits[0, -1, wrong],
    )  # fmt: skip
    scores = result.node_scores
    heads = attribution_patching(model, task, kind="z", by="head_position")
    mlps = attribution_patching(model, task, kind="mlp_out", by="position")
    theirs = {
        kind: {
            (node.layer, node.head, node.position): score
            for node, score in scores.items() if node.kind == kind
        }
        for kind in ("attn_head_out", "mlp_out")
    }  # fmt: skip
    for frame, kind in ((heads, "attn_head_out"), (mlps, "mlp_out")):
        ours = {
            (row.layer, getattr(row, "head", None), row.pos): row.raw - row.corrupted
            for row in frame.itertuples()
        }
        assert ours.keys() == theirs[kind].keys()
        assert max(map(abs, ours.values())) > 0.01
        for cell, score in ours.items():
            assert score == pytest.approx(theirs[kind][cell], abs=1e-5)


@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_effects_of_parts_add_up(toy: Model, ioi: Encoded, direction: str) -> None:
    """Heads to their layer's attention, positions and neurons to their layer."""

    def effect(kind: str, by: str) -> np.ndarray:
        frame = attribution_patching(toy, ioi, kind=kind, by=by, direction=direction)
        start = frame["corrupted" if direction == "denoise" else "clean"]
        frame["effect"] = frame["raw"] - start
        return frame.groupby(["layer", "batch"])["effect"].sum().to_numpy()

    whole = effect("attn_out", "layer")
    assert np.abs(whole).min() > 1e-4
    parts = (("z", "head"), ("z", "head_position"), ("attn_out", "position"), ("z", "layer"),
             ("attn_out", "neuron"))  # fmt: skip
    for kind, by in parts:
        np.testing.assert_allclose(effect(kind, by), whole, atol=1e-5)


def test_the_direction_says_which_run_the_gradient_is_of(toy: Model, ioi: Encoded) -> None:
    for direction, corrupted in (("denoise", True), ("noise", False)):
        frame = attribution_patching(toy, ioi, kind="z", layers=[1], direction=direction)
        _, gradient = toy.gradients(ioi, "z.1", corrupted=corrupted)
        base, source = (toy.trace(ioi, "z.1", corrupted=c) for c in (corrupted, not corrupted))
        change = ((source["z", 1] - base["z", 1]) * gradient["z", 1]).sum((1, 3)).T
        gap = (frame["clean"] - frame["corrupted"])[:3].mean()
        start = frame["corrupted"] if corrupted else frame["clean"]
        right = (start - frame["corrupted"] + change.flatten().numpy()) / gap
        np.testing.assert_allclose(frame["value"], right, atol=1e-5)


@pytest.mark.parametrize("metric", [name for name in METRICS if name != "rank"])
def test_clean_and_corrupted_are_the_metric_of_both_runs(
    toy: Model, ioi: Encoded, metric: str
) -> None:
    frame = attribution_patching(toy, ioi, metric=metric, by="layer", layers=[0])
    for base in ("clean", "corrupted"):
        right = toy.sweep(ioi, [[]], get_metric(metric), base=base)[0]
        np.testing.assert_allclose(frame[base], right.numpy(), atol=1e-5)


def test_a_model_without_a_plain_read_out_gives_the_same_numbers(
    toy: Model, ioi: Encoded, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = attribution_patching(toy, ioi, layers=[1])
    monkeypatch.setitem(toy.health, "reads_out", False)
    made = attribution_patching(toy, ioi, layers=[1])
    np.testing.assert_allclose(made["raw"], right["raw"], atol=1e-5)


def test_takes_two_forward_passes_and_one_backward(
    toy: Model, ioi: Encoded, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    real = type(toy).run_raw

    def counted(self: Model, *args: object, **how: object) -> object:
        calls.append(how.get("grad", False))
        return real(self, *args, **how)

    monkeypatch.setattr(type(toy), "run_raw", counted)
    attribution_patching(toy, ioi, kind="z")
    assert sorted(calls) == [False, True]


def test_two_pairs_give_the_raw_numbers_of_each_alone() -> None:
    model = load_model(build("llama"), tokenizer=tokenizer())
    task = Task.from_pairs(PAIRS).encode(model)
    both = attribution_patching(model, task, kind="z", by="head_position")
    assert both[both["batch"] == 1]["pos"].max() == task.last[1]
    for row in (0, 1):
        alone = attribution_patching(model, task.rows([row]), kind="z", by="head_position")
        np.testing.assert_allclose(both[both["batch"] == row]["raw"], alone["raw"], atol=1e-5)


def test_masked_scores_have_no_effect(toy: Model, ioi: Encoded) -> None:
    frame = attribution_patching(toy, ioi, kind="attn_scores")
    assert np.isfinite(frame["value"]).all()
    pattern = attribution_patching(toy, ioi, kind="pattern")
    assert (frame["value"] - pattern["value"]).abs().max() > 1e-6


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"kind": "resid"}, OptionError, "no site kind"),
        ({"layers": []}, OptionError, "no cell is left"),
        ({"kind": "z", "heads": [4]}, OptionError, "head 4 is out of range"),
        ({"by": "head"}, OptionError, "no heads to sweep"),
    ],
)
def test_what_is_not_there_is_refused(
    toy: Model, ioi: Encoded, options: dict, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        attribution_patching(toy, ioi, **options)


def test_a_site_that_is_not_read_back_is_refused() -> None:
    model = load_model(build("mixtral"), tokenizer=tokenizer())
    task = Task.from_pairs(PAIRS).encode(model)
    with pytest.raises(EditError, match="router but does not read it back"):
        attribution_patching(model, task, kind="router")


def test_prompts_without_a_gap_are_refused(toy: Model) -> None:
    pair = {"clean": "Mary gave John", "corrupted": "Mary had John", "answer": " a"}
    task = Task.from_pairs([pair | {"wrong_answer": " the"}]).encode(toy)
    task = replace(task, corrupted=task.clean)
    with pytest.raises(TaskError, match="metric differs"):
        attribution_patching(toy, task)


def test_views_are_those_of_the_exact_sweep() -> None:
    estimate, exact = METHODS.get("attribution_patching"), METHODS.get("activation_patching")
    for given in ({"kind": "z"}, {"kind": "k", "by": "head_position"}, {"by": "layer"},
                  {"kind": "mlp_post", "by": "neuron"}, {}):  # fmt: skip
        assert estimate.view_for(estimate.parse(given)) == exact.view_for(exact.parse(given))


def test_no_gradient_flows_through_where_it_is_stopped(toy: Model, ioi: Encoded) -> None:
    """What is left by the residual stream into the last block is its direct path."""
    stops = ["attn_out.1", "mlp_out.1"]
    _, gradient = toy.gradients(ioi, ["resid_pre.1", "resid_post.1", "z.1"], stop_at=stops)
    torch.testing.assert_close(gradient["resid_pre", 1], gradient["resid_post", 1])
    assert not gradient["z", 1].any()
    _, none = toy.gradients(ioi, "resid_pre.1", stop_at="resid_post.1")
    assert not none["resid_pre", 1].any()
