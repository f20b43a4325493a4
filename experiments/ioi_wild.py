"""Interpretability in the Wild (Wang et al. 2022) on SmolLM2: a circuit, and what it is worth.

The circuit is found by one rule on prompts of its own (ioi_parts.find_circuit): halve the nodes
(heads at a place) of the whole model by what they bring until 15 % of the heads are left, then drop
what changes the mean logit difference by less than 1 %. Faithfulness, completeness and minimality
are measured on other prompts. Where the model does not prefer the receiver, nothing else is.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
import torch
from ioi_parts import (
    LEAST,
    PLACES,
    SHARE_OF_HEADS,
    Prompts,
    difference,
    find_circuit,
    heads_of,
    knock_out,
    name,
    one_node,
    retold,
    template_means,
)
from torch import Tensor

import probe

PAPER = "Wang et al. 2022, Interpretability in the Wild, arXiv 2211.00593"
CANDIDATES = 8

BEHAVIOUR = probe.Claim(
    "the model prefers the indirect object",
    published="mean logit difference 3.56 (3.55 in figure 8); IO over S in 99.3 %; P(IO) 49 %",
    source=f"{PAPER}, section 2 and figure 8", mark="read",
    rule="gate: IO over S in at least 90 % of prompts",
    reproduced={"IO over S, share of prompts": probe.at_least(0.9)},
)  # fmt: skip
FAITHFUL = probe.Claim(
    "a small circuit is faithful",
    published="|F(M) - F(C)| = 0.46, 13 % of F(M): 87 % kept; by 26 of 144 heads [second-hand]",
    source=f"{PAPER}, section 4", mark="read",
    rule="own circuit, R: 80 to 120 % kept with at most 15 % of heads; P: 60 %",
    reproduced={
        "F(C) / F(M)": probe.between(0.8, 1.2),
        "heads in the circuit, share": probe.at_most(SHARE_OF_HEADS),
    },
    partly={
        "F(C) / F(M)": probe.at_least(0.6),
        "heads in the circuit, share": probe.at_most(SHARE_OF_HEADS),
    },
)  # fmt: skip
COMPLETE = probe.Claim(
    "the circuit is complete",
    published="random and class knock-outs K: small; greedy ones up to 3.09, 87 % of F(M)",
    source=f"{PAPER}, section 4.1", mark="read",
    rule="R: median |F(C without K) - F(M without K)| over random K at most 20 % of F(M); the "
    "greedy worst case is always printed",
    reproduced={"incompleteness, median of random K / F(M)": probe.at_most(0.2)},
)  # fmt: skip
MINIMAL = probe.Claim(
    "the circuit is minimal",
    published="each node at least 1 % of F(M), for some K",
    source=f"{PAPER}, section 4.2", mark="read",
    rule="R: all nodes at least 1 %; P: 80 % of nodes",
    reproduced={"nodes of at least 1 % of F(M), share": probe.at_least(1.0)},
    partly={"nodes of at least 1 % of F(M), share": probe.at_least(0.8)},
)  # fmt: skip
NAIVE = probe.Claim(
    "a naive circuit is as faithful, and incomplete", published="faithfulness gap 0.1",
    source=f"{PAPER}, section 4.3", mark="read", rule="needs GPT-2 small",
)  # fmt: skip
MISLED = probe.Claim(
    "a second mention of the receiver misleads",
    published="S over IO 0.7 % → 23.4 %; difference 3.55 → 1.23; with a third mention of the "
    "giver instead 0.4 %, 3.64",
    source=f"{PAPER}, section 4.4 and figure 8", mark="read",
    rule="R: the difference falls by at least 40 % and the control changes by less than 15 %",
    reproduced={
        "fall with IO named again, share": probe.at_least(0.4),
        "change with S named again, share": probe.at_most(0.15),
    },
)  # fmt: skip

FULL = {"model": "smollm2", "reference": 24, "behave": 192, "find": 20, "steps": 5, "n": 32,
        "draws": 12, "greedy": 6, "few": 12}  # fmt: skip
QUICK = {"model": "smollm2", "reference": 2, "behave": 8, "find": 2, "steps": 2, "n": 3,
         "draws": 2, "greedy": 1, "few": 2}  # fmt: skip


@probe.study(paper=PAPER, full=FULL, quick=QUICK)
def ioi_wild(
    *, seed: int, model: str, reference: int, behave: int, find: int, steps: int, n: int,
    draws: int, greedy: int, few: int,
) -> Iterator[Any]:  # fmt: skip
    """Behaviour, a circuit and its three criteria, and prompts made to mislead."""
    loaded = probe.load_model(model)
    yield loaded
    gate = BEHAVIOUR.judge(behaviour(loaded, probe.load_task("ioi", n=behave, seed=seed)))
    yield gate
    if gate.verdict == "not reproduced":
        for claim in (FAITHFUL, COMPLETE, MINIMAL, NAIVE, MISLED):
            yield claim.leave_out("the model does not prefer the receiver: nothing to explain")
        return
    means = template_means(loaded, reference, seed + 1)
    circuit, note = find_circuit(Prompts.draw(loaded, find, seed + 2, means), steps)
    many = Prompts.draw(loaded, behave, seed + 3, means)
    yield FAITHFUL.judge(faithfulness(many, circuit), note=note)
    judged = many.first(n)
    whole = judged.differences()
    sets = {
        "random": random_sets(circuit, draws, seed),
        "place": place_sets(circuit),
        "greedy": greedy_sets(judged.first(few), circuit, greedy, seed),
    }
    yield COMPLETE.judge(
        completeness(judged, circuit, whole, sets),
        note=f"{draws} random K, each node in with chance one half; all nodes of a place; greedy: "
        f"sets of up to {greedy}, of {CANDIDATES} nodes drawn the one that widens the gap most on "
        f"{few} prompts, judged on all",
    )
    minimal, table = minimality(judged, circuit, whole)
    yield MINIMAL.judge(
        minimal,
        note="K is empty or, where that shows less than 1 %, the other nodes at the same place",
    )
    yield NAIVE.leave_out("about the heads of GPT-2 small only")
    yield MISLED.judge(
        misled(loaded, many.encoded.task),
        note="the control is the paper's, a sentence that names the giver; one that names a third "
        "person is reported beside it",
    )
    yield probe.Exhibit(
        "Nodes of the circuit", table,
        {
            "layer": "block",
            "head": "query head",
            "place": "where its output is kept",
            "node": "layer.head at the place",
            "value": "what its knock-out changes in the circuit, share of F(M), K empty",
            "with_place": "the same with the other nodes of the place out, where under 1 %",
        },
        probe.View(kind="bar", x="node", y="value", color="place"),
    )  # fmt: skip


# --- behaviour -----------------------------------------------------------------------------------


def answers(model: Any, task: probe.Task) -> tuple[Tensor, Tensor]:
    """Logit difference and probability of the answer, each [batch]."""
    encoded = task.encode(model)
    logits = model.forward(encoded.clean, lengths=encoded.lengths, last_only=True)
    chance = logits.softmax(-1)[torch.arange(len(encoded)), encoded.need_answers()]
    return difference(logits, encoded), chance


def behaviour(model: Any, task: probe.Task) -> dict[str, Any]:
    """How surely the model tells the receiver from the giver."""
    gaps, chance = answers(model, task)
    return {
        "IO over S, share of prompts": probe.over_examples(gaps > 0, of="prompts"),
        "logit difference, nats": probe.over_examples(gaps, of="prompts"),
        "P(IO)": probe.over_examples(chance, of="prompts"),
    }


def misled(model: Any, task: probe.Task) -> dict[str, Any]:
    """The logit difference with a sentence between the clauses, against none."""
    cases = ("", "IO", "S", "third")
    table = torch.stack([answers(model, retold(task, about))[0] for about in cases], dim=1)

    def fall(column: int, of: Callable[[float], float] = float) -> Any:
        return ratio(table[:, [column, 0]], lambda kept: of(1 - kept))

    return {
        "fall with IO named again, share": fall(1),
        "change with S named again, share": fall(2, abs),
        "change with a third name, share": fall(3, abs),
        **{
            f"{what}, {about or 'nobody'} named again": probe.over_examples(rows, of="prompts")
            for column, about in enumerate(cases[:3])
            for what, rows in (
                ("logit difference", table[:, column]),
                ("S over IO", table[:, column] < 0),
            )
        },
    }


# --- the circuit ---------------------------------------------------------------------------------


def faithfulness(prompts: Prompts, circuit: Tensor) -> dict[str, Any]:
    """What the circuit keeps of the mean logit difference."""
    whole = prompts.differences()
    rows = torch.stack([prompts.circuit(circuit), whole], dim=1)
    nothing = prompts.circuit(~prompts.whole)
    return {
        "F(C) / F(M)": ratio(rows),
        "heads in the circuit, share": probe.exactly(heads_of(circuit) / circuit[..., 0].numel()),
        "heads in the circuit": probe.exactly(heads_of(circuit)),
        "nodes in the circuit": probe.exactly(int(circuit.sum())),
        "F(M), nats": probe.over_examples(whole, of="prompts"),
        "F(all heads knocked out), nats": probe.over_examples(nothing, of="prompts"),
    }


def ratio(rows: Tensor, of: Callable[[float], float] = float) -> Any:
    """Of the mean of the first column by that of the second."""
    return probe.over_examples(
        rows, lambda table: of(table[:, 0].mean() / table[:, 1].mean()), of="prompts"
    )


def random_sets(circuit: Tensor, draws: int, seed: int) -> list[Tensor]:
    """Sets of nodes, each in with chance one half."""
    drawn = torch.Generator().manual_seed(seed)
    return [circuit & (torch.rand(circuit.shape, generator=drawn) < 0.5) for _ in range(draws)]


def place_sets(circuit: Tensor) -> list[Tensor]:
    """All nodes of a place, for each place that has some."""
    sets = [circuit & (torch.arange(len(PLACES)) == place) for place in range(len(PLACES))]
    return [one for one in sets if one.any()]


def greedy_sets(few: Prompts, circuit: Tensor, steps: int, seed: int) -> list[Tensor]:
    """Sets that each add to the one before the node that widens the gap most, of some drawn."""
    drawn, sets = torch.Generator().manual_seed(seed), [torch.zeros_like(circuit)]
    for _ in range(min(steps, int(circuit.sum()))):
        rest = (circuit & ~sets[-1]).flatten().nonzero()[:, 0]
        tried = rest[torch.randperm(len(rest), generator=drawn)[:CANDIDATES]].tolist()
        wider = [sets[-1] | one_node(circuit, node) for node in tried]
        gaps = [abs(float(apart(few, circuit, one).mean())) for one in wider]
        sets.append(wider[int(np.argmax(gaps))])
    return sets[1:]


def completeness(
    prompts: Prompts, circuit: Tensor, whole: Tensor, sets: dict[str, list[Tensor]]
) -> dict[str, Any]:
    """Whether circuit and model fall alike without the same nodes K."""
    rows = {
        kind: torch.stack([whole, *(apart(prompts, circuit, out) for out in some)], dim=1)
        for kind, some in sets.items()
    }
    said = {"incompleteness, median of random K / F(M)": gap(rows["random"], np.median)}
    return said | {
        f"incompleteness, worst {kind} K / F(M)": gap(table, np.max) for kind, table in rows.items()
    }


def gap(rows: Tensor, of: Callable[[np.ndarray], float]) -> Any:
    """A statistic over sets of |F(C without K) - F(M without K)|, by F(M), the first column."""
    return probe.over_examples(
        rows, lambda table: of(abs(table[:, 1:].mean(0))) / abs(table[:, 0].mean()), of="prompts"
    )


def apart(prompts: Prompts, circuit: Tensor, out: Tensor) -> Tensor:
    """What the circuit keeps without these nodes less what the model does, [batch]."""
    mine = prompts.circuit(circuit & ~out)
    return mine - prompts.differences(prompts.without(out))


def minimality(
    prompts: Prompts, circuit: Tensor, whole: Tensor
) -> tuple[dict[str, Any], pd.DataFrame]:
    """What each node's knock-out changes, K being empty or the rest of its place."""
    table, changes = [], []
    for layer, head, place in circuit.nonzero().tolist():
        node = (layer * circuit.shape[1] + head) * len(PLACES) + place
        effects = knock_out(prompts, circuit, node, LEAST * abs(float(whole.mean())))
        share = [float(effect.mean() / whole.mean()) for effect in effects]
        changes.append(torch.stack([effects[0], effects[-1]], dim=1))
        table.append({
            "layer": layer, "head": head, "place": PLACES[place],
            "node": f"{name((layer, head))} at {PLACES[place]}",
            "value": share[0], "with_place": share[1] if len(share) > 1 else np.nan,
        })  # fmt: skip
    rows = torch.stack([*changes, whole[:, None].expand(-1, 2)], dim=1)

    def enough(rows: np.ndarray) -> float:
        means = abs(rows.mean(0)).max(-1)
        return float((means[:-1] >= LEAST * means[-1]).mean())

    share = "nodes of at least 1 % of F(M), {}share"
    return {
        share.format(""): probe.over_examples(rows, enough, of="prompts"),
        share.format("K empty, "): probe.over_examples(rows[..., :1], enough, of="prompts"),
    }, pd.DataFrame(table)


if __name__ == "__main__":
    ioi_wild.main()
