"""The built-in in-context tasks: enough of them, long enough, and true where rules can tell."""

import pytest

import probe
from probe.tasks.icl import ICL_TASKS, icl_task

TASKS = {name: icl_task(name) for name in ICL_TASKS}


def test_there_are_twenty_of_sixty_pairs() -> None:
    assert len(TASKS) >= 20
    assert {name: len(task) for name, task in TASKS.items() if len(task) < 60} == {}
    assert all(entry.about for entry in ICL_TASKS.values())


def test_cells_have_no_stray_space() -> None:
    for name, task in TASKS.items():
        for x, y in task.pairs:
            assert (x, y) == (x.strip(), y.strip()), name


def test_forms_that_rules_can_check() -> None:
    for word, form in TASKS["gerund"].pairs:
        assert form.endswith("ing"), word
        assert form[0] == word[0]
    for word, form in TASKS["third_person"].pairs:
        assert form.endswith("s"), word
    for word, form in TASKS["superlative"].pairs:
        comparative = dict(TASKS["comparative"].pairs)[word]
        assert form.removesuffix("st") == comparative.removesuffix("r"), word
    for word, form in TASKS["adverb"].pairs:
        assert form.endswith("ly"), word
    assert all(x.upper() == x and x.lower() == y for x, y in TASKS["lower_case"].pairs)
    assert all(x.capitalize() == y for x, y in TASKS["capitalise"].pairs)
    for run, following in TASKS["next_letter"].pairs:
        assert ord(following) == ord(run[-1]) + 1, run


def test_numbers_from_zero_to_ninety_nine() -> None:
    pairs = TASKS["digits"].pairs
    assert [int(y) for _, y in pairs] == list(range(100))
    assert dict(pairs)["forty-two"] == "42"


def test_capitals_agree_with_the_task_of_capitals() -> None:
    from probe.tasks.capital_of import CAPITALS

    here = dict(TASKS["capital"].pairs)
    assert {c: here[c] for c in CAPITALS if c in here and here[c] != CAPITALS[c]} == {}


def test_every_task_is_encoded(toy: probe.Model) -> None:
    for task in TASKS.values():
        encoded = task.prompts("test", n=3).encode(toy)
        assert encoded.answers is not None


def test_an_unknown_name_meets_the_nearest() -> None:
    with pytest.raises(probe.OptionError, match='did you mean "past_tense"'):
        icl_task("past_tence")


@pytest.mark.slow
def test_smollm2_learns_plurals_from_examples(smollm2: probe.Model) -> None:
    task = probe.icl_task("plural")
    with_examples = task.prompts("test", shots=10, n=16).check(smollm2, "log_prob").accuracy
    assert with_examples >= 0.8
    assert task.prompts("test", n=16).check(smollm2, "log_prob").accuracy <= 0.2


@pytest.mark.slow
def test_every_answer_begins_with_a_token_of_smollm2(smollm2: probe.Model) -> None:
    for task in TASKS.values():
        fitted = task.prompts("test").fit(smollm2.tokenizer)
        assert all(prompt.answer and prompt.answer.strip() for prompt in fitted.prompts), task.name
