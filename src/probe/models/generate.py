"""Continuing a prompt token by token, with edits at the prompt, at what is new, or at both."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from probe.core.edit import Edit, by_site
from probe.core.errors import EditError, ModelError, OptionError, ProbeWarning, nearest
from probe.core.model import Generation
from probe.core.site import Site
from probe.models.plan import check_edit
from probe.models.recorded import plain_cache

if TYPE_CHECKING:
    from probe.models.bridge import BridgeModel

_PLACES = ("prompt", "new", "both")


def generate(
    model: "BridgeModel",
    prompt: str,
    edits: Sequence[Edit],
    *,
    max_new_tokens: int,
    at: str,
    temperature: float,
    top_k: int | None,
    seed: int,
) -> Generation:
    """Continue a prompt; the options are those of ``Model.generate``."""
    _check_options(model, at, max_new_tokens, temperature, top_k)
    ids = model.tokenizer.prompt(prompt, model.dims.n_ctx)
    if len(ids) + max_new_tokens > model.dims.n_ctx:
        raise OptionError(
            f"{max_new_tokens} new tokens after a prompt of {len(ids)}",
            expected=f"at most {model.dims.n_ctx} together, the model's context length",
        )
    tokens, lengths = torch.tensor([ids]), torch.tensor([len(ids)])
    for edit in edits:
        check_edit(model, edit, tokens, lengths)
    changed: set[int] = set()
    on_prompt = _hooks(edits if at != "new" else [], lengths, changed)
    new = [_at_new(edit, at) for edit in edits] if at != "prompt" else []
    on_new = _hooks(new, torch.ones(1, dtype=torch.long), changed)
    choose = _chooser(temperature, top_k, seed)
    cache, made, log_probs, hooks = plain_cache(), [], [], on_prompt
    while len(made) < max_new_tokens:
        logits = model.run_raw(tokens, hooks, cache=cache).logits[0, -1]
        token = choose(logits)
        made.append(token)
        log_probs.append(float(logits.float().log_softmax(-1)[token]))
        if token == model.tokenizer.eos_id:
            break
        tokens, hooks = torch.tensor([[token]]), on_new
    _report(edits, changed)
    text = model.tokenizer.decode(made)
    return Generation(prompt, text, tuple(made), tuple(log_probs))


def _check_options(
    model: "BridgeModel", at: str, max_new_tokens: int, temperature: float, top_k: int | None
) -> None:
    if not model.dims.causal:
        raise ModelError(f"{model.name} is an encoder and continues no text")
    if at not in _PLACES:
        raise OptionError(f"at={at!r}", remedy=nearest(at, _PLACES))
    if max_new_tokens < 1:
        raise OptionError(f"max_new_tokens={max_new_tokens}", expected="at least 1")
    if not 0 <= temperature < float("inf"):
        raise OptionError(f"temperature={temperature}", expected="0 for the likeliest token, or up")
    if top_k is not None and top_k < 1:
        raise OptionError(f"top_k={top_k}", expected="at least 1 token, or None for all")
    if top_k is not None and temperature == 0:
        raise OptionError(
            f"top_k={top_k} at temperature 0, which takes the likeliest token",
            remedy="temperature=1.0",
        )


def _chooser(
    temperature: float, top_k: int | None, seed: int
) -> Callable[[Float[Tensor, " d_vocab"]], int]:
    generator = torch.Generator().manual_seed(seed)

    def choose(logits: Float[Tensor, " d_vocab"]) -> int:
        if temperature == 0:
            return int(logits.argmax())
        logits = logits.float().cpu() / temperature
        if top_k is not None and top_k < len(logits):
            least = logits.topk(top_k).values[-1]
            logits = logits.masked_fill(logits < least, -torch.inf)
        return int(torch.multinomial(logits.softmax(-1), 1, generator=generator))

    return choose


def _at_new(edit: Edit, at: str) -> Edit:
    """The edit as it is made at one new position after another."""
    axis = next((axis for axis in ("query", "pos") if axis in edit.site.axes), None)
    if axis is not None and axis in edit.where and at == "new":
        raise EditError(
            f"the edit of {edit.site} names {axis}={edit.where[axis]} and is to be made at every "
            "new position",
            expected="no position",
            remedy='at="prompt", or at="both" for these positions of the prompt and all new ones',
        )
    if isinstance(edit.value, Tensor) and edit.rule != "project_out":
        axes = edit.site.axes[-edit.value.ndim :] if edit.value.ndim else ()
        sizes = dict(zip(axes, edit.value.shape, strict=True))
        if any(sizes.get(axis, 1) > 1 for axis in ("pos", "query", "key")):
            raise EditError(
                f"the value for {edit.site} has shape {tuple(edit.value.shape)}: another for each "
                "position of the prompt, and none for new ones",
                expected="one value for all positions",
                remedy='at="prompt"',
            )
    return replace(edit, where={name: i for name, i in edit.where.items() if name != axis})


def _hooks(
    edits: Sequence[Edit], lengths: Int[Tensor, " batch"], changed: set[int]
) -> list[tuple[Site, Any]]:
    """Hooks that make the edits, and note which of them changed anything."""
    number = {id(edit): i for i, edit in enumerate(edits)}

    def hook_for(group: list[Edit]) -> Callable[[Tensor], Tensor]:
        def hook(activation: Tensor) -> Tensor:
            for edit in group:
                edited = edit.apply(activation, lengths)
                if not torch.equal(edited, activation):
                    changed.add(number[id(edit)])
                activation = edited
            return activation

        return hook

    return [(site, hook_for(group)) for site, group in by_site(edits).items()]


def _report(edits: Sequence[Edit], changed: set[int]) -> None:
    for i, edit in enumerate(edits):
        if i not in changed:
            warnings.warn(
                f"the edit of {edit.site} ({edit.source or edit.rule}) changed nothing",
                ProbeWarning,
                stacklevel=4,
            )
