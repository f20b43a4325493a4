"""What a method may ask of a model: the whole surface between analyses and model libraries."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from pydantic import BaseModel
from torch import Tensor

from probe.core.edit import Edit
from probe.core.metric import Metric
from probe.core.norms import LinearNorm
from probe.core.progress import Report
from probe.core.rotary import Scoring
from probe.core.site import Site, SiteLike
from probe.core.task import Encoded
from probe.core.tokens import Tokenizer
from probe.core.trace import Trace

NormPlace = Literal["attn_in", "attn_out", "mlp_in", "mlp_out", "q", "k", "final"]
"""Where a norm stands: before a part of a block, after what it writes, on queries or keys of all
heads, before the unembedding."""


@dataclass(frozen=True)
class Dims:
    """The sizes of a model and the facts of its architecture that change formulas."""

    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_model: int
    d_head: int
    d_mlp: int
    d_vocab: int
    n_ctx: int
    n_experts: int = 0
    causal: bool = True
    parallel: bool = False
    """Attention and MLP read the same residual (there is no resid_mid)."""
    softcap: float | None = None
    """Final logits are ``softcap * tanh(logits / softcap)``: attribution to them is not linear."""

    @property
    def heads_per_kv(self) -> int:
        """Query heads that share one key/value head."""
        return self.n_heads // self.n_kv_heads

    def size(self, axis: str, *, batch: int, pos: int) -> int:
        """The length of a named axis for a batch of this shape."""
        sizes = {
            "batch": batch, "pos": pos, "query": pos, "key": pos, "head": self.n_heads,
            "kv_head": self.n_kv_heads, "d_model": self.d_model, "d_head": self.d_head,
            "d_mlp": self.d_mlp, "d_vocab": self.d_vocab, "scale": 1, "expert": self.n_experts,
            "layer": self.n_layers,
        }  # fmt: skip
        return sizes[axis]


@dataclass(frozen=True)
class Generation:
    """What a model wrote after a prompt.

    Attributes:
        prompt: The prompt.
        text: What follows it.
        tokens: Its token ids; the last may be the one that ends a text.
        log_probs: Log-probability of each under the edited model, in nats, before temperature.
    """

    prompt: str
    text: str
    tokens: tuple[int, ...]
    log_probs: tuple[float, ...]


@runtime_checkable
class Weights(Protocol):
    """A model's matrices in row-vector convention: ``x @ W``. All detached, on the model's device.

    Heads are on the first axis. ``W_K`` and ``W_V`` have key/value heads.
    """

    @property
    def W_E(self) -> Float[Tensor, "d_vocab d_model"]:
        """Token embedding."""
        ...

    @property
    def W_U(self) -> Float[Tensor, "d_model d_vocab"]:
        """Unembedding, without the final norm."""
        ...

    @property
    def b_U(self) -> Float[Tensor, " d_vocab"]:
        """Unembedding bias, zeros where there is none."""
        ...

    def W_Q(self, layer: int) -> Float[Tensor, "head d_model d_head"]:
        """Query projection of a layer."""
        ...

    def W_K(self, layer: int) -> Float[Tensor, "kv_head d_model d_head"]:
        """Key projection of a layer."""
        ...

    def W_V(self, layer: int) -> Float[Tensor, "kv_head d_model d_head"]:
        """Value projection of a layer."""
        ...

    def W_O(self, layer: int) -> Float[Tensor, "head d_head d_model"]:
        """Output projection of a layer."""
        ...

    def b_Q(self, layer: int) -> Float[Tensor, "head d_head"]:
        """Query biases of a layer, zeros where there are none."""
        ...

    def b_K(self, layer: int) -> Float[Tensor, "kv_head d_head"]:
        """Key biases of a layer, zeros where there are none."""
        ...

    def b_V(self, layer: int) -> Float[Tensor, "kv_head d_head"]:
        """Value biases of a layer, zeros where there are none."""
        ...

    def W_in(self, layer: int) -> Float[Tensor, "d_model d_mlp"]:
        """What the MLP's neurons read (the linear branch where there is a gate)."""
        ...

    def W_gate(self, layer: int) -> Float[Tensor, "d_model d_mlp"] | None:
        """What the MLP's gate reads, None where there is none."""
        ...

    def W_out(self, layer: int) -> Float[Tensor, "d_mlp d_model"]:
        """What the MLP's neurons write."""
        ...


