"""A model that answers by rule: what does the check say of it?"""

from collections.abc import Callable, Sequence

import pandas as pd
import pytest
import torch
from jaxtyping import Float, Int
from small_tokenizers import word_level
from torch import Tensor

from probe.core.edit import Edit
from probe.core.errors import OptionError, TaskError
from probe.core.metric import METRICS
from probe.core.model import Dims, Model
from probe.core.task import Task
from probe.core.tokens import Tokenizer
from probe.tasks import load_task
from probe.tasks.check import check

Rule = Callable[[str], dict[str, float]]
"""Prompt → logits of some tokens; all others have logit 0."""


class Ruled:
    """Answers by a rule on the prompt's text; all else of the Model protocol is never asked for."""

    name = "ruled"
    dims = Dims(1, 1, 1, 4, 4, 4, 0, 512)

    def __init__(self, tokenizer: Tokenizer, rule: Rule) -> None:
        self.tokenizer, self.rule, self.calls = tokenizer, rule, 0

    def __getattr__(self, name: str) -> str:
        if name not in dir(Model):
            raise AttributeError(name)
        return "never asked for"

    def forward(
        self,
        tokens: Int[Tensor, "batch pos"],
        edits: Sequence[Edit] = (),
        *,
        lengths: Int[Tensor, " batch"] | None = None,
        last_only: bool = False,
    ) -> Float[Tensor, "batch pos d_vocab"] | Float[Tensor, "batch d_vocab"]:
        assert lengths is not None
        assert last_only
        self.calls += 1
        logits = torch.zeros(len(tokens), self.tokenizer.n_vocab)
        for row, (ids, length) in enumerate(zip(tokens.tolist(), lengths.tolist(), strict=True)):
            for text, logit in self.rule(self.tokenizer.decode(ids[:length])).items():
                logits[row, self.tokenizer.need_single(text)] = logit
        return logits


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(word_level())


PAIRS = [
    {"clean": "the key", "corrupted": "the keys", "answer": " is", "wrong_answer": " are"},
    {"clean": "the boys", "corrupted": "the boy", "answer": " are", "wrong_answer": " is"},
    {"clean": "I see the cars", "corrupted": "I see the car"}
    | {"answer": " are", "wrong_answer": " is"},
]


def agree(text: str) -> dict[str, float]:
    return {" are": 3.0, " is": 1.0} if text.endswith("s") else {" are": 1.0, " is": 4.0}


def test_a_model_that_can(tokenizer: Tokenizer) -> None:
    checked = check(Task.from_pairs(PAIRS, "agree"), Ruled(tokenizer, agree))
    frame = checked.frame
    assert frame.value.tolist() == [3.0, -2.0, 2.0, -3.0, 2.0, -3.0]
    assert frame.run.tolist() == ["clean", "corrupted"] * 3
    assert frame.batch.tolist() == [0, 0, 1, 1, 2, 2]
    assert frame.top.tolist() == ["is", "are", "are", "is", "are", "is"]
    assert frame.right.all()
    assert checked.accuracy == 1.0
    assert checked.correct.prompts == checked.task.prompts
    assert str(checked) == (
        "agree: 3 prompts\n"
        "  clean: 100% right, mean logit_diff 2.33 nats\n"
        "  corrupted: 100% right, mean logit_diff -2.67 nats"
    )


def test_a_pair_counts_only_if_both_runs_are_right(tokenizer: Tokenizer) -> None:
    def always_singular(text: str) -> dict[str, float]:
        return {" is": 1.0} if text != "the keys" else {" are": 1.0}

    checked = check(Task.from_pairs(PAIRS), Ruled(tokenizer, always_singular))
    assert checked.accuracy == pytest.approx(1 / 3)
    assert [prompt.clean for prompt in checked.correct.prompts] == ["the key"]


def test_a_tie_is_not_right(tokenizer: Tokenizer) -> None:
    checked = check(Task.from_pairs(PAIRS), Ruled(tokenizer, lambda text: {}))
    assert not checked.frame.right.any()
    with pytest.raises(TaskError, match="the model gets none of the 3 pairs of pairs right"):
        _ = checked.correct


def test_a_neutral_twin_counts_neither_way(tokenizer: Tokenizer) -> None:
    pairs = [pair | {"tags": {"twin": "neutral"}} for pair in PAIRS[:1]] + PAIRS[1:]

    def never_flips(text: str) -> dict[str, float]:
        return {" is": 1.0} if "key" in text else {" are": 1.0}

    checked = check(Task.from_pairs(pairs), Ruled(tokenizer, never_flips))
    assert pd.isna(checked.frame.right[1])
    assert checked.frame.right.tolist()[2:] == [True, False, True, False]
    assert [prompt.clean for prompt in checked.correct.prompts] == ["the key"]


