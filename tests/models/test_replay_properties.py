"""What holds of edits to any model: identities over random sizes, prompts and edits."""

from collections.abc import Sequence
from functools import cache, partial
from typing import Any

import families
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from replay_cases import editable_sites, one_by_one
from torch import Tensor

from probe.core.edit import Edit, ablate, patch
from probe.core.site import Site
from probe.core.task import Encoded, Task
from probe.core.trace import Trace
from probe.models import plan, recorded
from probe.models.bridge import BridgeModel
from probe.models.load import load_model

pytestmark = [
    pytest.mark.slow,  # every family, kind and base
    pytest.mark.filterwarnings("ignore:A forward hook edited hook_scale"),
]

CLOSE = {"rtol": 2e-5, "atol": 2e-5}
OUTSIDE = {"embed", "ln_final_scale"}
RULES = ("set", "add", "scale", "project_out")
few = settings(
    max_examples=12,
    database=None,
    phases=[Phase.explicit, Phase.generate],  # a smaller example would cost minutes
)


@cache
def random_model(family: str, n_layers: int, n_heads: int) -> BridgeModel:
    """A model of a shape and weights of its own."""
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(n_layers)
    width, shared = 8 * n_heads, {"vocab_size": 61, "initializer_range": 0.2}
    hf: Any
    if family == "gpt2":
        hf = GPT2LMHeadModel(
            GPT2Config(
                n_embd=width,
                n_layer=n_layers,
                n_head=n_heads,
                n_positions=32,
                bos_token_id=0,
                eos_token_id=1,
                **shared,
            )
        )
    else:
        hf = LlamaForCausalLM(
            LlamaConfig(
                hidden_size=width, intermediate_size=20, num_hidden_layers=n_layers,
                num_attention_heads=n_heads, num_key_value_heads=1 + n_heads % 2 * (n_heads - 1),
                max_position_embeddings=32, **shared,
            )
        )  # fmt: skip
    return load_model(hf, tokenizer=families.tokenizer())


shapes = st.tuples(
    st.sampled_from(["gpt2", "llama"]), st.sampled_from([1, 3]), st.sampled_from([2, 3, 4])
)


@st.composite
def pairs(draw: Any) -> list[dict[str, str]]:
    """A few ragged pairs that differ in one token."""
    made = []
    for _ in range(draw(st.integers(1, 3))):
        clean = draw(st.lists(st.integers(3, 60), min_size=2, max_size=9))
        at = draw(st.integers(0, len(clean) - 1))
        corrupted = [*clean[:at], 3 + (clean[at] - 2) % 58, *clean[at + 1 :]]
        words = [" ".join(f"t{token}" for token in ids) for ids in (clean, corrupted)]
        made.append(
            {"clean": words[0], "corrupted": words[1], "answer": "t5", "wrong_answer": "t9"}
        )
    return made


def situation(data: Any) -> tuple[BridgeModel, Encoded, Trace, Trace]:
    """A model, ragged pairs, and everything both of their runs computed."""
    model = random_model(*data.draw(shapes))
    encoded = Task.from_pairs(data.draw(pairs())).encode(model)
    sites = editable_sites(model)
    return model, encoded, model.trace(encoded, sites), model.trace(encoded, sites, corrupted=True)


def any_edit(
    data: Any, model: BridgeModel, encoded: Encoded, source: Trace, rules: Sequence[str] = RULES
) -> Edit:
    """One edit anywhere in the blocks: any rule, any part, any value."""
    site = data.draw(st.sampled_from([s for s in editable_sites(model) if s.kind not in OUTSIDE]))
    shortest = int(encoded.lengths.min())
    one = st.integers(-shortest, shortest - 1)
    ends = torch.tensor([pos % n for pos, n in enumerate(encoded.lengths.tolist())])
    where: dict[str, Any] = {}
    if data.draw(st.booleans()):
        positions = one | st.lists(one, min_size=1, max_size=3) | st.just(ends)
        where[_axis(site)] = data.draw(positions)
    if site.head_axis and data.draw(st.booleans()):
        n_heads = source[site].shape[site.axes.index(site.head_axis)]
        where[site.head_axis] = data.draw(st.integers(0, n_heads - 1))
    rule = data.draw(st.sampled_from(rules))
    if site.kind.endswith(("scale", "scores")):
        rule = rules[0]  # so that denominators stay positive and nobody attends to the future
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    last = torch.randn(source[site].shape[-1], generator=generator)
    value = {"set": source[site], "add": last, "scale": 0.5, "project_out": last}[rule]
    return Edit(site, rule, value, where)


