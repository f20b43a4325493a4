"""Scores of patterns written down by hand, against their closed forms and TransformerLens."""

import math

import pytest
import torch
from torch import Tensor

from probe.core.tokens import Tokenizer
from probe.methods.heads import ABOUT, Rows, measure
from probe.models.handbuilt import induction_model
from probe.models.load import load_model

LENGTH = 6


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(induction_model("multi-head", 16).tokenizer)


def repeated(bos: bool, length: int = LENGTH, repeats: int = 2) -> Tensor:
    words = torch.arange(3, 3 + length).repeat(repeats)
    return torch.cat([torch.zeros(int(bos), dtype=torch.long), words])[None]


def facts(tokens: Tensor, tokenizer: Tokenizer, causal: bool = True) -> Rows:
    lengths = torch.full((len(tokens),), tokens.shape[1])
    return Rows.of(tokens, lengths, tokenizer, causal=causal)


def uniform(n: int) -> Tensor:
    return (torch.ones(n, n).tril() / torch.arange(1, n + 1)[:, None])[None, None]


def attending(n: int, to: dict[int, int]) -> Tensor:
    """All attention to one key a row; position 0 where none is named."""
    pattern = torch.zeros(n, n)
    for row in range(n):
        pattern[row, to.get(row, 0)] = 1
    return pattern[None, None]


def one(pattern: Tensor, score: str, rows: Rows, *, sink: bool = True) -> float:
    return measure(pattern, score, rows, sink=sink).item()


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize(("score", "offset"), [("induction", -1), ("duplicate", 0)])
def test_targets_are_the_exact_rows(
    tokenizer: Tokenizer, bos: bool, score: str, offset: int
) -> None:
    target = facts(repeated(bos), tokenizer).target(score)
    assert target is not None
    to = range(LENGTH + bos, 2 * LENGTH + bos)
    assert target[0].nonzero().tolist() == [[row, row - LENGTH - offset] for row in to]


@pytest.mark.parametrize("bos", [True, False])
def test_preceding_never_counts_bos(tokenizer: Tokenizer, bos: bool) -> None:
    target = facts(repeated(bos), tokenizer).target("preceding")
    assert target is not None
    to = range(LENGTH + bos + 1, 2 * LENGTH + bos)
    assert target[0].nonzero().tolist() == [[row, row - LENGTH - 1] for row in to]


def test_with_four_repeats_every_earlier_copy_counts(tokenizer: Tokenizer) -> None:
    target = facts(repeated(True, repeats=4), tokenizer).target("induction")
    assert target is not None
    assert target[0].sum(-1).tolist() == [0] * 7 + [1] * 6 + [2] * 6 + [3] * 6


@pytest.mark.parametrize("bos", [True, False])
def test_earlier_rows_of_the_raw_diagonal_do_not_count(tokenizer: Tokenizer, bos: bool) -> None:
    rows = facts(repeated(bos), tokenizer)
    n = 2 * LENGTH + bos
    early = {row: row - LENGTH + 1 for row in range(LENGTH - 1, LENGTH + bos)}
    assert one(attending(n, early), "induction", rows) == 0
    exact = {row: row - LENGTH + 1 for row in range(LENGTH + bos, n)}
    assert one(attending(n, exact), "induction", rows) == 1


def test_a_perfect_head_of_each_sort_scores_one_in_its_own_score_only(
    tokenizer: Tokenizer,
) -> None:
    rows, n = facts(repeated(True), tokenizer), 2 * LENGTH + 1
    perfect = {
        "previous": {row: row - 1 for row in range(1, n)},
        "current": {row: row for row in range(1, n)},
        "first_token": dict.fromkeys(range(1, n), 0),
        "duplicate": {row: row - LENGTH for row in range(LENGTH + 1, n)},
        "induction": {row: row - LENGTH + 1 for row in range(LENGTH + 1, n)},
    }
    # of the row after it, position 0 is the previous one: one row of n - 1
    overlap = {("previous", "first_token"), ("first_token", "previous")}
    for made, to in perfect.items():
        pattern = torch.zeros(1, 1, n, n)
        for row, key in to.items():
            pattern[0, 0, row, key] = 1
        for score in perfect:
            right = 1.0 if score == made else float((made, score) in overlap) / (n - 1)
            assert one(pattern, score, rows) == pytest.approx(right)


def test_uniform_attention_has_the_known_scores(tokenizer: Tokenizer) -> None:
    rows, n = facts(repeated(True), tokenizer), 2 * LENGTH + 1
    later = range(1, n)
    exact = range(LENGTH + 1, n)

    def mean(values: list[float]) -> float:
        return pytest.approx(sum(values) / len(values), rel=1e-6)

    share = [1 / (q + 1) for q in later]
    for score in ("previous", "current", "first_token"):
        assert one(uniform(n), score, rows) == mean(share)
    for score in ("duplicate", "induction"):
        assert one(uniform(n), score, rows) == mean([1 / (q + 1) for q in exact])
    assert one(uniform(n), "entropy", rows) == mean([math.log(q + 1) for q in later])
    assert one(uniform(n), "entropy_share", rows) == pytest.approx(1)
    assert one(uniform(n), "mean_distance", rows) == mean([q / 2 for q in later])


