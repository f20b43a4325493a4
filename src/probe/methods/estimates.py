"""What patching each cell would do, estimated from gradients instead of run."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from probe.core.metric import Metric
from probe.core.model import Model
from probe.core.progress import progress_bar
from probe.core.site import KINDS, Site
from probe.core.task import Encoded
from probe.core.trace import Trace
from probe.methods import attention_fix
from probe.methods.patching import AXES_OF, By, Cell, Direction, site_of

_BLOCK_WRITES = ("attn_out", "mlp_out")


@dataclass(frozen=True, eq=False)
class Pair:
    """Both runs of each prompt pair.

    Attributes:
        corrupted_base: Whether the run that is patched is the corrupted one.
        base: Activations of the run that is patched.
        source: Activations of the run that is patched in.
        gradient: Of each example's metric on the base run, by the base run's activations.
        clean: Metric of the clean run.
        corrupted: Metric of the corrupted run.
    """

    corrupted_base: bool
    base: Trace
    source: Trace
    gradient: Trace
    clean: Float[Tensor, " batch"]
    corrupted: Float[Tensor, " batch"]

    @property
    def start(self) -> Float[Tensor, " batch"]:
        """Metric of the run that is patched."""
        return self.corrupted if self.corrupted_base else self.clean


def record(
    model: Model,
    encoded: Encoded,
    kind: str,
    layers: Sequence[int],
    metric: Metric,
    direction: Direction,
    *,
    also: Sequence[str] = (),
) -> Pair:
    """Both runs, the base run with gradients; of the base run other kinds ``also``.

    Cost: two forward passes and one backward pass. Two forward passes more for a model whose
    logits are not a norm and a matrix of its last residual stream; one more for a metric that
    compares with the clean run.
    """
    on_corrupted = direction == "denoise"
    last = Site("resid_post", model.dims.n_layers - 1)
    sites = [site_of(kind, layer) for layer in layers]
    extra = [Site(one, layer) for one in also for layer in layers]
    base, gradient = model.gradients(
        encoded, [*sites, *extra, last], metric, corrupted=on_corrupted
    )
    source = model.trace(encoded, [*sites, last], corrupted=not on_corrupted)
    clean, corrupted = (source, base) if on_corrupted else (base, source)
    values = _metric_of(model, encoded, metric, clean[last], corrupted[last])
    return Pair(on_corrupted, base, source, gradient, *values)


def _metric_of(
    model: Model,
    encoded: Encoded,
    metric: Metric,
    clean: Float[Tensor, "batch pos d_model"],
    corrupted: Float[Tensor, "batch pos d_model"],
) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
    """The metric of both runs, from their last residual streams."""
    rows = torch.arange(len(encoded))
    both = []
    for tokens, resid in ((encoded.clean, clean), (encoded.need_corrupted(), corrupted)):
        if model.health.get("reads_out"):
            both.append(model.unembed(resid[rows, encoded.last]))
        else:
            both.append(model.forward(tokens, lengths=encoded.lengths, last_only=True))
    ids, reference = metric.token_ids(encoded), both[0] if metric.needs_reference else None
    read = [logits if ids is None else logits.gather(1, ids.to(logits.device)) for logits in both]
    values = [metric(logits, encoded, reference).detach().cpu() for logits in read]
    return values[0], values[1]


def linear_effects(
    pair: Pair, gradient: Trace, kind: str, by: By, cells: Sequence[Cell]
) -> Float[Tensor, "cells batch"]:
    """First-order change of the metric when each cell is patched: difference · gradient."""
    values = {}
    for layer in {cell.layer for cell in cells}:
        site = site_of(kind, layer)
        slope = _wide(gradient[site])
        difference = _wide(pair.source[site]) - _wide(pair.base[site])
        # Masked scores are minus infinity in both runs, and nothing depends on them.
        values[layer] = _summed(torch.where(slope == 0, 0.0, difference * slope), kind, by)
    return _of_cells(values, by, cells)


def attention_effects(
    model: Model,
    encoded: Encoded,
    pair: Pair,
    gradients: Iterable[Trace],
    kind: str,
    by: By,
    cells: Sequence[Cell],
) -> Iterator[Float[Tensor, "cells batch"]]:
    """Queries or keys: the attention they would give, exactly, times its gradient; for each trace.

    What follows the attention probabilities is linear, as in ``linear_effects``. Cells of single
    positions patch one query or one key; the others all positions at once.

    Cost: one forward pass, for all cells and all layers.
    """
    layers = sorted({cell.layer for cell in cells})
    single = "pos" in AXES_OF[by]
    patched = attention_fix.patched_runs(
        model, encoded, kind, layers, pair.base, pair.source, corrupted=pair.corrupted_base,
        scores=kind == "k" and single,
    )  # fmt: skip
    for gradient in gradients:
        values = {}
        for layer in layers:
            slope = gradient["pattern", layer].double()
            if kind == "k" and single:
                each = attention_fix.key_effects(
                    pair.base["attn_scores", layer].double(),
                    patched["attn_scores", layer].double(),
                    slope,
                )
            else:
                change = patched["pattern", layer].double() - pair.base["pattern", layer].double()
                each = (change * slope).sum(-1)
            if kind == "k":
                each = each.unflatten(1, (model.dims.n_kv_heads, -1)).sum(2)
            values[layer] = _of_heads(each, by).float()
        yield _of_cells(values, by, cells)


def record_for_sizes(
    model: Model,
    encoded: Encoded,
    kind: str,
    by: By,
    layers: Sequence[int],
    metric: Metric,
    direction: Direction,
    *,
    qk_fix: bool,
) -> Pair:
    """What ``sizes`` needs of both runs."""
    also: list[str] = []
    if qk_fix and kind in ("q", "k"):
        also = ["z", "pattern"]
        also += ["attn_scores"] if kind == "k" and "pos" in AXES_OF[by] else []
    return record(model, encoded, kind, layers, metric, direction, also=also)


def sizes(
    model: Model,
    encoded: Encoded,
    pair: Pair,
    kind: str,
    by: By,
    cells: Sequence[Cell],
    metric: Metric,
    *,
    qk_fix: bool,
    grad_drop: bool,
) -> tuple[Float[Tensor, "cells batch"], Float[Tensor, "cells batch"]]:
    """AtP*'s estimates: size of the effect (≥ 0), and the signed effect with nothing dropped."""
    first = min(cell.layer for cell in cells)
    node = "pattern" if qk_fix and kind in ("q", "k") else kind
    gradients: Iterable[Trace] = [pair.gradient]
    if grad_drop:
        sites = [Site(node, layer) for layer in {cell.layer: None for cell in cells}]
        dropped = _dropped_gradients(model, encoded, sites, first, metric, pair)
        gradients = itertools.chain(gradients, dropped)
    if node == kind:
        effects = (linear_effects(pair, gradient, kind, by, cells) for gradient in gradients)
    else:
        effects = attention_effects(model, encoded, pair, gradients, kind, by, cells)
    signed = next(effects)
    # What is inside a block has no path left when its own block is dropped.
    n_drops = model.dims.n_layers - (0 if kind.startswith("resid") else 1)
    if not grad_drop or not n_drops:
        return signed.abs(), signed
    # Dropping a block before all cells drops nothing that follows them.
    total = first * signed.abs()
    for effect in effects:
        total = total + effect.abs()
    return total / n_drops, signed


