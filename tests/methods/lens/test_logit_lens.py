import families
import pandas as pd
import pytest
import torch

from probe.core.errors import ModelError, OptionError, SiteError
from probe.core.registry import METHODS
from probe.core.task import Task
from probe.methods import _predictions
from probe.methods.lens.logit_lens import logit_lens
from probe.models.load import load_model

PAIRS = [
    {"clean": "When Mary and John went to", "answer": " store"},
    {"clean": "When Mary", "answer": " and"},
]
SHOWS = ["probability", "entropy", "kl", "rank", "log_prob", "top"]


@pytest.fixture(scope="module")
def model():
    return load_model("toy")


@pytest.fixture(scope="module")
def encoded(model):
    return Task.from_pairs(PAIRS).encode(model)


def outputs(model, encoded):
    """The model's own log-probabilities at every real token, prompt after prompt."""
    rows = [model.forward(encoded.rows([i]).clean)[0] for i in range(len(encoded))]
    return torch.cat(rows).log_softmax(-1)


def last_layer(frame, model):
    return frame[frame.layer == model.dims.n_layers - 1]


def test_last_layer_is_the_models_output(model, encoded):
    log_p = outputs(model, encoded)
    frames = {show: last_layer(logit_lens(model, encoded, show=show), model) for show in SHOWS}
    expected = {
        "probability": log_p.exp().max(-1).values,
        "entropy": -(log_p.exp() * log_p).sum(-1),
        "kl": torch.zeros(len(log_p)),
        "top": log_p.exp().topk(5).values.flatten(),
    }
    for show, values in expected.items():
        torch.testing.assert_close(
            torch.tensor(frames[show].value.to_numpy()).float(), values, rtol=1e-5, atol=1e-6
        )
    best = encoded.tokenizer.strings(log_p.argmax(-1).tolist())
    assert frames["probability"].prediction.tolist() == best
    answers = torch.cat([encoded.answers[i].expand(n) for i, n in enumerate(encoded.lengths)])
    own = log_p.gather(1, answers[:, None])
    log_prob = torch.tensor(frames["log_prob"].value.to_numpy()).float()
    torch.testing.assert_close(log_prob, own[:, 0], rtol=1e-5, atol=1e-6)
    assert frames["rank"].value.tolist() == (log_p > own).sum(-1).tolist()


@pytest.mark.parametrize("family", families.CAUSAL)
def test_every_layer_is_hugging_faces_hidden_state_through_norm_and_head(family):
    hf = families.build(family)
    model = load_model(families.build(family), tokenizer=families.tokenizer())
    encoded = Task.from_prompts("t5 t9 t30 t31 t7 t44").encode(model)
    with torch.no_grad():
        out = hf(encoded.clean, output_hidden_states=True)
        body, head = hf.base_model, hf.get_output_embeddings()
        norm = next(
            getattr(body, name) for name in ("norm", "ln_f", "final_layer_norm")
            if hasattr(body, name)
        )  # fmt: skip
        logits = [head(norm(hidden)) for hidden in out.hidden_states[1:-1]]
        cap = getattr(hf.config, "final_logit_softcapping", None)
        logits = [x if cap is None else cap * torch.tanh(x / cap) for x in logits] + [out.logits]
    expected = torch.cat([x[0].softmax(-1).max(-1).values for x in logits])
    frame = logit_lens(model, encoded)
    torch.testing.assert_close(
        torch.tensor(frame.value.to_numpy()).float(), expected, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("show", SHOWS)
@pytest.mark.parametrize("positions", [None, [0, -1]])
def test_a_ragged_batch_equals_its_prompts_one_by_one(model, encoded, show, positions):
    together = logit_lens(model, encoded, show=show, positions=positions)
    alone = [
        logit_lens(model, encoded.rows([i]), show=show, positions=positions).assign(batch=i)
        for i in range(2)
    ]
    pd.testing.assert_frame_equal(
        together, pd.concat(alone, ignore_index=True), rtol=1e-4, atol=1e-6
    )


def test_kl_is_positive_before_the_last_layer(model, encoded):
    frame = logit_lens(model, encoded, show="kl")
    assert (frame.value[frame.layer == 0] > 0.01).all()
    assert (frame.value >= 0).all()


def test_kl_of_an_early_layer_is_from_the_output_to_the_lens(model, encoded):
    resid = model.trace(encoded.rows([0]), "resid_post")
    early, final = (model.unembed(resid["resid_post", layer][0, -1]) for layer in range(2))
    expected = torch.nn.functional.kl_div(
        early.log_softmax(-1), final.log_softmax(-1), log_target=True, reduction="sum"
    )
    frame = logit_lens(model, encoded.rows([0]), show="kl", layers=[0], positions=[-1])
    assert abs(frame.value[0] - float(expected)) < 1e-5


def test_kl_is_that_of_the_output_from_the_lens():
    p, q = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.9, 0.1]]).log()
    expected = torch.nn.functional.kl_div(q, p, log_target=True, reduction="sum")
    torch.testing.assert_close(_predictions.kl(p, q)[0], expected)
    assert not torch.isclose(_predictions.kl(p, q), _predictions.kl(q, p)).any()


