"""Prompts and pairs: what is refused, in which words, and what is kept exactly."""

import json
import random
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_tokenizers import byte_level, word_level

from probe.core.errors import TaskError
from probe.core.task import Encoded, Prompt, Task, encode, misfit, pad
from probe.core.tokens import Tokenizer

BYTES = Tokenizer(byte_level(vocab_size=400, texts=["the cat saw a dog and a bird " * 3]))
WORDS = Tokenizer(word_level(["Mary John Tom Anna and the cat saw gave it to so , ."], bos=True))
HOSTILE = ["\x00", "\x1b[31m", "<b>&amp;</b>", "$x$", ":red[x]", "\u202eabc", "א" * 10_000]
PAIR = {"clean": "the cat saw", "corrupted": "the dog saw", "answer": " a", "wrong_answer": " and"}


def of(*pairs: dict, tokenizer: Tokenizer = BYTES, n_ctx: int = 100) -> Encoded:
    return encode(Task.from_pairs(pairs), tokenizer, n_ctx)


def refusal(*pairs: dict, **options: int) -> str:
    with pytest.raises(TaskError) as error:
        of(*pairs, **options)
    return str(error.value)


# --- encoding ---


def test_a_pair_is_encoded_as_its_texts_are() -> None:
    data = of(PAIR, {**PAIR, "clean": "a cat", "corrupted": "a dog"})
    assert data.clean[0].tolist() == BYTES.encode("the cat saw")
    assert data.need_corrupted()[0].tolist() == BYTES.encode("the dog saw")
    assert data.lengths.tolist() == [3, 2]
    assert data.last.tolist() == [2, 1]
    assert data.first_difference is not None
    assert data.first_difference.tolist() == [1, 1]
    assert data.str_tokens(1) == ["a", " cat"]
    assert data.str_tokens(1, corrupted=True) == ["a", " dog"]
    assert BYTES.strings(data.need_answers().tolist()) == [" a", " a"]
    assert BYTES.strings(data.need_wrong_answers().tolist()) == [" and", " and"]
    assert data.clean[1, 2] == BYTES.pad_id


def test_rows_are_the_same_prompts_encoded_alone() -> None:
    short = {**PAIR, "clean": "a cat", "corrupted": "a dog", "answer": " the"}
    data = of(PAIR, short)
    for pair, row in ((PAIR, 0), (short, 1)):
        alone, part = of(pair), data.rows([row])
        assert part.hash == alone.hash != data.hash
        assert torch.equal(part.clean, alone.clean)
        assert part.task.prompts == alone.task.prompts
    assert data.rows([1, 0]).lengths.tolist() == [2, 3]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_strange_text_is_encoded_whole(text: str) -> None:
    data = of({"clean": text}, n_ctx=50_000)
    assert BYTES.decode(data.clean[0].tolist()) == text


def test_ragged_pairs_are_shown_token_by_token() -> None:
    assert refusal({**PAIR, "corrupted": "the bird dog saw"}) == (
        "pair 0 is ragged: 3 clean tokens, 4 corrupted\n"
        "  clean     the| cat| saw\n"
        "  corrupted the| bird| dog| saw\n"
        "Expected: prompts of equal length in tokens\n"
        "Try: replace the longer word by one of as many tokens"
    )
    assert "pair 1 is ragged" in refusal(PAIR, {**PAIR, "corrupted": "the"})


def test_a_twin_that_is_no_twin_is_refused() -> None:
    same = {**PAIR, "corrupted": PAIR["clean"]}
    assert refusal(PAIR, same) == "pair 1: clean and corrupted are the same tokens"


def test_answers_of_several_tokens_are_shown() -> None:
    message = refusal({**PAIR, "answer": " zebra"})
    assert "the answer ' zebra' is" in message
    assert "Expected: an answer of one token" in message
    assert "the answer ' zebra' is" in refusal({**PAIR, "wrong_answer": " zebra"})
    assert "the answer '' is 0 tokens" in refusal({**PAIR, "answer": ""})


