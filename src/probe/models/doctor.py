"""Is what we record what the model does? Checks against Hugging Face's own outputs.

The reference is taken from the plain model before any adapter touches it, so that the checks run
at every load and cost a handful of forward passes on a few short prompts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor

from probe.core.edit import Edit
from probe.core.errors import ProbeError
from probe.core.site import Site
from probe.core.task import pad

if TYPE_CHECKING:
    from probe.models.bridge import BridgeModel

_LENGTHS = (12, 9, 5)
_LIMIT = {torch.float32: 1e-4, torch.float64: 1e-6}
# Not closer in float64: norms and rotations are computed in float32 whatever the weights are.
_HALF_LIMIT = 5e-2


class Check(NamedTuple):
    """One row of the doctor's table."""

    name: str
    value: float | str
    limit: float | None
    ok: bool
    about: str


@dataclass(frozen=True)
class Reference:
    """What the plain Hugging Face model gives for a few random prompts, each run by itself."""

    tokens: list[list[int]]
    logits: list[Tensor]
    hidden: list[Sequence[Tensor]]
    attentions: list[Sequence[Tensor]]
    full_precision: list[Tensor] | None = None
    """Logits of the same weights in float32, where the model is in half precision."""


@torch.no_grad()
def observe(hf: Any, n_vocab: int, n_ctx: int, full_precision: Any = None) -> Reference:
    """Run the plain model on random tokens and keep what it says of itself."""
    generator = torch.Generator().manual_seed(0)
    lengths = [min(length, n_ctx) for length in _LENGTHS]
    tokens = [torch.randint(n_vocab, (n,), generator=generator).tolist() for n in lengths]
    device = next(hf.parameters()).device
    outs = [
        hf(torch.tensor([ids], device=device), output_hidden_states=True, output_attentions=True)
        for ids in tokens
    ]
    exact = None
    if full_precision is not None:
        exact = [full_precision(torch.tensor([ids], device=device)).logits for ids in tokens]
    return Reference(
        tokens,
        [out.logits for out in outs],
        [out.hidden_states for out in outs],
        [out.attentions for out in outs],
        exact,
    )


def examine(model: "BridgeModel", reference: Reference) -> list[Check]:
    """All checks, in the order of the table. About seven forward passes of short prompts."""
    limit = _LIMIT.get(model.dtype, _HALF_LIMIT)
    rows = [
        *_parity(model, reference, limit),
        *_padding(model, reference, limit),
        *_patterns(model, reference, limit),
        *_algebra(model, reference, limit),
    ]
    kv = f"{model.dims.n_heads} query heads over {model.dims.n_kv_heads} key/value heads"
    shapes_ok = {"q", "k", "v", "z"} <= model.sites
    rows.append(Check("head shapes", kv, None, shapes_ok, "q, k, v and z have these head axes"))
    bos = "prepended" if model.tokenizer.bos else "not prepended"
    rows.append(Check("BOS policy", bos, None, True, "recorded with every run"))
    if reference.full_precision is not None:
        rows.append(_drift(reference))
    return rows


def verdict(checks: Sequence[Check]) -> dict[str, Any]:
    """The table as it goes into provenance."""
    failed = [check.name for check in checks if not check.ok]
    values = {check.name: check.value for check in checks}
    return {"ok": not failed, "failed": failed, "checks": values}


def table(checks: Sequence[Check]) -> pd.DataFrame:
    """The checks as a frame."""
    return pd.DataFrame(checks, columns=list(Check._fields))


def _within(name: str, value: float, limit: float, about: str) -> Check:
    return Check(name, value, limit, value <= limit, about)  # NaN fails


