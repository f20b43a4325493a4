"""Which heads are made to read what earlier heads write."""

from collections.abc import Sequence
from typing import Annotated, Literal

import pandas as pd
import torch
from jaxtyping import Float
from pydantic import BaseModel, Field
from torch import Tensor

from probe.core.errors import ModelError
from probe.core.model import Dims, Model
from probe.core.progress import progress_bar
from probe.core.registry import method
from probe.core.result import View
from probe.methods.head_circuits import Circuits, need_head
from probe.methods.lowrank import LowRank, product_norms

Kind = Literal["Q", "K", "V"]

_AT_ONCE = 10
"""Random pairs made at once."""

_COLUMNS = {
    "kind": "what of the receiver reads the sender's output: its queries, keys or values",
    "sender": "head that writes, layer.head",
    "receiver": "head that reads, layer.head",
    "sender_layer": "block of the sender",
    "sender_head": "query head of the sender",
    "layer": "block of the receiver",
    "head": "query head of the receiver",
    "value": "share of the product's norm above that of random matrices; 0: no more than by chance",
    "raw": "norm of the product over the product of the norms, 0 to 1",
    "baseline": "the same of random matrices of these shapes, mean over the draws",
    "low": "2.5th percentile of the draws",
    "high": "97.5th percentile of the draws",
}


def _view(options: BaseModel) -> View:
    many = len(options.model_dump()["kinds"]) > 1
    return View(
        kind="heatmap",
        x="receiver",
        y="sender",
        color="value",
        facet="kind" if many else None,
        title="Composition",
    )


@method(needs="nothing", view=_view, columns=_COLUMNS)
def composition_scores(
    model: Model,
    *,
    kinds: Annotated[
        Sequence[Kind],
        Field(description="Q, K, V: read by the receiver's queries, keys, values", min_length=1),
    ] = ("Q", "K", "V"),
    of: Annotated[
        tuple[int, int] | None,
        Field(description="Layer and head: only pairs this head is in; none for every pair"),
    ] = None,
    fold: Annotated[
        bool, Field(description="Gains of norms as part of the matrices, as the receiver reads")
    ] = True,
    distance: Annotated[
        int, Field(description="Q and K: tokens from key to query, where layers rotate", ge=0)
    ] = 0,
    draws: Annotated[int, Field(description="Random pairs for the baseline", ge=2)] = 100,
    seed: Annotated[int, Field(description="Seed of the random pairs", ge=0)] = 0,
) -> pd.DataFrame:
    """Which heads could act through which later heads, by their weights alone?

    ``‖A B‖ / (‖A‖ ‖B‖)`` in Frobenius norms, with A the sender's OV and B the receiver's QK (Q),
    its transpose (K), or its OV (V). Query heads that share a key/value head each have their pair.
    Computed from products of d_head-sized factors.

    Value: that ratio less its mean for random matrices of the same shapes. Weights say what could
    be, not what happens on text: a high score is a candidate for ``path_patching``.

    Raises:
        ModelError: An encoder, one layer alone, or scores of an unknown form.
        OptionError: A head that is not there; a distance where a layer does not rotate.

    Cost: one forward pass of 16 tokens; for each kind a product [heads · d_head, d_model] by
    [d_model, heads · d_head] of all heads, half of it.

    Source: Elhage et al. (2021), "A Mathematical Framework for Transformer Circuits", composition
    scores.

    >>> from probe.models.handbuilt import induction_model
    >>> from probe.models.load import load_model
    >>> built = induction_model("multi-head", size=32)
    >>> model = load_model(built.hf, tokenizer=built.tokenizer)
    >>> best = composition_scores(model, kinds=["K"]).nlargest(1, "value").iloc[0]
    >>> best.sender, best.receiver, built.heads["previous"], built.heads["induction"]
    ('0.2', '1.1', (0, 2), (1, 1))
    """
    dims = model.dims
    if dims.n_layers < 2:
        raise ModelError(f"{model.name} has one layer", expected="two layers that could compose")
    circuits = Circuits(model, fold)
    if of is not None:
        need_head(model, *of)
    written = [_sent(circuits.ov(layer)) for layer in range(dims.n_layers - 1)]
    frames = []
    with progress_bar("composition") as report:
        for layer in range(1, dims.n_layers):
            senders = [i for i in range(layer) if of is None or of[0] in (i, layer)]
            for kind in kinds if senders else ():
                read = _received(_read_by(circuits, kind, layer, distance))
                raw = torch.cat([_ratios(written[i], read) for i in senders])
                frames.append(_rows(kind, raw, senders, layer, dims))
            if report(layer, dims.n_layers - 1, "layers") is False:
                break
    frame = pd.concat(frames, ignore_index=True)
    if of is not None:
        name = f"{of[0]}.{of[1]}"
        frame = frame[(frame["sender"] == name) | (frame["receiver"] == name)]
    drawn = _by_chance(dims, draws, seed)
    chance = {
        "baseline": float(drawn.mean()),
        "low": float(drawn.quantile(0.025)),
        "high": float(drawn.quantile(0.975)),
    }
    frame = frame.assign(value=frame["raw"] - chance["baseline"], **chance)
    return frame[list(_COLUMNS)].reset_index(drop=True)


