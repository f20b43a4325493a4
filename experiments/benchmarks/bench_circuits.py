"""What scoring every edge costs: in forward passes, and in memory as prompts grow.

    python experiments/benchmarks/bench_circuits.py

The unit is one plain forward pass over the clean prompts, all in one batch, as
``model.forward(task.clean, lengths=..., last_only=True)`` gives it: eager attention, no gradient,
the answer's position unembedded over the whole vocabulary.
"""

from collections.abc import Callable

from timing import PeakMemory, in_turns, machine

import probe

STEPS = 5
ROUNDS = 5
PAIRS = (8, 16, 32, 64)
TIMED = (8, 32)


def main() -> None:
    model = probe.load_model("smollm2")
    print(f"## Circuits (`bench_circuits.py`), {machine()}\n")
    print(f"SmolLM2-135M, {probe.Graph.of(model.dims).n_edges} edges; IOI. Forward: the clean "
          "prompts in one batch, the last token unembedded.\n")  # fmt: skip
    memory(model)  # first, while the process holds nothing it could use again
    print(f"\n| pairs × tokens | forward, s | EAP / forward | bound | EAP-IG, m={STEPS} / forward "
          "| bound 1 + 3m |")  # fmt: skip
    print("|---|---|---|---|---|---|")
    for n in TIMED:
        task = probe.load_task("ioi", n=n).encode(model)
        calls = methods(model, task)
        calls["forward"] = lambda task=task: model.forward(
            task.clean, lengths=task.lengths, last_only=True
        )
        seconds = in_turns(calls, rounds=ROUNDS)
        unit = seconds["forward"]
        print(f"| {n} × {task.clean.shape[1]} | {unit:.2f} | **{seconds['eap'] / unit:.2f}** | 5 | "
              f"**{seconds['eap_ig'] / unit:.2f}** | {1 + 3 * STEPS} |")  # fmt: skip


def methods(model: probe.Model, task: probe.Encoded) -> dict[str, Callable[[], object]]:
    """What is measured."""
    return {
        "eap": lambda: probe.run("eap", model=model, task=task),
        "eap_ig": lambda: probe.run("eap_ig", model=model, task=task, steps=STEPS),
    }


def memory(model: probe.Model) -> None:
    """Peaks as prompts are added: they must grow with tokens, not with edges."""
    print("| pairs | tokens | EAP's peak memory, MiB | KiB a token "
          f"| EAP-IG's, m={STEPS}, MiB | KiB a token |")  # fmt: skip
    print("|---|---|---|---|---|---|")
    for n in PAIRS:
        task = probe.load_task("ioi", n=n).encode(model)
        cells = []
        for call in methods(model, task).values():
            with PeakMemory() as peak:
                call()
            tokens = task.clean.numel()
            cells += [f"{peak.mib:.0f}", f"{1024 * peak.mib / tokens:.0f}"]
        print(f"| {n} | {tokens} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
