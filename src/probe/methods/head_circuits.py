"""The QK and OV circuits of heads as low-rank products, and the tokens at their ends.

Row vectors: a query ``x`` scores a key ``y`` by ``x QK yᵀ`` with ``QK = W_Q R W_Kᵀ``, and a head
moves ``y OV`` with ``OV = W_V W_O``. R is the rotation by the distance asked for, where a layer
rotates. Query heads that share a key/value head each get it.

The denominators of norms are no matrix: a circuit is what it is up to one positive factor for each
position. Biases are no part of a circuit, but of what tokens give.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from probe.core.errors import ModelError, OptionError
from probe.core.model import Model, NormPlace
from probe.core.rotary import Scoring
from probe.methods.lowrank import LowRank


@dataclass(frozen=True)
class Circuits:
    """Circuits of one model, in double precision.

    Attributes:
        model: Whose.
        fold: Whether the gains of norms are part of the matrices: of the norm before the layer,
            of one on queries and keys, and of one on what the layer writes.
    """

    model: Model
    fold: bool = True

    def __post_init__(self) -> None:
        """Refuse what has no such circuits."""
        need_decoder(self.model)

    def ov(self, layer: int) -> LowRank:
        """What each query head writes of what it reads: [head, d_model, d_model]."""
        weights = self.model.weights
        left = self._behind("attn_in", layer, weights.W_V(layer).double())
        right = self._ahead("attn_out", layer, weights.W_O(layer).double())
        return LowRank(self._shared(left), right)

    def qk(self, layer: int, distance: int = 0) -> LowRank:
        """How each query head compares: [head, d_model of the query, d_model of the key]."""
        weights = self.model.weights
        query = self._behind("attn_in", layer, weights.W_Q(layer).double())
        key = self._behind("attn_in", layer, weights.W_K(layer).double())
        query, key = self._ahead("q", layer, query), self._ahead("k", layer, key)
        rotary = scoring_at(self.model, layer, distance).rotary
        if rotary is not None:
            query, key = rotary.turn(query, distance), rotary.turn(key, 0)
        return LowRank(query, self._shared(key).mT)

    def random_ov(self, layer: int, n: int, generator: torch.Generator) -> LowRank:
        """So many OV circuits of random matrices in the place of a head's."""
        left, right = self._drawn(n, generator)
        return LowRank(
            self._behind("attn_in", layer, left), self._ahead("attn_out", layer, right.mT)
        )

    def random_qk(self, layer: int, n: int, generator: torch.Generator) -> LowRank:
        """So many QK circuits of random matrices in the place of a head's."""
        query, key = (self._behind("attn_in", layer, x) for x in self._drawn(n, generator))
        return LowRank(query, key.mT)

    def _drawn(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        dims, device = self.model.dims, self.model.device
        shape = (n, dims.d_model, dims.d_head)
        first, second = (
            torch.randn(shape, generator=generator, dtype=torch.float64).to(device) for _ in "ab"
        )
        return first, second

    def _shared(self, kv: Tensor) -> Tensor:
        return kv.repeat_interleave(self.model.dims.heads_per_kv, dim=0)

    def _behind(self, place: NormPlace, layer: int, matrix: Tensor) -> Tensor:
        """A matrix that reads through a norm."""
        norm = self.model.norm(place, layer) if self.fold else None
        return matrix if norm is None else norm.read_by(matrix)

    def _ahead(self, place: NormPlace, layer: int, matrix: Tensor) -> Tensor:
        """A matrix that writes through a norm."""
        norm = self.model.norm(place, layer) if self.fold else None
        if norm is None:
            return matrix
        if len(norm.gain) == matrix.shape[-1]:
            return norm.apply(matrix, matrix.new_ones(1))
        # queries or keys of all heads normalised together
        whole = norm.apply(matrix.movedim(0, -2).flatten(-2), matrix.new_ones(1))
        return whole.unflatten(-1, (len(matrix), -1)).movedim(-2, 0)


def scoring_at(model: Model, layer: int, distance: int) -> Scoring:
    """How a layer scores, refusing a distance where position does not turn anything.

    Raises:
        OptionError: A distance, and a layer without rotation.
    """
    found = model.scoring(layer)
    if found.rotary is None and distance:
        raise OptionError(
            f"distance={distance}, and layer {layer} of {model.name} does not rotate queries and "
            "keys",
            expected="distance=0: its scores know positions only through the residual stream",
        )
    return found


def need_decoder(model: Model) -> None:
    """Refuse an encoder."""
    if not model.dims.causal:
        raise ModelError(
            f"{model.name} is an encoder: its blocks normalise the residual stream itself, so its "
            "layers do not read and write one space",
            expected="a causal model",
        )


def need_head(model: Model, layer: int, head: int) -> None:
    """Refuse a head that is not there."""
    for what, one, size in (
        ("layer", layer, model.dims.n_layers), ("head", head, model.dims.n_heads)
    ):  # fmt: skip
        if not 0 <= one < size:
            raise OptionError(
                f"{what} {one}", expected=f"0 to {size - 1}: the model has {size} {what}s"
            )


# --- tokens --------------------------------------------------------------------------------------


def token_ids(model: Model, tokens: list[str] | None) -> Int[Tensor, " token"]:
    """Ids of these tokens, or of the whole vocabulary without special ones.

    Raises:
        TaskError: A text that is not one token.
    """
    if tokens is not None:
        return torch.tensor([model.tokenizer.need_single(text) for text in tokens])
    known = range(min(model.dims.d_vocab, model.tokenizer.n_vocab))
    return torch.tensor([token for token in known if not model.tokenizer.is_special(token)])


def read_tokens(
    model: Model, layer: int | None, ids: Int[Tensor, " token"], place: NormPlace = "attn_in"
) -> Float[Tensor, "token d_model"]:
    """Tokens as a layer reads them where nothing but the embedding is in the stream."""
    embedded = model.weights.W_E[ids].float()
    norm = model.norm(place, layer)
    return embedded if norm is None else norm(embedded).float()


def logit_matrix(model: Model) -> Float[Tensor, "d_model d_vocab"]:
    """The unembedding of known tokens, its mean over the vocabulary taken out.

    Logits mean something up to a constant alone.
    """
    known = min(model.dims.d_vocab, model.tokenizer.n_vocab)  # a padded matrix has columns for none
    matrix = model.weights.W_U[:, :known].float()
    return matrix - matrix.mean(1, keepdim=True)


def unembedding(model: Model) -> Float[Tensor, "d_model d_vocab"]:
    """What each token's logit reads of the last residual stream, up to the norm's denominator."""
    norm, matrix = model.norm("final"), logit_matrix(model)
    return matrix if norm is None else norm.read_by(matrix).float()


def ov_tokens(model: Model, layer: int, head: int, ids: Int[Tensor, " token"]) -> LowRank:
    """Attended token → logits: [token, d_vocab], each row's mean over the vocabulary taken out.

    In units of the final norm's denominator, which the rest of the stream decides.
    """
    shared, after = head // model.dims.heads_per_kv, model.norm("attn_out", layer)
    weights, read = model.weights, read_tokens(model, layer, ids)
    values = read @ weights.W_V(layer)[shared].float() + weights.b_V(layer)[shared].float()
    written = weights.W_O(layer)[head].float()
    if after is not None:
        written = after.apply(written, written.new_ones(1)).float()
    return LowRank(values, written @ unembedding(model))


def qk_tokens(
    model: Model,
    layer: int,
    head: int,
    queries: Int[Tensor, " token"],
    keys: Int[Tensor, " other"],
    distance: int = 0,
) -> LowRank:
    """Query token × key token → attention score, the query ``distance`` tokens after the key.

    Scores are before any soft cap. Each query's mean over the keys given is not taken out.
    """
    weights, scoring = model.weights, scoring_at(model, layer, distance)
    shared, every = head // model.dims.heads_per_kv, scoring.rotary
    q = _projected(model, layer, queries, weights.W_Q(layer), weights.b_Q(layer))
    k = _projected(model, layer, keys, weights.W_K(layer), weights.b_K(layer))
    q, k = scoring.queries(q)[:, head].float(), scoring.keys(k)[:, shared].float()
    if every is not None:
        q, k = every.turn(q, distance), every.turn(k, 0)
    return LowRank(scoring.scale * q, k.mT)


def _projected(
    model: Model, layer: int, ids: Tensor, matrix: Tensor, bias: Tensor
) -> Float[Tensor, "token head d_head"]:
    read = read_tokens(model, layer, ids)
    projected = torch.einsum("tm,hmd->thd", read, matrix.float()) + bias.float()
    return projected.to(model.dtype)
