"""Attention patterns written by hand, and how much of what heads are worth they keep.

Fixed before anything was measured. The *loss gap* of heads: the mean loss on held-out rows with
each head's output replaced by its mean over the rows at the same position, less the loss of the
intact model. *Kept*: what is left of that gap when the heads' patterns are the ideal ones instead,
all else as the model makes of it. The ideal patterns depend on the tokens alone:

- previous token: all attention on the token before; at position 0 on itself;
- induction, [A][B]...[A]: even over the positions so far whose previous token is the present one,
  the tokens that followed it before; where there is none, all on position 0, the BOS token;
- induction, [A][B][C]...[A][B]: the same, but where some of those positions agree in the token
  before that too, even over these only.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from tiny_runs import Edits, prefix_matching, token_losses

import probe

Pattern = Callable[[torch.Tensor], torch.Tensor]
"""Token rows, [row, pos] → a pattern, [row, query, key]."""
Head = tuple[int, int]
"""Layer, and number in it."""
Ideals = dict[Head, Pattern]
COUNTS = 0.4
"""Score above which a head counts as one of a kind."""

KEPT = "loss gap kept, ideal "
PREVIOUS, INDUCTION = KEPT + "previous-token head", KEPT + "induction head"


class Intact(NamedTuple):
    """What is needed of the intact model: its loss, and the mean outputs of heads, a layer each."""

    loss: float
    outputs: list[torch.Tensor]


def recovered(model: Any, rows: torch.Tensor, tokens: torch.Tensor) -> dict[str, float]:
    """What ideal patterns keep: in the best head of each kind, in both, in all that count as one.

    The previous-token head is in the first layer and the induction head in the last.
    """
    end, whole = model.dims.n_layers - 1, intact(model, rows)
    before, after = previous_token(model, rows)[0], prefix_matching(model, tokens)[end]
    first, last = (0, int(before.argmax())), (end, int(after.argmax()))
    heads: dict[str, Ideals] = {
        "previous-token head": {first: previous},
        "induction head": {last: followed},
        "induction head, [A][B][C]": {last: followed_both},
        "head of each kind": {first: previous, last: followed},
        "previous-token heads": {(0, head): previous for head in counted(before)},
        "induction heads": {(end, head): followed for head in counted(after)},
    }
    found = {
        "previous-token score": before.max().item(),
        "prefix-matching score": after.max().item(),
        "previous-token heads": len(counted(before)),
        "induction heads": len(counted(after)),
        "attention of the induction head to what followed": matched(model, rows, last),
    }
    for name, ideals in heads.items():
        gap = loss(model, rows, removed(whole, ideals)) - whole.loss
        lost = loss(model, rows, by_hand(ideals)) - whole.loss
        found |= {KEPT + name: share_kept(gap, lost), f"loss gap, nats, {name}": gap}
    return found


def share_kept(gap: float, lost: float) -> float:
    """What is left of a loss gap; not a number where there is none to keep anything of."""
    return 1 - lost / gap if gap > 0 else math.nan


def intact(model: Any, rows: torch.Tensor) -> Intact:
    """The model as it is."""
    trace = model.trace(rows, ["z"])
    outputs = [trace["z", layer].mean(0, keepdim=True) for layer in range(model.dims.n_layers)]
    return Intact(loss(model, rows), outputs)


def loss(model: Any, rows: torch.Tensor, edits: Edits = lambda rows: []) -> float:
    """Mean loss, in nats a token."""
    return token_losses(model, rows, edits).mean().item()


def removed(whole: Intact, heads: Iterable[Head]) -> Edits:
    """These heads' outputs at their mean."""
    edits = [probe.patch(f"z.{layer}.{head}", whole.outputs[layer]) for layer, head in heads]
    return lambda rows: edits


def by_hand(ideals: Ideals) -> Edits:
    """These heads' patterns as written."""
    return lambda rows: [probe.patch(f"pattern.{layer}.{head}", ideal(rows)[:, None])
                         for (layer, head), ideal in ideals.items()]  # fmt: skip


# --- heads ---------------------------------------------------------------------------------------


def previous_token(model: Any, rows: torch.Tensor) -> torch.Tensor:
    """Mean attention to the token before, on these rows, [layer, head]."""
    trace = model.trace(rows, ["pattern"])
    before = [trace["pattern", layer].diagonal(-1, dim1=-2, dim2=-1).mean((0, 2))
              for layer in range(model.dims.n_layers)]  # fmt: skip
    return torch.stack(before)


def matched(model: Any, rows: torch.Tensor, head: Head) -> float:
    """Mean attention of a head to what followed the present token before, where anything did."""
    layer, number = head
    pattern = model.trace(rows, [f"pattern.{layer}"])["pattern", layer][:, number]
    follows = _after(rows)
    return (pattern * follows).sum(-1)[follows.any(-1)].mean().item()


def counted(scores: torch.Tensor) -> list[int]:
    """The heads with a score that makes them one of a kind."""
    return (scores > COUNTS).nonzero().flatten().tolist()


# --- patterns ------------------------------------------------------------------------------------


def previous(rows: torch.Tensor) -> torch.Tensor:
    """All attention on the token before."""
    length = rows.shape[1]
    before = torch.eye(length).roll(-1, 1).tril()
    before[0, 0] = 1
    return before.expand(len(rows), -1, -1)


def followed(rows: torch.Tensor) -> torch.Tensor:
    """Attention on what followed the present token before."""
    return _even(_after(rows))


def followed_both(rows: torch.Tensor) -> torch.Tensor:
    """Attention on what followed the present token and the one before it, where anything did."""
    one = _after(rows)
    two = one.clone()
    two[:, 1:, 1:] &= one[:, :-1, :-1]
    return _even(torch.where(two.any(-1, keepdim=True), two, one))


def _after(rows: torch.Tensor) -> torch.Tensor:
    """Whether the token before the key is the query's, [row, query, key]."""
    same = torch.zeros(*rows.shape, rows.shape[1], dtype=torch.bool)
    same[:, :, 1:] = rows[:, :, None] == rows[:, None, :-1]
    return same.tril()


def _even(chosen: torch.Tensor) -> torch.Tensor:
    """Even attention over the keys that are chosen, all on position 0 where none is."""
    chosen = chosen.clone()
    chosen[..., 0] |= ~chosen.any(-1)
    return chosen / chosen.sum(-1, keepdim=True)
