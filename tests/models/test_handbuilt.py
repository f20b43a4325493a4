"""The circuits written by hand do what they are said to do; attention is Hugging Face's own."""

import pytest
import torch
from torch import Tensor

from probe.core.edit import Edit
from probe.core.errors import OptionError
from probe.core.site import Site
from probe.models.bridge import BridgeModel
from probe.models.handbuilt import LAYOUTS, HandBuilt, induction_model
from probe.models.handbuilt_compare import compare_model
from probe.models.load import load_model


def repeated(size: int, length: int, bos: bool, seed: int = 0) -> Tensor:
    order = torch.randperm(size - 3, generator=torch.Generator().manual_seed(seed))
    words = order[:length] + 3
    return torch.cat([torch.zeros(int(bos), dtype=torch.long), words, words])[None]


def exact_rows(length: int, bos: bool) -> tuple[Tensor, Tensor]:
    """Destinations and sources of induction."""
    to = torch.arange(length, 2 * length) + int(bos)
    return to, to - length + 1


@pytest.fixture(scope="module", params=LAYOUTS)
def layout(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def built(layout: str) -> HandBuilt:
    return induction_model(layout)


@pytest.fixture(scope="module")
def model(layout: str) -> BridgeModel:
    own = induction_model(layout)  # loading takes a model over
    return load_model(own.hf, tokenizer=own.tokenizer)


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize(("size", "length"), [(16, 7), (64, 25), (64, 31), (128, 50)])
def test_each_head_does_what_it_is_named_for(
    layout: str, size: int, length: int, bos: bool
) -> None:
    built = induction_model(layout, size)
    out = built.hf(repeated(size, length, bos), output_attentions=True)
    attention = torch.stack(out.attentions)[:, 0]
    to, source = exact_rows(length, bos)
    induction = attention[:, :, to, source].amin(-1)
    later = torch.arange(1, attention.shape[-1])
    previous = attention[:, :, later, later - 1].amin(-1)
    current = attention[:, :, later, later].amin(-1)
    same = (attention[:, :, to, to] - 0.5).abs() + (attention[:, :, to, source - 1] - 0.5).abs()
    found = {
        "induction": induction > 0.9999,
        "previous": previous > 0.9999,
        "current": current > 0.9999,
        "same_token": same.amax(-1) < 1e-3,  # rotary pairs that are slow still turn a little
    }
    for name, heads in found.items():
        assert heads.nonzero().tolist() == [list(built.heads[name])]


@pytest.mark.parametrize("bos", [True, False])
def test_no_other_head_looks_like_induction(built: HandBuilt, bos: bool) -> None:
    attention = torch.stack(built.hf(repeated(64, 25, bos), output_attentions=True).attentions)
    to, source = exact_rows(25, bos)
    scores = attention[:, 0][:, :, to, source].mean(-1)
    scores[built.heads["induction"]] = 0
    assert scores.max() < 0.2


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_it_predicts_the_second_copy(built: HandBuilt, bos: bool, seed: int) -> None:
    tokens = repeated(64, 25, bos, seed)
    start = 25 + int(bos)
    log_probs = built.hf(tokens).logits[0, start:-1].log_softmax(-1)
    right = tokens[0, start + 1 :]
    assert log_probs.argmax(-1).equal(right)
    assert log_probs.gather(1, right[:, None]).exp().min() > 0.999


def test_norms_change_nothing_that_heads_read(built: HandBuilt) -> None:
    hidden = built.hf(repeated(64, 25, True), output_hidden_states=True).hidden_states
    body = getattr(built.hf, "transformer", None) or built.hf.model
    blocks = body.h if hasattr(body, "h") else body.layers
    for block, resid in zip(blocks, hidden, strict=False):
        norm = block.ln_1 if hasattr(block, "ln_1") else block.input_layernorm
        torch.testing.assert_close(norm(resid), resid, rtol=1e-5, atol=1e-5)


def test_induction_rests_on_the_previous_token_head(built: HandBuilt, model: BridgeModel) -> None:
    tokens = repeated(64, 25, True)
    layer, head = built.heads["previous"]
    cut = Edit(Site("z", layer, head), "set", 0.0)
    to, source = exact_rows(25, True)
    ablated = model.trace(tokens, ["pattern", "mlp_out"], edits=[cut])
    pattern = ablated[Site("pattern", *built.heads["induction"])][0]
    assert pattern[to, source].mean() < 0.2
    right = model.forward(tokens, [cut])[0, 26:-1].argmax(-1) == tokens[0, 27:]
    assert right.float().mean() < 0.2
    assert not ablated["mlp_out"].any()


def test_it_goes_through_the_same_adapter_as_any_model(layout: str, model: BridgeModel) -> None:
    assert model.health["ok"]
    assert model.dims.n_kv_heads == {"multi-head": 4, "grouped-query": 2}[layout]
    assert model.dims.n_ctx == model.dims.d_vocab == 64
    assert model.tokenizer.strings(model.tokenizer.encode("w3 w63")) == ["w3", "w63"]


@pytest.mark.parametrize("size", [8, 18, 132])
def test_a_size_at_which_it_is_not_sharp_is_refused(size: int) -> None:
    with pytest.raises(OptionError, match=rf"size={size}\n.*multiple of 4 from 16 to 128"):
        induction_model("multi-head", size)


def test_an_unknown_layout_is_refused() -> None:
    with pytest.raises(OptionError, match='no layout "grouped"\nTry: did you mean "grouped-query"'):
        induction_model("grouped")


def test_the_word_that_stands_twice_in_a_row_is_found_and_copied(layout: str) -> None:
    """The mark stands where token and copied token are one, and *find* looks nowhere else."""
    built = compare_model(layout)
    words = torch.randperm(61, generator=torch.Generator().manual_seed(0))[:10] + 3
    for at in (1, 4, 9):
        row = torch.cat([torch.zeros(1, dtype=torch.long), words[: at + 1], words[at:]])
        out = built.hf(row[None], output_attentions=True)
        layer, head = built.heads["find"]
        later = torch.arange(at + 2, len(row))
        assert out.attentions[layer][0, head, later, at + 2].min() > 0.9999
        assert out.logits[0, later].argmax(-1).eq(words[at]).all()


def test_a_comparing_model_that_cannot_be_made_is_refused() -> None:
    with pytest.raises(OptionError, match=r"size=18\n.*multiple of 4 from 16 to 128"):
        compare_model("multi-head", 18)
    with pytest.raises(OptionError, match='no layout "grouped"'):
        compare_model("grouped")
