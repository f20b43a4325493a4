"""The tuned lens: the logit lens with each layer's own basis translated into the last one's."""

from typing import Annotated

import pandas as pd
from pydantic import Field

from probe.core.model import Model
from probe.core.registry import method
from probe.core.task import Encoded
from probe.methods import _predictions as shared
from probe.methods._translators import TunedLens

_COLUMNS = {**shared.COLUMNS, "lens": "how many steps the translators were trained, if any"}


@method(needs="prompts", view=shared.view, columns=_COLUMNS)
def tuned_lens(
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
    lens: Annotated[
        str | None,
        Field(
            description="File of a fitted lens; none for the one fitted to this model, and the "
            "identity where none was"
        ),
    ] = None,
) -> pd.DataFrame:
    """What does the model believe after this layer, in the last layer's terms?

    As the logit lens, with an affine translator for each layer between the residual stream and
    the final norm: ``softmax(unembed(norm(h + h A + b)))``. ``fit_tuned_lens`` trains the
    translators to predict what the model will say in the end. Before that they are the identity,
    which the column ``lens`` says, and every number is the logit lens'.

    ``value`` is what ``show`` asks for: nats, a share of one, or a rank.

    Raises:
        ModelError: The model does not end in norm and unembedding, or the lens is another's.
        OptionError: No lens at that path; a target is needed and there is none.
        SiteError: A layer or position that is not there.

    Cost: one forward pass, and one unembedding for each layer and position.
    Source: Belrose et al. (2023), "Eliciting Latent Predictions from Transformers with the Tuned
    Lens", arXiv 2303.08112, equation 8.

    >>> from probe.core.task import Task
    >>> from probe.models.load import load_model
    >>> model = load_model("toy")
    >>> frame = tuned_lens(model, Task.from_prompts("When Mary went").encode(model), show="kl")
    >>> len(frame), float(frame.value[frame.layer == 1].max())
    (6, 0.0)
    """
    fitted = TunedLens.find(model) if lens is None else TunedLens.load(lens, model)
    frame = shared.predictions(
        model,
        encoded,
        fitted.translate,
        show=show,
        positions=positions,
        layers=layers,
        top=top,
        target=target,
    )
    return frame.assign(lens=str(fitted))
