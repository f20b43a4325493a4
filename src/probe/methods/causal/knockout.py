"""Does information pass here: cut attention from some positions to others."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from pydantic import BaseModel, Field
from torch import Tensor

from probe.core.edit import Edit
from probe.core.errors import OptionError
from probe.core.metric import get_metric
from probe.core.model import Model
from probe.core.progress import progress_bar
from probe.core.registry import method
from probe.core.result import View
from probe.core.site import Site, check_layer
from probe.core.task import Encoded
from probe.core.trace import Trace
from probe.methods.spans import Where, in_turn, positions_of
from probe.methods.windows import layers_around

Cut = Literal["scores", "pattern"]
By = Literal["layer", "head"]

_COLUMNS = {
    "batch": "prompt",
    "layer": "layer cut, the middle of the window",
    "head": "head cut",
    "value": "change of the metric: cut less clean",
    "raw": "metric with the attention cut",
    "clean": "metric of the clean run",
    "attended": "attention probability of the clean run that was cut, mean over the positions "
    "attended from, the heads and the layers cut",
}


def _view(options: BaseModel) -> View:
    if getattr(options, "by", "layer") == "layer":
        return View(kind="line", x="layer", y="value")
    return View(kind="heatmap", x="head", y="layer", color="value")


@method(needs="answers", view=_view, columns=_COLUMNS)
def knockout(
    model: Model,
    encoded: Encoded,
    *,
    keys: Annotated[
        Where,
        Field(
            description="Positions no longer attended to: numbers, a text found in each prompt, or "
            "{tag} for the text each prompt's tag holds"
        ),
    ],
    queries: Annotated[
        Where, Field(description="Positions that no longer attend to them, given likewise")
    ] = (-1,),
    by: Annotated[By, Field(description="Cut all heads of a layer, or one head")] = "layer",
    window: Annotated[int, Field(ge=1, description="Layers cut together")] = 1,
    cut: Annotated[
        Cut,
        Field(
            description="scores: to minus infinity before the softmax, so that attention to the "
            "other positions grows to one; pattern: to zero after it, so that it does not"
        ),
    ] = "scores",
    metric: Annotated[str, Field(description="What is read at the last token")] = "logit_diff",
    layers: Annotated[list[int] | None, Field(description="Only these layers")] = None,
    heads: Annotated[list[int] | None, Field(description="Only these heads")] = None,
) -> pd.DataFrame:
    """Does the answer need these positions to see those: what if attention between them is cut?

    ``value``: in the metric's unit; negative where a metric that is high for right answers needs
    what flows there in these layers. Attention is directed from later to earlier positions, so
    keys after a query change nothing.

    Raises:
        OptionError: A layer, head or position that is not there, or a query left with nothing to
            attend to (with ``cut="scores"``).
        TaskError: A prompt in which the text does not stand.
        EditError: An architecture whose attention scores or pattern are not read back.

    Cost: one recorded run, and for each cell the part of a forward pass after its first layer and
    the first query.

    Source: Geva et al. 2023, "Dissecting Recall of Factual Associations", section 4 (scores,
    windows of layers).

    >>> from probe.api import run
    >>> flows = run("knockout", model="toy", task="capital_of", keys="{country}", window=2)
    >>> flows.summary()["layer"].tolist()
    [0, 1]
    """
    chosen = get_metric(metric)
    chosen.check(encoded)
    cells = _cells(model, by, layers, heads)
    around = {layer: layers_around(layer, window, model.dims.n_layers) for layer, _ in cells}
    spans = positions_of(encoded, queries)
    pairs = _pairs(encoded, spans, positions_of(encoded, keys))
    pattern = model.trace(encoded, [("pattern", n) for n in sorted(set().union(*around.values()))])
    if cut == "scores":
        _check_rest(pattern, pairs)
    edits = _Edits(pairs, in_turn(spans), cut)
    sets = [[edit for n in around[layer] for edit in edits(n, head)] for layer, head in cells]
    with progress_bar("knockout") as report:
        raw = model.sweep(encoded, sets, chosen, base="clean", report=report).cpu()
    clean = model.sweep(encoded, [[]], chosen, base="clean")[0].cpu()
    attended = [_attended(pattern, pairs, around[layer], head) for layer, head in cells]
    frame = pd.DataFrame(
        {
            "batch": list(range(len(encoded))) * len(cells),
            "layer": [layer for layer, _ in cells for _ in range(len(encoded))],
            "head": [head for _, head in cells for _ in range(len(encoded))],
            "value": (raw - clean).flatten().tolist(),
            "raw": raw.flatten().tolist(),
            "clean": clean.expand_as(raw).flatten().tolist(),
            "attended": torch.stack(attended).flatten().tolist(),
        }
    )
    frame = frame if by == "head" else frame.drop(columns="head")
    return frame[frame["raw"].notna()].reset_index(drop=True)


@dataclass
class _Edits:
    """Edits that cut; runs that cut the same share them."""

    pairs: Bool[Tensor, "batch 1 query key"]
    turns: Sequence[Int[Tensor, " batch"]]
    cut: Cut

    def __post_init__(self) -> None:
        self._made: dict[tuple[int, int | None], list[Edit]] = {}
        # Cutting twice is cutting once: a prompt with fewer queries repeats its first.
        self._rule: Literal["add", "scale"] = "add" if self.cut == "scores" else "scale"
        self._value = (~self.pairs).float()
        if self.cut == "scores":
            self._value = self._value.log()

    def __call__(self, layer: int, head: int | None) -> list[Edit]:
        """The edits of one layer."""
        if (layer, head) not in self._made:
            site = Site("attn_scores" if self.cut == "scores" else "pattern", layer, head)
            self._made[layer, head] = [
                Edit(site, self._rule, self._value, {"query": turn}, f"knockout: {self.cut}")
                for turn in self.turns
            ]
        return self._made[layer, head]


def _cells(
    model: Model, by: By, layers: Sequence[int] | None, heads: Sequence[int] | None
) -> list[tuple[int, int | None]]:
    dims = model.dims
    depths = list(range(dims.n_layers)) if layers is None else list(layers)
    for layer in depths:
        check_layer(Site("pattern", layer), dims.n_layers)
    chosen = list(range(dims.n_heads)) if heads is None else list(heads)
    wrong = [head for head in chosen if not 0 <= head < dims.n_heads]
    if wrong or not depths or not chosen:
        raise OptionError(
            f"layers {depths}, heads {chosen}",
            expected=f"at least one layer, and heads from 0 to {dims.n_heads - 1}",
        )
    if by == "layer" and heads is not None:
        raise OptionError(f'heads={chosen} and by="layer"', remedy='by="head"')
    return [(n, head) for n in depths for head in (chosen if by == "head" else [None])]


def _pairs(
    encoded: Encoded, queries: Sequence[Sequence[int]], keys: Sequence[Sequence[int]]
) -> Bool[Tensor, "batch 1 query key"]:
    """True where attention is cut."""
    width = encoded.clean.shape[1]
    pairs = torch.zeros(len(encoded), 1, width, width, dtype=torch.bool)
    for row, (ones, others) in enumerate(zip(queries, keys, strict=True)):
        pairs[row, 0, torch.tensor(ones)[:, None], torch.tensor(others)] = True
    if not (pairs.tril()).any():
        raise OptionError(
            f"positions {queries[0]} of the first prompt come before {keys[0]}, in all prompts",
            expected="queries after keys: attention goes from later to earlier positions",
        )
    return pairs


def _check_rest(pattern: Trace, pairs: Bool[Tensor, "batch 1 query key"]) -> None:
    """Refuse to cut all that a query can see: a softmax of nothing has no value."""
    for site, probabilities in pattern.items():
        here = pairs.to(probabilities.device)
        rest = probabilities.masked_fill(here, 0.0).amax(-1).gt(0) | ~here.any(-1)
        if not rest.all():
            row, _, query = (~rest).nonzero()[0].tolist()
            raise OptionError(
                f"position {query} of prompt {row} would attend to nothing in layer {site.layer}",
                expected="keys that leave something to attend to",
                remedy='cut="pattern", or fewer keys',
            )


def _attended(
    pattern: Trace,
    pairs: Bool[Tensor, "batch 1 query key"],
    layers: Sequence[int],
    head: int | None,
) -> Float[Tensor, " batch"]:
    """Attention probability that is cut, mean over queries, heads and layers."""
    total = torch.stack([pattern["pattern", n] for n in layers]).cpu()
    total = total if head is None else total[:, :, [head]]
    queries = pairs.any(-1).sum(-1)[:, 0]
    return (total * pairs).sum((-1, -2)).mean((0, 2)) / queries
