"""Scores of attention heads on prompts."""

from collections.abc import Sequence
from typing import Annotated

import pandas as pd
from pydantic import Field

from probe.core.errors import TaskError
from probe.core.model import Model
from probe.core.registry import method
from probe.core.task import Encoded
from probe.methods import heads
from probe.methods.heads import SHARES, Score
from probe.methods.squares import Squares


@method(
    needs="prompts",
    view=heads.view,
    columns=heads.COLUMNS | {"batch": "prompt within the task"},
)
def task_head_scores(
    model: Model,
    encoded: Encoded,
    *,
    scores: Annotated[
        Sequence[Score],
        Field(description="Which scores: " + "; ".join(heads.ABOUT), min_length=1),
    ] = SHARES,
    layers: Annotated[
        list[int] | None, Field(description="Blocks; none for all", min_length=1)
    ] = None,
) -> pd.DataFrame:
    """What do heads look at on these prompts: the previous token, duplicates, what followed them?

    The scores of ``head_scores`` on real text: ``duplicate``, ``induction`` and ``preceding`` use
    the tokens that do repeat in each prompt, and are means over the positions whose token stood
    earlier in it. Special tokens do not count. A prompt that repeats no token has no row of these.
    On text a head can be drawn to a repeated token for its meaning: to tell what a head does by
    itself, use ``head_scores``.

    Value: as in ``head_scores``; ``without_first`` leaves position 0 out.

    Raises:
        TaskError: Only scores of repetition were asked for, and no prompt repeats a token.
        OptionError: A layer that is not there.

    Cost: one forward pass, stopped after the last layer.

    Source: Wang et al. 2022, "Interpretability in the Wild", section 3 (heads told by what they
    attend to on the task).

    >>> from probe.core.task import Task
    >>> from probe.models.load import load_model
    >>> model = load_model("toy")
    >>> task = Task.from_prompts("Mary and John and").encode(model)
    >>> len(task_head_scores(model, task, scores=["previous", "induction"]))
    16
    """
    chosen = Squares.choose(model.dims, layers, None).layers
    trace = model.trace(encoded, [("pattern", layer) for layer in chosen])
    frame = heads.score_frame(model, trace, chosen, scores)
    if frame.empty:
        raise TaskError(
            f"no prompt of {encoded.task.name!r} repeats a token, so {', '.join(scores)} has no "
            "position to be measured at",
            remedy="head_scores, which repeats random tokens",
        )
    return frame
