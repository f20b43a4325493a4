"""Tasks shown by example: splits that share nothing, demonstrations, and first answer tokens."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_tokenizers import byte_level

import probe
from probe.core.pairs import PairTask
from probe.core.tokens import Tokenizer

LETTERS = PairTask.of([(c, c.upper()) for c in "abcdefghijklmnopqrst"], name="upper")


@settings(max_examples=25)
@given(n=st.integers(6, 60), seed=st.integers(0, 5))
def test_the_three_parts_share_no_pair_and_miss_none(n: int, seed: int) -> None:
    task = PairTask.of([(f"x{i}", f"y{i}") for i in range(n)], seed=seed)
    parts = [task.split(which) for which in ("train", "dev", "test")]
    assert all(parts)
    assert sorted(pair for part in parts for pair in part) == sorted(task.pairs)


def test_demonstrations_are_train_pairs_and_never_the_query() -> None:
    train = set(LETTERS.split("train"))
    for split in ("train", "test"):
        for prompt in LETTERS.prompts(split, shots=5, n=40).prompts:
            *shown, query = prompt.clean.split("\n\n")
            pairs = [tuple(block.removeprefix("Q: ").split("\nA: ")) for block in shown]
            assert set(pairs) <= train
            assert len(set(pairs)) == 5
            assert query == f"Q: {prompt.tags['x']}\nA:"
            assert prompt.tags["x"] not in [x for x, _ in pairs]
            assert prompt.answer == f" {prompt.tags['x'].upper()}"


def test_each_query_comes_once_before_any_comes_twice() -> None:
    queries = [prompt.tags["x"] for prompt in LETTERS.prompts("test", shots=2, n=10).prompts]
    assert sorted(queries[:7]) == sorted(x for x, _ in LETTERS.split("test"))


def test_shuffled_outputs_are_the_same_outputs_at_other_places() -> None:
    for prompt in LETTERS.prompts("test", shots=6, labels="both").prompts:
        assert prompt.corrupted is not None
        true, moved = (text.split("\n\n")[:-1] for text in (prompt.clean, prompt.corrupted))
        assert [block.split("\n")[0] for block in true] == [b.split("\n")[0] for b in moved]
        assert sorted(b.split("\n")[1] for b in true) == sorted(b.split("\n")[1] for b in moved)
        assert not set(true) & set(moved)
    alone = LETTERS.prompts("test", shots=6, labels="shuffled").prompts
    assert [p.clean for p in alone] == [
        p.corrupted for p in LETTERS.prompts("test", shots=6, labels="both").prompts
    ]


def test_the_seed_decides_everything() -> None:
    one, again = LETTERS.prompts(shots=3, seed=1), LETTERS.prompts(shots=3, seed=1)
    assert one.prompts == again.prompts
    assert one.prompts != LETTERS.prompts(shots=3, seed=2).prompts


def test_a_space_of_its_own_becomes_the_end_of_the_prompt() -> None:
    texts = ["Q: the number 10", "A: 10"]
    task = PairTask.of([(f"the number {i}", str(i)) for i in range(10, 20)])
    prompt = (
        task.prompts("test", shots=1, n=1)
        .fit(Tokenizer(byte_level("single", 300, texts)))
        .prompts[0]
    )
    assert prompt.clean.endswith("\nA: ")
    assert prompt.answer == "1"


def test_any_format(toy: probe.Model) -> None:
    task = PairTask.of(LETTERS.pairs, format="{x} -> {y}")
    prompt = task.prompts(shots=1, n=1).prompts[0]
    assert prompt.clean.endswith(f"\n\n{prompt.tags['x']} ->")
    assert len(task.prompts(shots=2, labels="both").encode(toy)) == 7


@pytest.mark.parametrize(
    ("pairs", "options", "message"),
    [
        ([("a", "b")] * 9, {}, "1 different pairs"),
        ([("a", "b"), ("a", "c")], {}, "'a' has two outputs"),
        ([("a", " ")], {}, "pair 0 is"),
        ([(c, c) for c in "abcdefg"], {"format": "{x}"}, "the format"),
    ],
)
def test_pairs_that_make_no_task(pairs: list, options: dict, message: str) -> None:
    with pytest.raises(probe.TaskError, match=message):
        PairTask.of(pairs, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shots": 11}, "11 demonstrations of upper"),
        ({"shots": 1, "labels": "shuffled"}, "at least 2 to shuffle"),
        ({"n": 8}, "8 prompts of 0 demonstrations from 7 test pairs"),
    ],
)
def test_counts_out_of_range(options: dict, message: str) -> None:
    with pytest.raises(probe.OptionError, match=message):
        LETTERS.prompts("test", **options)
