"""Splicing a dictionary into a run: identities of reconstruction, error and features."""

import pytest
import torch
from random_dictionaries import FORMS, dictionary

from probe.core.edit import patch
from probe.core.errors import EditError, ProbeWarning
from probe.core.model import Model
from probe.core.splice import splice
from probe.tasks import load_task

LENGTHS = torch.tensor([4, 4, 3])
AUTOENCODERS = [form for form in FORMS if "coder" not in form]
TEXT = "When Mary and John went to the store, John gave a drink to"


def activation() -> torch.Tensor:
    return torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("form", AUTOENCODERS)
def test_with_its_error_kept_nothing_changes_and_without_it_is_the_reconstruction(
    form: str,
) -> None:
    sae, x = dictionary(form), activation()
    kept = splice(None, sae).apply(x, LENGTHS)
    torch.testing.assert_close(kept, x)
    alone = splice("resid_post.0", sae, keep_error=False).apply(x, LENGTHS)
    assert torch.equal(alone, sae.decode(sae.encode(x), x))
    assert not torch.allclose(alone, x, atol=0.1)


def test_a_feature_set_moves_the_activation_along_its_decoder_row_alone() -> None:
    sae, x = dictionary("standard"), activation()
    found = sae.encode(x)
    new = splice(None, sae, features={3: 0.0, 7: 2.5}, pos=[1, -1]).apply(x, LENGTHS)
    for row, length in enumerate(LENGTHS.tolist()):
        for place in range(4):
            moved = torch.zeros(8)
            if place in (1, length - 1):
                at = found[row, place]
                moved = -at[3] * sae.W_dec[3] + (2.5 - at[7]) * sae.W_dec[7]
            torch.testing.assert_close(new[row, place], x[row, place] + moved)


def test_a_vector_leaves_features_that_are_nan() -> None:
    sae, x = dictionary("standard"), activation()
    vector = torch.full((24,), torch.nan)
    vector[3] = 1.5
    one = splice(None, sae, keep_error=False, features=vector).apply(x, LENGTHS)
    other = splice(None, sae, keep_error=False, features={3: 1.5}).apply(x, LENGTHS)
    assert torch.equal(one, other)


@pytest.mark.filterwarnings("ignore::probe.ProbeWarning")
def test_a_run_sees_the_splice_in_a_forward_in_a_sweep_and_in_generation(toy: Model) -> None:
    sae = dictionary("topk", d_in=toy.dims.d_model, layer=0)
    tokens = torch.tensor([toy.tokenizer.encode(TEXT)])
    plain = toy.forward(tokens)
    torch.testing.assert_close(
        toy.forward(tokens, [splice(None, sae)]), plain, rtol=1e-4, atol=1e-4
    )
    x = toy.trace(tokens, "resid_post.0")["resid_post", 0]
    by_hand = toy.forward(tokens, [patch("resid_post.0", sae.decode(sae.encode(x)))])
    spliced = toy.forward(tokens, [splice(None, sae, keep_error=False)])
    torch.testing.assert_close(spliced, by_hand)
    assert not torch.allclose(spliced, plain, atol=1e-2)
    edits = [splice(None, sae, keep_error=False)]
    assert len(toy.generate(TEXT, edits, max_new_tokens=3).tokens) <= 3


def test_a_sweep_reads_what_a_forward_reads(toy: Model) -> None:
    task = load_task("ioi", n=3).encode(toy)
    sae = dictionary("standard", d_in=toy.dims.d_model, layer=0)
    edit = splice(None, sae, features=dict.fromkeys(range(12), 0.0), pos=[2, -1])
    swept = toy.sweep(task, [[edit]], base="clean")[0]
    logits = toy.forward(task.clean, [edit], lengths=task.lengths, last_only=True)
    rows = torch.arange(3)
    expected = logits[rows, task.need_answers()] - logits[rows, task.need_wrong_answers()]
    torch.testing.assert_close(swept, expected, rtol=1e-4, atol=1e-4)


def test_a_splice_that_changes_nothing_is_reported(toy: Model) -> None:
    sae = dictionary("standard", d_in=toy.dims.d_model, layer=0)
    zero = type(sae)(
        **{**sae.__dict__, "tensors": {n: torch.zeros_like(t) for n, t in sae.tensors.items()}}
    )
    with pytest.warns(ProbeWarning, match=r"splice: a standard.*changed nothing"):
        toy.forward(torch.tensor([[3, 4, 5]]), [splice(None, zero)])


@pytest.mark.parametrize("form", ["transcoder", "crosscoder"])
def test_what_does_not_write_where_it_reads_is_refused(form: str) -> None:
    with pytest.raises(EditError, match=rf"a {form} reads .* and writes(.|\n)*autoencoder"):
        splice(None, dictionary(form))


def test_mistakes_are_named() -> None:
    sae = dictionary("standard")
    with pytest.raises(EditError, match=r"no feature 24\nExpected: 0 to 23"):
        splice(None, sae, features={24: 0.0})
    with pytest.raises(EditError, match=r"shape \(3,\)(.|\n)*\(24,\)"):
        splice(None, sae, features=torch.zeros(3))
    with pytest.raises(EditError, match=r"encodes 8 dimensions, and was given 2"):
        splice(None, sae, d_model=[0, 1]).apply(activation(), LENGTHS)
    lost = type(sae)(**{**sae.__dict__, "reads": (), "writes": ()})
    with pytest.raises(EditError, match=r"does not say where it belongs"):
        splice(None, lost)
