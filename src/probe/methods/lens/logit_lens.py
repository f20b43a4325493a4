"""The logit lens: read every layer as if it were the last."""

from typing import Annotated

import pandas as pd
from pydantic import Field

from probe.core.model import Model
from probe.core.registry import method
from probe.core.task import Encoded
from probe.methods import _predictions as shared


@method(needs="prompts", view=shared.view, columns=shared.COLUMNS)
def logit_lens(
    model: Model,
    encoded: Encoded,
    *,
    show: Annotated[
        shared.Show,
        Field(
            description="probability, entropy or kl of the prediction; rank or log_prob of a "
            "target token; or the top tokens"
        ),
    ] = "probability",
    positions: Annotated[
        list[int] | None,
        Field(
            description="Token positions, negative from each prompt's end; none for all",
            min_length=1,
        ),
    ] = None,
    layers: Annotated[
        list[int] | None, Field(description="Blocks; none for all", min_length=1)
    ] = None,
    top: Annotated[int, Field(description="How many tokens under show=top", ge=1)] = 5,
    target: Annotated[
        list[str] | None,
        Field(
            description="Tokens to follow under show=rank and log_prob; none for the answer",
            min_length=1,
        ),
    ] = None,
) -> pd.DataFrame:
    """What would the model say if it stopped after this layer?

    The residual stream after each block goes through the final norm and the unembedding:
    ``softmax(unembed(norm(resid_post)))``. At the last layer this is the model's output, exactly.
    ``value`` is what ``show`` asks for, in nats where it is an entropy, a KL or a
    log-probability, and a share of one where it is a probability.

    Early layers write in a basis of their own, so an early reading can be wrong without the layer
    being ignorant: compare the tuned lens.

    Raises:
        ModelError: The model does not end in norm and unembedding (an encoder).
        OptionError: A target is needed and there is none.
        SiteError: A layer or position that is not there.

    Cost: one forward pass, and one unembedding for each layer and position.
    Source: nostalgebraist (2020), "interpreting GPT: the logit lens".

    >>> from probe.core.task import Task
    >>> from probe.models.load import load_model
    >>> model = load_model("toy")
    >>> frame = logit_lens(model, Task.from_prompts("When Mary went").encode(model), show="kl")
    >>> len(frame), float(frame.value[frame.layer == 1].max())
    (6, 0.0)
    """
    return shared.predictions(
        model,
        encoded,
        lambda layer, resid: resid,
        show=show,
        positions=positions,
        layers=layers,
        top=top,
        target=target,
    )
