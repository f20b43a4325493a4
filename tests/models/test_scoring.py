"""How layers score, where layers differ and where no form is known."""

from typing import Any

import numpy as np
import pytest
import torch
from families import _COMMON, tokenizer

from probe.core.errors import ModelError
from probe.core.task import Task
from probe.methods.weights.qk_at_distance import qk_at_distance
from probe.models import scoring
from probe.models.bridge import BridgeModel
from probe.models.load import load_model
from probe.models.tiny.recipes import recipe
from probe.models.tiny.train import untrained


def two_speeds() -> Any:
    """Gemma 3 with a global layer between local ones: each kind turns at its own speed."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    config = Gemma3TextConfig(
        **_COMMON, head_dim=8, sliding_window=6, query_pre_attn_scalar=16,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    )  # fmt: skip
    torch.manual_seed(0)
    hf = Gemma3ForCausalLM(config).eval()
    hf.set_attn_implementation("eager")
    return hf


def test_each_layer_has_its_own_speeds_and_the_scale_is_the_models() -> None:
    model = load_model(two_speeds(), tokenizer=tokenizer())
    speeds = [model.scoring(layer).rotary.frequency for layer in range(3)]  # type: ignore[union-attr]
    np.testing.assert_allclose(speeds[0], speeds[2])
    assert not torch.allclose(speeds[0], speeds[1])
    assert model.scoring(1).scale == pytest.approx(0.25, rel=1e-4)  # 16 to the power -1/2
    one = Task.from_prompts("t5 t9 t30 t31 t12").encode(model)
    frame = qk_at_distance(model, one, query=-1, key=1, distances=[3])
    np.testing.assert_allclose(frame["value"], frame["recorded"], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_pairs_that_do_not_turn_are_no_part_of_a_rotation() -> None:
    found = {}
    for share in (1.0, 0.5, 0.0):
        small = recipe("gelu-2l", rotary_share=share, d_model=16, d_head=16, n_heads=2, d_mlp=16)
        model = load_model(untrained(small, len(tokenizer()), seed=0), tokenizer=tokenizer())
        found[share] = model.scoring(1)
        assert found[share].scale == pytest.approx(16**-0.5, rel=1e-4)
    whole, half = found[1.0].rotary, found[0.5].rotary
    assert found[0.0].rotary is None
    assert whole is not None and half is not None
    assert (len(whole.pairs), len(half.pairs)) == (8, 4)
    assert torch.equal(half.pairs, whole.pairs[:4])
    assert torch.equal(half.frequency, whole.frequency[:4])
    x = torch.randn(16, generator=torch.Generator().manual_seed(0))
    still = [4, 5, 6, 7, 12, 13, 14, 15]
    assert torch.equal(half.turn(x, 9)[still], x[still])


def test_scores_of_no_known_form_are_refused(
    toy: BridgeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "_candidates", lambda table: iter(()))
    with pytest.raises(
        ModelError, match="layer 0 of toy makes attention scores that are no scaled"
    ):
        scoring.find(toy)


def test_every_layout_of_a_rotation_is_among_the_candidates() -> None:
    """Halves doubled, neighbours doubled, halves for neighbours, and a table of half the width."""
    angle = torch.arange(3.0)[:, None] * torch.tensor([1.0, 0.1])
    halves = torch.cat([angle, angle], dim=-1)
    near = angle.repeat_interleave(2, dim=-1)
    found = {
        name: [
            (rotary.pairs.tolist(), rotary.frequency.tolist())
            for rotary in scoring._candidates((table.cos(), table.sin()))
        ]
        for name, table in (("halves", halves), ("near", near), ("short", angle))
    }
    speeds = pytest.approx([1.0, 0.1], rel=1e-6)
    assert found["halves"][0] == ([[0, 2], [1, 3]], speeds)
    assert found["halves"][1] == ([[0, 1], [2, 3]], speeds)
    assert found["near"][2] == ([[0, 1], [2, 3]], speeds)
    assert found["short"][3] == ([[0, 2], [1, 3]], speeds)