def test_an_answer_that_is_the_wrong_answer_is_refused() -> None:
    refusal({**PAIR, "wrong_answer": PAIR["answer"]})


@pytest.mark.parametrize("field", ["corrupted", "answer", "wrong_answer"])
def test_what_one_prompt_has_all_must_have(field: str) -> None:
    less = {key: value for key, value in PAIR.items() if key != field}
    assert refusal(PAIR, less) == f"prompt 1 has no {field} and others do\nExpected: all or none"


@pytest.mark.parametrize("field", ["clean", "corrupted"])
def test_empty_and_overlong_prompts_are_refused(field: str) -> None:
    assert "has no tokens\nExpected: at least one token" in refusal({**PAIR, field: ""})
    message = refusal({**PAIR, field: "the cat " * 60})
    assert "the prompt has 121 tokens\nExpected: at most 100, the model's context" in message


@pytest.mark.parametrize("field", PAIR)
def test_a_lone_surrogate_is_refused_wherever_it_stands(field: str) -> None:
    assert "is a lone surrogate (U+D800)" in refusal({**PAIR, field: "the \ud800"})


def test_what_is_missing_is_said_when_it_is_needed() -> None:
    data = of({"clean": "the cat"})
    with pytest.raises(TaskError, match=r"has no corrupted prompts\nTry: Task\.from_pairs"):
        data.need_corrupted()
    with pytest.raises(TaskError, match="the task 'pairs' has no answer\nTry: give each pair its"):
        data.need_answers()
    with pytest.raises(TaskError, match="has no wrong_answer"):
        data.need_wrong_answers()


def test_the_hash_names_the_data() -> None:
    assert of(PAIR).hash == of(PAIR).hash
    for field, other in {"clean": "a cat saw", "answer": " the", "wrong_answer": " the"}.items():
        assert of({**PAIR, field: other}).hash != of(PAIR).hash


# --- padding ---


@given(
    st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=8), min_size=1, max_size=6),
    st.integers(-1, 99),
)
def test_padding_keeps_each_row_and_fills_the_rest(rows: list[list[int]], pad_id: int) -> None:
    padded = pad(rows, pad_id)
    assert padded.shape == (len(rows), max(map(len, rows)))
    for row, out in zip(rows, padded.tolist(), strict=True):
        assert out[: len(row)] == row
        assert set(out[len(row) :]) <= {pad_id}


# --- one's own prompts ---


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ({"clean": "a", "anwser": " b"}, "anwser: Extra inputs are not permitted"),
        ({"corrupted": "a"}, "clean: Field required"),
        ({"clean": 3}, "clean: Input should be a valid string"),
        ({"clean": None}, "clean: Input should be a valid string"),
    ],
)
def test_pairs_that_are_none_are_named(pair: dict, message: str) -> None:
    with pytest.raises(TaskError) as error:
        Task.from_pairs([PAIR, pair])
    assert "pair 1 is not a prompt" in str(error.value)
    assert message in str(error.value)
    assert "Expected: clean, and optionally corrupted, answer, wrong_answer" in str(error.value)


def test_no_prompts_is_refused() -> None:
    for make in (Task.from_pairs, Task.from_prompts):
        with pytest.raises(TaskError, match="a task needs at least one prompt, and got none"):
            make([])


def test_prompts_alone() -> None:
    assert Task.from_prompts("the cat").prompts == Task.from_prompts(["the cat"]).prompts
    assert len(Task.from_prompts(["the cat", "a dog"])) == 2


# --- files ---

PROMPTS = st.builds(
    Prompt,
    clean=st.text(st.characters(exclude_categories=["Cs"])),
    answer=st.none() | st.text(st.characters(codec="ascii"), max_size=5),
    tags=st.dictionaries(st.text("ab", max_size=2), st.text("xy", max_size=2), max_size=2),
)


