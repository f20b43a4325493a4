"""Interpretability in the Wild (Wang et al. 2022) on SmolLM2: which heads do what.

Heads are told by the rules of ioi_classes on some prompts, and judged on others.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pandas as pd
import torch
from ioi_classes import (
    COLUMNS,
    COPIES,
    LOOKS,
    PAIRS,
    Heads,
    at_end,
    classes,
    copies,
    seen,
    where,
    writes,
)
from ioi_parts import NAMED, SIGNALS, Prompts, name, template_means, turned
from torch import Tensor

import probe

PAPER = "Wang et al. 2022, Interpretability in the Wild, arXiv 2211.00593"

MOVERS = probe.Claim(
    "name movers look at the receiver and copy it; negative ones write against it",
    published="attention to IO 0.59; copy score over 95 %, average head under 20 %; negative 98 "
    "against 12 %",
    source=f"{PAPER}, section 3.1", mark="read",
    rule="R: at least 2 heads with copy score of 80 % or more and attention to IO of 0.3 or more; "
    "P: one",
    reproduced={"name movers": probe.at_least(2)},
    partly={"name movers": probe.at_least(1)},
)  # fmt: skip
INHIBITION = probe.Claim(
    "S-inhibition goes by the place of the first mention more than by its token",
    published="attention from END to S2 0.51; of what duplicate-token and induction heads "
    "write, at least 88 % of the drop from the place, under 8 % from the token",
    source=f"{PAPER}, sections 3.2-3.3", mark="read",
    rule="R: the position part of the drop is at least twice the token part",
    reproduced={"position part less twice the token part, share of F(M)": probe.at_least(0)},
)  # fmt: skip
BACKUP = probe.Claim(
    "backup heads: removing all name movers costs little",
    published="5 % drop", source=f"{PAPER}, section 3.4", mark="read",
    rule="R: at most 30 % drop; P: 60 % (models trained without dropout may differ)",
    reproduced={"drop without name movers, share of F(M)": probe.at_most(0.3)},
    partly={"drop without name movers, share of F(M)": probe.at_most(0.6)},
)  # fmt: skip
GPT2 = {
    "name mover": "9.9 10.0 9.6",
    "negative name mover": "10.7 11.10",
    "backup name mover": "10.10 10.6 10.2 10.1 11.2 9.7 9.0 11.9",
    "S-inhibition": "7.3 7.9 8.6 8.10",
    "induction": "5.5 5.8 5.9 6.9",
    "duplicate token": "0.1 0.10 3.0",
    "previous token": "2.2 4.11",
    "writes against S": "",
    "writes, looks at no name": "",
}
ABOUT = {
    "name mover": "looks at IO and copies names",
    "negative name mover": "looks at IO and writes against the answer",
    "backup name mover": "writes more for the answer once the name movers are out",
    "S-inhibition": "looks at S2, acts through the queries of name movers",
    "induction": "looks from S2 at S1+1, acts through the values of S-inhibition",
    "duplicate token": "looks from S2 at S1, acts through the values of S-inhibition",
    "previous token": "looks from S1+1 at S1, acts through the keys of induction",
    "writes against S": "looks at S2 and writes for the answer; no class of GPT-2 small",
    "writes, looks at no name": "writes for the answer; no class of GPT-2 small",
}


@probe.study(
    paper=PAPER,
    full={"model": "smollm2", "reference": 16, "find": 16, "n": 32},
    quick={"model": "smollm2", "reference": 2, "find": 3, "n": 3},
)
def ioi_heads(*, seed: int, model: str, reference: int, find: int, n: int) -> Iterator[Any]:
    """Classes of heads, and what the paper says of three of them."""
    loaded = probe.load_model(model)
    yield loaded
    means = template_means(loaded, reference, seed + 1)
    finding = Prompts.draw(loaded, find, seed + 2, means)
    found = classes(finding)
    judged = Prompts.draw(loaded, n, seed + 3, means)
    looks, hits = seen(judged), copies(judged)
    yield MOVERS.judge(movers(looks["END>IO"], hits, found), note=say(found, "name mover"))
    yield INHIBITION.judge(
        inhibition(judged, found)
        | {"attention END to S2": over_heads(looks["END>S2"], found["S-inhibition"])},
        note=say(found, "S-inhibition", "duplicate token", "induction")
        + "; their outputs at END, and at S2, come from prompts with a signal inverted",
    )
    said = say(found, "name mover", "backup name mover")
    if found["name mover"]:
        yield BACKUP.judge(without_movers(judged, found), note=said)
    else:
        yield BACKUP.leave_out("no head passes for a name mover")
    yield exhibit_of_classes(found)
    yield exhibit_of_heads(judged, found, looks, hits)


# --- claims --------------------------------------------------------------------------------------


def say(found: dict[str, Heads], *kinds: str) -> str:
    """The heads of these classes in words."""
    return "found on the prompts for finding: " + "; ".join(
        f"{kind}: {' '.join(name(head) for head in found[kind]) or 'none'}" for kind in kinds
    )


def over_heads(values: Tensor, heads: Heads) -> Any:
    """The mean over these heads of [batch, layer, head], over prompts."""
    if not heads:
        return probe.exactly(math.nan)
    each = torch.stack([values[:, layer, head] for layer, head in heads])
    return probe.over_examples(each.mean(0), of="prompts")


def movers(at_io: Tensor, hits: Tensor, found: dict[str, Heads]) -> dict[str, Any]:
    """How many heads look at the receiver and copy it."""
    rows = torch.cat([at_io[..., None], hits], dim=-1)

    def number(table: Any) -> int:
        """Heads of the whole model that do both, whether they were found beforehand or not."""
        looks, copied = table.mean(0)[..., 0], table.mean(0)[..., 1]
        return int(((looks >= LOOKS) & (copied >= COPIES)).sum())

    def mean(column: int, heads: Heads) -> Any:
        return over_heads(rows[..., column], heads)

    told = {
        "name movers": probe.over_examples(rows, number, of="prompts"),
        "attention to IO of those found": mean(0, found["name mover"]),
        "copy score of those found": mean(1, found["name mover"]),
        "copy score, average head": mean(1, where(hits[0, ..., 0] >= 0)),
        "negative copy score, average head": mean(2, where(hits[0, ..., 0] >= 0)),
        "negative name movers": probe.exactly(len(found["negative name mover"])),
    }
    if found["negative name mover"]:
        told["negative copy score of negative ones"] = mean(2, found["negative name mover"])
    return told


def inhibition(prompts: Prompts, found: dict[str, Heads]) -> dict[str, Any]:
    """What the place of the first mention and its token are worth in heads' outputs."""
    if not found["S-inhibition"]:
        return {"position part less twice the token part, share of F(M)": probe.exactly(math.nan)}
    whole = prompts.differences()
    inhibit, mark = found["S-inhibition"], [*found["duplicate token"], *found["induction"]]
    ends = {signal: whole - patched(prompts, inhibit, signal, "END") for signal in SIGNALS}
    marks = {signal: whole - patched(prompts, mark, signal, "S2") for signal in SIGNALS}

    def by(rows: Sequence[Tensor], of: Callable[[Any], float]) -> Any:
        return probe.over_examples(
            torch.stack([*rows], dim=1), lambda table: of(table.mean(0)), of="prompts"
        )

    def share(drop: Tensor, of: Tensor) -> Any:
        return by([drop, of], lambda means: means[0] / means[1])

    return {
        "position part less twice the token part, share of F(M)": by(
            [ends["place"], ends["token"], whole],
            lambda means: (means[0] - 2 * abs(means[1])) / means[2],
        ),
        **{f"drop, {signal} inverted, share of F(M)": share(drop, whole)
           for signal, drop in ends.items()},
        **{f"drop, {signal} inverted at S2, by that of place at END": share(drop, ends["place"])
           for signal, drop in marks.items()},
    }  # fmt: skip