def test_memory_bound_chunks_change_nothing(model, encoded, monkeypatch):
    whole = logit_lens(model, encoded, show="top", top=3)
    monkeypatch.setattr(_predictions, "_ELEMENTS", 3 * model.dims.d_vocab)
    pd.testing.assert_frame_equal(whole, logit_lens(model, encoded, show="top", top=3), rtol=1e-5)


def test_rows_are_those_asked_for(model, encoded):
    frame = logit_lens(model, encoded, layers=[1], positions=[-1, 0])
    assert frame[["batch", "layer", "pos", "token"]].to_numpy().tolist() == [
        [0, 1, -1, " to"], [0, 1, 0, "When"], [1, 1, -1, " Mary"], [1, 1, 0, "When"],
    ]  # fmt: skip


def test_targets_are_followed_side_by_side(model, encoded):
    both = logit_lens(model, encoded, show="rank", target=[" store", " red"], positions=[-1])
    for target in (" store", " red"):
        alone = logit_lens(model, encoded, show="rank", target=[target], positions=[-1])
        ours = both[both.target == target].reset_index(drop=True)
        pd.testing.assert_frame_equal(ours, alone)
    by_answer = logit_lens(model, encoded.rows([0]), show="rank", positions=[-1])
    assert by_answer.target.unique().tolist() == [" store"]


def test_top_tokens_come_in_order_and_never_exceed_the_vocabulary(model, encoded):
    frame = logit_lens(model, encoded.rows([1]), show="top", top=10_000, positions=[-1])
    for _, rows in frame.groupby("layer"):
        assert rows.place.tolist() == list(range(model.dims.d_vocab))
        assert rows.value.is_monotonic_decreasing
        assert abs(rows.value.sum() - 1) < 1e-4


def test_a_target_is_needed_for_a_rank(model):
    plain = Task.from_prompts("When Mary went").encode(model)
    with pytest.raises(OptionError, match="prompts have no answers") as error:
        logit_lens(model, plain, show="rank")
    assert "target=" in error.value.remedy


def test_layers_and_positions_that_are_not_there_are_named(model, encoded):
    with pytest.raises(SiteError, match="0 to 1: the model has 2 layers"):
        logit_lens(model, encoded, layers=[2])
    with pytest.raises(SiteError, match="position 5 lies outside prompt 1"):
        logit_lens(model, encoded, positions=[5])


def test_an_encoder_is_refused():
    bert = load_model(families.build("bert"), tokenizer=families.tokenizer())
    with pytest.raises(ModelError, match="not a norm and a matrix"):
        logit_lens(bert, Task.from_prompts("t5 t9").encode(bert))


def test_options_are_checked_and_the_view_follows_them():
    known = METHODS.get("logit_lens")
    with pytest.raises(OptionError, match="layers"):
        known.parse({"layers": []})
    assert known.view_for(known.parse({})).kind == "heatmap"
    lines = known.view_for(known.parse({"show": "rank", "target": [" a", " b"]}))
    assert (lines.kind, lines.color) == ("line", "target")


@pytest.mark.slow
def test_smollm2_knows_the_capital_only_late():
    model = load_model("smollm2")
    task = Task.from_pairs([{"clean": "The capital of France is the city of", "answer": " Paris"}])
    encoded = task.encode(model)
    frame = logit_lens(model, encoded, show="log_prob", positions=[-1])
    log_p = model.forward(encoded.clean, last_only=True).log_softmax(-1)
    assert abs(frame.value.iloc[-1] - float(log_p[0, encoded.answers[0]])) < 1e-5
    assert frame.value.iloc[-1] > frame.value.iloc[10] + 3
