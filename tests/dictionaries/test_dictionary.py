import json
import warnings

import pytest
import torch
from random_dictionaries import FORMS, KNOWN_TO_SAELENS, dictionary

from probe.core.dictionary import Dictionary
from probe.core.errors import DictionaryError
from probe.core.site import Site
from probe.dictionaries.files import load_dictionary


def _inputs(d: object, n: int = 50) -> torch.Tensor:
    shape = (n, *d.W_enc.shape[:-1])  # type: ignore[attr-defined]
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def sae_lens():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import sae_lens
    return sae_lens


@pytest.mark.parametrize("form", FORMS)
def test_comes_back_from_disk_as_it_was(form, tmp_path):
    d = dictionary(form)
    back = load_dictionary(d.save(tmp_path / "d"))
    x = _inputs(d)
    assert isinstance(back, Dictionary)
    assert (back.name, back.reads, back.writes) == (d.name, d.reads, d.writes)
    assert torch.equal(back.encode(x), d.encode(x))
    assert torch.equal(back.decode(back.encode(x), x), d.decode(d.encode(x), x))


@pytest.mark.parametrize("form", KNOWN_TO_SAELENS)
def test_sae_lens_reconstructs_the_same(form, tmp_path, sae_lens):
    d = dictionary(form)
    d.save(tmp_path / "d")
    cls = {
        "transcoder": sae_lens.Transcoder, "skip_transcoder": sae_lens.SkipTranscoder,
        "jumprelu_transcoder": sae_lens.JumpReLUTranscoder,
        "jumprelu_skip_transcoder": sae_lens.JumpReLUSkipTranscoder,
    }.get(form, sae_lens.SAE)  # fmt: skip
    theirs = cls.load_from_disk(tmp_path / "d")
    x = _inputs(d)
    torch.testing.assert_close(theirs.encode(x), d.encode(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(theirs(x), d.decode(d.encode(x), x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("norm", ["none", "layer_norm", "constant_norm_rescale"])
@pytest.mark.parametrize("architecture", ["standard", "topk"])
def test_reads_what_sae_lens_has_saved(architecture, norm, tmp_path, sae_lens):
    torch.manual_seed(1)
    sae = sae_lens.SAE.from_dict(
        {
            "architecture": architecture, "d_in": 8, "d_sae": 24, "normalize_activations": norm,
            "metadata": {"hook_name": "blocks.3.hook_resid_pre", "sae_lens_version": "6.54.12"},
            **({"k": 4, "rescale_acts_by_decoder_norm": True} if architecture == "topk" else {}),
        }
    )  # fmt: skip
    for weight in sae.parameters():
        weight.data = torch.randn_like(weight)
    sae.save_model(tmp_path)
    d = load_dictionary(tmp_path)
    x = torch.randn(30, 8)
    assert d.reads == (Site("resid_pre", 3),)
    torch.testing.assert_close(d.decode(d.encode(x), x), sae(x), rtol=1e-5, atol=1e-4)


def test_reads_a_config_from_before_sae_lens_6(tmp_path):
    d = dictionary("topk")
    d.save(tmp_path)
    config = json.loads((tmp_path / "cfg.json").read_text())
    old = {
        "d_in": 8, "d_sae": 24, "dtype": "float32", "hook_point": "blocks.1.hook_resid_post",
        "activation_fn_str": "topk", "activation_fn_kwargs": {"k": config["k"]},
        "normalize_activations": False,
    }  # fmt: skip
    (tmp_path / "cfg.json").write_text(json.dumps(old))
    x = _inputs(d)
    back = load_dictionary(tmp_path)
    assert back.reads == d.reads
    assert torch.equal(back.encode(x), d.encode(x))


def test_topk_keeps_the_k_largest_and_none_below_zero():
    d = dictionary("topk")
    x = _inputs(d)
    before = (x - d.b_dec) @ d.W_enc + d.tensors["b_enc"]
    for row, features in zip(before, d.encode(x), strict=True):
        kept = set(row.argsort(descending=True)[:5].tolist()) & set(
            (row > 0).nonzero()[:, 0].tolist()
        )
        assert set(features.nonzero()[:, 0].tolist()) == kept


def test_a_crosscoder_sums_over_layers_and_writes_each():
    d = dictionary("crosscoder")
    x = _inputs(d)
    centred = x - d.b_dec
    before = centred[:, 0] @ d.W_enc[0] + centred[:, 1] @ d.W_enc[1] + d.tensors["b_enc"]
    torch.testing.assert_close(d.encode(x), before.relu())
    out = d.decode(d.encode(x))
    for layer in (0, 1):
        expected = before.relu() @ d.W_dec[layer] + d.b_dec[layer]
        torch.testing.assert_close(out[:, layer], expected)


def test_refusals_say_what_is_wrong(tmp_path):
    d = dictionary("skip_transcoder")
    with pytest.raises(DictionaryError, match=r"activations of shape \(2, 7\)(.|\n)*= \[..., 8\]"):
        d.encode(torch.zeros(2, 7))
    with pytest.raises(DictionaryError, match=r"has a skip connection(.|\n)*decode\(features, x\)"):
        d.decode(torch.zeros(2, 24))
    with pytest.raises(DictionaryError, match="no dictionary at"):
        load_dictionary(tmp_path / "nothing")
    d.save(tmp_path)
    weights = tmp_path / "sae_weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-40])
    with pytest.raises(DictionaryError, match="is damaged"):
        load_dictionary(tmp_path)
    d.save(tmp_path)
    config = json.loads((tmp_path / "cfg.json").read_text())
    for change, message in [
        ({"architecture": "temporal"}, '"temporal"'),
        ({"normalize_activations": "covariance_whitening"}, "covariance_whitening"),
        ({"architecture": "gated"}, "b_gate"),
        ({"metadata": {**config["metadata"], "reads": ["blocks.3.hook_x"]}}, "no site of Probe"),
    ]:
        (tmp_path / "cfg.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(DictionaryError, match=message):
            load_dictionary(tmp_path)
