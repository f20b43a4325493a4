"""Which features fire on a prompt, and where."""

from typing import Annotated

import pandas as pd
import torch
from pydantic import Field

from probe.core.model import Model
from probe.core.registry import method
from probe.core.result import View
from probe.core.task import Encoded
from probe.dictionaries.feature_edits import Encoding, check_features, encode
from probe.dictionaries.named import DictionaryName, named

_COLUMNS = {
    "batch": "prompt",
    "pos": "position in the prompt",
    "token": "token at that position",
    "feature": "feature of the dictionary",
    "value": "activation, in units of the decoder row; 0 where it does not fire",
}


@method(
    needs="prompts",
    view=View(kind="heatmap", x="pos", y="feature", color="value", facet="batch",
              scale="activation"),
    columns=_COLUMNS,
)  # fmt: skip
def feature_activations(
    model: Model,
    encoded: Encoded,
    *,
    dictionary: DictionaryName,
    top: Annotated[
        int, Field(description="Features of each prompt, by their largest activation", ge=1)
    ] = 20,
    features: Annotated[
        list[int] | None, Field(description="These features instead of the strongest")
    ] = None,
    skip_first: Annotated[
        int, Field(description="Positions at the beginning that do not decide which", ge=0)
    ] = 0,
) -> pd.DataFrame:
    """Which features of a dictionary fire on a prompt, and where?

    ``value`` is what ``encode`` gives: ≥ 0, and 0 where a feature does not fire. Models that begin
    without a BOS token give the first position a huge activation: ``skip_first=1`` keeps it from
    deciding which features are shown.

    Raises:
        DictionaryError: No such dictionary, or one of another model.
        OptionError: A feature that is not there.

    Cost: one forward pass, stopped after the dictionary's site.

    Source: Bricken et al. 2023, "Towards Monosemanticity".

    >>> from probe.api import run
    >>> run("feature_activations", model="toy", prompt="the store", dictionary="toy").frame.shape
    (40, 5)
    """
    sae = named(dictionary, model)
    if features is not None:
        check_features(sae, features)
    found = encode(model, encoded, sae)
    rows = []
    for row in range(len(encoded)):
        tokens = encoded.str_tokens(row)
        for feature in features or strongest(found, row, top, skip_first):
            values = found.features[row, : len(tokens), feature].tolist()
            rows += [(row, p, tokens[p], feature, v) for p, v in enumerate(values)]
    return pd.DataFrame(rows, columns=list(_COLUMNS))


def strongest(found: Encoding, row: int, top: int, skip_first: int) -> list[int]:
    """Features by their largest activation in a prompt; all where nothing fires."""
    n = int(found.real[row].sum())
    largest = found.features[row, min(skip_first, n - 1) : n].max(0).values
    order = torch.argsort(largest, descending=True, stable=True)[:top]
    firing = [int(i) for i in order if largest[i] > 0]
    return firing or [int(order[0])]