def _gap(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference, relative to the reference's own size where that is above one."""
    theirs = theirs.to(ours)
    size = max(1.0, float(theirs.abs().max()))
    return float((ours - theirs).abs().max()) / size


def _parity(model: "BridgeModel", ref: Reference, limit: float) -> list[Check]:
    n = model.dims.n_layers
    logit_gap, resid_gap, pattern_gap = 0.0, 0.0, 0.0
    for i, ids in enumerate(ref.tokens):
        tokens = torch.tensor([ids])
        trace = model.trace(tokens, sites=["resid_pre", ("resid_post", n - 1), "pattern"])
        logit_gap = max(logit_gap, _gap(model.forward(tokens), ref.logits[i]))
        for layer in range(n):
            ours = trace["resid_pre", layer]
            resid_gap = max(resid_gap, _gap(ours, ref.hidden[i][layer]))
            attention = ref.attentions[i][layer]
            pattern_gap = max(pattern_gap, _gap(trace["pattern", layer], attention))
        resid_gap = max(resid_gap, _gap(_last(model, trace["resid_post", n - 1]), ref.hidden[i][n]))
    return [
        _within("logits", logit_gap, limit, "against Hugging Face"),
        _within("residuals", resid_gap, limit, f"all {n + 1}, against Hugging Face"),
        _within("patterns", pattern_gap, limit, "every head, against Hugging Face"),
    ]


def _last(model: "BridgeModel", resid: Tensor) -> Tensor:
    """Hugging Face reports the last residual after the final norm; encoders have none."""
    return model.normalised(resid) if model.dims.causal else resid


def _padding(model: "BridgeModel", ref: Reference, limit: float) -> list[Check]:
    width = max(len(ids) for ids in ref.tokens)
    lengths = torch.tensor([len(ids) for ids in ref.tokens])
    pad_id = model.tokenizer.pad_id
    right = model.forward(pad(ref.tokens, pad_id), lengths=lengths)
    left_rows = [[pad_id] * (width - len(ids)) + ids for ids in ref.tokens]
    mask = torch.tensor([[0] * (width - n) + [1] * n for n in lengths.tolist()])
    left = model.forward(torch.tensor(left_rows), mask=mask)
    right_gap = left_gap = 0.0
    for i, ids in enumerate(ref.tokens):
        right_gap = max(right_gap, _gap(right[i : i + 1, : len(ids)], ref.logits[i]))
        left_gap = max(left_gap, _gap(left[i : i + 1, width - len(ids) :], ref.logits[i]))
    return [
        _within("batch invariance", right_gap, limit, "padded on the right, against one by one"),
        _within("left padding", left_gap, limit, "padded on the left, against one by one"),
    ]


def _patterns(model: "BridgeModel", ref: Reference, limit: float) -> list[Check]:
    tokens = torch.tensor([ref.tokens[0]])
    plain = model.forward(tokens)
    trace = model.trace(tokens, sites=["pattern"])
    off = max(
        float((trace["pattern", layer].float().sum(-1) - 1).abs().max())
        for layer in trace.layers("pattern")
    )
    hooked = model.forward(tokens, [Edit(Site("pattern", 0), "scale", 1.0)], quiet=True)
    changed = model.forward(tokens, [Edit(Site("pattern", 0), "set", 0.0)], quiet=True)
    moved = float((changed - plain).abs().max())
    return [
        _within("patterns sum to one", off, max(limit, 1e-5), "largest departure of a row"),
        _within("hooked equals unhooked", _gap(hooked, plain), 0.0, "an edit that scales by one"),
        # An encoder's patterns are read after the fact; they cannot be edited, and are not.
        Check(
            "changing a pattern changes the logits",
            moved,
            None,
            moved > 0 or not model.dims.causal,
            "zero attention in layer 0",
        ),
    ]


def _algebra(model: "BridgeModel", ref: Reference, limit: float) -> list[Check]:
    """The identities attribution rests on."""
    if not model.dims.causal:
        return []
    tokens, n = torch.tensor([ref.tokens[0]]), model.dims.n_layers
    writes = [kind for kind in ("attn_out", "mlp_out") if kind in model.sites]
    sites = [("resid_pre", 0), *writes, ("resid_post", n - 1), "z", "ln_final_scale"]
    trace = model.trace(tokens, sites=sites)
    resid = trace["resid_post", n - 1]
    gap = _gap(model.unembed(resid), model.forward(tokens)) if model.reads_out else float("nan")
    parts = trace["resid_pre", 0] + sum(trace[kind].sum(0) for kind in writes)
    read = model.read_out(resid, trace["ln_final_scale"]) + model.read_out_bias
    return [
        _within("unembedding", gap, limit, "of the last residual, against the logits"),
        _within("residual adds up", _gap(parts, resid), limit, " + ".join(["embedding", *writes])),
        _within("heads add up", _heads_gap(model, trace), limit, "head outputs, against attn_out"),
        _within("final norm", _gap(read, model.normalised(resid)), limit, "as a linear map"),
    ]


def _heads_gap(model: "BridgeModel", trace: Any) -> float:
    worst = 0.0
    for layer in range(model.dims.n_layers):
        try:
            heads = model.head_outputs(layer, trace["z", layer])
        except ProbeError:
            return float("nan")
        bias = model.out_bias(layer, "attn_out")
        total = heads.sum(-2) + bias
        ours = model.write_out(layer, "attn_out", total, total)
        ours = ours + model.write_bias(layer, "attn_out")
        worst = max(worst, _gap(ours, trace["attn_out", layer]))
    return worst


def _drift(ref: Reference) -> Check:
    exact = [x.float().log_softmax(-1) for x in ref.full_precision or []]
    half = [x.float().log_softmax(-1) for x in ref.logits]
    pairs = list(zip(exact, half, strict=True))
    kl = max(float((e.exp() * (e - h)).sum(-1).max()) for e, h in pairs)
    same = [(e.argmax(-1) == h.argmax(-1)).float().mean() for e, h in pairs]
    text = f"KL {kl:.2g} nats, same top token {float(torch.stack(same).mean()):.0%}"
    return Check("dtype drift", text, None, kl < 1.0, "half precision against float32")
