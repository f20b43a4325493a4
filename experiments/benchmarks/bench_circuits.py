"""What scoring every edge costs: in forward passes, and in memory as prompts grow.

python experiments/benchmarks/bench_circuits.py
"""

from timing import PeakMemory, in_turns, machine

import probe

STEPS = 5
ROUNDS = 3
PAIRS = (8, 16, 32)


def main() -> None:
    model = probe.load_model("smollm2")
    print(f"## Circuits, {machine()}\n")
    print(f"SmolLM2-135M, {probe.Graph.of(model.dims).n_edges} edges; IOI; forward: logits of the "
          "clean prompts at their last token.\n")  # fmt: skip
    print("| pairs × tokens | forward, s | EAP / forward | EAP-IG, m=5 / forward | bound 1 + 3m |")
    print("|---|---|---|---|---|")
    for n in PAIRS[-1:]:
        task = probe.load_task("ioi", n=n).encode(model)
        rivals = {
            "forward": lambda task=task: model.forward(
                task.clean, lengths=task.lengths, last_only=True
            ),
            "eap": lambda task=task: probe.run("eap", model=model, task=task),
            "eap_ig": lambda task=task: probe.run("eap_ig", model=model, task=task, steps=STEPS),
        }
        seconds = in_turns(rivals, rounds=ROUNDS)
        unit = seconds["forward"]
        print(f"| {n} × {task.clean.shape[1]} | {unit:.2f} | **{seconds['eap'] / unit:.1f}** | "
              f"**{seconds['eap_ig'] / unit:.1f}** | {1 + 3 * STEPS} |")  # fmt: skip
    memory(model)


def memory(model: probe.Model) -> None:
    """Peak of EAP as prompts are added: it must grow with tokens, not with edges."""
    print("\n| pairs | tokens | EAP's peak memory, MiB | KiB a token |")
    print("|---|---|---|---|")
    for n in PAIRS:
        task = probe.load_task("ioi", n=n).encode(model)
        with PeakMemory() as peak:
            probe.run("eap", model=model, task=task)
        tokens = int(task.lengths.sum())
        print(f"| {n} | {tokens} | {peak.mib:.0f} | {1024 * peak.mib / tokens:.0f} |")


if __name__ == "__main__":
    main()