def test_uniform_attention_without_position_0(tokenizer: Tokenizer) -> None:
    rows, n = facts(repeated(True), tokenizer), 2 * LENGTH + 1
    weight = {q: q / (q + 1) for q in range(1, n)}

    def mean(values: dict[int, float]) -> float:
        total = sum(weight[q] for q in values)
        return pytest.approx(sum(weight[q] * v for q, v in values.items()) / total, rel=1e-6)

    def score(name: str) -> float:
        return one(uniform(n), name, rows, sink=False)

    assert score("previous") == mean({q: 1 / q if q > 1 else 0 for q in weight})
    assert score("induction") == mean({q: 1 / q for q in range(LENGTH + 1, n)})
    assert score("first_token") == 0
    assert score("entropy") == mean({q: math.log(q) for q in weight})
    assert score("entropy_share") == pytest.approx(1)
    assert score("mean_distance") == mean({q: (q - 1) / 2 for q in weight})


@pytest.mark.parametrize("sink", [0.1, 0.5, 0.9])
def test_resting_on_position_0_hides_a_head_only_with_it(tokenizer: Tokenizer, sink: float) -> None:
    rows, n = facts(repeated(True), tokenizer), 2 * LENGTH + 1
    induction = attending(n, {row: row - LENGTH + 1 for row in range(LENGTH + 1, n)})
    resting = (1 - sink) * induction + sink * attending(n, {})
    assert one(resting, "induction", rows) == pytest.approx(1 - sink)
    assert one(resting, "induction", rows, sink=False) == pytest.approx(1)


def test_all_attention_on_position_0_leaves_nothing_to_score(tokenizer: Tokenizer) -> None:
    rows, n = facts(repeated(True), tokenizer), 2 * LENGTH + 1
    for score in ABOUT:
        assert math.isnan(one(attending(n, {}), score, rows, sink=False))
        assert math.isfinite(one(attending(n, {}), score, rows))


def test_an_immediate_repeat_is_attention_to_the_current_token(tokenizer: Tokenizer) -> None:
    target = facts(torch.tensor([[3, 4, 4, 5]]), tokenizer).target("induction")
    assert target is not None
    assert not target.any()


def test_padding_and_special_tokens_never_count(tokenizer: Tokenizer) -> None:
    tokens = torch.tensor([[0, 3, 4, 3, 1, 1], [0, 3, 0, 3, 4, 3]])
    rows = Rows.of(tokens, torch.tensor([4, 6]), tokenizer, causal=True)
    assert rows.earlier.nonzero().tolist() == [[0, 3, 1], [1, 3, 1], [1, 5, 1], [1, 5, 3]]
    target = rows.target("induction")
    assert target is not None
    # after the first 3 of the second prompt comes a special token, which is no target
    assert target.nonzero().tolist() == [[0, 3, 2], [1, 5, 4]]


def test_an_encoder_can_reach_every_position(tokenizer: Tokenizer) -> None:
    tokens = repeated(False)
    n = tokens.shape[1]
    flat = torch.full((1, 1, n, n), 1 / n)
    rows = facts(tokens, tokenizer, causal=False)
    assert one(flat, "entropy", rows) == pytest.approx(math.log(n))
    assert one(flat, "entropy_share", rows) == pytest.approx(1)
    assert one(flat, "duplicate", rows) == pytest.approx(1 / n)


class TestAgainstTransformerLens:
    """Where the definitions agree: tokens without special ones and immediate repeats."""

    tokens = torch.tensor([[5, 3, 7, 3, 9, 5, 3, 8, 7]])

    def test_masks(self, tokenizer: Tokenizer) -> None:
        from transformer_lens import head_detector as theirs

        rows = facts(self.tokens, tokenizer)
        for score, make in {
            "previous": theirs.get_previous_token_head_detection_pattern,
            "duplicate": theirs.get_duplicate_token_head_detection_pattern,
            "induction": theirs.get_induction_head_detection_pattern,
        }.items():
            target = rows.target(score)
            assert target is not None
            assert torch.equal(target[0].float(), make(self.tokens))

    def test_scores_of_the_toy(self) -> None:
        from transformer_lens import head_detector as theirs

        model = load_model("toy")
        tokens = torch.randint(3, 90, (1, 20), generator=torch.Generator().manual_seed(3))
        tokens = torch.cat([tokens, tokens], 1)
        pattern = model.trace(tokens, "pattern.1")["pattern", 1]
        rows = facts(tokens, model.tokenizer)
        mask = theirs.get_previous_token_head_detection_pattern(tokens)
        for sink in (True, False):
            ours = measure(pattern, "previous", rows, sink=sink)[0]
            for head in range(4):
                score = theirs.compute_head_attention_similarity_score(
                    pattern[0, head],
                    mask,
                    exclude_bos=not sink,
                    exclude_current_token=False,
                    error_measure="mul",
                )
                # they divide by all 40 rows, we by the 39 that have a position before them;
                # without position 0 the first row weighs nothing and both are the same
                factor = 40 / 39 if sink else 1
                assert ours[head].item() == pytest.approx(score * factor, rel=1e-5)
