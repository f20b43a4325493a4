"""Random dictionaries of every form."""

import torch

from probe.core.site import Site
from probe.dictionaries.dictionary import SparseDictionary

FORMS = [
    "standard", "gated", "jumprelu", "topk", "transcoder", "skip_transcoder",
    "jumprelu_transcoder", "jumprelu_skip_transcoder", "topk_transcoder", "crosscoder",
    "topk_crosscoder",
]  # fmt: skip
KNOWN_TO_SAELENS = FORMS[:8]


def dictionary(
    form: str, d_in: int = 8, d_sae: int = 24, dtype: torch.dtype = torch.float32, layer: int = 1
) -> SparseDictionary:
    """Random weights, with thresholds and gates at which some features fire and some do not."""
    generator = torch.Generator().manual_seed(len(form))

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    layers = (2,) if "crosscoder" in form else ()
    tensors = {
        "W_enc": draw(*layers, d_in, d_sae) / d_in**0.5,
        "W_dec": draw(*layers, d_sae, d_in),
        "b_dec": draw(*layers, d_in),
    }
    if form == "gated":
        tensors |= {name: 0.3 * draw(d_sae) for name in ("b_gate", "b_mag", "r_mag")}
    else:
        tensors["b_enc"] = 0.3 * draw(d_sae)
    if "jumprelu" in form:
        tensors["threshold"] = draw(d_sae).abs() * 0.5
    if "skip" in form:
        tensors["W_skip"] = draw(d_in, d_in)
    reads = (Site("resid_post", layer),)
    if layers:
        reads = (Site("resid_post", 0), Site("resid_post", 1))
    elsewhere = "transcoder" in form
    return SparseDictionary(
        name=f"a {form}",
        architecture=form,
        activation=next((a for a in ("jumprelu", "topk", "gated") if a in form), "relu"),
        reads=reads,
        writes=(Site("mlp_out", layer),) if elsewhere else reads,
        tensors=tensors,
        k=5 if "topk" in form else None,
        centred=not elsewhere,
    )
