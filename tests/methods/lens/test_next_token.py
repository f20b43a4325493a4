import families
import numpy as np
import pandas as pd
import pytest
import torch

from probe.core.errors import ModelError
from probe.core.task import Task
from probe.methods.lens import next_token as module
from probe.models.load import load_model

next_token = module.next_token
TEXTS = ["When Mary and John went to", "When Mary"]


@pytest.fixture(scope="module")
def model():
    return load_model("toy")


@pytest.fixture(scope="module")
def encoded(model):
    return Task.from_prompts(TEXTS).encode(model)


def test_top_tokens_are_those_of_the_models_output(model, encoded):
    frame = next_token(model, encoded, top=4)
    for row in range(2):
        logits = model.forward(encoded.rows([row]).clean)[0, -1]
        best = logits.topk(4)
        ours = frame[frame.batch == row]
        assert ours.token_id.tolist() == best.indices.tolist()
        assert ours.token.tolist() == model.tokenizer.strings(best.indices.tolist())
        assert ours.place.tolist() == [0, 1, 2, 3]
        expected = {
            "value": logits.softmax(-1)[best.indices],
            "log_prob": logits.log_softmax(-1)[best.indices],
            "behind": best.values[0] - best.values,
        }
        for name, values in expected.items():
            assert np.allclose(ours[name], values, rtol=1e-4, atol=1e-5)


def test_probabilities_of_the_whole_vocabulary_sum_to_one(model, encoded):
    frame = next_token(model, encoded, top=10_000)
    assert len(frame) == 2 * model.dims.d_vocab
    assert np.allclose(frame.groupby("batch").value.sum(), 1, atol=1e-4)


def test_loss_along_the_prompt_is_cross_entropy(model, encoded):
    frame = next_token(model, encoded, show="prompt")
    for row in range(2):
        ids = encoded.rows([row]).clean[0]
        logits = model.forward(ids[None])[0, :-1]
        ours = frame[frame.batch == row].reset_index(drop=True)
        assert ours.token.tolist() == encoded.str_tokens(row)
        assert ours.token_id.tolist() == ids.tolist() and ours.pos.tolist() == list(range(len(ids)))
        loss = torch.nn.functional.cross_entropy(logits, ids[1:], reduction="none")
        entropy = torch.distributions.Categorical(logits=logits).entropy()
        rank = (logits > logits.gather(1, ids[1:, None])).sum(-1)
        assert np.allclose(ours.value[1:], loss, rtol=1e-4, atol=1e-5)
        assert np.allclose(ours.entropy[1:], entropy, rtol=1e-4, atol=1e-5)
        assert ours["rank"][1:].tolist() == rank.tolist()
        assert ours[["value", "entropy", "rank"]].iloc[0].isna().all()


@pytest.mark.parametrize("show", ["top", "prompt"])
def test_a_ragged_batch_and_small_chunks_change_nothing(model, encoded, show, monkeypatch):
    together = next_token(model, encoded, show=show)
    alone = [next_token(model, encoded.rows([i]), show=show).assign(batch=i) for i in range(2)]
    expected = pd.concat(alone, ignore_index=True)
    pd.testing.assert_frame_equal(together, expected, rtol=1e-4, atol=1e-5)
    monkeypatch.setattr(module, "_ELEMENTS", 2 * model.dims.d_vocab)
    pd.testing.assert_frame_equal(
        next_token(model, encoded, show=show), expected, rtol=1e-4, atol=1e-5
    )


def test_one_token_has_no_loss(model):
    frame = next_token(model, Task.from_prompts("When").encode(model), show="prompt")
    assert len(frame) == 1 and frame.value.isna().all()


def test_an_encoder_is_refused():
    bert = load_model(families.build("bert"), tokenizer=families.tokenizer())
    with pytest.raises(ModelError, match="is an encoder and predicts no next token"):
        next_token(bert, Task.from_prompts("t5 t9").encode(bert))