def patched(prompts: Prompts, heads: Heads, signal: str, place: str) -> Tensor:
    """The differences with heads' outputs at a place from prompts whose signal is inverted."""
    if not heads:
        return prompts.differences()
    turning = turned(prompts.encoded.task, signal).encode(prompts.model)
    layers = sorted({layer for layer, _ in heads})
    trace = prompts.model.trace(turning, [f"z.{layer}" for layer in layers], corrupted=True)
    at = prompts.at[:, NAMED.index(place)]
    edits = []
    for layer in layers:
        mine = [head for block, head in heads if block == layer]
        edits.append(probe.patch(f"z.{layer}", trace["z", layer], pos=at, head=mine))
    return prompts.differences(edits)


def without_movers(prompts: Prompts, found: dict[str, Heads]) -> dict[str, Any]:
    """What is lost without the name movers at the end, and how much they had written."""
    whole, movers, direct = prompts.differences(), found["name mover"], writes(prompts)

    def lost(*kinds: str) -> Any:
        heads = [head for kind in kinds for head in found[kind]]
        rest = prompts.differences(prompts.without(at_end(prompts, heads)))
        return share(whole - rest)

    def share(part: Tensor) -> Any:
        rows = torch.stack([part, whole], dim=1)
        return probe.over_examples(
            rows, lambda table: table[:, 0].mean() / table[:, 1].mean(), of="prompts"
        )

    written = torch.stack([direct[:, layer, head] for layer, head in movers]).sum(0)
    return {
        "drop without name movers, share of F(M)": lost("name mover"),
        "written by name movers, share of F(M)": share(written),
        "drop without name movers and backups, share of F(M)": lost(
            "name mover", "backup name mover"
        ),
        "drop without all that write, share of F(M)": lost(
            "name mover", "backup name mover", "writes against S", "writes, looks at no name"
        ),
    }