@pytest.mark.parametrize("text", ["a\u2028b", "a\x85b"])
def test_line_breaks_of_unicode_survive_a_file(text: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"clean": text}, ensure_ascii=False), "utf-8")
    assert Task.from_jsonl(path).prompts[0].clean == text


@given(st.lists(PROMPTS, min_size=1, max_size=4))
def test_a_task_survives_a_file(
    tmp_path_factory: pytest.TempPathFactory, prompts: list[Prompt]
) -> None:
    breaks = str.maketrans(dict.fromkeys("\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029", " "))
    prompts = [p.model_copy(update={"clean": p.clean.translate(breaks)}) for p in prompts]
    path = Task.from_pairs(prompts).to_jsonl(tmp_path_factory.mktemp("task") / "mine.jsonl")
    read = Task.from_jsonl(path)
    assert list(read.prompts) == prompts
    assert read.name == "mine"
    assert [file.name for file in path.parent.iterdir()] == ["mine.jsonl"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"clean": "a"}\n\n{bad', "line 3 is not JSON: Expecting property name"),
        (b'{"clean": "a', "line 1 is not JSON: Unterminated string"),
        (b'{"clean": "a", "x": 1}', "x: Extra inputs are not permitted"),
        (b"\n \n", "a task needs at least one prompt, and got none"),
        (b"\xff\xfe", "Expected: a UTF-8 JSONL file"),
    ],
)
def test_bad_files_are_refused_with_the_place(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_bytes(content)
    with pytest.raises(TaskError) as error:
        Task.from_jsonl(path)
    assert message in str(error.value)


@pytest.mark.parametrize("line", ["[1]", "3", "null", '"text"'])
def test_a_line_that_is_no_object_is_named(line: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"clean": "a"}\n\n' + line)
    with pytest.raises(TaskError, match="line 3"):
        Task.from_jsonl(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"cannot read .*none\.jsonl: .*No such file"):
        Task.from_jsonl(tmp_path / "none.jsonl")


# --- templates ---

NAMES = ["Mary", "John", "Tom", "Anna"]
TEMPLATE = {
    "template": "{A} and {B} saw the cat so {S} gave it to",
    "slots": {"A,B": NAMES, "S": "=B"},
    "answer": " {A}",
    "wrong_answer": " {B}",
    "corrupt": {"S": "{A}"},
}


@given(st.integers(1, 20), st.integers(0, 1000))
def test_a_template_is_filled_as_its_slots_say(n: int, seed: int) -> None:
    task = Task.from_template(**TEMPLATE, n=n, seed=seed)
    assert len(task) == n
    assert task.prompts == Task.from_template(**TEMPLATE, n=n, seed=seed).prompts
    for prompt in task.prompts:
        a, _, b, *_ = prompt.clean.split()
        assert a != b
        assert {a, b} <= set(NAMES)
        assert prompt.clean == f"{a} and {b} saw the cat so {b} gave it to"
        assert prompt.corrupted == f"{a} and {b} saw the cat so {a} gave it to"
        assert (prompt.answer, prompt.wrong_answer) == (f" {a}", f" {b}")
        assert prompt.tags == {"A": a, "B": b, "S": b}


def test_a_template_is_fitted_and_encoded_with_the_difference_known() -> None:
    data = encode(Task.from_template(**TEMPLATE, n=12).fit(WORDS), WORDS, 50)
    assert data.first_difference is not None
    assert set(data.first_difference.tolist()) == {8}


def test_braces_doubled_are_braces() -> None:
    task = Task.from_template(**TEMPLATE | {"template": "{{x}} {A} {B} {S}"}, n=1)
    assert task.prompts[0].clean.startswith("{x} ")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"slots": {"A,B": NAMES}}, "no words for slots ['S']\nTry: name them in slots="),
        ({"slots": {"A,B": ["Mary"], "S": "=B"}}, "slots ['A', 'B'] share 1 words"),
        ({"slots": {"A,B": [], "S": "=B"}}, "slots ['A', 'B'] share 0 words"),
        ({"slots": {"A,B": "Mary", "S": "=B"}}, "slot 'A,B' got the string 'Mary'"),
        ({"n": 0}, "n=0\nExpected: at least one prompt"),
    ],
)
def test_bad_templates_are_refused(change: dict, message: str) -> None:
    with pytest.raises(TaskError) as error:
        Task.from_template(**TEMPLATE | change)
    assert message in str(error.value)