def test_the_abc_twins_of_ioi_are_neutral(tokenizer: Tokenizer) -> None:
    task = load_task("ioi", n=4, corruption="abc")
    frame = check(task, Ruled(tokenizer, lambda text: {})).frame
    assert frame[frame.run == "corrupted"].right.isna().all()
    assert frame[frame.run == "clean"].right.notna().all()


def test_without_wrong_answers_the_top_token_decides(tokenizer: Tokenizer) -> None:
    pairs = [{k: v for k, v in pair.items() if k != "wrong_answer"} for pair in PAIRS]
    plural_only = Ruled(tokenizer, lambda text: {" are": 1.0})
    checked = check(Task.from_pairs(pairs), plural_only, metric="rank")
    clean = checked.frame[checked.frame.run == "clean"]
    assert clean.right.tolist() == [False, True, True]
    assert clean.value.tolist()[1:] == [0.0, 0.0]
    assert len(checked.correct) == 2
    with pytest.raises(TaskError, match=r"has no wrong_answer\nTry: .*choose a metric that needs"):
        check(Task.from_pairs(pairs), plural_only)


def test_prompts_without_a_twin(tokenizer: Tokenizer) -> None:
    pairs = [{k: v for k, v in pair.items() if k != "corrupted"} for pair in PAIRS]
    model = Ruled(tokenizer, agree)
    checked = check(Task.from_pairs(pairs), model)
    assert checked.frame.run.unique().tolist() == ["clean"]
    assert checked.accuracy == 1.0
    assert model.calls == 1


@pytest.mark.parametrize("metric", sorted(METRICS))
def test_any_metric_is_the_one_computed_on_all_logits(metric: str, tokenizer: Tokenizer) -> None:
    model = Ruled(tokenizer, agree)
    task = Task.from_pairs(PAIRS)
    encoded, found = task.encode(model), METRICS[metric]
    runs = {"clean": encoded.clean, "corrupted": encoded.need_corrupted()}
    logits = {
        run: model.forward(ids, lengths=encoded.lengths, last_only=True)
        for run, ids in runs.items()
    }
    frame = check(task, model, metric).frame
    for run in runs:
        read = found.token_ids(encoded)
        seen = logits[run] if read is None else logits[run].gather(1, read)
        expected = found(seen, encoded, logits["clean"])
        torch.testing.assert_close(torch.tensor(frame[frame.run == run].value.tolist()), expected)


def test_many_prompts_are_run_in_batches_and_keep_their_numbers(tokenizer: Tokenizer) -> None:
    pairs = [PAIRS[row % 3] for row in range(70)]
    model = Ruled(tokenizer, agree)
    frame = check(Task.from_pairs(pairs), model).frame
    assert model.calls == 6
    assert frame.batch.tolist() == [row for row in range(70) for _ in range(2)]
    clean = frame[frame.run == "clean"]
    assert clean.prompt.tolist() == [pair["clean"] for pair in pairs]
    assert frame.right.all()


def test_prompts_without_answers_and_unknown_metrics_are_refused(tokenizer: Tokenizer) -> None:
    model = Ruled(tokenizer, agree)
    with pytest.raises(TaskError, match="the task 'prompt' has no answer"):
        check(Task.from_prompts("the key"), model)
    with pytest.raises(OptionError, match='no metric "logit_dif"\nTry: did you mean "logit_diff"'):
        check(Task.from_pairs(PAIRS), model, "logit_dif")


def test_text_is_shown_as_text(tokenizer: Tokenizer) -> None:
    hostile = "<script>alert(1)</script> $x$ \x00\x07 \u202e :red[x] " + "א" * 500
    pair = {"clean": f"{hostile} keys", "answer": " are", "wrong_answer": " is"}
    checked = check(Task.from_pairs([pair], "<b>"), Ruled(tokenizer, agree))
    page = checked._repr_html_()
    assert "<script>" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt; $x$ \\x00\\x07" in page
    assert "<b>" not in page
    assert 'class="tex2jax_ignore mathjax_ignore"' in page
    assert "\x00" not in page
    assert page.count("<bdi>") == page.count("</bdi>") == 8
    assert "א" * 200 not in page
