"""Task and function vectors against brute force, and what they refuse."""

import pytest
import torch

import probe

TASK = probe.icl_task("plural")


def zs(model: probe.Model, encoded: probe.Encoded) -> list[torch.Tensor]:
    """Mean head outputs at the last token, prompt by prompt and without padding."""
    layers = range(model.dims.n_layers)
    rows = [encoded.clean[i : i + 1, : int(n)] for i, n in enumerate(encoded.lengths)]
    traces = [model.trace(row, ["z"]) for row in rows]
    return [torch.stack([t["z", n][0, -1] for t in traces]).mean(0) for n in layers]


@pytest.mark.parametrize("name", ["toy", "toy-mha"])
def test_head_effects_are_one_forward_pass_a_head(name: str) -> None:
    model = probe.load_model(name)
    encoded = TASK.prompts("train", shots=3, n=3, labels="both").encode(model)
    frame = probe.run("head_effects", model=model, task=encoded).frame
    means = zs(model, encoded)
    for row, answer in enumerate(encoded.need_answers().tolist()):
        tokens = encoded.need_corrupted()[row : row + 1, : int(encoded.lengths[row])]
        before = model.forward(tokens)[0, -1].softmax(-1)[answer]
        for layer, head in ((0, 1), (0, 3), (1, 0), (1, 2)):
            edit = probe.patch(probe.Site("z", layer, head), means[layer][None, None], pos=-1)
            after = model.forward(tokens, [edit])[0, -1].softmax(-1)[answer]
            cell = frame[(frame.batch == row) & (frame.layer == layer) & (frame["head"] == head)]
            assert cell.value.item() == pytest.approx(float(after - before), abs=1e-6)


def test_the_function_vector_is_what_heads_write_with_shared_values(toy: probe.Model) -> None:
    heads = [(0, 1), (1, 3), (1, 2)]
    made = probe.function_vector(toy, TASK, shots=3, n=4, heads=heads, layer=1, least=0.0)
    means = zs(toy, TASK.prompts("train", shots=3, n=4).encode(toy))
    blocks = toy.bridge.original_model.model.layers  # type: ignore[attr-defined]
    by_hand = torch.zeros(32)
    for layer, head in heads:
        columns = blocks[layer].self_attn.o_proj.weight.detach()[:, head * 8 : head * 8 + 8]
        by_hand += columns @ means[layer][head]
    torch.testing.assert_close(made.vector, by_hand, rtol=1e-4, atol=1e-6)


def test_the_strongest_heads_are_those_of_head_effects(toy: probe.Model) -> None:
    made = probe.function_vector(toy, TASK, shots=3, n=4, n_heads=3, layer=0, least=0.0)
    shown = TASK.prompts("train", shots=3, n=4, labels="both")
    effects = probe.run("head_effects", model=toy, task=shown).summary(["layer", "head"])
    best = effects.sort_values("value", ascending=False).head(3)
    assert made.provenance.passed["heads"] == best[["layer", "head"]].to_numpy().tolist()


def test_the_task_vector_is_a_mean_of_last_states(toy: probe.Model) -> None:
    made = probe.task_vector(toy, TASK, shots=3, n=4, layer=1, least=0.0)
    encoded = TASK.prompts("train", shots=3, n=4).encode(toy)
    states = [
        toy.trace(encoded.clean[i : i + 1, : int(n)], ["resid_post.1"])["resid_post.1"][0, -1]
        for i, n in enumerate(encoded.lengths)
    ]
    torch.testing.assert_close(made.vector, torch.stack(states).mean(0))


def test_the_layer_is_the_best_on_dev_pairs(toy: probe.Model) -> None:
    made = probe.task_vector(toy, TASK, shots=2, least=0.0)
    dev = TASK.prompts("dev").encode(toy)
    for layer, accuracy, prob in made.curve.itertuples(index=False):
        vector = probe.task_vector(toy, TASK, shots=2, layer=layer, least=0.0)
        logits = toy.forward(dev.clean, vector.edits(), lengths=dev.lengths, last_only=True)
        answers = dev.need_answers()
        assert accuracy == pytest.approx(float((logits.argmax(-1) == answers).float().mean()))
        there = logits.softmax(-1).gather(1, answers[:, None]).mean()
        assert prob == pytest.approx(float(there), rel=1e-3)
    best = made.curve.sort_values(["accuracy", "prob"], ascending=False).iloc[0]
    assert made.layer == best.layer


def test_a_task_the_model_cannot_do(toy: probe.Model) -> None:
    with pytest.raises(probe.TaskError, match="toy gets 0% of 4 prompts of plural right"):
        probe.task_vector(toy, TASK, shots=2, n=4)
    with pytest.raises(probe.TaskError, match="what a model cannot do has no vector in it"):
        probe.function_vector(toy, TASK, shots=2, n=4, n_heads=3)


def test_places_and_heads_that_are_not_there(toy: probe.Model) -> None:
    for find in (probe.task_vector, probe.function_vector):
        with pytest.raises(probe.SiteError, match="resid_post.2 asks for layer 2"):
            find(toy, TASK, layer=2)
    with pytest.raises(probe.OptionError, match=r"head 0\.4 is out of range"):
        probe.function_vector(toy, TASK, heads=[(0, 4)])
    with pytest.raises(probe.OptionError, match="n_heads=9"):
        probe.function_vector(toy, TASK, n_heads=9)
    with pytest.raises(probe.OptionError, match="without heads"):
        probe.function_vector(toy, TASK, labels="shuffled")
