"""Which features fire on a prompt, and where."""

import pandas as pd

from probe.core.dictionary import Dictionary
from probe.core.model import Model
from probe.dictionaries.passes import check_fits, stacked


def activations_on(model: Model, sae: Dictionary, prompt: str) -> pd.DataFrame:
    """A row for each feature and position where it fires.

    Cost: one forward pass up to the dictionary's site.
    """
    check_fits(sae, model)
    ids = model.tokenizer.prompt(prompt, model.dims.n_ctx)
    trace = model.trace(prompt, list(dict.fromkeys(sae.reads)))
    features = sae.encode(stacked(sae, trace, sae.reads).to(sae.device))[0].float().cpu()
    pos, feature = features.nonzero(as_tuple=True)
    words = model.tokenizer.strings(ids)
    frame = pd.DataFrame({"pos": pos, "feature": feature, "value": features[pos, feature].numpy()})
    frame.insert(1, "token", [words[p] for p in pos.tolist()])
    return frame.assign(special=[model.tokenizer.is_special(ids[p]) for p in pos.tolist()])
