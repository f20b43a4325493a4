"""Numbers from logits, against PyTorch's own and by what cannot change them."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from small_tokenizers import word_level
from torch import Tensor

from probe.core.errors import OptionError, TaskError
from probe.core.metric import METRICS, Metric, get_metric
from probe.core.task import Encoded, Task, encode
from probe.core.tokens import Tokenizer

TOKENIZER = Tokenizer(word_level(["the cat saw a dog and one bird"]))
FULL = {"clean": "the cat", "corrupted": "the dog", "answer": " saw", "wrong_answer": " and"}


def encoded(*left_out: str, n: int = 3) -> Encoded:
    pair = {key: value for key, value in FULL.items() if key not in left_out}
    return encode(Task.from_pairs([pair] * n), TOKENIZER, n_ctx=9)


def logits(seed: int = 0, n: int = 3) -> Tensor:
    return torch.randn(n, TOKENIZER.n_vocab, generator=torch.Generator().manual_seed(seed)) * 3


def measured(metric: Metric, values: Tensor, reference: Tensor | None = None) -> Tensor:
    data = encoded()
    read = metric.token_ids(data)
    return metric(values if read is None else values.gather(1, read), data, reference)


@pytest.mark.parametrize("name", METRICS)
@given(shift=st.floats(-50, 50), seed=st.integers(0, 1000))
def test_a_constant_added_to_all_logits_changes_nothing(name: str, shift: float, seed: int) -> None:
    values, reference = logits(seed), logits(seed + 1)
    metric = METRICS[name]
    torch.testing.assert_close(
        measured(metric, values + shift, reference), measured(metric, values, reference),
        atol=1e-4, rtol=1e-4,  # float32 logits of up to 60
    )  # fmt: skip


def test_the_logit_difference_is_answer_minus_wrong_answer() -> None:
    values, data = logits(), encoded()
    expected = [
        float(row[TOKENIZER.need_single(" saw")] - row[TOKENIZER.need_single(" and")])
        for row in values
    ]
    assert measured(METRICS["logit_diff"], values).tolist() == pytest.approx(expected)
    ids = METRICS["logit_diff"].token_ids(data)
    assert ids is not None
    assert TOKENIZER.strings(ids[0].tolist()) == ["saw", "and"]


def test_loss_log_probability_and_probability_are_cross_entropy() -> None:
    values, answers = logits(), encoded().need_answers()
    loss = F.cross_entropy(values, answers, reduction="none")
    torch.testing.assert_close(measured(METRICS["loss"], values), loss)
    torch.testing.assert_close(measured(METRICS["log_prob"], values), -loss)
    torch.testing.assert_close(measured(METRICS["prob"], values), (-loss).exp())


def test_rank_counts_the_tokens_above() -> None:
    values, answers = logits(), encoded().need_answers()
    order = values.argsort(1, descending=True)
    expected = [order[row].tolist().index(answers[row]) for row in range(3)]
    assert measured(METRICS["rank"], values).tolist() == expected
    values[:, answers[0]] = values.max() + 1
    assert measured(METRICS["rank"], values).tolist() == [0, 0, 0]


def test_kl_is_that_of_torch_and_zero_at_the_reference() -> None:
    values, reference = logits(1), logits(2)
    expected = F.kl_div(
        values.log_softmax(1), reference.log_softmax(1), reduction="none", log_target=True
    ).sum(1)
    torch.testing.assert_close(measured(METRICS["kl"], values, reference), expected)
    torch.testing.assert_close(measured(METRICS["kl"], values, values), torch.zeros(3))


@given(seed=st.integers(0, 1000))
def test_kl_is_never_negative(seed: int) -> None:
    assert (measured(METRICS["kl"], logits(seed), logits(seed + 1)) > -1e-6).all()


@pytest.mark.parametrize("name", METRICS)
def test_one_number_for_each_example_whatever_the_others_are(name: str) -> None:
    values, reference, metric = logits(), logits(1), METRICS[name]
    together = measured(metric, values, reference)
    assert together.shape == (3,)
    for row in range(3):
        data, part = encoded(n=1), values[row : row + 1]
        read = metric.token_ids(data)
        seen = part if read is None else part.gather(1, read)
        alone = metric(seen, data, reference[row : row + 1])
        torch.testing.assert_close(alone[0], together[row])


def test_kl_without_the_clean_run_is_refused() -> None:
    with pytest.raises(TaskError, match="kl compares with the clean run, and none was given"):
        measured(METRICS["kl"], logits())


@pytest.mark.parametrize("name", METRICS)
def test_a_task_without_what_the_metric_reads_is_refused(name: str) -> None:
    METRICS[name].check(encoded())
    if name != "kl":
        with pytest.raises(TaskError, match="the task 'pairs' has no answer\nTry: give each pair"):
            METRICS[name].check(encoded("answer", "wrong_answer"))
    if name == "logit_diff":
        with pytest.raises(TaskError, match="has no wrong_answer"):
            METRICS[name].check(encoded("wrong_answer"))
    else:
        METRICS[name].check(encoded("wrong_answer"))


def test_metrics_by_name() -> None:
    assert get_metric("loss") is METRICS["loss"]
    assert get_metric(METRICS["kl"]) is METRICS["kl"]
    with pytest.raises(OptionError) as error:
        get_metric("logitdiff")
    assert 'there is no metric "logitdiff"\nTry: did you mean "logit_diff"?' in str(error.value)
    for name, metric in METRICS.items():
        assert metric.name == name
        assert metric.about
        assert metric.unit
        assert metric.higher_is
