"""Path patching against its three steps written out, one forward pass at a time."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from families import build, tokenizer
from torch import Tensor

from probe.core.edit import Edit, patch
from probe.core.errors import EditError, OptionError, SiteError, TaskError
from probe.core.metric import get_metric
from probe.core.model import Model
from probe.core.progress import listening
from probe.core.registry import METHODS
from probe.core.task import Encoded, Task
from probe.methods import paths
from probe.methods.causal.path_patching import path_patching
from probe.models.load import load_model
from probe.tasks import load_task

pytestmark = pytest.mark.slow  # a minute of small models

PAIRS = [
    {"clean": "t3 t4 t5 t6 t7 t8 t9 t3 t4", "corrupted": "t3 t4 t5 t10 t7 t8 t9 t3 t4",
     "answer": "t5", "wrong_answer": "t6"},
    {"clean": "t10 t11 t12 t13", "corrupted": "t10 t14 t12 t13",
     "answer": "t14", "wrong_answer": "t3"},
]  # fmt: skip
FAMILIES = ["gpt2", "llama", "neox", "gemma2", "mixtral"]
RECEIVERS = [
    ["logits"],
    ["q.2.1"],
    ["k.1.1", "v.2.0"],
    ["mlp.1", "mlp.2", "q.2.3"],
]


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest) -> Model:
    return load_model(build(request.param), tokenizer=tokenizer())


@pytest.fixture(scope="module")
def llama() -> Model:
    return load_model(build("llama"), tokenizer=tokenizer())


@pytest.fixture(scope="module")
def toy() -> Model:
    return load_model("toy")


@pytest.fixture(scope="module")
def ioi(toy: Model) -> Encoded:
    return load_task("ioi", n=2).encode(toy)


def _metric(model: Model, task: Encoded, tokens: Tensor, edits: list[Edit]) -> Tensor:
    logits = model.forward(tokens, edits, lengths=task.lengths, last_only=True, quiet=True)
    metric = get_metric("logit_diff")
    ids = metric.token_ids(task)
    assert ids is not None
    return metric(logits.gather(1, ids), task)


def _literal(
    model: Model, task: Encoded, sender: tuple, receivers: list[str], *, denoise: bool,
    freeze_mlps: bool, positions: list[int] | None = None,
) -> Tensor:  # fmt: skip
    """Steps 1 to 3 for one sender; each receiver's input is recorded in a run of its own."""
    base_tokens, other = (task.corrupted, task.clean) if denoise else (task.clean, task.corrupted)
    n_layers = model.dims.n_layers
    kind, layer, head = sender
    base = {str(site): value for site, value in model.trace(base_tokens, ["z", "mlp_out"]).items()}
    sent = model.trace(other, [(kind, layer)])[kind, layer]

    def run_with_sender(record: str, free: int | None) -> Tensor:
        edits = []
        for m in range(n_layers):
            value = base[f"z.{m}"].clone()
            if kind == "z" and m == layer:
                value[:, :, head] = sent[:, :, head]
            edits.append(patch(f"z.{m}", value))
            if kind == "mlp_out" and m == layer:
                edits.append(patch(f"mlp_out.{m}", sent))
            elif freeze_mlps and m != free:
                edits.append(patch(f"mlp_out.{m}", base[f"mlp_out.{m}"]))
        if record == "logits":
            return _metric(model, task, base_tokens, edits)
        return model.trace(base_tokens, record, edits=edits)[record]

    if receivers == ["logits"]:
        return run_with_sender("logits", None)
    final = []
    where = {} if positions is None else {"pos": positions}
    for receiver in receivers:
        what, m, *rest = receiver.split(".")
        if what == "mlp":
            if (kind, layer) != ("mlp_out", int(m)):
                value = run_with_sender(f"mlp_out.{m}", int(m))
                final.append(patch(f"mlp_out.{m}", value, **where))
        else:
            value = run_with_sender(f"{what}.{m}", None)
            axis = "head" if what == "q" else "kv_head"
            final.append(patch(f"{what}.{m}", value, **{axis: int(rest[0])}, **where))
    return _metric(model, task, base_tokens, final)


