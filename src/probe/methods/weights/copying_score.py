"""Whether heads copy, by the eigenvalues of their OV circuits."""

from typing import Annotated

import pandas as pd
from pydantic import BaseModel, Field

from probe.core.model import Model
from probe.core.registry import method
from probe.core.result import View
from probe.methods import eigenscores
from probe.methods.head_circuits import Circuits, logit_matrix, unembedding
from probe.methods.lowrank import product


def _view(options: BaseModel) -> View:
    return View(kind="heatmap", x="head", y="layer", color="value", title="Copying by eigenvalues")


@method(needs="nothing", view=_view, columns=eigenscores.COLUMNS)
def copying_score(
    model: Model,
    *,
    fold: Annotated[bool, Field(description="Gains of norms as part of the matrices")] = True,
    draws: Annotated[
        int, Field(description="Random heads for the baseline, in each layer", ge=2)
    ] = 50,
    seed: Annotated[int, Field(description="Seed of the random heads", ge=0)] = 0,
) -> pd.DataFrame:
    """Which heads raise the logits of the very tokens they attend to?

    The eigenvalues λ of the circuit W_E W_V W_O W_U from tokens to tokens: where they are positive,
    sums of tokens raise their own logits. They are those of the [d_head, d_head] product
    W_O W_U W_E W_V. The unembedding's mean over the vocabulary is taken out.

    Value: ``Σ Re λ / Σ |λ|``: 1 copies, -1 lowers what it reads. A matrix that is not normal can
    have positive eigenvalues and still not copy: look at ``head_tokens`` before saying so. The
    baseline puts random matrices of the same shape in place of W_V and W_O.

    Raises:
        ModelError: An encoder.

    Cost: no forward pass; one product [d_model, d_vocab] by [d_vocab, d_model] and, for each head
    and draw, eigenvalues of a d_head-sized matrix.

    Source: Elhage et al. (2021), "A Mathematical Framework for Transformer Circuits", detecting
    copying behaviour.

    >>> from probe.models.handbuilt import induction_model
    >>> from probe.models.load import load_model
    >>> built = induction_model("multi-head", size=32)
    >>> model = load_model(built.hf, tokenizer=built.tokenizer)
    >>> frame = copying_score(model).set_index(["layer", "head"])
    >>> f"{frame.value[built.heads['induction']]:.2f}"
    '1.00'
    """
    circuits = Circuits(model, fold)
    known = min(model.dims.d_vocab, model.tokenizer.n_vocab)
    matrix = unembedding(model) if fold else logit_matrix(model)
    ends = product(matrix.double(), model.weights.W_E[:known].double())
    return eigenscores.frame(model, circuits.ov, circuits.random_ov, ends, draws=draws, seed=seed)
