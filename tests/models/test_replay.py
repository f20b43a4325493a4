"""The planner gives what one plain forward pass for each cell gives, however it gets there."""

from functools import cache, partial
from typing import Any, NamedTuple

import families
import pytest
import torch
from replay_cases import cases, editable_sites, one_by_one, pairs_for
from torch import Tensor

from probe.core.edit import Edit, patch, scale, steer
from probe.core.errors import EditError
from probe.core.metric import METRICS, get_metric
from probe.core.site import Site
from probe.core.task import Encoded
from probe.models import plan, recorded, replay
from probe.models.bridge import BridgeModel
from probe.models.load import load_model
from probe.tasks import load_task

pytestmark = [
    pytest.mark.slow,  # every family, kind and base
    pytest.mark.filterwarnings("ignore:A forward hook edited hook_scale"),
]

OUTSIDE = {"embed", "ln_final_scale"}
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
TOYS = ["toy", "toy-mha"]


class Known(NamedTuple):
    """A model, its prompts, sets of edits and what one forward a set gives."""

    model: BridgeModel
    encoded: Encoded
    sets: list[list[Edit]]
    answers: Tensor


@cache
def model_of(name: str) -> BridgeModel:
    if name in TOYS:
        return load_model(name)
    return load_model(families.build(name), tokenizer=families.tokenizer())


@cache
def known(name: str, base: str) -> Known:
    model = model_of(name)
    encoded = pairs_for(model)
    sites = editable_sites(model)
    clean, corrupted = model.trace(encoded, sites), model.trace(encoded, sites, corrupted=True)
    run, other = (clean, corrupted) if base == "clean" else (corrupted, clean)
    sets = cases(model, encoded, other, run)
    return Known(model, encoded, sets, one_by_one(model, encoded, sets, base=base))


