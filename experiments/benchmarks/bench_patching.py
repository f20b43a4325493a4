"""Exact activation-patching sweeps, beside one forward pass a cell (transformer_lens.patching).

Aims on four IOI pairs: 12 times for heads, 30 for the residual, 2.5 where the prompts share no
prefix, within 1.5 of the FLOP floor for heads, equal to 1e-4.
"""

import sys

import pandas as pd
import torch
from timing import PeakMemory, flops_per_token, in_turns, machine, once
from transformer_lens import patching

import probe

PREFIX = "The letter arrived on a rainy morning and nobody in the village knew what to make of it. "


def ioi(n: int, prefix: str = "", shared: bool = True) -> probe.Task:
    """Hand-made pairs: the second subject differs (or, not shared, the first word too)."""
    names = ["Mary", "John", "Tom", "Bill", "Anna", "Paul", "Kate", "Mark"]
    pairs = []
    for i in range(n):
        a, b = names[i % 8], names[(i + 1 + i // 8) % 8]
        clean = f"{prefix}When {a} and {b} went to the store, {b} gave a drink to"
        first = "When" if shared else "While"
        corrupted = f"{prefix}{first} {a} and {b} went to the store, {a} gave a drink to"
        pairs.append(
            {"clean": clean, "corrupted": corrupted, "answer": f" {a}", "wrong_answer": f" {b}"}
        )
    return probe.Task.from_pairs(pairs)


def sweeps(model: probe.Model, encoded: probe.Encoded) -> dict[str, list[list[probe.Edit]]]:
    """The two sweeps everybody runs: every head, and the residual at every layer and position."""
    trace = model.trace(encoded, ["z", "resid_pre"])
    d, width = model.dims, encoded.clean.shape[1]
    return {
        "heads": [
            [probe.patch(probe.Site("z", layer, head), trace["z", layer])]
            for layer in range(d.n_layers)
            for head in range(d.n_heads)
        ],
        "residual": [
            [probe.patch(probe.Site("resid_pre", layer), trace["resid_pre", layer], pos=pos)]
            for layer in range(d.n_layers)
            for pos in range(width)
        ],
    }


def floor_seconds(model: probe.Model, encoded: probe.Encoded, sweep: str, rate: float) -> float:
    """FLOPs of what must be recomputed: rows × suffix tokens × remaining layers."""
    d, total = model.dims, 0
    for n, first in zip(encoded.lengths.tolist(), encoded.first_difference.tolist(), strict=True):
        layers = d.n_layers * (d.n_layers + 1) // 2
        if sweep == "heads":
            total += d.n_heads * layers * (n - first)
        else:
            total += layers * sum(n - pos for pos in range(first, n))
    return total * flops_per_token(model) / rate


def peer(model: probe.Model, encoded: probe.Encoded, sweep: str, every: int) -> torch.Tensor:
    """transformer_lens.patching on the same bridge, every so many cells: the mean metric of each.

    Each of its cells is one forward pass, so a part of the sweep tells what all of it costs.
    """
    bridge, heads = model.bridge, sweep == "heads"
    with torch.no_grad():
        kind = "z" if heads else "resid_pre"
        names = {probe.Site(kind, layer).hook_name for layer in range(model.dims.n_layers)}
        _, cache = bridge.run_with_cache(encoded.clean, names_filter=lambda name: name in names)

        def metric(logits: torch.Tensor) -> torch.Tensor:
            last = logits[:, -1]
            a, b = encoded.answers[:, None], encoded.wrong_answers[:, None]
            return (last.gather(1, a) - last.gather(1, b)).mean()

        second = range(model.dims.n_heads if heads else encoded.clean.shape[1])
        cells = [(layer, one) for layer in range(model.dims.n_layers) for one in second][::every]
        return patching.generic_activation_patch(
            bridge,
            encoded.corrupted,
            cache,
            metric,
            patching.layer_head_vector_patch_setter if heads else patching.layer_pos_patch_setter,
            kind,
            index_df=pd.DataFrame(cells, columns=["layer", "head" if heads else "pos"]),
        )


def compare(
    model: probe.Model,
    task: probe.Task,
    label: str,
    only: tuple[str, ...] = ("heads", "residual"),
    every: int = 1,
) -> None:
    """One line for each sweep. Beside each sweep stands the machine's matrix rate at that time."""
    encoded = task.encode(model)
    size = 1536
    a, b = torch.randn(size, size), torch.randn(size, size)
    for name, edit_sets in sweeps(model, encoded).items():
        if name not in only:
            continue
        with PeakMemory() as memory:
            values = model.sweep(encoded, edit_sets)
        theirs, table = once(lambda name=name: peer(model, encoded, name, every))
        theirs *= len(edit_sets) / len(table)
        took = in_turns(
            {
                "ours": lambda sets=edit_sets: model.sweep(encoded, sets),
                "products": lambda: [a @ b for _ in range(40)],
            },
            rounds=3,
        )
        rate = 40 * 2 * size**3 / took["products"]
        gap = float((values.mean(1)[::every] - table.flatten()).abs().max())
        floor = floor_seconds(model, encoded, name, rate)
        width, first = int(encoded.lengths.max()), int(encoded.first_difference.min())
        part = "" if every == 1 else f" (from {len(table)} cells)"
        print(
            f"| {label} | {len(encoded)} × {width}, from {first} | {name} | {len(edit_sets)} | "
            f"{theirs:.1f}{part} | {took['ours']:.2f} | **{theirs / took['ours']:.1f}** | "
            f"{gap:.0e} | {took['ours'] / floor:.2f} of {rate / 1e9:.0f} GFLOP/s | "
            f"{memory.mib:.0f} |",
            flush=True,
        )


def small_models() -> dict[str, probe.Model]:
    """Random models of two other families, with learned and with sliding-window positions."""
    from transformers import Gemma2Config, Gemma2ForCausalLM, GPT2Config, GPT2LMHeadModel

    tokenizer = probe.load_model("toy").tokenizer.hf
    v = len(tokenizer)
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=v, n_embd=128, n_layer=6, n_head=8))
    gemma = Gemma2ForCausalLM(
        Gemma2Config(
            vocab_size=v, hidden_size=128, intermediate_size=512, num_hidden_layers=6,
            num_attention_heads=8, num_key_value_heads=4, head_dim=16, sliding_window=16,
        )
    )  # fmt: skip
    return {
        "tiny GPT-2": probe.load_model(gpt2, tokenizer=tokenizer),
        "tiny Gemma 2": probe.load_model(gemma, tokenizer=tokenizer),
    }