# --- exhibits ------------------------------------------------------------------------------------


def exhibit_of_classes(found: dict[str, Heads]) -> probe.Exhibit:
    """Beside the published heads of GPT-2 small."""
    rows = [
        {"class": kind, "smollm2": " ".join(name(head) for head in found[kind]),
         "gpt2_small": GPT2[kind], "about": about}
        for kind, about in ABOUT.items()
    ]  # fmt: skip
    return probe.Exhibit(
        "Classes of heads beside those of GPT-2 small", pd.DataFrame(rows),
        {
            "class": "class of heads",
            "smollm2": "heads of the model here, the strongest first; a head may be in two",
            "gpt2_small": "heads of GPT-2 small, as published (12 layers of 12 heads)",
            "about": "what a head of the class does, by the rules of this study",
        },
        probe.View(kind="table", x="class", text="smollm2"),
    )  # fmt: skip


def exhibit_of_heads(
    prompts: Prompts, found: dict[str, Heads], looks: dict[str, Tensor], hits: Tensor
) -> probe.Exhibit:
    """Numbers of every head that is in a class, on the prompts they are judged on."""
    direct, whole = writes(prompts).mean(0), float(prompts.differences().mean())
    rows = [
        {
            "layer": layer, "head": head, "name": name((layer, head)), "class": kind,
            **{column: float(looks[pair][:, layer, head].mean())
               for column, pair in zip(COLUMNS, PAIRS, strict=True)},
            "copies": float(hits[:, layer, head, 0].mean()),
            "copies_negative": float(hits[:, layer, head, 1].mean()),
            "value": float(direct[layer, head]) / whole,
        }
        for kind, heads in found.items() for layer, head in heads
    ]  # fmt: skip
    return probe.Exhibit(
        "Heads that have a class", pd.DataFrame(rows),
        {
            "layer": "block", "head": "query head", "name": "layer.head", "class": "its class",
            **{column: f"attention, {pair.replace('>', ' to ')}"
               for column, pair in zip(COLUMNS, PAIRS, strict=True)},
            "copies": "copy score", "copies_negative": "copy score of minus the head",
            "value": "what it writes at the end to the logit difference, share of F(M)",
        },
        probe.View(kind="bar", x="name", y="value", color="class"),
    )  # fmt: skip


if __name__ == "__main__":
    ioi_heads.main()
