import numpy as np
import pandas as pd
import pytest
import torch

from probe.core.errors import OptionError, TaskError
from probe.methods.lens import token_space as module
from probe.models.load import load_model
from probe.models.toy import toy_model, toy_tokenizer

token_space = module.token_space


@pytest.fixture(scope="module")
def model():
    return load_model("toy")


def matrix_of(model, name):
    return model.weights.W_E if name == "W_E" else model.weights.W_U.T


@pytest.mark.parametrize("name", ["W_E", "W_U"])
@pytest.mark.parametrize("centre", [True, False])
def test_nearest_tokens_equal_torchs_cosine(model, name, centre):
    vectors = matrix_of(model, name)
    vectors = vectors - vectors.mean(0) if centre else vectors
    asked = [model.tokenizer.need_single(text) for text in (" Mary", " John", " he")]
    query = vectors[asked[0]] - vectors[asked[1]] + vectors[asked[2]]
    cosine = torch.cosine_similarity(vectors, query[None])
    cosine[asked] = -2
    frame = token_space(
        model, token=" Mary", minus=" John", plus=" he", matrix=name, centre=centre, top=4
    )
    assert frame.token_id.tolist() == cosine.topk(4).indices.tolist()
    assert np.allclose(frame.value, cosine.topk(4).values, atol=1e-5)


def test_a_token_subtracted_only(model):
    vectors = model.weights.W_E
    mary, john = (model.tokenizer.need_single(text) for text in (" Mary", " John"))
    cosine = torch.cosine_similarity(vectors, (vectors[mary] - vectors[john])[None])
    frame = token_space(model, token=" Mary", minus=" John", centre=False, top=10_000)
    assert np.allclose(frame.value, cosine[frame.token_id.tolist()], atol=1e-5)
    assert not {" Mary", " John"} & set(frame.token)
    assert len(frame) == model.dims.d_vocab - 2


def test_analogies_are_solved_where_they_hold():
    hf = toy_model("toy")
    model = load_model(hf, tokenizer=toy_tokenizer())
    ids = {word: model.tokenizer.need_single(word) for word in (" he", " she", " his", " her")}
    generator = torch.Generator().manual_seed(0)
    gender, owner = torch.randn(2, 32, generator=generator)
    E = hf.get_input_embeddings().weight.data
    E[ids[" he"]], E[ids[" she"]] = -gender, gender
    E[ids[" his"]], E[ids[" her"]] = owner - gender, owner + gender
    frame = token_space(model, token=" his", minus=" he", plus=" she", top=1, centre=False)
    assert frame.token.tolist() == [" her"] and abs(frame.value[0] - 1) < 1e-5


def test_chunks_change_nothing(model, monkeypatch):
    whole = token_space(model, token=" Mary")
    monkeypatch.setattr(module, "_ROWS", 7)
    pd.testing.assert_frame_equal(whole, token_space(model, token=" Mary"), rtol=1e-5)


def test_pca_keeps_the_distances_of_three_points(model):
    words = [" Mary", " John", " he"]
    frame = token_space(model, show="pca", tokens=words)
    assert frame.token.tolist() == words
    assert abs(frame.share[0] - 1) < 1e-6  # three points lie in a plane
    flat = torch.tensor(frame[["pc1", "pc2"]].to_numpy())
    ids = [model.tokenizer.need_single(word) for word in words]
    true = model.weights.W_E[ids].double()
    torch.testing.assert_close(torch.pdist(flat), torch.pdist(true), rtol=1e-5, atol=1e-6)
    assert flat[:, 0].var() >= flat[:, 1].var()


def test_pca_takes_the_token_and_its_nearest_by_default(model):
    near = token_space(model, token=" Mary", top=4)
    frame = token_space(model, token=" Mary", top=4, show="pca")
    assert frame.token.tolist() == [" Mary", *near.token]


def test_two_points_make_no_plane(model):
    with pytest.raises(OptionError, match="2 different tokens") as error:
        token_space(model, show="pca", tokens=[" Mary", " John", " Mary"])
    assert "two points lie on a line" in str(error.value)


def test_a_word_of_several_tokens_is_refused(model):
    with pytest.raises(TaskError, match="tokens for this tokenizer"):
        token_space(model, token=" Constantinople")
