"""What the studies of indirect objects share: prompts, knock-outs, and how a circuit is found.

A node is a head at a place: at the receiver's name (IO), the giver's first mention (S1), the token
after it (S1+1), his second mention (S2), the last token (END), or elsewhere. Knocking it out puts
its mean over p_ABC there: prompts of the same template with three unrelated names, as in Wang et
al. (2022). MLPs, norms and embeddings are left alone.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import probe

NAMED = ("IO", "S1", "S1+1", "S2", "END")
PLACES = (*NAMED, "elsewhere")
SHARE_OF_HEADS = 0.15
LEAST = 0.01
"""What a node of a circuit must change, as a share of F(M)."""


@dataclass(frozen=True, eq=False)
class Prompts:
    """Prompts, where their names stand, and what stands in for a node that is knocked out.

    Attributes:
        model: The model.
        encoded: The prompts; the corrupted ones have three unrelated names.
        at: Position of each of ``NAMED``, [batch, place].
        means: Head outputs over p_ABC, [layer, batch, pos, head, d_head].
        known: What circuits were measured to do.
    """

    model: Any
    encoded: probe.Encoded
    at: Tensor
    means: Tensor
    known: dict[bytes, Tensor] = field(default_factory=dict, repr=False)

    @classmethod
    def draw(cls, model: Any, n: int, seed: int, means: dict[str, Tensor]) -> "Prompts":
        """Prompts of the built-in task, with the means of their templates."""
        encoded = probe.load_task("ioi", n=n, seed=seed, corruption="abc").encode(model)
        return cls(model, encoded, places(encoded), for_each(encoded, means))

    def __len__(self) -> int:
        return len(self.encoded)

    def first(self, n: int) -> "Prompts":
        """The first n of them."""
        encoded = self.encoded.rows(list(range(min(n, len(self)))))
        means = self.means[:, :n, : encoded.clean.shape[1]]
        return Prompts(self.model, encoded, self.at[:n], means)

    @property
    def whole(self) -> Tensor:
        """Every node, [layer, head, place]."""
        dims = self.model.dims
        return torch.ones(dims.n_layers, dims.n_heads, len(PLACES), dtype=torch.bool)

    @property
    def stands(self) -> Tensor:
        """Which place each position is, [batch, pos, place]."""
        width = self.encoded.clean.shape[1]
        named = self.at[:, None] == torch.arange(width)[:, None]
        return torch.cat([named, ~named.any(-1, keepdim=True)], dim=-1)

    def only(self, nodes: Tensor, share: float = 1.0) -> list[probe.Edit]:
        """Every other node knocked out, and these by 1 - share."""
        gates = torch.einsum("lhr,bpr->lbph", nodes.float(), self.stands.float()) * share
        edits = []
        for layer in (gates < 1).flatten(1).any(1).nonzero()[:, 0].tolist():
            gate, site = gates[layer, ..., None], probe.Site("z", layer)
            edits.append(probe.Edit(site, "scale", gate))
            edits.append(probe.Edit(site, "add", (1 - gate) * self.means[layer]))
        return edits

    def without(self, nodes: Tensor) -> list[probe.Edit]:
        """These nodes knocked out, all others left."""
        return self.only(~nodes)

    def differences(self, edits: Sequence[probe.Edit] = ()) -> Tensor:
        """Logit of the receiver less that of the giver, [batch]."""
        tokens, lengths = self.encoded.clean, self.encoded.lengths
        logits = self.model.forward(tokens, edits, lengths=lengths, last_only=True, quiet=True)
        return difference(logits, self.encoded)

    def circuit(self, nodes: Tensor) -> Tensor:
        """The differences with these nodes and no others, measured once."""
        key = nodes.numpy().tobytes()
        if key not in self.known:
            self.known[key] = self.differences(self.only(nodes))
        return self.known[key]

    def shares(self, nodes: Tensor, steps: int) -> Tensor:
        """What each node brings to the mean difference: [layer, head, place].

        Gradients by the gates of these nodes, integrated while all are opened together (midpoints
        of ``steps``): they sum to F(nodes) - F(none), but for the error of the sum.
        """
        total = torch.zeros(nodes.shape)
        for share in (torch.arange(steps) + 0.5) / steps:
            edits = self.only(nodes, float(share))
            z, slope = self.model.gradients(self.encoded, "z", "logit_diff", edits=edits)
            opened = ((z["z"] - self.means) * slope["z"]).sum(-1) / share
            total += torch.einsum("lbph,bpr->lhr", opened, self.stands.float())
        return total / (steps * len(self)) * nodes

    def pick(self, values: Tensor, place: str) -> Tensor:
        """Of [batch, pos, ...], what stands at a place: [batch, ...]."""
        return values[torch.arange(len(self)), self.at[:, NAMED.index(place)]]

    def attention(self, patterns: Tensor, source: str, target: str) -> Tensor:
        """Of [layer, batch, head, query, key], from one place to another: [batch, layer, head]."""
        query, key = (self.at[:, NAMED.index(place)] for place in (source, target))
        return patterns[:, torch.arange(len(self)), :, query, key]


def difference(logits: Tensor, encoded: probe.Encoded) -> Tensor:
    """Logit of the answer less that of the wrong answer, [batch]."""
    rows = torch.arange(len(encoded))
    return logits[rows, encoded.need_answers()] - logits[rows, encoded.need_wrong_answers()]


def places(encoded: probe.Encoded) -> Tensor:
    """Where each of ``NAMED`` is, [batch, place]."""
    found = []
    for row, prompt in enumerate(encoded.task.prompts):
        words = [token.strip() for token in encoded.str_tokens(row)]
        receiver = words.index(str(prompt.answer).strip())
        giver = [at for at, word in enumerate(words) if word == str(prompt.wrong_answer).strip()]
        found.append([receiver, giver[0], giver[0] + 1, giver[1], len(words) - 1])
    return torch.tensor(found)


def template_means(model: Any, each: int, seed: int) -> dict[str, Tensor]:
    """Head outputs over so many p_ABC prompts of each template, [layer, pos, head, d_head]."""
    encoded = probe.load_task("ioi", n=40 * each, seed=seed, corruption="abc").encode(model)
    rows: dict[str, list[int]] = {}
    for row, prompt in enumerate(encoded.task.prompts):
        rows.setdefault(prompt.tags["template"], []).append(row)
    means = {}
    for template, mine in rows.items():
        part = encoded.rows(mine[:each])
        if part.lengths.unique().numel() > 1:
            raise probe.TaskError(
                f"prompts of template {template} have {part.lengths.unique().tolist()} tokens",
                expected="as many tokens in all, so that a position means the same",
            )
        means[template] = model.trace(part, ["z"], corrupted=True)["z"].mean(1)
    return means


def for_each(encoded: probe.Encoded, means: dict[str, Tensor]) -> Tensor:
    """The mean of its template for each prompt, [layer, batch, pos, head, d_head]."""
    templates = [prompt.tags["template"] for prompt in encoded.task.prompts]
    if missing := sorted(set(templates) - set(means)):
        raise probe.TaskError(
            f"no prompt of p_ABC has template {', '.join(missing)}", remedy="more of them"
        )
    layers, _, heads, width = means[templates[0]].shape
    found = torch.zeros(layers, len(encoded), encoded.clean.shape[1], heads, width)
    for row, template in enumerate(templates):
        found[:, row, : means[template].shape[1]] = means[template]
    return found


def find_circuit(prompts: Prompts, steps: int) -> tuple[Tensor, str]:
    """The nodes the rule leaves, [layer, head, place]; and how it went.

    From the whole model, again and again without the half that brings least, until 15 % of the
    heads are left; then, weakest first, without each node whose knock-out changes F by less than
    1 % both in the circuit and in the circuit without the other nodes of its place.
    """
    nodes = prompts.whole
    most = max(1, int(SHARE_OF_HEADS * nodes[..., 0].numel()))
    order: list[int] = []
    while heads_of(nodes) > most:
        brings = prompts.shares(nodes, steps).abs().masked_fill(~nodes, torch.inf).flatten()
        order = brings.argsort()[: int(nodes.sum())].tolist()
        for node in order[: max(1, len(order) // 2)]:
            nodes.view(-1)[node] = False
            if heads_of(nodes) <= most:
                break
    whole, found = abs(float(prompts.differences().mean())), nodes
    for node in (one for one in order if found.view(-1)[one]):
        effects = knock_out(prompts, nodes, node, LEAST * whole)
        if max(abs(float(effect.mean())) for effect in effects) < LEAST * whole:
            nodes = nodes & ~one_node(nodes, node)
    f = [float(prompts.circuit(each).mean()) for each in (found, nodes)]
    return nodes, (
        f"found on {len(prompts)} other prompts: |F(M)| {whole:.2f}; {heads_of(found)} heads with "
        f"{int(found.sum())} nodes {f[0]:.2f}; {heads_of(nodes)} heads with {int(nodes.sum())} "
        f"nodes after the last step {f[1]:.2f}"
    )


def knock_out(prompts: Prompts, circuit: Tensor, node: int, enough: float) -> list[Tensor]:
    """F(C) - F(C without the node), [batch]; then, if less than enough, without its place.

    That is: F of C without the other nodes at the place, less F without this one too.
    """
    this = one_node(circuit, node)
    alone = prompts.circuit(circuit) - prompts.circuit(circuit & ~this)
    if abs(float(alone.mean())) >= enough:
        return [alone]
    rest = circuit & (~this.any((0, 1)) | this)
    return [alone, prompts.circuit(rest) - prompts.circuit(rest & ~this)]


def one_node(nodes: Tensor, node: int) -> Tensor:
    """The node of this number, alone."""
    alone = torch.zeros_like(nodes)
    alone.view(-1)[node] = True
    return alone


def heads_of(nodes: Tensor) -> int:
    """How many heads have a node."""
    return int(nodes.any(-1).sum())


SCENES = (
    "Then, {first} and {second} went to the {place}.{middle} {giver} gave a {object} to",
    "Then, {first} and {second} had lunch at the {place}.{middle} {giver} offered a {object} to",
    "Then, {first} and {second} met at the {place}.{middle} {giver} handed a {object} to",
)
MIDDLES = ("{name} had slept well.", "{name} felt a little tired.", "{name} was glad to be there.")


SIGNALS = ("place", "token", "both")


def turned(task: probe.Task, signal: str) -> probe.Task:
    """Each prompt beside one whose repeated name says something else.

    ``place``: it was the other of the two names in order; ``token``: it is the other name, at the
    same place of the order; ``both``: the second mention is the receiver's.
    """
    pairs = []
    for prompt in task.prompts:
        io, s = str(prompt.answer).strip(), str(prompt.wrong_answer).strip()
        either = re.compile(rf"\b(?:{io}|{s})\b")
        first, second, giver = either.findall(prompt.clean)
        other = {io: s, s: io}
        names = iter({
            "place": (second, first, giver),
            "token": (other[first], other[second], other[giver]),
            "both": (first, second, other[giver]),
        }[signal])  # fmt: skip
        twin = either.sub(lambda _, names=names: next(names), prompt.clean)
        pairs.append(prompt.model_copy(update={"corrupted": twin}))
    return probe.Task.from_pairs(pairs, name=f"ioi, {signal} turned")


def retold(task: probe.Task, about: str) -> probe.Task:
    """Prompts in two sentences, with one between them about IO, S or a third; or with none."""
    prompts = []
    for row, prompt in enumerate(task.prompts):
        io, s = str(prompt.answer).strip(), str(prompt.wrong_answer).strip()
        first, second = (io, s) if prompt.tags["order"] == "ABBA" else (s, io)
        names = [str(other.answer).strip() for other in (*task.prompts[row:], *task.prompts)]
        third = next((each for each in names if each not in (io, s)), "")
        who = {"IO": io, "S": s, "third": third}
        middle = f" {MIDDLES[row % 3]}".format(name=who[about]) if about else ""
        text = SCENES[row // 3 % 3].format(
            first=first, second=second, giver=s, middle=middle, **prompt.tags
        )
        prompts.append({"clean": text, "answer": f" {io}", "wrong_answer": f" {s}"})
    return probe.Task.from_pairs(prompts, name=f"ioi, {about or 'plain'}")


def name(head: tuple[int, int]) -> str:
    """A head as it is written: 9.6."""
    return f"{head[0]}.{head[1]}"