@pytest.mark.parametrize(
    "change",
    [
        {"answer": " {X}"},
        {"wrong_answer": " {X}"},
        {"corrupt": {"S": "{Q}"}},
        {"slots": {"A,B": NAMES, "S": "=Q"}},
        {"template": "{A} { {B} {S}"},
        {"template": "{A} {} {B} {S}"},
    ],
)
def test_templates_that_name_no_slot_are_refused(change: dict) -> None:
    with pytest.raises(TaskError):
        Task.from_template(**TEMPLATE | change)


def test_a_word_listed_twice_still_fills_one_slot() -> None:
    slots = {"A,B": ["Mary", "Mary", "John"], "S": "=B"}
    task = Task.from_template(**TEMPLATE | {"slots": slots}, n=40)
    assert all(prompt.tags["A"] != prompt.tags["B"] for prompt in task.prompts)


# --- drawing for a tokenizer ---


def numbered(rng: random.Random, tokenizer: Tokenizer | None) -> Prompt:
    """Pairs of which some are ragged, some equal, some with answers of several tokens."""
    word = rng.choice(["cat", "zebra", "dog", "the"])
    return Prompt(clean="the cat saw", corrupted=f"the {word} saw", answer=f" {word}")


@given(st.integers(0, 1000), st.integers(1, 12))
def test_fitting_leaves_only_pairs_that_can_be_encoded(seed: int, n: int) -> None:
    task = Task.drawn("numbered", numbered, n=n, seed=seed).fit(BYTES)
    assert len(task) == n
    assert not any(misfit(prompt, BYTES) for prompt in task.prompts)
    assert len(encode(task, BYTES, 100)) == n
    assert {prompt.answer for prompt in task.prompts} <= {" dog", " the"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, ""),
        ({"answer": " zebra"}, "the answer ' zebra' is several tokens"),
        ({"wrong_answer": " zebra"}, "the answer ' zebra' is several tokens"),
        ({"corrupted": "the dog"}, "'the cat saw' has 3 tokens, its twin 2"),
        ({"corrupted": "the cat saw"}, "'the cat saw' equals its twin"),
    ],
)
def test_a_misfit_says_why(change: dict, message: str) -> None:
    assert misfit(Prompt.model_validate(PAIR | change), BYTES) == message


def test_a_task_that_cannot_be_drawn_says_how_far_it_came_and_why() -> None:
    def draw(rng: random.Random, tokenizer: Tokenizer | None) -> Prompt:
        return Prompt(clean="the cat", answer=" zebra")

    with pytest.raises(TaskError) as error:
        Task.drawn("zebras", draw, n=2, seed=0).fit(BYTES)
    assert "zebras: only 0 of 2 prompts could be drawn for this tokenizer" in str(error.value)
    assert "for instance the answer ' zebra' is several tokens" in str(error.value)


def test_fixed_prompts_stay_as_they_are() -> None:
    task = Task.from_pairs([PAIR])
    assert task.fit(BYTES) is task
    drawn = Task.drawn("numbered", numbered, n=6, seed=0).fit(BYTES)
    kept = drawn.take([4, 1])
    assert kept.prompts == (drawn.prompts[4], drawn.prompts[1])
    assert kept.fit(WORDS) is kept