@pytest.mark.filterwarnings("ignore:the edit of")
@pytest.mark.parametrize("receivers", RECEIVERS, ids=",".join)
@pytest.mark.parametrize(("direction", "freeze_mlps"), [("denoise", False), ("noise", True)])
def test_equals_the_three_steps_written_out(
    model: Model, receivers: list[str], direction: str, freeze_mlps: bool
) -> None:
    task = Task.from_pairs(PAIRS).encode(model)
    senders = {"0.3": ("z", 0, 3), "1.2": ("z", 1, 2), "2.1": ("z", 2, 1),
               "mlp.0": ("mlp_out", 0, None), "mlp.1": ("mlp_out", 1, None)}  # fmt: skip
    frame = path_patching(
        model, task, receivers=receivers, senders=list(senders), direction=direction,
        freeze_mlps=freeze_mlps,
    )  # fmt: skip
    for name, sender in senders.items():
        right = _literal(
            model, task, sender, receivers, denoise=direction == "denoise",
            freeze_mlps=freeze_mlps,
        )  # fmt: skip
        made = frame[frame["sender"] == name].sort_values("batch")["raw"].to_numpy()
        np.testing.assert_allclose(made, right.numpy(), atol=2e-5, rtol=1e-5, err_msg=name)


@pytest.mark.filterwarnings("ignore:the edit of")
def test_only_the_named_positions_of_the_receivers_change(llama: Model) -> None:
    task = Task.from_pairs(PAIRS).encode(llama)
    frame = path_patching(
        llama, task, receivers=["k.2.1", "mlp.1"], senders=["0.1"], positions=[-1, -2]
    )
    right = _literal(
        llama, task, ("z", 0, 1), ["k.2.1", "mlp.1"], denoise=True, freeze_mlps=False,
        positions=[-1, -2],
    )  # fmt: skip
    everywhere = path_patching(llama, task, receivers=["k.2.1", "mlp.1"], senders=["0.1"])
    np.testing.assert_allclose(frame["raw"], right.numpy(), atol=1e-5)
    assert (frame["raw"] - everywhere["raw"]).abs().max() > 1e-4