def _dropped_gradients(
    model: Model, encoded: Encoded, sites: Sequence[Site], first: int, metric: Metric, pair: Pair
) -> Iterator[Trace]:
    """Gradients with each block from ``first`` in turn taken as it is: none flows through it."""
    writes = [one for one in _BLOCK_WRITES if one in model.sites]
    with progress_bar("dropping gradients") as report:
        for layer in range(first, model.dims.n_layers):
            yield model.gradients(
                encoded, sites, metric, corrupted=pair.corrupted_base,
                stop_at=[Site(one, layer) for one in writes],
            )[1]  # fmt: skip
            report(layer + 1 - first, model.dims.n_layers - first, "layers")


def _summed(product: Float[Tensor, "batch ..."], kind: str, by: By) -> Float[Tensor, "batch ..."]:
    axes = KINDS[kind].axes
    names = {
        "pos": "query" if "query" in axes else "pos",
        "head": "kv_head" if "kv_head" in axes else "head",
        "neuron": axes[-1],
    }
    keep = [axes.index(names[axis]) for axis in AXES_OF[by]]
    rest = [place for place in range(1, len(axes)) if place not in keep]
    return product.permute(0, *keep, *rest).flatten(1 + len(keep)).sum(-1)


def _of_heads(each: Float[Tensor, "batch heads pos"], by: By) -> Float[Tensor, "batch ..."]:
    drop = [place for axis, place in (("head", 1), ("pos", 2)) if axis not in AXES_OF[by]]
    return each.sum(drop) if drop else each


def _of_cells(
    values: Mapping[int, Float[Tensor, "batch ..."]], by: By, cells: Sequence[Cell]
) -> Float[Tensor, "cells batch"]:
    rows = []
    for layer, group in itertools.groupby(cells, key=lambda cell: cell.layer):
        members, here = list(group), values[layer].cpu()
        index = [torch.tensor([getattr(cell, axis) for cell in members]) for axis in AXES_OF[by]]
        rows.append(here[:, *index].T if index else here.expand(len(members), -1))
    return torch.cat(rows)


def _wide(activation: Tensor) -> Tensor:
    return activation.to(torch.promote_types(activation.dtype, torch.float32))
