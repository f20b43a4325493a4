"""Interventions on a model: what they change, what they leave, and what they refuse."""

import warnings

import pytest
import torch
from loaded import PROMPTS, Family
from torch import Tensor

from probe.core.edit import Edit, ablate, patch, project_out, scale, steer
from probe.core.errors import EditError, ProbeWarning, SiteError
from probe.core.site import KINDS, Site
from probe.models.bridge import BridgeModel

pytestmark = pytest.mark.slow  # left to make test

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
A, B = torch.tensor([[3, 4, 5, 6, 7]]), torch.tensor([[3, 9, 5, 8, 2]])
# TransformerLens says that an edited norm is computed by other operations, in the same formula.
NATIVE = "ignore:A forward hook edited hook_scale"


def middle(model: BridgeModel) -> list[Site]:
    """A site of each kind, in the middle where there is one for each layer."""
    return [Site(kind, 1 if KINDS[kind].per_layer else None) for kind in sorted(model.sites)]


@pytest.mark.filterwarnings(NATIVE)
def test_an_edit_of_any_site_changes_the_logits_or_is_refused(family: Family) -> None:
    model, refused = family.model, set()
    plain = model.forward(A)
    for site in middle(model):
        try:
            edited = model.forward(A, [Edit(site, "set", 0.5)])
        except EditError as error:
            assert "does not read it back: changing it would change nothing" in str(error)
            refused.add(site.kind)
        else:
            assert (edited - plain).abs().max() > 1e-4, site
    expected = {"bert": {"pattern"}, "mixtral": {"router"}}
    assert refused == expected.get(family.name, set())


@pytest.mark.filterwarnings(NATIVE)
def test_reading_the_last_token_alone_gives_the_same_under_any_edit(causal: Family) -> None:
    model = causal.model
    for site in middle(model):
        if site.kind == "router":
            continue
        edits = [Edit(site, "set", 0.5)]
        whole, last = model.forward(A, edits), model.forward(A, edits, last_only=True)
        torch.testing.assert_close(last, whole[:, -1], **CLOSE)


def test_the_last_tokens_of_ragged_rows_are_their_own(toy: BridgeModel) -> None:
    tokens, lengths = torch.tensor([[3, 4, 5, 6], [7, 8, 2, 2]]), torch.tensor([4, 2])
    whole = toy.forward(tokens, lengths=lengths)
    last = toy.forward(tokens, lengths=lengths, last_only=True)
    torch.testing.assert_close(last, whole[torch.arange(2), lengths - 1], **CLOSE)


@pytest.mark.parametrize("kind", ["resid_pre", "resid_mid", "resid_post"])
def test_the_residual_stream_of_another_run_gives_its_logits(family: Family, kind: str) -> None:
    model = family.model
    if kind not in model.sites:
        assert model.dims.parallel
        return
    for layer in range(model.dims.n_layers):
        other = model.trace(B, (kind, layer))[kind, layer]
        patched = model.forward(A, [patch(f"{kind}.{layer}", other)])
        torch.testing.assert_close(patched, model.forward(B), **CLOSE)


def test_what_is_computed_from_an_edited_site_is_computed_from_the_edit(causal: Family) -> None:
    model, layer = causal.model, 1
    kinds = ["resid_pre", "attn_out", "mlp_out", "resid_post", "v", "z", "pattern", "attn_scores"]
    torch.manual_seed(0)
    for kind in [k for k in (*kinds, "resid_mid") if k in model.sites and k != "resid_post"]:
        noise = torch.randn_like(model.trace(A, (kind, layer))[kind, layer])
        trace = model.trace(A, kinds, edits=[Edit(Site(kind, layer), "add", noise)])
        stream = sum(trace[part, layer] for part in ("resid_pre", "attn_out", "mlp_out"))
        torch.testing.assert_close(stream, trace["resid_post", layer], **CLOSE)
        if kind != "pattern":
            softmax = trace["attn_scores", layer].softmax(-1)
            torch.testing.assert_close(softmax, trace["pattern", layer], **CLOSE)
        if kind != "z":
            values = trace["v", layer].repeat_interleave(model.dims.heads_per_kv, dim=2)
            z = torch.einsum("bhqk,bkhd->bqhd", trace["pattern", layer], values)
            torch.testing.assert_close(z, trace["z", layer], **CLOSE)
        if kind not in ("attn_out", "resid_mid"):
            total = model.head_outputs(layer, trace["z", layer]).sum(-2)
            total = total + model.out_bias(layer, "attn_out")
            written = model.write_out(layer, "attn_out", total, total)
            written = written + model.write_bias(layer, "attn_out")
            torch.testing.assert_close(written, trace["attn_out", layer], **CLOSE)


def test_ablating_and_putting_back_is_doing_nothing(causal: Family) -> None:
    model = causal.model
    for kind in ("z", "mlp_out", "pattern", "resid_post"):
        own = model.trace(A, (kind, 1))[kind, 1]
        restored = model.forward(A, [ablate(f"{kind}.1"), patch(f"{kind}.1", own)])
        torch.testing.assert_close(restored, model.forward(A), **CLOSE)