def test_many_chunks_equal_one(llama: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    task = Task.from_pairs(PAIRS).encode(llama)
    options = {"receivers": ["q.2.1", "mlp.1"], "senders": ["1.0", "0.1", "mlp.0", "0.3", "1.2"]}
    whole = path_patching(llama, task, **options)
    monkeypatch.setattr(paths, "_TOKENS_PER_CHUNK", 0)
    monkeypatch.setattr(paths, "_SENDERS_PER_CHUNK", 1)
    pd.testing.assert_frame_equal(whole, path_patching(llama, task, **options), atol=1e-5)


@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_senders_after_all_receivers_send_nothing(toy: Model, ioi: Encoded, direction: str) -> None:
    frame = path_patching(
        toy, ioi, receivers=["q.1.0", "v.1.1"], senders=["1.0", "1.3", "mlp.1"],
        direction=direction,
    )  # fmt: skip
    unchanged = frame["corrupted" if direction == "denoise" else "clean"]
    np.testing.assert_array_equal(frame["raw"], unchanged)


def test_an_mlp_does_not_send_to_itself(toy: Model, ioi: Encoded) -> None:
    frame = path_patching(toy, ioi, receivers=["mlp.0"], senders=["mlp.0", "0.1"])
    by = frame.groupby("sender")[["raw", "corrupted"]].first()
    assert by.loc["mlp.0", "raw"] == by.loc["mlp.0", "corrupted"]
    assert by.loc["0.1", "raw"] != by.loc["0.1", "corrupted"]


def test_frozen_effect_on_logits_is_read_from_the_residual_plus_what_the_sender_writes(
    toy: Model, ioi: Encoded
) -> None:
    frame = path_patching(toy, ioi, senders=["0.2", "1.1", "mlp.0"], freeze_mlps=True)
    kinds = ["z", "mlp_out", "resid_post.1"]
    clean, corrupted = (toy.trace(ioi, kinds, corrupted=flag) for flag in (False, True))
    metric = get_metric("logit_diff")
    ids = metric.token_ids(ioi)
    assert ids is not None
    sent = {"mlp.0": clean["mlp_out", 0] - corrupted["mlp_out", 0]}
    for layer, head in ((0, 2), (1, 1)):
        difference = toy.head_outputs(layer, clean["z", layer] - corrupted["z", layer])
        sent[f"{layer}.{head}"] = difference[:, :, head]
    for sender, difference in sent.items():
        resid = (corrupted["resid_post", 1] + difference)[torch.arange(len(ioi)), ioi.last]
        right = metric(toy.unembed(resid).gather(1, ids), ioi)
        made = frame[frame["sender"] == sender]["raw"]
        np.testing.assert_allclose(made, right.numpy(), atol=1e-5)


def test_two_pairs_give_the_raw_numbers_of_each_alone(llama: Model) -> None:
    task = Task.from_pairs(PAIRS).encode(llama)
    options = {"receivers": ["q.2.1", "mlp.2"], "senders": ["0.1", "1.1", "mlp.0"]}
    both = path_patching(llama, task, **options)
    for row in (0, 1):
        alone = path_patching(llama, task.rows([row]), **options)
        np.testing.assert_allclose(
            both[both["batch"] == row]["raw"], alone["raw"], atol=1e-5, rtol=1e-5
        )


def test_views_follow_the_senders() -> None:
    chosen = METHODS.get("path_patching")
    assert chosen.view_for(chosen.parse({})).x == "head"
    assert chosen.view_for(chosen.parse({"senders": ["0.1", "mlp.0"]})).x == "sender"


def test_stopping_keeps_the_senders_that_are_done(
    llama: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "_TOKENS_PER_CHUNK", 0)
    monkeypatch.setattr(paths, "_SENDERS_PER_CHUNK", 2)
    task = Task.from_pairs(PAIRS).encode(llama)
    with listening(lambda done, *_: done < 2):
        frame = path_patching(llama, task, receivers=["q.2.1"])
    assert frame["sender"].unique().tolist() == ["0.0", "0.1"]


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"receivers": ["logits", "q.1.0"]}, OptionError, "logits alone"),
        ({"receivers": ["x.1.0"]}, OptionError, 'no receiver "x.1.0"'),
        ({"receivers": ["q.1"]}, OptionError, 'cannot read "q.1"'),
        ({"receivers": ["k.1.2"]}, OptionError, "k has 2 kv_heads"),
        ({"receivers": ["q.7.0"]}, SiteError, "the model has 2 layers"),
        ({"senders": ["1.4"]}, OptionError, "z has 4 heads"),
        ({"senders": ["mlp.0.1"]}, OptionError, "mlp.layer for an MLP"),
        ({"positions": [-1]}, OptionError, "last token alone"),
        ({"receivers": ["q.1.0"], "positions": [99]}, EditError, "leaves prompt 0"),
    ],
)
def test_what_is_not_there_is_refused(
    toy: Model, ioi: Encoded, options: dict, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        path_patching(toy, ioi, **options)


def test_prompts_without_a_gap_are_refused(toy: Model) -> None:
    pair = {"clean": "Mary gave John", "corrupted": "Mary had John", "answer": " a"}
    task = Task.from_pairs([pair | {"wrong_answer": " the"}]).encode(toy)
    task = replace(task, corrupted=task.clean)
    with pytest.raises(TaskError, match="metric differs"):
        path_patching(toy, task)
