"""Recording every residual and pattern, beside the bare forward pass it rides on.

Aim: at most 1.1 of the bare eager Hugging Face forward.
"""

import torch
from timing import in_turns, machine, matrix_rate
from transformers import AutoModelForCausalLM

import probe

SHAPES = [(1, 14), (4, 14), (1, 128), (8, 128), (1, 512)]


def main() -> None:
    model = probe.load_model("smollm2")
    config = model.bridge.original_model.config
    bare = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    n = model.dims.n_layers
    print(f"## Recording, {machine()}\n")
    print(f"Machine's limit: {matrix_rate() / 1e9:.0f} GFLOP/s, float32.\n")
    print("| prompts × tokens | bare forward, s | trace / bare | TransformerBridge cache / bare |")
    print("|---|---|---|---|")
    sites = ["resid_pre", ("resid_post", n - 1), "pattern"]
    names = {probe.Site("resid_post", n - 1).hook_name}
    for layer in range(n):
        names |= {probe.Site(kind, layer).hook_name for kind in ("resid_pre", "pattern")}
    for batch, pos in SHAPES:
        tokens = torch.randint(model.dims.d_vocab, (batch, pos))

        def forward(tokens: torch.Tensor = tokens) -> None:
            with torch.no_grad():
                bare(tokens, use_cache=False)

        def cached(tokens: torch.Tensor = tokens) -> None:
            with torch.no_grad():
                model.bridge.run_with_cache(tokens, names_filter=lambda name: name in names)

        seconds = in_turns(
            {
                "bare": forward,
                "trace": lambda tokens=tokens: model.trace(tokens, sites),
                "bridge": cached,
            },
            rounds=9,
        )
        print(
            f"| {batch} × {pos} | {seconds['bare']:.3f} | {seconds['trace'] / seconds['bare']:.2f} "
            f"| {seconds['bridge'] / seconds['bare']:.2f} |"
        )
    print(
        "\nThe trace stops after the last site, so it is spared the unembedding that the bare "
        "forward pays.\n"
    )


if __name__ == "__main__":
    main()
