"""`sel` against plain indexing, on a batch of prompts of different lengths."""

import pytest
import torch

from probe.core.errors import SiteError
from probe.core.site import Site
from probe.core.trace import Trace

LENGTHS = (2, 5, 4)
SIZES = {"batch": 3, "pos": 5, "query": 5, "key": 5, "head": 4, "kv_head": 2, "d_model": 6,
         "d_head": 3, "scale": 1}  # fmt: skip
SITES = [Site("resid_post", 0), Site("resid_post", 2), Site("z", 1), Site("k", 1),
         Site("pattern", 1), Site("ln1_scale", 0), Site("embed")]  # fmt: skip


@pytest.fixture
def trace() -> Trace:
    generator = torch.Generator().manual_seed(0)
    values = {s: torch.randn([SIZES[a] for a in s.axes], generator=generator) for s in SITES}
    return Trace(values, torch.zeros(3, 5, dtype=torch.long), torch.tensor(LENGTHS))


@pytest.mark.parametrize("site", ["resid_post.0", "z.1", "k.1", "ln1_scale.0", "embed"])
@pytest.mark.parametrize("pos", [-2, -1, 0, 1])
def test_a_position_counts_in_each_prompt(trace: Trace, site: str, pos: int) -> None:
    picked = trace.sel(site, pos=pos)
    for row, length in enumerate(LENGTHS):
        assert torch.equal(picked[row], trace[site][row, pos % length])


def test_several_positions_keep_their_axis_and_order(trace: Trace) -> None:
    picked = trace.sel("z.1", pos=[-1, 0], head=2)
    assert picked.shape == (3, 2, 3)
    for row, length in enumerate(LENGTHS):
        assert torch.equal(picked[row, 0], trace["z", 1][row, length - 1, 2])
        assert torch.equal(picked[row, 1], trace["z", 1][row, 0, 2])


def test_query_counts_from_each_end_too(trace: Trace) -> None:
    picked = trace.sel("pattern.1.3", query=-1)
    for row, length in enumerate(LENGTHS):
        assert torch.equal(picked[row], trace["pattern", 1][row, 3, length - 1])


def test_order_of_the_arguments_does_not_matter(trace: Trace) -> None:
    one = trace.sel("z.1", head=[3, 1], d_head=0, pos=-1)
    assert torch.equal(one, trace.sel("z.1", pos=-1, d_head=0, head=[3, 1]))
    assert torch.equal(one[1], trace["z", 1][1, 4][[3, 1], 0])


@pytest.mark.parametrize("batch", [1, [1], [2, 0], [0, 1, 2]])
def test_choosing_prompts_and_positions_together(trace: Trace, batch: int | list[int]) -> None:
    picked = trace.sel("resid_post.0", batch=batch, pos=-1)
    rows = [batch] if isinstance(batch, int) else batch
    expected = torch.stack([trace["resid_post", 0][r, LENGTHS[r] - 1] for r in rows])
    assert torch.equal(picked, expected[0] if isinstance(batch, int) else expected)


def test_key_is_an_axis_like_any_other(trace: Trace) -> None:
    assert torch.equal(trace.sel("pattern.1", key=0), trace["pattern", 1][..., 0])


@pytest.mark.parametrize(
    ("site", "index"), [("z.1", {"head": 4}), ("resid_post.0", {"d_model": 6}),
                        ("resid_post.0", {"batch": 3})]
)  # fmt: skip
def test_an_index_out_of_range_says_so(trace: Trace, site: str, index: dict) -> None:
    with pytest.raises(SiteError, match=next(iter(index))):
        trace.sel(site, **index)


def test_a_position_outside_a_prompt_names_the_prompt(trace: Trace) -> None:
    with pytest.raises(SiteError) as raised:
        trace.sel("resid_post.0", pos=3)
    assert "position 3 lies outside prompt 0" in str(raised.value)
    assert "-2 to 1" in str(raised.value)


def test_a_wrong_axis_lists_the_right_ones(trace: Trace) -> None:
    with pytest.raises(SiteError, match=r"no axis 'head'.*\n.*'pos', 'd_model'"):
        trace.sel("resid_post.0", head=1)


def test_recorded_positions_are_asked_for_as_they_were_recorded() -> None:
    value = torch.randn(2, 2, 6)
    trace = Trace(
        {Site("resid_post", 0): value},
        torch.zeros(2, 4, dtype=torch.long),
        torch.tensor([3, 4]),
        positions=(1, -1),
    )
    assert torch.equal(trace.sel("resid_post.0", pos=-1), value[:, 1])
    assert torch.equal(trace.sel("resid_post.0", pos=[1, -1]), value)
    with pytest.raises(SiteError, match="position 0 was not recorded"):
        trace.sel("resid_post.0", pos=0)


def test_stacking_and_heads(trace: Trace) -> None:
    expected = torch.stack([trace["resid_post", 0], trace["resid_post.2"]])
    assert torch.equal(trace["resid_post"], expected)
    assert torch.equal(trace["z.1.3"], trace["z", 1][:, :, 3])
    assert torch.equal(trace["k.1.1"], trace["k", 1][:, :, 1])
    assert torch.equal(trace["pattern.1.2"], trace["pattern", 1][:, 2])
    with pytest.raises(SiteError, match="k has 2 kv_heads"):
        trace["k.1.2"]


def test_one_prompt_without_its_padding(trace: Trace) -> None:
    one = trace.example(2)
    assert torch.equal(one["resid_post", 0], trace["resid_post", 0][2:3, :4])
    assert torch.equal(one["pattern", 1], trace["pattern", 1][2:3, :, :4, :4])
    assert one.tokens.shape == (1, 4)


def test_what_was_not_recorded(trace: Trace) -> None:
    assert "z.1" in trace
    assert ("z", 1, 3) in trace
    assert "z.2" not in trace
    with pytest.raises(SiteError) as raised:
        trace["mlp_out", 0]
    assert 'sites=["mlp_out.0"]' in str(raised.value)


@pytest.mark.parametrize("word", ["resid_post", "nonsense"])
def test_membership_of_a_word_that_is_no_address(trace: Trace, word: str) -> None:
    assert (word in trace) == (word == "resid_post")


def test_shared_memory_is_counted_once() -> None:
    value = torch.zeros(2, 3, 4)
    sites = {Site("resid_post", 0): value, Site("resid_pre", 1): value.view(2, 3, 4)}
    trace = Trace(sites, torch.zeros(2, 3, dtype=torch.long), torch.tensor([3, 3]))
    assert trace.nbytes == value.numel() * 4