def test_edits_of_one_site_are_made_in_the_order_given(toy: BridgeModel) -> None:
    def recorded(*edits: Edit) -> Tensor:
        return toy.trace(A, "resid_post.0", edits=edits)["resid_post", 0]

    plain = recorded()
    one, two = steer("resid_post.0", torch.ones(32)), scale("resid_post.0", 3.0)
    torch.testing.assert_close(recorded(one, two), (plain + 1) * 3)
    torch.testing.assert_close(recorded(two, one), plain * 3 + 1)


def test_one_head_is_edited_alone(causal: Family) -> None:
    plain = causal.model.trace(A, "z.1")["z", 1]
    edited = causal.model.trace(A, "z.1", edits=[ablate("z.1.2")])["z", 1]
    assert not edited[:, :, 2].any()
    others = [0, 1, 3]
    assert torch.equal(edited[:, :, others], plain[:, :, others])


def test_a_key_head_serves_its_own_query_heads_alone(toy: BridgeModel) -> None:
    plain = toy.trace(A, "pattern.0")["pattern", 0]
    edited = toy.trace(A, "pattern.0", edits=[ablate("k.0.1")])["pattern", 0]
    torch.testing.assert_close(edited[:, :2], plain[:, :2], rtol=0, atol=0)
    assert (edited[:, 2:] - plain[:, 2:]).abs().amax((0, 2, 3)).min() > 1e-3


def test_a_causal_model_cannot_be_changed_before_the_edit(causal: Family) -> None:
    plain, edited = (
        causal.model.forward(A, edits) for edits in ((), [ablate("resid_post.0", pos=3)])
    )
    torch.testing.assert_close(edited[:, :3], plain[:, :3], **CLOSE)
    assert (edited[:, 3:] - plain[:, 3:]).abs().amax((0, 2)).min() > 1e-3


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (scale("resid_post.1", 1.0), "the edit of resid_post.1 (scale: 1.0) changed nothing"),
        (steer("z.0", torch.zeros(8)), "the edit of z.0 (steer: 1.0) changed nothing"),
        (steer("mlp_out.0", torch.ones(32), 0.0), "the edit of mlp_out.0 (steer: 0.0)"),
    ],
)
def test_an_edit_that_changes_nothing_says_so(toy: BridgeModel, edit: Edit, said: str) -> None:
    with pytest.warns(ProbeWarning) as caught:
        logits = toy.forward(A, [edit])
    assert said in str(caught[0].message)
    assert torch.equal(logits, toy.forward(A))


def test_putting_back_what_was_there_says_so_too(toy: BridgeModel) -> None:
    own = toy.trace(A, "resid_mid.1")["resid_mid", 1]
    with pytest.warns(ProbeWarning, match=r"the edit of resid_mid.1 \(patch\) changed nothing"):
        toy.trace(A, "resid_post.1", edits=[patch("resid_mid.1", own)])


def test_an_edit_that_changes_something_says_nothing(toy: BridgeModel) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        toy.forward(A, [ablate("z.0")])


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (patch("z.0", torch.ones(3, 3)), "the value for z.0 has shape (3, 3)\nExpected: {'batch'"),
        (patch("resid_post.0", torch.ones(1, 4, 32)), "has shape (1, 4, 32)"),
        (ablate("resid_post.0", pos=5), "positions [5] leaves prompt 0\nExpected: 0 to 4"),
        (ablate("resid_post.0", pos=-6), "leaves prompt 0"),
        (ablate("pattern.0", query=5), "an edit of pattern.0 at positions [5]"),
        (ablate("z.0", head=4), "an edit of z.0 names head [4]\nExpected: 0 to 3"),
        (ablate("v.0.2"), "an edit of v.0 names kv_head [2]\nExpected: 0 to 1"),
        (ablate("mlp_post.0", d_mlp=48), "names d_mlp [48]\nExpected: 0 to 47"),
        (project_out("resid_post.0", torch.ones(3)), "has shape (3,)\nExpected: (32,)"),
        (project_out("resid_post.0", torch.zeros(32)), "has norm 0.0"),
        (ablate("z.2"), "toy has no z.2"),
        (Edit(Site("router", 0), "set", 0.0), "it is no mixture of experts"),
    ],
)
def test_edits_that_cannot_be_made(toy: BridgeModel, edit: Edit, said: str) -> None:
    with pytest.raises((EditError, SiteError)) as error:
        toy.forward(A, [edit])
    assert said in str(error.value)


def test_an_axis_the_site_does_not_have() -> None:
    with pytest.raises(EditError, match=r"z\.0 has no axis 'd_mlp' to edit\nExpected: one of"):
        ablate("z.0", d_mlp=3)


def test_edits_are_not_split_over_batches(toy: BridgeModel) -> None:
    with pytest.raises(EditError, match="edits over 3 prompts in batches of 1") as error:
        toy.trace(["When", "The", "dogs"], "z", edits=[ablate("z.0")], batch_size=1)
    assert "Try: batch_size=3" in str(error.value)


def test_an_encoders_pattern_is_read_and_not_edited(bert: Family) -> None:
    with pytest.raises(EditError, match="computes pattern but does not read it back"):
        bert.model.trace(PROMPTS, "resid_post", edits=[ablate("pattern.0")])