def growth(model: probe.Model) -> None:
    """How the sweep's cost grows with layers, pairs and the length of a shared prefix."""
    print("\n| how cost grows | heads, s | residual, s |\n|---|---|---|")
    cases = [(f"{n} pairs", ioi(n)) for n in (2, 8, 32)]
    cases += [(f"4 pairs, {k} sentences before", ioi(4, PREFIX * k)) for k in (2, 8)]
    for label, task in cases:
        encoded = task.encode(model)
        times = [
            once(lambda sets=sets, e=encoded: model.sweep(e, sets))[0]
            for sets in sweeps(model, encoded).values()
        ]
        print(f"| {label}, {int(encoded.lengths.max())} tokens | {times[0]:.2f} | {times[1]:.2f} |")
    encoded = ioi(4).encode(model)
    for start in (0, 10, 20):
        some = {
            name: [edits for edits in sets if edits[0].site.layer >= start]
            for name, sets in sweeps(model, encoded).items()
        }
        times = [once(lambda s=s: model.sweep(encoded, s))[0] for s in some.values()]
        print(f"| 4 pairs, layers {start} and up | {times[0]:.2f} | {times[1]:.2f} |")


def heads_and_residual(model: probe.Model) -> None:
    compare(model, ioi(4), "IOI")


def other_prompts(model: probe.Model) -> None:
    compare(model, ioi(4, shared=False), "no shared prefix", every=3)
    # one forward a cell takes the peer an hour for the residual here: heads only
    compare(model, ioi(4, PREFIX * 5), "100-token shared prefix", only=("heads",), every=10)
    compare(model, ioi(32), "32 pairs", only=("heads",), every=10)


def other_models(model: probe.Model) -> None:
    for label, small in small_models().items():
        compare(small, ioi(4), label)
    encoded = ioi(4).encode(model)
    plain = in_turns({"f": lambda: model.forward(encoded.corrupted)}, rounds=3)["f"]
    with PeakMemory() as memory:
        model.forward(encoded.corrupted)
    print(f"\nOne plain forward of the four pairs: {plain:.3f} s, {memory.mib:.0f} MiB more.")


PARTS = {
    "pairs": heads_and_residual,
    "prompts": other_prompts,
    "models": other_models,
    "growth": growth,
}


def main(parts: list[str]) -> None:
    """All parts, or those named: ``bench_patching.py pairs growth``."""
    model = probe.load_model("smollm2")
    print(f"## Activation patching, {machine()}\n")
    print("SmolLM2-135M, float32.\n")
    print(
        "| case | prompts × tokens | sweep | cells | transformer_lens, s | probe, s | ratio | "
        "largest difference | probe / FLOP floor | extra memory, MiB |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for part in parts or PARTS:
        PARTS[part](model)


if __name__ == "__main__":
    main(sys.argv[1:])
