"""A dictionary by name: what a method's option can hold and a record can keep."""

import re
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field

from probe.core.dictionary import Dictionary
from probe.core.errors import DictionaryError
from probe.core.model import Model
from probe.core.site import Site, check_layer
from probe.dictionaries.dictionary import SparseDictionary
from probe.dictionaries.files import load_dictionary
from probe.dictionaries.passes import check_fits

_TOY = re.compile(r"toy(?:\.(\d+))?")
_TOY_FEATURES = 48

DictionaryName = Annotated[
    str,
    Field(
        description="A shipped dictionary's name, a folder in SAELens' format, or toy.LAYER, "
        "which is random and for trying things out"
    ),
]


def named(name: str | Dictionary, model: Model) -> Dictionary:
    """The dictionary of that name, on the model's device; one that is given is given back.

    Raises:
        DictionaryError: None there, one that belongs to another model, or a crosscoder, whose
            features write at several sites at once.
    """
    if not isinstance(name, str):
        return name
    toy = _TOY.fullmatch(name)
    if toy and not Path(name).exists():
        return toy_dictionary(model, int(toy[1] or 0))
    found = load_dictionary(name, device=model.device)
    check_fits(found, model)
    if len(found.writes) > 1:
        raise DictionaryError(
            f"{found.name} writes at {len(found.writes)} sites",
            expected="a sparse autoencoder or a transcoder",
        )
    return found


def toy_dictionary(model: Model, layer: int = 0) -> SparseDictionary:
    """A random dictionary of the residual stream after a layer: fires, and means nothing.

    >>> from probe.models.load import load_model
    >>> toy_dictionary(load_model("toy")).d_sae
    48
    """
    check_layer(Site("resid_post", layer), model.dims.n_layers)
    generator = torch.Generator().manual_seed(layer)
    d = model.dims.d_model
    decoder = torch.nn.functional.normalize(torch.randn(_TOY_FEATURES, d, generator=generator))
    tensors = {
        "W_enc": decoder.T.contiguous(), "W_dec": decoder,
        "b_enc": torch.zeros(_TOY_FEATURES), "b_dec": torch.zeros(d),
    }  # fmt: skip
    site = (Site("resid_post", layer),)
    on_device = {name: tensor.to(model.device) for name, tensor in tensors.items()}
    return SparseDictionary(f"toy.{layer}", "standard", "relu", site, site, on_device)