def run_of(model: BridgeModel, encoded: Encoded, base: str) -> Tensor:
    return one_by_one(model, encoded, [[]], base=base)[0]


@few
@given(data=st.data(), base=st.sampled_from(["clean", "corrupted"]))
def test_a_batch_of_edits_is_the_edits_one_by_one(data: Any, base: str) -> None:
    model, encoded, clean, corrupted = situation(data)
    source = corrupted if base == "clean" else clean
    sizes = data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=5))
    sets = [[any_edit(data, model, encoded, source) for _ in range(size)] for size in sizes]
    shared = [edit for edits in sets for edit in edits]
    sets.append(shared[::-1])  # the same edits again, in another order
    want = one_by_one(model, encoded, sets, base=base)
    chunk = data.draw(st.sampled_from([1, 30, None]))
    for resume in (True, False):
        ours = model.sweep(encoded, sets, base=base, resume=resume, chunk_tokens=chunk)
        torch.testing.assert_close(ours, want, **CLOSE)


@few
@given(data=st.data())
def test_patching_nothing_is_the_unedited_run(data: Any) -> None:
    model, encoded, clean, corrupted = situation(data)
    for base, own in (("clean", clean), ("corrupted", corrupted)):
        same = [[patch(site, own[site])] for site in editable_sites(model)]
        ours = model.sweep(encoded, [[], *same], base=base)
        want = run_of(model, encoded, base)
        torch.testing.assert_close(ours, want.expand_as(ours), **CLOSE)
        tokens = encoded.clean if base == "clean" else encoded.corrupted
        run = recorded.record(model, tokens, encoded.lengths)
        inside = [edits for edits in same if edits[0].site.kind not in OUTSIDE]
        states = partial(model.trace, encoded, corrupted=base == "corrupted")
        assert plan.plan(run, states, inside, model.dims.n_layers) == []


@few
@given(data=st.data())
def test_patching_all_of_a_layers_residual_is_the_other_run(data: Any) -> None:
    model, encoded, clean, corrupted = situation(data)
    for base, other, source in (("clean", "corrupted", corrupted), ("corrupted", "clean", clean)):
        kinds = ("resid_pre", "resid_post")
        sets = [[patch(s, source[s])] for s in editable_sites(model) if s.kind in kinds]
        ours = model.sweep(encoded, sets, base=base)
        torch.testing.assert_close(ours, run_of(model, encoded, other).expand_as(ours), **CLOSE)


@few
@given(data=st.data())
def test_patching_before_the_first_difference_changes_nothing(data: Any) -> None:
    model, encoded, clean, _ = situation(data)
    before = (encoded.first_difference - 1).clamp(min=0)
    sets = []
    for site in editable_sites(model):
        if site.kind not in OUTSIDE and (encoded.first_difference > 0).all():
            sets.append([patch(site, clean[site], **{_axis(site): before})])
    ours = model.sweep(encoded, sets)
    torch.testing.assert_close(ours, run_of(model, encoded, "corrupted").expand_as(ours), **CLOSE)
    run = recorded.record(model, encoded.corrupted, encoded.lengths)
    states = partial(model.trace, encoded, corrupted=True)
    assert plan.plan(run, states, sets, model.dims.n_layers) == []


@few
@given(data=st.data())
def test_to_ablate_and_then_restore_is_the_identity(data: Any) -> None:
    model, encoded, _, corrupted = situation(data)
    harm = any_edit(data, model, encoded, corrupted, rules=("scale", "add", "project_out"))
    at_once = [harm, patch(harm.site, corrupted[harm.site])]
    after = Site("resid_post", harm.site.layer)
    sets = [at_once, [harm, patch(after, corrupted[after])]]
    sets += [[ablate(after), *edits[1:]] for edits in sets if edits[1].site == after]
    ours = model.sweep(encoded, sets)
    torch.testing.assert_close(ours, run_of(model, encoded, "corrupted").expand_as(ours), **CLOSE)
    # ... and the other way about it is no restoring
    gone = [patch(after, corrupted[after]), ablate(after)]
    torch.testing.assert_close(
        model.sweep(encoded, [gone]), one_by_one(model, encoded, [[ablate(after)]]), **CLOSE
    )


def _axis(site: Site) -> str:
    return "query" if "query" in site.axes else "pos"
