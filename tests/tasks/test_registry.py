"""What holds for every task and tokenizer."""

import subprocess
import sys

import pytest
from small_tokenizers import KINDS, tokenizer_of

from probe.core.errors import OptionError, TaskError
from probe.core.task import encode
from probe.core.tokens import Tokenizer
from probe.tasks import TASKS, builder, load_task

pytestmark = pytest.mark.slow  # a minute or so: left to make test

CUT_OTHERWISE = ("metaspace", "words with BOS")
"""Tokenizers for which no form of greater_than has an answer of one token."""


@pytest.fixture(params=KINDS)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return tokenizer_of(request.param)


def test_the_tasks_promised() -> None:
    assert list(TASKS) == [
        "capital_of",
        "docstring",
        "gendered_pronoun",
        "greater_than",
        "induction",
        "ioi",
        "subject_verb",
    ]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", list(TASKS))
def test_pairs_are_aligned_and_answers_single(name: str, seed: int, tokenizer: Tokenizer) -> None:
    if name == "greater_than" and tokenizer in [tokenizer_of(kind) for kind in CUT_OTHERWISE]:
        pytest.skip("refused with a reason, see test_greater_than.py")
    task = load_task(name, n=16, seed=seed).fit(tokenizer)
    encoded = encode(task, tokenizer, n_ctx=512)
    assert encoded.need_answers().ne(encoded.need_wrong_answers()).all()
    first = encoded.first_difference
    assert first is not None
    assert (first > 0).all()
    for row, prompt in enumerate(task.prompts):
        clean = tokenizer.encode(prompt.clean)
        corrupted = tokenizer.encode(prompt.corrupted or "")
        assert len(clean) == len(corrupted) == encoded.lengths[row]
        differ = [i for i, (a, b) in enumerate(zip(clean, corrupted, strict=True)) if a != b]
        assert differ[0] == first[row]
        unknown = tokenizer.hf.unk_token_id
        for answer in (prompt.answer, prompt.wrong_answer):
            ids = tokenizer.encode(answer or "", special=False)
            assert len(ids) == 1
            assert ids[0] != unknown


@pytest.mark.parametrize("name", list(TASKS))
def test_the_sentence_goes_on_with_the_answer_as_one_token(name: str) -> None:
    tokenizer = tokenizer_of("single digits")
    for prompt in load_task(name, n=30, seed=2).fit(tokenizer).prompts:
        for answer in (prompt.answer or "", prompt.wrong_answer or ""):
            whole = tokenizer.encode(prompt.clean + answer)
            assert whole == [*tokenizer.encode(prompt.clean), tokenizer.need_single(answer)]


@pytest.mark.parametrize("name", list(TASKS))
def test_equal_seeds_give_equal_prompts_and_others_do_not(name: str) -> None:
    tokenizer = tokenizer_of("single digits")
    task = load_task(name, n=16, seed=3)
    assert task.prompts == load_task(name, n=16, seed=3).prompts
    assert task.prompts != load_task(name, n=16, seed=4).prompts
    fitted = task.fit(tokenizer)
    assert fitted.prompts == load_task(name, n=16, seed=3).fit(tokenizer).prompts
    assert fitted.prompts == fitted.fit(tokenizer).prompts
    assert fitted.prompts != load_task(name, n=16, seed=4).fit(tokenizer).prompts


@pytest.mark.parametrize("name", list(TASKS))
def test_prompts_repeat_seldom(name: str) -> None:
    task = load_task(name, n=32).fit(tokenizer_of("single digits"))
    assert len({prompt.clean for prompt in task.prompts}) >= 28


@pytest.mark.parametrize("name", list(TASKS))
def test_choosing_words_the_tokenizer_knows_leaves_few_draws_to_reject(name: str) -> None:
    import random

    from probe.core.task import misfit

    tokenizer, rng = tokenizer_of("single digits"), random.Random(0)
    found = TASKS.get(name)
    options = found.parse({})
    misfits = [misfit(found.draw(rng, tokenizer, options), tokenizer) for _ in range(100)]
    assert sum(map(bool, misfits)) <= 20, misfits


def test_an_unknown_task_is_answered_by_the_nearest() -> None:
    with pytest.raises(OptionError, match=r'there is no task "ioo"\nTry: did you mean "ioi"\?'):
        load_task("ioo")


def test_an_unknown_option_is_answered_by_the_nearest() -> None:
    message = r'the task ioi has no option "odrer"\nTry: did you mean "order"\? Known: order, corr'
    with pytest.raises(OptionError, match=message):
        load_task("ioi", odrer="ABBA")
    with pytest.raises(OptionError, match=r'capital_of has no option "order"\nTry: Known: none'):
        load_task("capital_of", order="ABBA")


def test_a_wrong_value_is_answered_by_what_is_possible() -> None:
    with pytest.raises(OptionError) as error:
        load_task("ioi", order="AABB")
    assert "ioi: order='AABB': Input should be 'both', 'ABBA' or 'BABA'" in str(error.value)
    assert "(ABBA: the receiver is named first" in str(error.value)
    with pytest.raises(OptionError, match="length=1: Input should be greater than or equal to 2"):
        load_task("induction", length=1)


def test_no_prompts_is_refused() -> None:
    with pytest.raises(TaskError, match="n=0\nExpected: at least one prompt"):
        load_task("ioi", n=0)


def test_a_name_is_given_once() -> None:
    with pytest.raises(OptionError, match='there already is a task "ioi"'):
        builder("ioi", "again")(TASKS.get("ioi").draw)


def test_every_task_and_option_says_what_it_is() -> None:
    for name in TASKS:
        found = TASKS.get(name)
        assert found.about
        assert all(field.description for field in found.options.model_fields.values())
        assert load_task(name, n=1).about == found.about


def test_listing_tasks_loads_no_model_library() -> None:
    code = (
        "import sys, probe.tasks; heavy = {'transformers', 'transformer_lens', 'sae_lens'};"
        "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
