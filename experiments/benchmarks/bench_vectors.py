"""Indirect effects of all heads of SmolLM2 on one task, against one forward pass a head.

    OMP_NUM_THREADS=1 python experiments/benchmarks/bench_vectors.py [prompts] [heads measured]

Ten-shot prompts with shuffled demonstrations; every head's last token set to its mean over true
ones. The slow side makes a batched forward pass a head, for a few heads spread over the layers,
and is scaled to all of them: a forward pass costs the same whichever head is edited.
"""

import sys
import time

import timing
import torch

import probe


def main() -> None:
    n, few = (int(word) for word in (sys.argv[1:] + ["25", "3"][len(sys.argv) - 1 :])[:2])
    model = probe.load_model("smollm2")
    dims = model.dims
    task = probe.icl_task("past_tense").prompts("train", shots=10, n=n, labels="both")
    encoded = task.encode(model)
    fast, result = timing.once(lambda: probe.run("head_effects", model=model, task=encoded))
    table = result.frame.pivot(index="batch", columns=["layer", "head"], values="value")
    answers, tokens = encoded.need_answers(), encoded.need_corrupted()
    means = model.trace(encoded, ["z"], positions=[-1])["z"][:, :, 0].mean(1)

    def prob(edits: list[probe.Edit]) -> torch.Tensor:
        logits = model.forward(tokens, edits, lengths=encoded.lengths, last_only=True)
        return logits.softmax(-1).gather(1, answers[:, None])[:, 0]

    before, worst, seconds = prob([]), 0.0, 0.0
    for i in range(few):
        layer, head = (2 * i + 1) * dims.n_layers // (2 * few), i % dims.n_heads
        edit = probe.patch(probe.Site("z", layer, head), means[layer], pos=-1)
        start = time.perf_counter()
        after = prob([edit])
        seconds += time.perf_counter() - start
        expected = torch.tensor(table[(layer, head)].to_numpy())
        worst = max(worst, float((after - before - expected).abs().max()))
    slow = seconds / few * dims.n_layers * dims.n_heads
    print(f"{n} prompts of {encoded.clean.shape[1]} tokens, {dims.n_layers * dims.n_heads} heads")
    print(f"all at once {fast:.1f} s; a forward a head {slow:.0f} s, scaled from {few} heads")
    print(f"ratio {slow / fast:.1f}; largest difference {worst:.1e}")


if __name__ == "__main__":
    main()
