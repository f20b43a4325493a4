"""The dictionaries that come with Probe load by name, and know what they are of."""

import pytest
import torch

from probe.dictionaries.files import SHIPPED, load_dictionary, shipped


@pytest.mark.parametrize("name", ["smollm2-resid-15", "smollm2-mlp-15"])
def test_loads_by_name(name):
    d = load_dictionary(name)
    assert name in shipped()
    assert (d.name, d.architecture, d.activation) == (name, "batchtopk", "jumprelu")
    assert d.d_sae >= 4096
    assert str(d.writes[0]) == ("mlp_out.15" if "mlp" in name else "resid_post.15")
    assert all(bool(t.isfinite().all()) for t in d.tensors.values())
    torch.testing.assert_close(d.W_dec.norm(dim=-1), torch.ones(d.d_sae), rtol=2e-3, atol=0)
    assert (SHIPPED / name / "CARD.md").read_text("utf-8").startswith(f"# {name}")


def test_they_are_small():
    assert sum(p.stat().st_size for p in SHIPPED.rglob("*") if p.is_file()) < 60e6
