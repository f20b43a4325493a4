"""Scores of attention heads on repeated random tokens."""

from collections.abc import Sequence
from typing import Annotated

import pandas as pd
import torch
from jaxtyping import Int
from pydantic import Field
from torch import Tensor

from probe.core.errors import OptionError
from probe.core.model import Model
from probe.core.registry import method
from probe.methods import heads
from probe.methods.heads import SHARES, Score
from probe.methods.squares import Squares


@method(
    needs="nothing",
    view=heads.view,
    columns=heads.COLUMNS | {"batch": "random sequence, counted from 0"},
)
def head_scores(
    model: Model,
    *,
    scores: Annotated[
        Sequence[Score],
        Field(description="Which scores: " + "; ".join(heads.ABOUT), min_length=1),
    ] = SHARES,
    layers: Annotated[
        list[int] | None, Field(description="Blocks; none for all", min_length=1)
    ] = None,
    n: Annotated[int, Field(description="Random sequences", ge=1, le=1000)] = 10,
    length: Annotated[int, Field(description="Random tokens before they repeat", ge=2)] = 25,
    repeats: Annotated[int, Field(description="How often they stand there", ge=2)] = 2,
    bos: Annotated[
        bool | None,
        Field(description="Begin with the BOS token; where not given, if there is one"),
    ] = None,
    seed: Annotated[int, Field(description="Seed of the random tokens", ge=0)] = 0,
    drawn_from: Annotated[
        list[int] | None,
        Field(description="Token ids to draw from; none for all but special ones", min_length=2),
    ] = None,
) -> pd.DataFrame:
    """Which heads look at the previous token, at duplicates, at what followed them?

    Each sequence is [BOS] + R + R: ``length`` different random tokens, special ones left out,
    ``repeats`` times. On these, position and token identity are all a head can go by.

    Value: ``previous``, ``current``, ``first_token``: attention probability, mean over all
    positions but 0 (which sees only itself). ``duplicate``, ``induction``, ``preceding``:
    attention to earlier occurrences of the current token, to what followed, to what preceded
    them (offsets period, period - 1, period + 1; summed over earlier occurrences), mean over
    exactly the positions that have one: with two repeats, the second half. ``entropy`` in nats,
    ``entropy_share`` over its largest possible value, ``mean_distance`` in tokens.
    ``without_first`` is the score without attention to position 0, where many heads rest.

    ``drawn_from`` leaves out tokens a model has never learnt, or that are everywhere; the paper
    leaves out the rarest and the commonest.

    Raises:
        OptionError: Sequences that exceed the context or the vocabulary; a layer or a token that is
            not there.

    Cost: one forward pass over n sequences, stopped after the last layer.

    Source: Olsson et al. 2022, "In-context Learning and Induction Heads", prefix matching (there
    with 25 tokens, 4 repeats, 10 draws), read as attention to the token after the earlier one.

    >>> from probe.models.handbuilt import induction_model
    >>> from probe.models.load import load_model
    >>> built = induction_model("grouped-query")
    >>> model = load_model(built.hf, tokenizer=built.tokenizer)
    >>> frame = head_scores(model, scores=["induction"])
    >>> means = frame.groupby(["layer", "head"]).value.mean()
    >>> means.idxmax() == built.heads["induction"], f"{means.max():.2f}"
    (True, '1.00')
    """
    chosen = Squares.choose(model.dims, layers, None).layers
    tokens = _repeated_tokens(
        model, n=n, length=length, repeats=repeats, bos=bos, seed=seed, drawn_from=drawn_from
    )
    trace = model.trace(tokens, [("pattern", layer) for layer in chosen])
    return heads.score_frame(model, trace, chosen, scores)


def _repeated_tokens(
    model: Model,
    *,
    n: int,
    length: int,
    repeats: int,
    bos: bool | None,
    seed: int,
    drawn_from: Sequence[int] | None = None,
) -> Int[Tensor, "batch pos"]:
    """Rows of [BOS] + R repeated; within a row, the tokens of R are all different."""
    tokenizer, dims = model.tokenizer, model.dims
    first = tokenizer.hf.bos_token_id
    if bos and first is None:
        raise OptionError("bos=True, and this tokenizer has no BOS token", remedy="bos=False")
    prefix = [] if first is None or bos is False else [int(first)]
    total = len(prefix) + repeats * length
    if total > dims.n_ctx:
        raise OptionError(
            f"{repeats} × {length} tokens and {len(prefix)} before them are {total}",
            expected=f"at most {dims.n_ctx}, the model's context length",
            remedy=f"length={(dims.n_ctx - len(prefix)) // repeats}",
        )
    ordinary = _ordinary(model, drawn_from)
    if length > len(ordinary):
        raise OptionError(
            f"{length} different tokens",
            expected=f"at most {len(ordinary)}, the tokens to draw from",
        )
    generator = torch.Generator().manual_seed(seed)
    rows = [
        ordinary[torch.randperm(len(ordinary), generator=generator)[:length]].repeat(repeats)
        for _ in range(n)
    ]
    return torch.stack([torch.cat([torch.tensor(prefix, dtype=torch.long), row]) for row in rows])


def _ordinary(model: Model, ids: Sequence[int] | None) -> Int[Tensor, " token"]:
    """What may be drawn, each once: these tokens, or all but the special ones."""
    known = range(min(model.tokenizer.n_vocab, model.dims.d_vocab))
    if ids is None:
        return torch.tensor([token for token in known if not model.tokenizer.is_special(token)])
    for token in ids:
        if token not in known or model.tokenizer.is_special(token):
            raise OptionError(
                f"token {token} to draw from", expected=f"0 to {known[-1]}, and no special token"
            )
    return torch.tensor(list(dict.fromkeys(ids)))
