"""Causal tracing, beside one batch of noised rows a cell, as Meng et al. (2022) ran it.

Facts of one length; the same ten draws of noise for both. The second number is our own sweep with
the noise in each set of edits, so that every run begins at the first block, as ours did before the
noised run was what the others are resumed from.
"""

from typing import Any

import torch
from timing import PeakMemory, flops_per_token, machine, matrix_rate, once

import probe
from probe.methods.windows import layers_around
from probe.models import sources

TEMPLATE = "The city of {} is in the country of"
CITIES = {" Spain": "Barcelona", " Germany": "Stuttgart", " Italy": "Palermo", " Japan": "Nagoya"}
DRAWS, EVERY = 10, 5
"""Draws of noise; of how many cells the slow ones run one."""
KINDS = {"resid_post": 1, "mlp_out": 10}
"""Layers restored together."""


def facts(model: probe.Model) -> tuple[probe.Encoded, list[int]]:
    """Prompts of one length, and the positions of the subject."""
    pairs = [
        {"clean": TEMPLATE.format(name), "answer": country} for country, name in CITIES.items()
    ]
    lengths = [len(model.tokenizer.encode(pair["clean"])) for pair in pairs]
    usual = max(set(lengths), key=lengths.count)
    same = [pair for pair, length in zip(pairs, lengths, strict=True) if length == usual]
    return probe.Task.from_pairs(same).encode(model), [3, 4]


def noises(model: probe.Model, encoded: probe.Encoded, subject: list[int]) -> list[torch.Tensor]:
    """What is added to the subject's embeddings, [prompt, position, d_model] for each draw."""
    draw = torch.Generator().manual_seed(0)
    size = (len(encoded), encoded.clean.shape[1], model.dims.d_model)
    there = torch.zeros(size[1], 1)
    there[subject] = 3 * float(model.weights.W_E.std())
    return [torch.randn(size, generator=draw) * there for _ in range(DRAWS)]


def restored(model: probe.Model, encoded: probe.Encoded, cells: list, kind: str) -> list:
    """Edits that put clean states back, a set for each cell."""
    clean = model.trace(encoded, kind)
    made = {
        (layer, pos): probe.patch(probe.Site(kind, layer), clean[kind, layer], pos=pos)
        for layer in range(model.dims.n_layers)
        for _, pos in cells
    }
    return [
        [made[one, pos] for one in layers_around(layer, KINDS[kind], model.dims.n_layers)]
        for layer, pos in cells
    ]


def ours(model: probe.Model, encoded: probe.Encoded, sets: list, noise: list) -> torch.Tensor:
    """Resumed from each noised run; the mean over draws, [cell, prompt]."""
    given = [[probe.Edit(probe.Site("resid_pre", 0), "add", value)] for value in noise]
    swept = [model.sweep(encoded, sets, "prob", base="clean", given=edits) for edits in given]
    return torch.stack(swept).mean(0)


def before(model: probe.Model, encoded: probe.Encoded, sets: list, noise: list) -> torch.Tensor:
    """The noise in each set of edits."""
    each = [probe.Edit(probe.Site("resid_pre", 0), "add", value) for value in noise]
    every = [[edit, *edits] for edits in sets for edit in each]
    swept = model.sweep(encoded, every, "prob", base="clean")
    return swept.unflatten(0, (len(sets), DRAWS)).mean(1)


def peer(hf: Any, encoded: probe.Encoded, cells: list, kind: str, noise: list) -> torch.Tensor:
    """The Hugging Face model itself: a clean row and ten noised ones for each fact and cell."""
    blocks = hf.model.layers
    parts = {"resid_post": lambda block: block, "mlp_out": lambda block: block.mlp}
    rows = []
    for layer, pos in cells:
        handles = []

        def restore(module: object, args: object, out: object, pos: int = pos) -> object:
            state = out[0] if isinstance(out, tuple) else out
            state[1:, pos] = state[0, pos]
            return out

        for one in layers_around(layer, KINDS[kind], len(blocks)):
            handles.append(parts[kind](blocks[one]).register_forward_hook(restore))
        found = []
        for row in range(len(encoded)):

            def disturb(module: object, args: object, out: torch.Tensor, row: int = row) -> object:
                return out + torch.stack([torch.zeros_like(out[0]), *(n[row] for n in noise)])

            entrance = hf.model.embed_tokens.register_forward_hook(disturb)
            with torch.no_grad():
                logits = hf(encoded.clean[row].expand(1 + DRAWS, -1), logits_to_keep=1).logits
            entrance.remove()
            found.append(logits[1:, -1].softmax(-1)[:, encoded.answers[row]].mean())
        rows.append(torch.stack(found))
        for handle in handles:
            handle.remove()
    return torch.stack(rows)


def floor_seconds(
    model: probe.Model, encoded: probe.Encoded, cells: list, kind: str, first: int, rate: float
) -> float:
    """FLOPs of what must be recomputed: rows × positions from the restored one × layers left."""
    n_layers, width = model.dims.n_layers, encoded.clean.shape[1]
    left = [
        (n_layers - layers_around(layer, KINDS[kind], n_layers)[0]) * (width - pos)
        for layer, pos in cells
        if pos >= first
    ]
    return DRAWS * len(encoded) * sum(left) * flops_per_token(model) / rate


def main() -> None:
    """One line for each kind of state."""
    model = probe.load_model("smollm2")
    hf = sources.load("smollm2", revision=None, dtype="float32", trust_remote_code=False).hf
    encoded, subject = facts(model)
    width, noise = encoded.clean.shape[1], noises(model, encoded, subject)
    cells = [(layer, pos) for layer in range(model.dims.n_layers) for pos in range(width)]
    rate = matrix_rate()
    print(f"## Causal tracing, {machine()}\n")
    print(
        f"SmolLM2-135M, float32; {len(encoded)} facts × {width} tokens, subject at {subject}, "
        f"{DRAWS} draws of noise, {len(cells)} cells. {rate / 1e9:.0f} GFLOP/s.\n"
    )
    print(
        "| state | a batch a cell, s | noise in each set, s | probe, s | ratio | largest "
        "difference | probe / FLOP floor | extra memory, MiB |\n|---|---|---|---|---|---|---|---|"
    )
    for kind in KINDS:
        sets = restored(model, encoded, cells, kind)
        theirs, table = once(lambda kind=kind: peer(hf, encoded, cells[::EVERY], kind, noise))
        theirs *= len(cells) / len(table)
        slow = once(lambda sets=sets: before(model, encoded, sets[::EVERY], noise))[0]
        slow *= len(cells) / len(table)
        with PeakMemory() as memory:
            values = ours(model, encoded, sets, noise)
        took = once(lambda sets=sets: ours(model, encoded, sets, noise))[0]
        gap = float((values[::EVERY] - table).abs().max())
        line = [
            f"{kind}, {KINDS[kind]} layers",
            f"{theirs:.1f} (from {len(table)} cells)",
            f"{slow:.1f}",
            f"{took:.2f}",
            f"**{theirs / took:.1f}**",
            f"{gap:.0e}",
            f"{took / floor_seconds(model, encoded, cells, kind, subject[0], rate):.2f}",
            f"{memory.mib:.0f}",
        ]
        print(f"| {' | '.join(line)} |", flush=True)


if __name__ == "__main__":
    main()
