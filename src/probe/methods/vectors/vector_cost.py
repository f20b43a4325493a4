"""What a vector does to text it has nothing to do with."""

from collections.abc import Sequence

import pandas as pd
from jaxtyping import Float, Int
from torch import Tensor

from probe.core.errors import TaskError
from probe.core.model import Model
from probe.core.progress import progress_bar
from probe.core.provenance import Stopwatch, hash_text, of_call
from probe.core.result import Result, View
from probe.core.task import Task
from probe.core.vector import VectorResult, check_finite

_COLUMNS = {
    "batch": "text",
    "pos": "position of the token",
    "token": "token at that position",
    "strength": "what the vector is multiplied by",
    "value": "KL divergence of the steered from the unsteered next-token distribution, in nats",
    "loss": "loss of the next token with the vector, in nats; the exponential of its mean is the "
    "perplexity; missing at the last token",
    "base_loss": "the same without the vector; missing at the last token",
}


def vector_cost(
    model: Model,
    vector: VectorResult,
    texts: Sequence[str],
    *,
    strengths: Sequence[float] | None = None,
) -> Result:
    """How much does a vector change what the model says of unrelated text?

    The vector acts at every position, also where it was made for the last token alone: the cost
    is a mean over tokens, and each is somebody's last.

    Args:
        model: The model.
        vector: The vector.
        texts: Texts it has nothing to do with, of two tokens or more.
        strengths: How strongly, by default its own strength.

    Returns:
        One row a text, strength and token.

    Raises:
        TaskError: No text, or one of a single token.
        OptionError: A strength under which the model computes no numbers.

    Cost: one forward pass over the texts, and one for each strength.

    >>> from probe.api import load_model, steering_vector
    >>> model = load_model("toy")
    >>> vector = steering_vector(model, ["up"], ["down"], layer=0)
    >>> cost = vector_cost(model, vector, ["The sun rose."], strengths=[0.0, 1.0])
    >>> float(cost.frame.value[0])
    0.0
    """
    watch = Stopwatch()
    if isinstance(texts, str) or not texts:
        raise TaskError(f"the texts are {texts!r}", expected="a list of at least one")
    vector.check(model)
    asked = [vector.strength] if strengths is None else list(strengths)
    everywhere = vector if vector.where == "front" else vector.at(where="all")
    steered = [everywhere.at(strength=strength) for strength in asked]
    rows = []
    with progress_bar("cost on text") as report:
        for batch, text in enumerate(texts):
            ids = Task.from_prompts(text).encode(model).clean
            if ids.shape[1] < 2:
                raise TaskError(f"text {batch} is one token: {text!r}", expected="two or more")
            base = model.forward(ids)[0].float().log_softmax(-1)
            tokens, before = model.tokenizer.strings(ids[0].tolist()), _losses(base, ids)
            for one in steered:
                idle = one.rule == "add" and one.strength == 0
                changed = base if idle else _steered(model, one, ids)
                kl = (base.exp() * (base - changed)).sum(-1).clamp(min=0.0)
                columns = (kl.tolist(), _losses(changed, ids), before)
                for pos, (token, *numbers) in enumerate(zip(tokens, *columns, strict=True)):
                    rows.append((batch, pos, token, one.strength, *numbers))
            if report(batch + 1, len(texts), "texts") is False:
                break
    record = of_call(
        model, "vector_cost", watch, vector=vector.name, site=str(vector.site), rule=vector.rule,
        strengths=asked, task={"n": len(texts), "hash": hash_text("\n".join(texts))},
    )  # fmt: skip
    frame = pd.DataFrame(rows, columns=list(_COLUMNS))
    return Result(frame, _COLUMNS, View(kind="line", x="strength"), record)


def _steered(
    model: Model, vector: VectorResult, ids: Int[Tensor, "1 pos"]
) -> Float[Tensor, "pos d_vocab"]:
    logits = model.forward(ids, vector.edits())
    check_finite(logits, [vector])
    return logits[0].float().log_softmax(-1)


def _losses(log_probs: Float[Tensor, "pos d_vocab"], ids: Int[Tensor, "1 pos"]) -> list[float]:
    following = ids[0, 1:].to(log_probs.device)
    known = -log_probs[:-1].gather(1, following[:, None])[:, 0]
    return [*known.tolist(), float("nan")]
