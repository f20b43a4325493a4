"""The space of tokens: who is near whom in the embedding and in the unembedding."""

from collections.abc import Sequence
from typing import Annotated, Literal

import pandas as pd
import torch
from jaxtyping import Float
from pydantic import BaseModel, Field
from torch import Tensor

from probe.core.errors import OptionError
from probe.core.model import Model
from probe.core.registry import method
from probe.core.result import View

_ROWS = 8192
"""Tokens compared at once."""

_COLUMNS = {
    "place": "0 for the nearest token, 1 for the next, and so on",
    "token": "token",
    "token_id": "its number in the vocabulary",
    "value": "cosine of the angle to what was asked for, from -1 to 1",
    "pc1": "coordinate on the first principal component, in units of the embedding",
    "pc2": "coordinate on the second principal component",
    "share": "share of these tokens' variance that the two components hold",
}


def _view(options: BaseModel) -> View:
    if options.model_dump()["show"] == "pca":
        return View(kind="scatter", x="pc1", y="pc2", text="token", title="tokens on two axes")
    return View(kind="bar", x="token", scale="signed", title="cosine to the nearest tokens")


@method(needs="nothing", view=_view, columns=_COLUMNS)
def token_space(
    model: Model,
    *,
    token: Annotated[str, Field(description='One token, mind the leading space: " the"')] = " the",
    minus: Annotated[
        str | None, Field(description="For an analogy, token - minus + plus: what to subtract")
    ] = None,
    plus: Annotated[
        str | None, Field(description="For an analogy, token - minus + plus: what to add")
    ] = None,
    show: Annotated[
        Literal["nearest", "pca"],
        Field(description="nearest: tokens by cosine; pca: tokens on their two main axes"),
    ] = "nearest",
    matrix: Annotated[
        Literal["W_E", "W_U"],
        Field(description="W_E: as tokens are read in; W_U: as they are predicted"),
    ] = "W_E",
    centre: Annotated[
        bool, Field(description="Subtract the vocabulary's mean vector before comparing")
    ] = True,
    top: Annotated[int, Field(description="How many nearest tokens", ge=1)] = 10,
    tokens: Annotated[
        list[str] | None,
        Field(description="Tokens for show=pca; none for the token and its nearest", min_length=1),
    ] = None,
) -> pd.DataFrame:
    """Which tokens does the model hold to be alike?

    ``nearest`` ranks the vocabulary by cosine with a token's vector, or with the analogy
    ``token - minus + plus``; the tokens asked with are left out. ``pca`` fits two principal
    components to a few tokens' vectors and to nothing else. Without centring, what all tokens
    share makes every cosine large. Where input and output embeddings are tied, W_E and W_U are the
    same.

    Raises:
        TaskError: A text that is not one token.
        OptionError: Fewer than three tokens for ``pca``.

    Cost: no forward pass; one product of the embedding with a vector.
    Source: Mikolov et al. (2013), "Linguistic Regularities in Continuous Space Word
    Representations", for the analogy.

    >>> from probe.models.load import load_model
    >>> frame = token_space(load_model("toy"), token=" Mary", top=3)
    >>> len(frame), " Mary" in set(frame.token), bool(frame.value.is_monotonic_decreasing)
    (3, False, True)
    """
    asked = [text for text in (token, minus, plus) if text is not None]
    ids = [model.tokenizer.need_single(text) for text in asked]
    known = min(model.dims.d_vocab, model.tokenizer.n_vocab)  # a padded matrix has rows for nobody
    vectors = (model.weights.W_E if matrix == "W_E" else model.weights.W_U.T)[:known]
    mean = vectors.mean(0, dtype=torch.float32) if centre else vectors.new_zeros(1).float()
    query = vectors[ids].float() - mean
    signs = [1.0, *([-1.0] if minus is not None else []), *([1.0] if plus is not None else [])]
    wanted = (query.new_tensor(signs)[:, None] * query).sum(0)
    near = _nearest(model, vectors, mean, wanted, ids, top)
    if show == "nearest":
        return near
    chosen = [model.tokenizer.need_single(text) for text in tokens] if tokens else [
        *ids, *near.token_id
    ]  # fmt: skip
    return _components(model, vectors, list(dict.fromkeys(chosen)))


def _nearest(
    model: Model, vectors: Tensor, mean: Tensor, wanted: Tensor, asked: Sequence[int], top: int
) -> pd.DataFrame:
    cosine = torch.cat([_cosine(rows.float() - mean, wanted) for rows in vectors.split(_ROWS)])
    cosine[list(asked)] = -torch.inf
    number = min(top, len(cosine) - len(set(asked)))
    best, ids = cosine.topk(number)
    return pd.DataFrame(
        {
            "place": range(number),
            "token": model.tokenizer.strings(ids.tolist()),
            "token_id": ids.tolist(),
            "value": best.double().cpu().numpy(),
        }
    )


def _cosine(
    rows: Float[Tensor, "d_vocab d_model"], wanted: Float[Tensor, " d_model"]
) -> Float[Tensor, " d_vocab"]:
    """Zero where there is no direction to compare."""
    norms = rows.norm(dim=1) * wanted.norm()
    return rows @ wanted / norms.clamp(min=torch.finfo(norms.dtype).tiny)


def _components(model: Model, vectors: Tensor, ids: list[int]) -> pd.DataFrame:
    from sklearn.decomposition import PCA  # half a second that only this needs

    if len(ids) < 3:
        raise OptionError(
            f"show=pca was given {len(ids)} different tokens",
            expected="at least 3: two points lie on a line",
            remedy='tokens=[" red", " green", " blue"]',
        )
    pca = PCA(n_components=2, svd_solver="full")
    places = pca.fit_transform(vectors[ids].double().cpu().numpy())
    return pd.DataFrame(
        {
            "token": model.tokenizer.strings(ids),
            "token_id": ids,
            "pc1": places[:, 0],
            "pc2": places[:, 1],
            "share": float(pca.explained_variance_ratio_.sum()),
        }
    )
