"""Edits against loops over every number of the activation."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from probe.core.edit import Edit, ablate, by_site, patch, project_out, scale, steer
from probe.core.errors import EditError
from probe.core.site import Site

LENGTHS = torch.tensor([2, 5, 4])
SIZES = {"batch": 3, "pos": 5, "query": 5, "key": 5, "head": 4, "kv_head": 2, "d_model": 6,
         "d_head": 3, "d_mlp": 7}  # fmt: skip
WHERE = {
    "resid_post": [{}, {"pos": -1}, {"pos": [0, 1]}, {"d_model": [5, 0]}, {"pos": 1, "d_model": 2}],
    "z": [{}, {"head": 3}, {"head": [0, 2], "pos": -2}, {"d_head": 1}, {"pos": [-1, 0]}],
    "k": [{"kv_head": 1, "pos": 0}, {"kv_head": -1}],
    "pattern": [{}, {"query": -1}, {"head": [1, 3], "query": [0, -1], "key": 0}, {"key": [2]}],
    "mlp_post": [{"d_mlp": 6, "pos": -1}],
}
CASES = [(kind, where) for kind, wheres in WHERE.items() for where in wheres]


def activation_of(site: Site, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn([SIZES[axis] for axis in site.axes], generator=generator)


def touched(site: Site, where: dict, index: tuple[int, ...]) -> bool:
    """Whether one number of the activation is among those an edit names."""
    row = index[0]
    for axis, place in zip(site.axes, index, strict=True):
        if axis not in where:
            continue
        wanted = where[axis]
        if isinstance(wanted, Tensor):
            wanted = int(wanted[row])
        wanted = [wanted] if isinstance(wanted, int) else wanted
        size = int(LENGTHS[row]) if axis in ("pos", "query") else SIZES[axis]
        if place not in [w % size for w in wanted]:
            return False
    return True


def by_loops(site: Site, rule: str, value: Tensor | float, where: dict, old: Tensor) -> Tensor:
    new = old.clone()
    full = value.expand_as(old) if isinstance(value, Tensor) else torch.full_like(old, value)
    for index in itertools.product(*(range(n) for n in old.shape)):
        if touched(site, where, index):
            v = full[index]
            new[index] = {"set": v, "add": old[index] + v, "scale": old[index] * v}[rule]
    return new


@pytest.mark.parametrize("rule", ["set", "add", "scale"])
@pytest.mark.parametrize("whole", [True, False], ids=["tensor", "number"])
@pytest.mark.parametrize(("kind", "where"), CASES)
def test_rules_on_parts(kind: str, where: dict, whole: bool, rule: str) -> None:
    site = Site(kind, 1)
    old = activation_of(site)
    value: Tensor | float = activation_of(site, seed=1) if whole else 0.5
    kept = old.clone()
    new = Edit(site, rule, value, where).apply(old, LENGTHS)  # type: ignore[arg-type]
    assert torch.equal(new, by_loops(site, rule, value, where, old))
    assert torch.equal(old, kept), "the activation given was changed"


@pytest.mark.parametrize("where", [{}, {"pos": -1}, {"pos": [0, -1]}])
def test_projecting_out_leaves_nothing_along_the_direction(where: dict) -> None:
    site = Site("resid_post", 0)
    old, direction = activation_of(site), torch.tensor([3.0, 0, -1, 2, 0, 5])
    new = project_out(site, direction, **where).apply(old, LENGTHS)
    unit = direction / direction.norm()
    for row, place in itertools.product(range(3), range(5)):
        if touched(site, where, (row, place, 0)):
            expected = old[row, place] - (old[row, place] @ unit) * unit
            torch.testing.assert_close(new[row, place], expected)
            assert abs(float(new[row, place] @ unit)) < 1e-6
        else:
            assert torch.equal(new[row, place], old[row, place])


def test_one_position_for_each_prompt() -> None:
    site, where = Site("resid_post", 0), {"pos": torch.tensor([1, -1, 2])}
    old = activation_of(site)
    new = Edit(site, "set", 0.0, where).apply(old, LENGTHS)
    assert torch.equal(new, by_loops(site, "set", 0.0, where, old))
    assert (new == 0).all(-1).nonzero().tolist() == [[0, 1], [1, 4], [2, 2]]


def test_a_repeated_position_is_edited_once() -> None:
    site = Site("resid_post", 0)
    old = activation_of(site)
    new = Edit(site, "add", 1.0, {"pos": [1, -1]}).apply(old, LENGTHS)
    assert torch.equal(new[0, 1], old[0, 1] + 1), "position 1 is the last of a prompt of two"


def test_the_head_of_a_site_narrows_the_edit() -> None:
    old = activation_of(Site("z", 1))
    one = scale("z.1.2", 0.0).apply(old, LENGTHS)
    assert torch.equal(one, scale("z.1", 0.0, head=2).apply(old, LENGTHS))
    assert patch("z.1.2", old).site == Site("z", 1)
    values = activation_of(Site("v", 0))
    assert (scale("v.0.1", 0.0).apply(values, LENGTHS)[:, :, 1] == 0).all()


def test_constructors() -> None:
    site = Site("resid_post", 0)
    old, other = activation_of(site), activation_of(site, 1)
    assert torch.equal(patch(site, other).apply(old, LENGTHS), other)
    assert torch.equal(scale(site, 1.0).apply(old, LENGTHS), old)
    direction = torch.arange(6.0)
    assert torch.equal(steer(site, direction, 2.0).apply(old, LENGTHS), old + 2 * direction)
    assert torch.equal(steer(site, direction, 0.0).apply(old, LENGTHS), old)
    assert not ablate(site).apply(old, LENGTHS).any()


def test_mean_ablation_leaves_each_example_out_of_its_own_mean() -> None:
    site = Site("resid_post", 0)
    old = activation_of(site)
    new = ablate(site, "mean", old).apply(old, LENGTHS)
    for row in range(3):
        others = [old[other] for other in range(3) if other != row]
        torch.testing.assert_close(new[row], torch.stack(others).mean(0))


@settings(max_examples=60)
@given(n=st.integers(2, 12), seed=st.integers(0, 2**31))
def test_resampling_draws_another_example(n: int, seed: int) -> None:
    reference = torch.arange(float(n)).view(n, 1, 1).expand(n, 2, 3)
    edit = ablate("resid_post.0", "resample", reference, seed=seed)
    drawn = edit.apply(reference, torch.full((n,), 2))
    assert (drawn != reference).all()
    assert set(drawn.flatten().tolist()) <= set(range(n))
    assert (drawn == drawn[:, :1, :1]).all(), "one example is drawn whole"
    again = ablate("resid_post.0", "resample", reference, seed=seed)
    assert torch.equal(again.apply(reference, torch.full((n,), 2)), drawn)


def test_resampling_can_draw_every_other_example() -> None:
    reference = torch.arange(3.0).view(3, 1, 1)
    lengths = torch.ones(3, dtype=torch.long)
    drawn = {
        float(ablate("resid_post.0", "resample", reference, seed=s).apply(reference, lengths)[0])
        for s in range(30)
    }
    assert drawn == {1.0, 2.0}


@pytest.mark.parametrize(
    ("where", "named"),
    [({}, None), ({"pos": -1}, [[1], [4], [3]]), ({"pos": [1, -2]}, [[1, 0], [1, 3], [1, 2]]),
     ({"pos": torch.tensor([1, 3, -4])}, [[1], [3], [0]])],
)  # fmt: skip
def test_named_positions(where: dict, named: list | None) -> None:
    positions = Edit(Site("resid_post", 0), "set", 0.0, where).positions(LENGTHS)
    assert (positions if positions is None else positions.tolist()) == named


@pytest.mark.parametrize("whole", [True, False], ids=["tensor", "number"])
@pytest.mark.parametrize(
    ("kind", "where", "start"),
    [("resid_post", {}, 2), ("resid_post", {"pos": -1, "d_model": [1, 5]}, 1),
     ("z", {"head": 3}, 1), ("resid_post", {"pos": torch.tensor([1, -1, 2])}, 1),
     ("pattern", {"query": [-1]}, 1),
     ("pattern", {"key": 0, "head": 2}, 3), ("k", {"kv_head": 1}, 0)],
)  # fmt: skip
def test_a_part_of_the_batch_is_edited_like_the_whole(
    kind: str, where: dict, start: int, whole: bool
) -> None:
    """Rows of the batch in another order, and twice, from a later position on."""
    site, rows = Site(kind, 1), torch.tensor([2, 0, 1, 2])
    old = activation_of(site)
    place = site.axes.index("query" if "query" in site.axes else "pos")
    edit = Edit(site, "add", activation_of(site, seed=1) if whole else 0.5, where)

    def part(activation: Tensor) -> Tensor:
        return activation[rows].narrow(place, start, SIZES["pos"] - start)

    assert torch.equal(edit.apply(part(old), LENGTHS, rows, start), part(edit.apply(old, LENGTHS)))


def test_by_site_follows_the_forward_pass_and_keeps_the_order_at_a_site() -> None:
    late, early = scale("resid_post.1", 2.0), scale("z.0", 3.0)
    first, second = scale("z.1", 0.5), scale("z.1", 0.25)
    groups = by_site([late, first, early, second])
    assert [str(site) for site in groups] == ["z.0", "z.1", "resid_post.1"]
    assert groups[Site("z", 1)] == [first, second]


OLD = activation_of(Site("resid_post", 0))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: scale("resid_post.0", 1.0, head=1), "no axis 'head' to edit"),
        (lambda: scale("resid_post.0", 1.0, batch=1), "no axis 'batch' to edit"),
        (lambda: scale("z.0.1", 1.0, head=2), "head"),
        (lambda: scale("resid_post.0", 1.0, pos=3).apply(OLD, LENGTHS), "leaves prompt 0"),
        (lambda: scale("resid_post.0", 1.0, pos=-3).apply(OLD, LENGTHS), "-2 to -1 from its end"),
        (lambda: scale("resid_post.0", 1.0, pos=[]).apply(OLD, LENGTHS), "pos"),
        (lambda: scale("resid_post.0", 1.0, d_model=6).apply(OLD, LENGTHS), "0 to 5"),
        (lambda: patch("resid_post.0", torch.ones(4)).apply(OLD, LENGTHS), "'d_model': 6"),
        (lambda: project_out("resid_post.0", torch.ones(5)).apply(OLD, LENGTHS), "(6,)"),
        (lambda: project_out("resid_post.0", torch.zeros(6)).apply(OLD, LENGTHS), "norm 0.0"),
        (lambda: ablate("z.0", "mean"), "0 examples"),
        (lambda: ablate("z.0", "resample", torch.ones(1, 2, 4, 3)), "at least 2"),
    ],
)
def test_mistakes_are_explained(make, said: str) -> None:
    with pytest.raises(EditError) as raised:
        make()
    assert said in str(raised.value)