@runtime_checkable
class Model(Protocol):
    """A language model as analyses see it. Never left changed by a call, also one that raises."""

    @property
    def name(self) -> str:
        """The name it was loaded by."""
        ...

    @property
    def spec(self) -> BaseModel:
        """What exactly was loaded, and how."""
        ...

    @property
    def dims(self) -> Dims:
        """Sizes."""
        ...

    @property
    def tokenizer(self) -> Tokenizer:
        """Text to ids and back."""
        ...

    @property
    def weights(self) -> Weights:
        """Matrices."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """What the weights are."""
        ...

    @property
    def sites(self) -> frozenset[str]:
        """The site kinds this architecture has."""
        ...

    @property
    def health(self) -> dict[str, object]:
        """What the checks at load and the doctor found; part of every run's provenance."""
        ...

    def trace(
        self,
        prompts: "str | Sequence[str] | Encoded | Int[Tensor, 'batch pos']",
        sites: "Iterable[SiteLike] | SiteLike",
        *,
        positions: Sequence[int] | None = None,
        edits: Sequence[Edit] = (),
        corrupted: bool = False,
        dtype: torch.dtype | None = None,
        batch_size: int | None = None,
    ) -> Trace:
        """Record activations. One forward pass for each batch, stopped after the last site."""
        ...

    def forward(
        self,
        tokens: Int[Tensor, "batch pos"],
        edits: Sequence[Edit] = (),
        *,
        lengths: Int[Tensor, " batch"] | None = None,
        last_only: bool = False,
    ) -> Float[Tensor, "batch pos d_vocab"] | Float[Tensor, "batch d_vocab"]:
        """Logits, with edits made. One forward pass.

        ``lengths``: real tokens of each row when padded on the right. ``last_only``: unembed only
        each row's last real token, giving [batch, d_vocab].
        """
        ...

    def generate(
        self,
        prompt: str,
        edits: Sequence[Edit] = (),
        *,
        max_new_tokens: int = 20,
        at: str = "both",
        temperature: float = 0.0,
        top_k: int | None = None,
        seed: int = 0,
    ) -> Generation:
        """Continue a prompt with edits at its positions, at every new one, or both."""
        ...

    def sample(
        self,
        prompts: Sequence[str],
        *,
        max_new_tokens: int = 200,
        temperature: float = 1.0,
        seed: int = 0,
    ) -> list[Generation]:
        """Continue many prompts in one batch by drawing tokens."""
        ...

    def unembed(self, resid: Float[Tensor, "*any d_model"]) -> Float[Tensor, "*any d_vocab"]:
        """Final norm and unembedding of a residual stream: logits."""
        ...

    def read_out(
        self, vectors: Float[Tensor, "*any d_model"], scale: Float[Tensor, "*#any 1"]
    ) -> Float[Tensor, "*any d_model"]:
        """The final norm as a linear map: its bias left out, its denominator given.

        Summed over vectors that add up to the residual stream, this gives what the unembedding
        reads, less the norm's bias.
        """
        ...

    @property
    def read_out_bias(self) -> Float[Tensor, " d_model"]:
        """The final norm's bias, zeros where there is none."""
        ...

    def head_outputs(
        self, layer: int, z: Float[Tensor, "*any head d_head"]
    ) -> Float[Tensor, "*any head d_model"]:
        """What each head adds to its layer's attention output, before any norm that follows.

        The heads and the layer's ``out_bias`` sum to what ``write_out`` takes as ``total``.
        """
        ...

    def read_in(
        self, layer: int, kind: str, resid: Float[Tensor, "*any heads d_model"]
    ) -> Float[Tensor, "*any heads d_head"]:
        """Queries, keys or values, where each head reads a residual stream of its own.

        ``kind`` is ``q``, ``k`` or ``v``; keys and values have key/value heads. The block's norm
        is part of it. Differentiable.
        """
        ...

    def out_bias(self, layer: int, kind: str) -> Float[Tensor, " d_model"]:
        """Bias of the projection that writes ``attn_out`` or ``mlp_out``, zeros if none."""
        ...

    def write_bias(self, layer: int, kind: str) -> Float[Tensor, " d_model"]:
        """Bias of the norm a block applies to what it writes, zeros if none."""
        ...

    def write_out(
        self, layer: int, kind: str, vectors: Float[Tensor, "*any d_model"], total: Tensor
    ) -> Float[Tensor, "*any d_model"]:
        """Parts of ``attn_out`` or ``mlp_out`` as the residual stream receives them.

        Where a block normalises what it writes (Gemma 2 and 3), the norm is applied as a linear
        map with the denominator of ``total``, the sum of all parts; elsewhere nothing changes.
        """
        ...

    def norm(self, place: NormPlace, layer: int | None = None) -> LinearNorm | None:
        """A norm as a linear map, None where a layer has none there.

        ``q`` and ``k`` are as wide as a head, or as all heads where they are normalised together.
        """
        ...

    def scoring(self, layer: int) -> Scoring:
        """How a layer makes attention scores of queries and keys: norms, rotation, scale, cap.

        Found by comparison with the scores it makes on a few tokens, and refused where none of the
        forms we know gives them.
        """
        ...

    def sweep(
        self,
        encoded: Encoded,
        edit_sets: Sequence[Sequence[Edit]],
        metric: Metric | str = "logit_diff",
        *,
        base: str = "corrupted",
        given: Sequence[Edit] = (),
        report: Report | None = None,
    ) -> Float[Tensor, "sets batch"]:
        """The metric under each set of edits, each made to a run of its own.

        ``base``: which prompts are edited, clean or corrupted. ``given``: edits of what enters the
        first block, made in every run before its own. ``report`` hears how far it is and can stop
        it; cells not reached are NaN.
        """
        ...

    def gradients(
        self,
        encoded: Encoded,
        sites: "Iterable[SiteLike] | SiteLike",
        metric: Metric | str = "logit_diff",
        *,
        corrupted: bool = False,
        stop_at: "Iterable[SiteLike] | SiteLike" = (),
        edits: Sequence[Edit] = (),
    ) -> tuple[Trace, Trace]:
        """Activations, and the metric's gradient by each. One forward and one backward pass.

        ``stop_at``: sites through which no gradient flows. ``edits``: made in this run.
        """
        ...

    def sweep_edges(
        self,
        encoded: Encoded,
        kept: Bool[Tensor, "sets sender receiver"],
        metric: Metric | str = "logit_diff",
        *,
        base: str = "clean",
        other: Trace | None = None,
        report: Report | None = None,
    ) -> Float[Tensor, "sets batch"]:
        """The metric with only these edges of ``Graph.of(dims)`` left, for each set of them.

        What is read along the others is what the sender wrote in ``other``, a trace of
        ``resid_pre.0``, ``z`` and ``mlp_out``; None for nothing at all.
        """
        ...


def site_shape(site: Site, dims: Dims, batch: int, pos: int) -> tuple[int, ...]:
    """The shape of the tensor at a site for a batch of this size.

    >>> dims = Dims(2, 4, 2, 32, 8, 64, 100, 64)
    >>> site_shape(Site("k", 0), dims, batch=3, pos=5)
    (3, 5, 2, 8)
    """
    return tuple(dims.size(axis, batch=batch, pos=pos) for axis in site.axes)
