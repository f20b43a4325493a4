"""The real language model that is always there."""

import pytest
import torch

from probe.core.site import Site
from probe.models.bridge import BridgeModel
from probe.models.doctor import table

pytestmark = pytest.mark.slow

TEXTS = [
    "When Mary and John went to the store, John gave a drink to",
    "The capital of France is",
    "Naïve 東京 \x00 <b>$x$</b>",
]


def test_the_doctor_finds_it_well(smollm2: BridgeModel) -> None:
    rows = table(smollm2.checks)
    assert rows.ok.all(), rows[~rows.ok]
    found = dict(zip(rows.name, rows.value, strict=True))
    for row in ("logits", "residuals", "patterns", "left padding", "batch invariance"):
        assert found[row] <= 1e-4, row
    assert found["head shapes"] == "9 query heads over 3 key/value heads"


def test_it_equals_its_own_hugging_face_model_run_by_itself(smollm2: BridgeModel) -> None:
    """The bridge's wrapped layers against the library's: the folder loaded once more, plain."""
    from transformers import AutoModelForCausalLM

    folder = smollm2._hf.config._name_or_path
    plain = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", local_files_only=True
    )
    for text in TEXTS:
        trace = smollm2.trace(text, ["resid_pre", "pattern"])
        theirs = plain(trace.tokens, output_hidden_states=True, output_attentions=True)
        for layer in range(30):
            resid = theirs.hidden_states[layer]
            gap = (trace["resid_pre", layer] - resid).abs().max() / resid.abs().max().clamp(min=1)
            assert gap <= 1e-4
            pattern_gap = (trace["pattern", layer] - theirs.attentions[layer]).abs().max()
            assert pattern_gap <= 1e-4
        logits = smollm2.forward(trace.tokens)
        torch.testing.assert_close(logits, theirs.logits, rtol=1e-4, atol=1e-3)


def test_a_ragged_batch_equals_its_prompts_one_by_one(smollm2: BridgeModel) -> None:
    site = Site("resid_post", 29)
    together = smollm2.trace(TEXTS, site)
    for row, text in enumerate(TEXTS):
        alone = smollm2.trace(text, site)[site]
        gap = (together.example(row)[site] - alone).abs().max() / alone.abs().max()
        assert gap <= 1e-4


def test_it_is_a_language_model(smollm2: BridgeModel) -> None:
    tokens = smollm2.trace(TEXTS[:2], "embed").tokens
    lengths = torch.tensor([len(s) for s in smollm2.trace(TEXTS[:2], "embed").str_tokens])
    best = smollm2.forward(tokens, lengths=lengths, last_only=True).argmax(-1).tolist()
    assert smollm2.tokenizer.strings(best) == [" Mary", " Paris"]