def _sent(ov: LowRank) -> tuple[Float[Tensor, "head rank d_model"], Float[Tensor, " head"]]:
    """What heads write, as products with it need it: a factor, and the norm."""
    return ov.without_left.float(), ov.norm.float()


def _received(read: LowRank) -> tuple[Float[Tensor, "head d_model rank"], Float[Tensor, " head"]]:
    """What heads read, in the same form."""
    return read.without_right.float(), read.norm.float()


def _read_by(circuits: Circuits, kind: Kind, layer: int, distance: int) -> LowRank:
    if kind == "V":
        return circuits.ov(layer)
    qk = circuits.qk(layer, distance)
    return qk if kind == "Q" else qk.mT


def _ratios(
    sent: tuple[Tensor, Tensor], read: tuple[Tensor, Tensor]
) -> Float[Tensor, "sender receiver"]:
    """From a factor and a norm of each; zero where a head writes or reads nothing at all."""
    norms, whole = product_norms(sent[0], read[0]), sent[1][:, None] * read[1]
    return torch.where(whole > 0, norms / whole.clamp(min=torch.finfo(whole.dtype).tiny), 0.0)


def _rows(
    kind: Kind, raw: Float[Tensor, "sender receiver"], layers: list[int], layer: int, dims: Dims
) -> pd.DataFrame:
    """Pairs of every head of some layers with every head of a later one."""
    senders = [(i, j) for i in layers for j in range(dims.n_heads)]
    pairs = [(sender, head) for sender in senders for head in range(dims.n_heads)]
    return pd.DataFrame(
        {
            "kind": kind,
            "sender": [f"{i}.{j}" for (i, j), _ in pairs],
            "receiver": [f"{layer}.{head}" for _, head in pairs],
            "sender_layer": [i for (i, _), _ in pairs],
            "sender_head": [j for (_, j), _ in pairs],
            "layer": layer,
            "head": [head for _, head in pairs],
            "raw": raw.double().flatten().cpu().numpy(),
        }
    )


def _by_chance(dims: Dims, draws: int, seed: int) -> Float[Tensor, " draw"]:
    """The ratio for matrices of these shapes with independent normal entries."""
    generator = torch.Generator().manual_seed(seed)
    ratios = []
    for start in range(0, draws, _AT_ONCE):
        shape = (min(_AT_ONCE, draws - start), dims.d_model, dims.d_head)
        a, b, c, d = (torch.randn(shape, generator=generator) for _ in range(4))
        first, second = LowRank(a, b.mT), LowRank(c, d.mT)
        ratios.append((first @ second).norm / (first.norm * second.norm))
    return torch.cat(ratios)
