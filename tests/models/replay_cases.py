"""Pairs of prompts and sets of edits that reach every corner of the planner, and the oracle."""

from collections.abc import Sequence

import torch
from torch import Tensor

from probe.core.edit import Edit, ablate, patch, project_out, scale, steer
from probe.core.metric import get_metric
from probe.core.site import Site
from probe.core.task import Encoded, Task
from probe.core.trace import Trace
from probe.models.bridge import BridgeModel

FAMILY_PAIRS = [
    ("t3 t4 t5 t6 t7 t8 t9 t3 t4", "t3 t4 t5 t6 t17 t8 t9 t3 t4"),
    ("t10 t11 t12", "t10 t21 t12"),
    ("t13 t14 t15 t16 t17 t18", "t13 t14 t15 t16 t17 t28"),
]
"""Ragged, first differing at 4, 1 and 5; the longest is longer than the sliding windows of six."""
TOY_PAIRS = [
    (" Mary and John went to the store", " Mary and Tom went to the store"),
    (" The cat said", " The dog said"),
    (" The capital of France is", " The capital of Spain is"),
]


def pairs_for(model: BridgeModel) -> Encoded:
    """Three ragged pairs with answers, of this model's words."""
    toy = model.name.startswith("toy")
    answers = (" Mary", " John") if toy else ("t30", "t40")
    return Task.from_pairs(
        [
            {"clean": a, "corrupted": b, "answer": answers[0], "wrong_answer": answers[1]}
            for a, b in (TOY_PAIRS if toy else FAMILY_PAIRS)
        ]
    ).encode(model)


def editable_sites(model: BridgeModel) -> list[Site]:
    """Every site of the model whose change can change anything."""
    return sorted(
        (site for site in model._points if site.kind not in model._inert),
        key=lambda site: site.order,
    )


def cases(model: BridgeModel, encoded: Encoded, source: Trace, base: Trace) -> list[list[Edit]]:
    """Sets of edits: of every site, by position, head, neuron and direction, alone and together."""
    sets: list[list[Edit]] = [[]]
    firsts = encoded.first_difference
    assert firsts is not None
    for site in editable_sites(model):
        at = "query" if "query" in site.axes else "pos"
        sets += [
            [patch(site, source[site])],
            [patch(site, source[site], **{at: firsts})],
        ]
        if site.layer not in (None, 0, model.dims.n_layers - 1):
            continue  # the first and the last block, where rows join and leave, get all forms
        sets += [
            [patch(site, source[site], **{at: -1})],
            [patch(site, source[site], **{at: [0, -1]})],
            [scale(site, 0.5, **{at: [1, -1]})],
        ]
        if site.head_axis:
            sets.append([patch(site, source[site], **{site.head_axis: [0, 1]})])
            sets.append([scale(Site(site.kind, site.layer, 1), -0.5, **{at: firsts})])
        if site.axes[-1] in ("d_model", "d_mlp", "d_head"):
            sets.append([ablate(site, **{site.axes[-1]: [0, 3], at: 1})])
            direction = torch.linspace(-1, 1, source[site].shape[-1])
            sets.append([project_out(site, direction, **{at: -1})])
            sets.append([steer(site, direction, 0.5)])
    return sets + _together(model, source, base)


def _together(model: BridgeModel, source: Trace, base: Trace) -> list[list[Edit]]:
    last = model.dims.n_layers - 1
    end, start = Site("resid_post", last), Site("resid_pre", 0)
    attn = Site("attn_out", 0)
    doubled = scale(attn, 2.0, pos=1)
    moved = steer(attn, torch.ones(model.dims.d_model), pos=1)
    return [
        [patch(end, source[end], pos=-1), scale(start, 0.5, pos=1)],
        [scale("resid_post.0", 0.5, pos=-1), steer("resid_pre.1", source[end][0, 0], pos=-1)],
        [doubled, moved],
        [moved, doubled],  # the same two edits the other way about
        [scale("z.0", 0.0, head=1), patch("z.1", source["z", 1], head=[2, 3], pos=-1)],
        [ablate("mlp_out.0", "mean", source["mlp_out", 0]), scale(end, 1.5)],
        # the last three put back what the unedited run has: only what came before can change it
        [scale(start, 0.5, pos=1), patch("attn_out.0", base["attn_out", 0], pos=-1)],
        [scale(start, 0.5, pos=1), patch(end, base[end], pos=[1, -1])],
        [scale(start, 0.5, pos=-1), patch("mlp_out.0", base["mlp_out", 0], pos=[0, 1])],
    ]


def one_by_one(
    model: BridgeModel,
    encoded: Encoded,
    sets: Sequence[Sequence[Edit]],
    metric: str = "logit_diff",
    base: str = "corrupted",
) -> Tensor:
    """The oracle: a plain forward pass for each set, [sets, batch]."""
    measure = get_metric(metric)
    tokens = encoded.clean if base == "clean" else encoded.need_corrupted()
    rows = torch.arange(len(encoded))
    reference = model.forward(encoded.clean)[rows, encoded.last]
    ids = measure.token_ids(encoded)
    values = []
    for edits in sets:
        logits = model.forward(tokens, edits, lengths=encoded.lengths, quiet=True)
        read = logits[rows, encoded.last]
        read = read if ids is None else read.gather(1, ids)
        values.append(measure(read, encoded, reference))
    return torch.stack(values)
