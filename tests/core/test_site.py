import pytest
from hypothesis import given
from hypothesis import strategies as st

from probe.core.errors import SiteError
from probe.core.site import AXES, KINDS, Site, check_layer, expand_sites

kinds = st.sampled_from(sorted(KINDS))
numbers = st.integers(0, 200)


def _site(kind: str, layer: int, head: int | None = None) -> Site:
    return Site(kind, layer if KINDS[kind].per_layer else None, head)


@given(kinds, numbers)
def test_a_site_is_read_back_from_its_name_and_from_its_hook(kind: str, layer: int) -> None:
    site = _site(kind, layer)
    assert Site.parse(str(site)) == site
    assert Site.parse(site.hook_name) == site


@given(st.sampled_from([k for k in sorted(KINDS) if {"head", "kv_head"} & {*KINDS[k].axes}]),
       numbers, numbers)  # fmt: skip
def test_a_head_survives_the_name_and_is_dropped_by_whole(kind: str, layer: int, head: int) -> None:
    site = Site(kind, layer, head)
    assert Site.parse(str(site)) == site
    assert site.whole == Site(kind, layer)
    assert site.head_axis == ("kv_head" if kind in ("k", "v") else "head")


def test_hook_names_are_all_different_and_axes_all_explained() -> None:
    assert len({_site(kind, 3).hook_name for kind in KINDS}) == len(KINDS)
    assert {axis for kind in KINDS.values() for axis in kind.axes} <= set(AXES)


def test_known_hooks() -> None:
    assert Site("z", 9, 6).hook_name == "blocks.9.attn.hook_z"
    assert Site("resid_pre", 0).hook_name == "blocks.0.hook_resid_pre"
    assert Site("ln_final_scale").hook_name == "ln_final.hook_scale"


def test_order_is_that_of_a_forward_pass() -> None:
    told = ["ln_final_scale", "resid_post.1", "z.1", "mlp_out.0", "attn_out.0", "q.0", "embed",
            "resid_pre.0", "pattern.0", "resid_mid.0", "mlp_post.0"]  # fmt: skip
    order = [str(site) for site in sorted(map(Site.parse, told), key=lambda site: site.order)]
    assert order == ["embed", "resid_pre.0", "q.0", "pattern.0", "attn_out.0", "resid_mid.0",
                     "mlp_post.0", "mlp_out.0", "z.1", "resid_post.1",
                     "ln_final_scale"]  # fmt: skip


def test_every_kind_has_a_place_in_the_order() -> None:
    assert len({_site(kind, 2).order for kind in KINDS}) == len(KINDS)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Site("resid_pst", 1), 'did you mean "resid_post"'),
        (lambda: Site("z"), 'write "z.0"'),
        (lambda: Site("embed", 1), "embed takes no layer"),
        (lambda: Site("resid_post", 1, 2), "resid_post has no heads"),
        (lambda: Site.parse("z.1.2.3"), 'cannot read "z.1.2.3"'),
        (lambda: Site.parse("z.-1"), 'cannot read "z.-1"'),
        (lambda: Site.parse("blocks.1.attn.hook_y"), "cannot read"),
        (lambda: Site.parse(""), "not a kind of site"),
        (lambda: check_layer(Site("z", 4), 4), "0 to 3: the model has 4 layers"),
    ],
)
def test_a_wrong_address_says_what_is_right(make, said: str) -> None:
    with pytest.raises(SiteError) as raised:
        make()
    assert said in str(raised.value)


def test_expanding_keeps_order_and_drops_repeats() -> None:
    sites = expand_sites(["z.1", "z", ("pattern", 0)], n_layers=3)
    assert list(map(str, sites)) == ["z.1", "z.0", "z.2", "pattern.0"]
    assert expand_sites(("z", 1), 3) == [Site("z", 1)]
    with pytest.raises(SiteError, match="layer 3"):
        expand_sites("z.3", 3)
