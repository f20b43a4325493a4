"""A model is never left changed: not by a call, and not by a call that raises half-way."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from loaded import PROMPTS, Family

from probe.core.edit import ablate, patch
from probe.core.errors import EditError
from probe.core.metric import Metric
from probe.core.task import Encoded, Task
from probe.models.bridge import BridgeModel

pytestmark = pytest.mark.slow  # left to make test

PAIRS = [
    {"clean": "t3 t4 t5", "corrupted": "t3 t6 t5", "answer": "t7", "wrong_answer": "t8"},
    {"clean": "t9 t4 t5 t6", "corrupted": "t9 t6 t5 t6", "answer": "t8", "wrong_answer": "t7"},
]
TOKENS = torch.tensor([[3, 4, 5, 6, 7]])


def modules(model: BridgeModel) -> list[Any]:
    """Every module, the bridge's and Hugging Face's, once."""
    return list({id(m): m for m in (*model._bridge.modules(), *model._hf.modules())}.values())


def count_hooks(model: BridgeModel) -> int:
    names = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(module, name)) for module in modules(model) for name in names)


def state(model: BridgeModel) -> dict[str, Any]:
    """All that a call could leave behind."""
    return {
        "weights": {name: tensor.clone() for name, tensor in model._hf.state_dict().items()},
        "hooks": count_hooks(model),
        "training": [module.training for module in modules(model)],
        "gradients": [(p.requires_grad, p.grad is None) for p in model._hf.parameters()],
        "logits": model.forward(TOKENS).clone(),
        "grad_enabled": torch.is_grad_enabled(),
    }


def assert_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    weights = before.pop("weights"), after.pop("weights")
    logits = before.pop("logits"), after.pop("logits")
    assert before == after
    assert torch.equal(*logits)
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def encoded(model: BridgeModel) -> Encoded:
    return Task.from_pairs(PAIRS).encode(model)


CALLS: dict[str, Callable[[BridgeModel], object]] = {
    "trace": lambda m: m.trace(PROMPTS, ["resid_post", "pattern"]),
    "trace a part": lambda m: m.trace(PROMPTS, "resid_pre.1", positions=[-1]),
    "forward": lambda m: m.forward(TOKENS),
    "forward, last": lambda m: m.forward(TOKENS, last_only=True),
    "forward, edited": lambda m: m.forward(TOKENS, [ablate("z.1"), ablate("resid_post.0", pos=0)]),
    "sweep": lambda m: m.sweep(encoded(m), [[ablate("z.0")], [ablate("mlp_out.2", pos=-1)]]),
    "gradients": lambda m: m.gradients(encoded(m), ["resid_post", "z"]),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_call_leaves_nothing_behind(causal: Family, call: str) -> None:
    before = state(causal.model)
    CALLS[call](causal.model)
    assert_same(before, state(causal.model))


def test_the_check_can_fail(causal: Family) -> None:
    before = state(causal.model)
    handle = causal.model.block(0).register_forward_hook(lambda *_: None)
    try:
        with pytest.raises(AssertionError):
            assert_same(dict(before), state(causal.model))
    finally:
        handle.remove()
    weight = next(causal.model._hf.parameters())
    kept = weight.detach().clone()
    weight.data[3] += 1
    try:
        with pytest.raises(AssertionError):
            assert_same(dict(before), state(causal.model))
    finally:
        weight.data.copy_(kept)
    assert_same(dict(before), state(causal.model))


def broken_metric(*_: object) -> torch.Tensor:
    raise ZeroDivisionError("the metric broke")


BROKEN = Metric("broken", "raises", "nats", "broken", "answers", broken_metric, needs_wrong=True)
BAD_EDIT = patch("resid_mid.1", torch.ones(3, 3))
RAISING: dict[str, Callable[[BridgeModel], object]] = {
    "trace": lambda m: m.trace(PROMPTS, ["resid_post"], edits=[BAD_EDIT]),
    "trace, position": lambda m: m.trace(PROMPTS, "resid_pre", positions=[5]),
    "forward": lambda m: m.forward(TOKENS, [ablate("z.0"), BAD_EDIT]),
    "forward, last": lambda m: m.forward(TOKENS, [BAD_EDIT], last_only=True),
    "sweep": lambda m: m.sweep(encoded(m), [[ablate("z.0")], [BAD_EDIT]]),
    "sweep, metric": lambda m: m.sweep(encoded(m), [[ablate("z.0")]], BROKEN),
    "gradients": lambda m: m.gradients(encoded(m), ["resid_post", "z"], BROKEN),
}


@pytest.mark.parametrize("causal", ["llama", "gpt2", "gemma2", "mixtral"], indirect=True)
@pytest.mark.parametrize("call", RAISING)
def test_a_call_that_raises_leaves_nothing_behind(causal: Family, call: str) -> None:
    before = state(causal.model)
    with pytest.raises(Exception, match=r"broke|shape|outside"):
        RAISING[call](causal.model)
    assert_same(before, state(causal.model))


@pytest.mark.parametrize("site", ["embed", "q.0", "pattern.1", "mlp_post.1", "resid_post.2"])
def test_a_hook_that_raises_anywhere_is_removed(site: str) -> None:
    from loaded import load_family

    model = load_family("llama").model
    before = state(model)
    with pytest.raises(EditError, match=site):
        model.forward(TOKENS, [patch(site, torch.ones(7, 7, 7))])
    assert_same(before, state(model))


def test_an_interrupted_call_leaves_nothing_behind(
    gemma2: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = state(gemma2.model)
    edit = ablate("mlp_post.1")
    monkeypatch.setattr(type(edit), "apply", interrupt)
    with pytest.raises(KeyboardInterrupt):
        gemma2.model.forward(TOKENS, [edit])
    monkeypatch.undo()
    assert_same(before, state(gemma2.model))
