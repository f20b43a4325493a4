"""TransformerBridge as a Model: hooks that live for one call, and checks when it loads."""

import contextlib
import warnings
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probe.core.edit import Edit, by_site
from probe.core.errors import (
    EditError,
    ModelError,
    OptionError,
    ProbeWarning,
    SiteError,
    TaskError,
)
from probe.core.metric import Metric, get_metric
from probe.core.model import Dims, Generation, NormPlace
from probe.core.norms import LinearNorm
from probe.core.progress import Report
from probe.core.rotary import Scoring
from probe.core.site import Site, SiteLike, expand_sites
from probe.core.task import Encoded, pad
from probe.core.tokens import Tokenizer
from probe.core.trace import Trace
from probe.models import doctor, points, replay, scoring, wiring
from probe.models.generate import generate as _generate
from probe.models.gradients import gradients as _gradients
from probe.models.hooks import Hook, Stop, as_torch_hook, placed
from probe.models.recorder import Recorder
from probe.models.sample import sample as _sample
from probe.models.spec import ModelSpec
from probe.models.weights import BridgeWeights

_TOKENS_PER_BATCH = 4096


class BridgeModel:
    """A language model, recorded and intervened on through a TransformerBridge."""

    def __init__(self, bridge: Any, tokenizer: Tokenizer, spec: ModelSpec, dims: Dims) -> None:
        self._bridge = bridge
        self._hf = bridge.original_model
        self.tokenizer, self.spec, self.dims = tokenizer, spec, dims
        self.weights = BridgeWeights(bridge, dims)
        self.device = next(self._hf.parameters()).device
        self.dtype = next(self._hf.parameters()).dtype
        self.health: dict[str, object] = {}
        self._points = points.named(bridge.hook_dict, dims)
        self._points = points.firing(self, self._points)
        self.sites = frozenset(site.kind for site in self._points)
        self._inert: frozenset[str] = frozenset()
        like = torch.zeros((), device=self.device, dtype=self.dtype)
        self._ln_final = LinearNorm.measure(bridge.ln_final, dims.d_model, like)
        self._post_norms = {
            kind: [
                LinearNorm.measure(getattr(block, norm), dims.d_model, like)
                if norm in block.submodules
                else None
                for block in bridge.blocks
            ]
            for kind, norm in (("attn_out", "ln1_post"), ("mlp_out", "ln2_post"))
        }

    @property
    def bridge(self) -> Any:
        """The TransformerBridge itself, for what Probe does not do. Leave no hooks on it."""
        return self._bridge

    @property
    def name(self) -> str:
        """The name it was loaded by."""
        return self.spec.name

    def __repr__(self) -> str:
        d = self.dims
        return (
            f"Model({self.name}: {d.n_layers} layers, {d.d_model} wide, {d.n_heads} heads over "
            f"{d.n_kv_heads} key/value heads, {self.spec.n_params / 1e6:.1f} M parameters, "
            f"{self.spec.dtype} on {self.spec.device})"
        )

    # --- recording ---------------------------------------------------------------------------

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
        quiet: bool = False,
    ) -> Trace:
        """Record activations: only the sites asked for, detached, on the model's device.

        Args:
            prompts: A prompt, several, an encoded task, or token ids [batch, pos].
            sites: ``"resid_post"`` (every layer), ``("z", 9)``, ``"z.9"`` or a Site.
            positions: Record only these; negative ones count from each prompt's end.
            edits: Interventions made while recording; recorded values are the edited ones.
            corrupted: Of an encoded task, record the corrupted prompts.
            dtype: Store in this type, such as ``torch.float16``; computed in the model's own.
            batch_size: Prompts for each forward pass; by default as many as 4096 tokens.
            quiet: Do not report edits that change nothing.

        Raises:
            SiteError: A site or position this model or prompt does not have.
            SizeError: More bytes than fit, before any is taken.
            TaskError: No prompt, an empty one, or one that is too long.
            OptionError: A batch size or a dtype that cannot be.

        Cost: one forward pass over the prompts, stopped after the last site.
        """
        tokens, lengths = self.tokens_of(prompts, corrupted)
        wanted = [self.known(site).whole for site in expand_sites(sites, self.dims.n_layers)]
        if not wanted:
            raise SiteError("no site was asked for", remedy='sites=["resid_post"]')
        if batch_size is not None and batch_size < 1:
            raise OptionError(f"batch_size={batch_size}", expected="at least one prompt")
        recorder = Recorder(
            wanted, self.dims, self.device, tokens, lengths, positions, dtype or self.dtype
        )
        recorder.check_fits()
        size = batch_size or max(1, _TOKENS_PER_BATCH // tokens.shape[1])
        for start in range(0, len(tokens), size):
            rows = slice(start, start + size)
            self._check_rows(edits, start, size, len(tokens))
            with contextlib.suppress(Stop):
                self.run_raw(
                    tokens[rows],
                    self.edit_hooks(edits, lengths[rows], quiet) + recorder.hooks(rows),
                    lengths=lengths[rows],
                )
        strings = tuple(
            tuple(self.tokenizer.strings(row[:n].tolist()))
            for row, n in zip(tokens, lengths, strict=True)
        )
        return Trace(recorder.values, tokens, lengths, recorder.positions, strings)

    def tokens_of(self, prompts: Any, corrupted: bool) -> tuple[Tensor, Tensor]:
        """Token ids of prompts in whatever form they are given, and how many of each are real."""
        if isinstance(prompts, Encoded):
            return prompts.need_corrupted() if corrupted else prompts.clean, prompts.lengths
        if isinstance(prompts, Tensor):
            self._check_tokens(prompts)
            return prompts, torch.full((len(prompts),), prompts.shape[1])
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        if not texts:
            raise TaskError("no prompt was given")
        ids = [self.tokenizer.prompt(text, self.dims.n_ctx) for text in texts]
        return pad(ids, self.tokenizer.pad_id), torch.tensor([len(row) for row in ids])

    def _check_tokens(self, tokens: Tensor) -> None:
        shape = tuple(tokens.shape)
        if tokens.ndim != 2 or 0 in shape or tokens.is_floating_point():
            raise TaskError(f"tokens of shape {shape}, {tokens.dtype}", expected="ids [batch, pos]")
        if shape[1] > self.dims.n_ctx:
            raise TaskError(f"{shape[1]} tokens", expected=f"at most {self.dims.n_ctx}")
        if int(tokens.max()) >= self.dims.d_vocab or int(tokens.min()) < 0:
            raise TaskError(
                f"token ids from {int(tokens.min())} to {int(tokens.max())}",
                expected=f"0 to {self.dims.d_vocab - 1}",
            )

    def known(self, site: Site) -> Site:
        """The site, if this architecture has it; else a refusal that says why."""
        if site.whole in self._points:
            n_heads = self.dims.size(site.head_axis or "head", batch=1, pos=1)
            if site.head is None or site.head < n_heads:
                return site
            raise SiteError(
                f"{site} asks for head {site.head}",
                expected=f"0 to {n_heads - 1}: {site.kind} has {n_heads} {site.head_axis}s",
            )
        if site.kind in self.sites:
            raise SiteError(f"{self.name} has no {site}, though other layers have {site.kind}")
        why = {
            "resid_mid": "attention and MLP work in parallel" if self.dims.parallel else "",
            "router": "it is no mixture of experts" if not self.dims.n_experts else "",
            "mlp_pre": "its experts share no one MLP" if self.dims.n_experts else "",
            "mlp_post": "its experts share no one MLP" if self.dims.n_experts else "",
        }.get(site.kind, "")
        if not self.dims.d_mlp and "mlp" in site.kind:
            why = "it has attention only"
        raise SiteError(
            f"{self.name} has no {site.kind}" + (f": {why}" if why else ""),
            expected=f"one of {', '.join(sorted(self.sites))}",
        )

    def editable(self, site: Site) -> Site:
        """The site, if changing it can change anything; else a refusal."""
        if site.kind in self._inert:
            raise EditError(
                f"{self.name} computes {site.kind} but does not read it back: changing it would "
                "change nothing",
                expected=f"a site other than {', '.join(sorted(self._inert))}",
            )
        return self.known(site)

    # --- running -----------------------------------------------------------------------------

    def forward(
        self,
        tokens: Int[Tensor, "batch pos"],
        edits: Sequence[Edit] = (),
        *,
        lengths: Int[Tensor, " batch"] | None = None,
        last_only: bool = False,
        mask: Int[Tensor, "batch pos"] | None = None,
        quiet: bool = False,
    ) -> Float[Tensor, "batch pos d_vocab"] | Float[Tensor, "batch d_vocab"]:
        """Logits, with edits made. One forward pass.

        Args:
            tokens: Token ids.
            edits: Interventions; one that changed nothing is reported as a ProbeWarning.
            lengths: Real tokens of each row, when padded on the right.
            last_only: Unembed only each row's last real token: [batch, d_vocab].
            mask: 1 at real tokens, for rows padded on the left.
            quiet: Do not report edits that change nothing.
        """
        self._check_tokens(tokens)
        if lengths is None:
            lengths = torch.full((len(tokens),), tokens.shape[1])
        hooks = self.edit_hooks(edits, lengths, quiet)
        after_blocks = any(edit.site.kind == "ln_final_scale" for edit in edits)
        if not last_only or not self.reads_out or mask is not None or after_blocks:
            logits = self.run_raw(tokens, hooks, lengths=lengths, mask=mask).logits
            return logits[torch.arange(len(tokens)), lengths - 1] if last_only else logits
        final: list[Tensor] = []

        def keep(resid: Tensor) -> None:
            rows = torch.arange(len(tokens), device=resid.device)
            final.append(resid[rows, lengths.to(resid.device) - 1])
            raise Stop

        last = Site("resid_post", self.dims.n_layers - 1)
        with contextlib.suppress(Stop):
            self.run_raw(tokens, [*hooks, (last, keep)], lengths=lengths)
        return self.unembed(final[0])

    def run_raw(
        self,
        tokens: Tensor,
        hooks: Sequence[tuple[Site, Hook]] = (),
        *,
        lengths: Tensor | None = None,
        mask: Tensor | None = None,
        grad: bool = False,
        cache: Any = None,
    ) -> Any:
        """One forward pass of the Hugging Face model with hooks that end with it."""
        inputs: dict[str, Any] = {"input_ids": tokens.to(self.device)}
        if self.dims.causal:
            inputs["use_cache"] = cache is not None
        if cache is not None:
            inputs["past_key_values"] = cache
        if mask is None and not self.dims.causal and lengths is not None:
            mask = (torch.arange(tokens.shape[1]) < lengths[:, None]).long()
        if mask is not None:
            # Positions are counted over real tokens; the library would count padding too.
            inputs["attention_mask"] = mask.to(self.device)
            inputs["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0).to(self.device)
        with self.hooked(hooks, (len(tokens), tokens.shape[1])), torch.set_grad_enabled(grad):
            return self._hf(**inputs)

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
        """Continue a prompt, token by token, with edits made.

        Args:
            prompt: The prompt.
            edits: Interventions; one that changed nothing is reported as a ProbeWarning.
            max_new_tokens: Stop after so many, or after the token that ends a text.
            at: ``prompt``: edits are made to the prompt, at the positions they name; new tokens
                see only what they left there. ``new``: at every new position, so the first new
                token, which is read from the prompt, is as it would be without. ``both``.
            temperature: 0 for the likeliest token; above, tokens are drawn from the softmax of
                the logits divided by it.
            top_k: Draw only from the likeliest so many.
            seed: Of the draws.

        Raises:
            OptionError: An option out of range, or more tokens than the context holds.
            EditError: An edit that cannot be made where it is asked for.
            ModelError: An encoder.

        Cost: one forward pass over the prompt, and one over a single token for each new one.
        """
        return _generate(
            self, prompt, edits, max_new_tokens=max_new_tokens, at=at, temperature=temperature,
            top_k=top_k, seed=seed,
        )  # fmt: skip

    def sample(
        self,
        prompts: Sequence[str],
        *,
        max_new_tokens: int = 200,
        temperature: float = 1.0,
        seed: int = 0,
    ) -> list[Generation]:
        """Continue many prompts in one batch, drawing from the softmax of logits / temperature.

        Args:
            prompts: The prompts; their lengths may differ.
            max_new_tokens: A text stops after so many, or after the token that ends a text.
            temperature: Above 0; 1 is the model's own distribution.
            seed: Of the draws. The same prompts in the same batch give the same texts.

        Raises:
            OptionError: An option out of range, or more tokens than the context holds.
            ModelError: An encoder.

        Cost: one forward pass over a single position of the batch for each position of the
        longest text.
        """
        return _sample(
            self, prompts, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed
        )

    def block(self, layer: int) -> Any:
        """The module of one layer."""
        return self._bridge.blocks[layer]

    @contextlib.contextmanager
    def hooked(self, hooks: Sequence[tuple[Site, Hook]], shape: tuple[int, int]) -> Iterator[None]:
        """Hooks that are there inside the with-block, for a batch of this shape."""
        handles = []
        try:
            for site, hook in placed(hooks, causal=self.dims.causal):
                point = self._points[site]
                handles.append(point.register_forward_hook(as_torch_hook(point, hook, shape)))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def edit_hooks(
        self, edits: Sequence[Edit], lengths: Tensor, quiet: bool = False
    ) -> list[tuple[Site, Hook]]:
        """Hooks that make edits, each site's in the order given; one that changes nothing warns."""

        def hook_for(group: list[Edit]) -> Hook:
            def hook(activation: Tensor) -> Tensor:
                for edit in group:
                    changed = edit.apply(activation, lengths)
                    if not quiet and torch.equal(changed, activation):
                        warnings.warn(
                            f"the edit of {edit.site} ({edit.source or edit.rule}) changed nothing",
                            ProbeWarning,
                            stacklevel=2,
                        )
                    activation = changed
                return activation

            return hook

        for edit in edits:
            self.editable(edit.site)
        return [(site, hook_for(group)) for site, group in by_site(edits).items()]

    @staticmethod
    def _check_rows(edits: Sequence[Edit], start: int, size: int, total: int) -> None:
        if edits and (start or size < total):
            raise EditError(
                f"edits over {total} prompts in batches of {size}",
                expected="all prompts in one batch, since an edit's rows are the batch's",
                remedy=f"batch_size={total}",
            )

    # --- reading out -------------------------------------------------------------------------

    def unembed(self, resid: Float[Tensor, "*any d_model"]) -> Float[Tensor, "*any d_vocab"]:
        """Final norm and unembedding of a residual stream: logits."""
        if not self.reads_out:
            raise ModelError(
                f"the logits of {self.name} are not a norm and a matrix applied to its last "
                "residual stream",
                expected="a causal model that ends in norm and unembedding",
            )
        with torch.no_grad():
            return self.logits_of(resid.to(device=self.device, dtype=self.dtype))

    def logits_of(self, resid: Float[Tensor, "*any d_model"]) -> Float[Tensor, "*any d_vocab"]:
        """``unembed``, which can be differentiated and asks no questions."""
        logits = self._bridge.unembed(self._bridge.ln_final(resid))
        cap = self.dims.softcap
        return logits if cap is None else cap * torch.tanh(logits / cap)

    @torch.no_grad()
    def unembed_some(
        self, resid: Float[Tensor, "rows d_model"], ids: Int[Tensor, "rows read"]
    ) -> Float[Tensor, "rows read"]:
        """Logits of a few tokens, another few for each row."""
        read = self._bridge.ln_final(resid)
        logits = torch.einsum("rd,drn->rn", read, self.weights.W_U[:, ids])
        logits = logits + self.weights.b_U[ids]
        cap = self.dims.softcap
        return logits if cap is None else cap * torch.tanh(logits / cap)

    @property
    def reads_out(self) -> bool:
        """Whether ``unembed`` of the last residual stream is the model's logits (found at load)."""
        return bool(self.health.get("reads_out", False))

    def read_out(
        self, vectors: Float[Tensor, "*any d_model"], scale: Float[Tensor, "*#any 1"]
    ) -> Float[Tensor, "*any d_model"]:
        """The final norm as a linear map: its bias left out, its denominator given."""
        return self._ln_final.apply(vectors, scale)

    @property
    def read_out_bias(self) -> Float[Tensor, " d_model"]:
        """The final norm's bias, zeros where there is none."""
        return self._ln_final.bias

    def write_out(
        self, layer: int, kind: str, vectors: Float[Tensor, "*any d_model"], total: Tensor
    ) -> Float[Tensor, "*any d_model"]:
        """Parts of ``attn_out`` or ``mlp_out`` as the residual stream receives them."""
        norm = self._post_norms[kind][layer]
        if norm is None:
            return vectors
        module = getattr(
            self._bridge.blocks[layer], "ln1_post" if kind == "attn_out" else "ln2_post"
        )
        with torch.no_grad():
            normalised = module(total) - norm.bias
        # eps and all: the denominator is whatever makes the linear map give what the layer gives
        size = (norm.gain * norm.centre(total)).norm(dim=-1, keepdim=True)
        scale = size / normalised.norm(dim=-1, keepdim=True)
        return norm.apply(vectors, torch.where(size > 0, scale, 1.0))  # of nothing, nothing

    def normalised(self, resid: Float[Tensor, "*any d_model"]) -> Float[Tensor, "*any d_model"]:
        """The final norm of a residual stream, bias and all."""
        with torch.no_grad():
            return self._bridge.ln_final(resid)

    def head_outputs(
        self, layer: int, z: Float[Tensor, "*any head d_head"]
    ) -> Float[Tensor, "*any head d_model"]:
        """What each head adds to its layer's attention output, before any norm that follows."""
        return torch.einsum("...hd,hdm->...hm", z, self.weights.W_O(layer).to(z))

    def read_in(
        self, layer: int, kind: str, resid: Float[Tensor, "*any heads d_model"]
    ) -> Float[Tensor, "*any heads d_head"]:
        """Queries, keys or values, where each head reads a residual stream of its own."""
        attn = self._bridge.blocks[layer].attn
        weight = getattr(self.weights, f"W_{kind.upper()}")(layer)
        read = torch.einsum("...hm,hmd->...hd", self._bridge.blocks[layer].ln1(resid), weight)
        bias = getattr(attn, f"b_{kind.upper()}")
        return read if bias is None else read + bias.detach()

    def out_bias(self, layer: int, kind: str) -> Float[Tensor, " d_model"]:
        """Bias of the projection that writes ``attn_out`` or ``mlp_out``, zeros if none."""
        block = self._bridge.blocks[layer]
        none = torch.zeros_like(self.read_out_bias)
        if kind == "attn_out":
            bias = block.attn.o.bias
        else:
            bias = None if self.dims.n_experts else block.mlp.out.bias
        return none if bias is None else bias.detach()

    def write_bias(self, layer: int, kind: str) -> Float[Tensor, " d_model"]:
        """Bias of the norm a block applies to what it writes, zeros if none."""
        norm = self._post_norms[kind][layer]
        return torch.zeros_like(self.read_out_bias) if norm is None else norm.bias

    def norm(self, place: NormPlace, layer: int | None = None) -> LinearNorm | None:
        """A norm as a linear map, None where there is none; see the protocol."""
        if not self.dims.causal:
            raise ModelError(
                f"{self.name} is an encoder: its blocks normalise the residual stream itself",
                expected="a causal model",
            )
        if place == "final" or layer is None:
            return self._ln_final
        if place in self._post_norms:
            return self._post_norms[place][layer]
        block, width = self._bridge.blocks[layer], self.dims.d_model
        name, owner = {
            "attn_in": ("ln1", block), "mlp_in": ("ln2", block),
            "q": ("q_norm", block.attn), "k": ("k_norm", block.attn),
        }[place]  # fmt: skip
        if name not in owner.submodules:
            return None
        module = getattr(owner, name)
        if place in ("q", "k"):
            width = max(module.weight.shape[0], self.dims.d_head)
        return LinearNorm.measure(
            module, width, torch.zeros((), device=self.device, dtype=self.dtype)
        )

    @cached_property
    def _scorings(self) -> list[Scoring]:
        return scoring.find(self)

    def scoring(self, layer: int) -> Scoring:
        """How a layer makes attention scores of queries and keys; see the protocol."""
        return self._scorings[layer]

    # --- intervening in bulk -----------------------------------------------------------------

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
        """Activations, and the gradient of each example's metric by them.

        Args:
            encoded: The prompts.
            sites: Where.
            metric: Of what.
            corrupted: Run the corrupted prompts.
            edits: Interventions made in that run; activations and gradients are those after them.
            stop_at: Sites through which no gradient flows: what comes after them is taken as it
                is, whatever comes before. The gradient by such a site itself is zero.

        Raises:
            EditError: A site that is computed but not read back, whose gradient would be zero.

        Cost: one forward and one backward pass.
        """
        return _gradients(
            self, encoded, sites, get_metric(metric), corrupted=corrupted, stop_at=stop_at,
            edits=edits,
        )  # fmt: skip

    def sweep(
        self,
        encoded: Encoded,
        edit_sets: Sequence[Sequence[Edit]],
        metric: Metric | str = "logit_diff",
        *,
        base: str = "corrupted",
        given: Sequence[Edit] = (),
        report: Report | None = None,
        **how: Any,
    ) -> Float[Tensor, "sets batch"]:
        """The metric under each set of edits, each made to a run of its own; see ``replay``."""
        return replay.sweep(
            self, encoded, edit_sets, get_metric(metric), base=base, given=given, report=report,
            **how,
        )  # fmt: skip

    def sweep_edges(
        self,
        encoded: Encoded,
        kept: Bool[Tensor, "sets sender receiver"],
        metric: Metric | str = "logit_diff",
        *,
        base: str = "clean",
        other: Trace | None = None,
        report: Report | None = None,
        **how: Any,
    ) -> Float[Tensor, "sets batch"]:
        """The metric with only these edges left, for each set of them; see ``wiring``."""
        return wiring.sweep_edges(
            self, encoded, kept, get_metric(metric), base=base, other=other, report=report, **how
        )

    @property
    def resumes(self) -> bool:
        """Whether edited runs can be resumed where they depart (found at load)."""
        return bool(self.health.get("resumes", False))

    # --- checking ---------------------------------------------------------------------------

    def check(self, reference: doctor.Reference) -> list[doctor.Check]:
        """Compare with what the plain model gave; the verdict goes into every run's record."""
        rows = torch.tensor([reference.tokens[0]])
        last: dict[str, Tensor] = {}
        point = (Site("resid_post", self.dims.n_layers - 1), lambda x: last.__setitem__("x", x))
        logits = self.run_raw(rows, [point]).logits
        ours = torch.full_like(logits, torch.inf)
        if self.dims.causal:
            with torch.no_grad():
                ours = self.logits_of(last["x"])
        close = torch.allclose(ours.float(), logits.float(), rtol=1e-2, atol=1e-2)
        self.health["reads_out"] = close
        self.health |= replay.examine(self) if self.dims.causal else {}
        self.checks = doctor.examine(self, reference)
        self.health |= doctor.verdict(self.checks)
        self._inert = points.inert(self, self._points, rows)
        return self.checks