@pytest.fixture(params=["clean", "corrupted"])
def base(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize("resume", [True, False])
@pytest.mark.parametrize("name", [*families.CAUSAL, *TOYS])
def test_a_sweep_is_one_forward_a_cell(name: str, base: str, resume: bool) -> None:
    model, encoded, sets, answers = known(name, base)
    assert model.resumes
    assert answers[1:].ne(answers[0]).any(1).float().mean() > 0.8, "the edits must do something"
    # Edits outside the blocks make the whole sweep run from the first token: apart from the rest.
    inside = torch.tensor([not {e.site.kind for e in edits} & OUTSIDE for edits in sets])
    for chosen in (inside, ~inside):
        rows = chosen.nonzero()[:, 0]
        ours = model.sweep(encoded, [sets[i] for i in rows], base=base, resume=resume)
        torch.testing.assert_close(ours, answers[rows], **CLOSE)


@pytest.mark.parametrize("resume", [True, False])
@pytest.mark.parametrize("name", [*families.CAUSAL, *TOYS])
def test_edits_given_to_every_run_are_as_good_as_in_each_set(name: str, resume: bool) -> None:
    model, encoded, sets, answers = known(name, "clean")
    each = torch.randn(3, 1, model.dims.d_model, generator=torch.Generator().manual_seed(0))
    entrance = Site("resid_pre", 0)
    noise = [
        Edit(entrance, "add", each, {"pos": torch.tensor([1, 1, 2])}),
        Edit(entrance, "scale", 0.5, {"pos": -1}),
    ]
    some = sets[::2]
    want = one_by_one(model, encoded, [[*noise, *edits] for edits in some], base="clean")
    assert (want - answers[::2]).abs().max() > 0.01, "the noise must do something"
    inside = torch.tensor([not {e.site.kind for e in edits} & OUTSIDE for edits in some])
    for chosen in (inside, ~inside):
        rows = chosen.nonzero()[:, 0]
        ours = model.sweep(
            encoded, [some[i] for i in rows], base="clean", given=noise, resume=resume
        )
        torch.testing.assert_close(ours, want[rows], **CLOSE)


def test_a_run_resumed_from_a_given_one_begins_where_it_is_edited(
    toy: BridgeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is given costs one forward pass, whatever comes after it."""
    seen: list[plan.Row] = []
    walk = replay._walk
    monkeypatch.setattr(
        replay, "_walk", lambda m, run, rows, *rest: seen.extend(rows) or walk(m, run, rows, *rest)
    )
    encoded = pairs_for(toy)
    noise = [Edit(Site("resid_pre", 0), "add", 1.0, {"pos": 0})]
    back = patch("mlp_out.1", toy.trace(encoded, "mlp_out")["mlp_out", 1], pos=2)
    toy.sweep(encoded, [[], [back]], base="clean", given=noise)
    assert {(row.layer, row.start, row.edits) for row in seen} == {(1, 2, (back,))}


def test_only_what_enters_the_first_block_can_be_given(toy: BridgeModel) -> None:
    with pytest.raises(EditError, match=r"an edit of z\.1 in every run\nExpected: resid_pre\.0"):
        toy.sweep(pairs_for(toy), [[]], given=[scale("z.1", 0.5)])


@pytest.mark.slow
def test_a_sweep_of_smollm2_is_one_forward_a_cell(smollm2: BridgeModel, base: str) -> None:
    encoded = load_task("ioi", n=3, seed=1).encode(smollm2)
    kinds = [kind for kind in smollm2.sites if not kind.endswith("scale") and kind != "embed"]
    sites = [Site(kind, layer) for kind in sorted(kinds) for layer in (0, 14, 29)]
    source = smollm2.trace(encoded, sites, corrupted=base == "clean")
    sets = [[patch(site, source[site])] for site in sites]
    for site in sites:
        at = "query" if "query" in site.axes else "pos"
        sets.append([patch(site, source[site], **{at: encoded.first_difference})])
        if site.head_axis:
            sets.append([patch(Site(site.kind, site.layer, 2), source[site], **{at: -1})])
    want = one_by_one(smollm2, encoded, sets, base=base)
    for resume in (True, False):
        ours = smollm2.sweep(encoded, sets, base=base, resume=resume)
        torch.testing.assert_close(ours, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("metric", sorted(METRICS))
@pytest.mark.parametrize("name", ["gemma2", "gpt2", "toy"])
def test_every_metric_is_read_as_from_all_logits(name: str, metric: str) -> None:
    model, encoded, sets, _ = known(name, "corrupted")
    few = [edits for edits in sets if not {e.site.kind for e in edits} & OUTSIDE][::15]
    ours = model.sweep(encoded, few, metric)
    torch.testing.assert_close(ours, one_by_one(model, encoded, few, metric), **CLOSE)


@pytest.mark.parametrize("name", ["gemma3", "neox", "toy"])
@pytest.mark.parametrize("resume", [True, False])
def test_the_size_of_a_chunk_changes_nothing(name: str, resume: bool) -> None:
    model, encoded, sets, answers = known(name, "corrupted")
    few = torch.arange(0, len(sets), 25)
    for tokens in (1, 20, 10**6):
        ours = model.sweep(
            encoded, [sets[i] for i in few], chunk_tokens=tokens, resume=resume
        )  # fmt: skip
        torch.testing.assert_close(ours, answers[few], **CLOSE)


def test_edits_at_one_site_are_made_in_each_sets_own_order() -> None:
    model, encoded, *_ = known("toy", "clean")
    double = scale("attn_out.0", 2.0, pos=1)
    move = steer("attn_out.0", torch.ones(model.dims.d_model), pos=1)
    sets = [[double, move], [move, double], [move], [double]]
    ours = model.sweep(encoded, sets, base="clean")
    moved = [steer("attn_out.0", torch.full((model.dims.d_model,), 2.0), pos=1), double]
    first, second, again = model.sweep(encoded, [*sets[:2], moved[::-1]], base="clean")
    assert (first - second).abs().min() > 1e-3
    torch.testing.assert_close(second, again, **CLOSE)  # 2 (x + 1) = 2 x + 2
    torch.testing.assert_close(ours, one_by_one(model, encoded, sets, base="clean"), **CLOSE)


def test_edits_at_several_sites_are_made_as_the_pass_reaches_them() -> None:
    model, encoded, *_ = known("toy", "clean")
    late, early = scale("resid_post.1", 3.0, pos=-1), scale("resid_pre.0", 0.1, pos=0)
    between = scale("resid_post.0", 2.0), steer("resid_pre.1", torch.ones(32))
    ours = model.sweep(encoded, [[late, early], [early, late]], base="clean")
    assert torch.equal(ours[0], ours[1])
    # after one block is before the next, whichever is named first
    ours = model.sweep(encoded, [between, between[::-1]], base="clean")
    want = one_by_one(model, encoded, [between], base="clean")[0]
    torch.testing.assert_close(ours, want.expand(2, -1), **CLOSE)


# --- what is not run -----------------------------------------------------------------------------


def planned(name: str, sets: list[list[Edit]], base: str = "corrupted") -> list[plan.Row]:
    model = model_of(name)
    encoded = pairs_for(model)
    tokens = encoded.clean if base == "clean" else encoded.need_corrupted()
    run = recorded.record(model, tokens, encoded.lengths)
    states = partial(model.trace, encoded, corrupted=base == "corrupted")
    settled = [plan.settled(model, edits, True) for edits in sets]
    return plan.plan(run, states, settled, model.dims.n_layers)


@pytest.mark.parametrize("kind", ["resid_pre", "resid_post", "mlp_out", "q", "pattern"])
def test_what_lies_before_the_first_difference_is_not_run(kind: str) -> None:
    model, encoded = model_of("toy"), pairs_for(model_of("toy"))
    clean = model.trace(encoded, kind)
    axis = "query" if kind == "pattern" else "pos"
    for pos in range(3):
        edits = [[patch(Site(kind, n), clean[kind, n], **{axis: pos})] for n in range(2)]
        assert encoded.first_difference is not None
        reached = (encoded.first_difference <= pos).nonzero()[:, 0].tolist()
        rows = planned("toy", edits)
        if kind not in ("resid_pre", "q"):  # into the first block only the new token itself differs
            assert [row.example for row in rows] == reached * 2
        assert {row.example for row in rows} <= set(reached)
        assert {row.start for row in rows} <= {pos}


def test_rows_join_at_their_layer_and_position() -> None:
    edits = [[scale("z.1", 0.5, pos=[2, 1])], [scale("resid_post.1", 0.5, pos=-1)]]
    rows = planned("toy", [*edits, [scale("mlp_out.0", 2.0), scale("q.1", 0.0, pos=-1)], []])
    lengths = pairs_for(model_of("toy")).lengths.tolist()
    assert [(r.cell, r.layer, r.start) for r in rows if r.cell != 1] == [(0, 1, 1)] * 3 + [
        (2, 0, 0)
    ] * 3
    # after the last block: through no block at all
    assert [(r.layer, r.start) for r in rows if r.cell == 1] == [(2, n - 1) for n in lengths]


def test_putting_back_what_is_there_counts_once_something_came_before() -> None:
    model = model_of("toy")
    there = model.trace(pairs_for(model), ["resid_post", "mlp_out"], corrupted=True)
    back, early = patch("resid_post.0", there["resid_post", 0]), scale("resid_pre.0", 0.5, pos=1)
    before = patch("mlp_out.0", there["mlp_out", 0], pos=0)
    spread = patch("mlp_out.0", there["mlp_out", 0], pos=[0, 2])
    assert planned("toy", [[back], [before], [back, before]]) == []
    rows = planned("toy", [[early, back], [early, before], [early, spread]])
    per_set = {row.cell: (len(row.edits), row.start) for row in rows}
    assert per_set == {0: (2, 1), 1: (1, 1), 2: (2, 0)}


def test_rows_of_one_start_run_the_suffix_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, encoded = model_of("toy"), pairs_for(model_of("toy"))
    captured = []
    real = replay.capture
    monkeypatch.setattr(replay, "capture", lambda *a: captured.append(a[-1]) or real(*a))
    sets = [[scale("z.0", 0.5, pos=2)], [scale("z.1", 0.5, pos=2)]]
    with_tail = encoded.rows([0, 2])
    model.sweep(with_tail, sets, chunk_tokens=1)
    assert captured == [2]


def test_what_moves_through_a_block_is_bounded_by_the_chunk(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, encoded, sets, _ = known("toy", "corrupted")
    inside = [edits for edits in sets if not {e.site.kind for e in edits} & OUTSIDE][::6]
    n_rows = len(planned("toy", inside))
    width = encoded.clean.shape[1]
    walks: list[int] = []
    moved: list[int] = []
    real, hooked = replay._walk, model.hooked

    def walk(*args: Any) -> Tensor:
        walks.append(len(args[2]))
        with monkeypatch.context() as during:
            during.setattr(model, "hooked", noted)
            return real(*args)

    def noted(hooks: Any, shape: tuple[int, int]) -> Any:
        moved.append(shape[0] * shape[1])
        return hooked(hooks, shape)

    monkeypatch.setattr(replay, "_walk", walk)
    for limit in (1, 2 * width, 10 * width):
        walks.clear(), moved.clear()
        model.sweep(encoded, inside, chunk_tokens=limit)
        assert sum(walks) == n_rows, "each row once"
        assert max(walks) == 1 if limit == 1 else limit / 2 < max(moved) <= limit


def test_groups_of_starts_cost_the_least_they_can() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        width = int(torch.randint(3, 60, (), generator=generator))
        starts = torch.randint(0, width, (8,), generator=generator).tolist()
        rows = [plan.Row(i, 0, 0, start, ()) for i, start in enumerate(starts[:5])]
        rows += [plan.Row(0, i, 0, start, ()) for i, start in enumerate(starts[5:8] * 20)]
        groups = plan.by_start(rows, width)
        assert sorted(map(id, rows)) == sorted(id(row) for _, group in groups for row in group)
        assert all(row.start >= start for start, group in groups for row in group)
        ours = sum(plan.CHUNK_OVERHEAD + len(group) * (width - s) for s, group in groups)
        assert ours == _cheapest(tuple(sorted(row.start for row in rows)), width)


def _cheapest(starts: tuple[int, ...], width: int) -> float:
    """Every way to cut the sorted starts into runs."""
    marks = sorted(set(starts))
    best = float("inf")
    for cuts in range(2 ** (len(marks) - 1)):
        firsts = [m for i, m in enumerate(marks) if i == 0 or cuts >> (i - 1) & 1]
        heads = [max(first for first in firsts if first <= start) for start in starts]
        best = min(best, len(firsts) * plan.CHUNK_OVERHEAD + sum(width - h for h in heads))
    return best


# --- what cannot be resumed ----------------------------------------------------------------------


def test_a_family_that_cannot_be_resumed_runs_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    model, encoded, sets, answers = known("toy", "clean")
    monkeypatch.setitem(model.health, "resumes", False)
    monkeypatch.setattr(replay, "_walk", lambda *a: pytest.fail("resumed all the same"))
    torch.testing.assert_close(model.sweep(encoded, sets, base="clean"), answers, **CLOSE)


def test_blocks_that_refuse_to_run_alone_are_found_at_load(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("llama")
    whole = model.block

    def broken(layer: int) -> Any:
        def call(*_: object, **__: object) -> None:
            raise TypeError("position_bias is missing")

        call.register_forward_pre_hook = whole(layer).register_forward_pre_hook  # type: ignore
        return call

    monkeypatch.setattr(model, "block", broken)
    found = replay.examine(model)
    assert found == {"resumes": False, "why not": "TypeError: position_bias is missing"}


def test_blocks_that_resume_wrongly_are_found_at_load(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("llama")
    assert replay.examine(model)["resumes"] is True

    def forgets_the_order(self: Any, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> Any:
        return torch.cat([self._keys.flip(2), keys], 2), torch.cat([self._values, values], 2)

    monkeypatch.setattr(recorded.Frozen, "update", forgets_the_order)
    found = replay.examine(model)
    assert found["resumes"] is False
    assert found["resume gap"] > 1e-3


def test_logits_that_are_no_norm_and_matrix_are_read_as_they_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, encoded, sets, answers = known("toy", "corrupted")
    monkeypatch.setitem(model.health, "reads_out", False)
    few = sets[::9]
    torch.testing.assert_close(model.sweep(encoded, few), answers[::9], **CLOSE)
    ours = model.sweep(encoded, few, get_metric("kl"), chunk_tokens=1)
    monkeypatch.setitem(model.health, "reads_out", True)
    torch.testing.assert_close(ours, one_by_one(model, encoded, few, "kl"), **CLOSE)
