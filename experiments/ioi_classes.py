"""Classes of attention heads for indirect objects, told as Wang et al. (2022) do.

Back from the answer: name movers look from the last token at the receiver (0.3 or more) and copy
names (copy score 0.8 or more); S-inhibition heads look from there at the giver's second mention
(0.3) and act through the movers' queries; duplicate-token and induction heads look from that
mention at the first, or at the token after it, and act through the values of S-inhibition heads;
previous-token heads look back from that token and act through the keys of induction heads. To act
is to change the mean logit difference, with a 95 % interval over prompts, by more than 1 % of it.
"""

from collections.abc import Sequence

import torch
from ioi_parts import NAMED, Prompts, name
from torch import Tensor

import probe

LOOKS, COPIES, ACTS = 0.3, 0.8, 0.01
TOP = 5
Heads = list[tuple[int, int]]

# --- what heads look at, copy and write ----------------------------------------------------------

PAIRS = ("END>IO", "END>S1", "END>S2", "S2>S1", "S2>S1+1", "S1+1>S1")
COLUMNS = [pair.lower().replace(">", "_").replace("+", "_plus_") for pair in PAIRS]


def seen(prompts: Prompts) -> dict[str, Tensor]:
    """Attention between places, each [batch, layer, head]."""
    patterns = prompts.model.trace(prompts.encoded, ["pattern"])["pattern"]
    return {pair: prompts.attention(patterns, *pair.split(">")) for pair in PAIRS}


def copies(prompts: Prompts, layers: Sequence[int] | None = None) -> Tensor:
    """Whether a head that sees the receiver's name alone puts it among the first five tokens.

    What stands at the name after the first block, through each head's values and output, the final
    norm and the unembedding: [batch, layer, head, 2], the second through minus the head.
    """
    model, dims = prompts.model, prompts.model.dims
    resid = prompts.pick(model.trace(prompts.encoded, ["resid_post.0"])["resid_post.0"], "IO")
    answers = prompts.encoded.need_answers()[:, None, None]
    found = torch.zeros(len(prompts), dims.n_layers, dims.n_heads, 2)
    for layer in range(dims.n_layers) if layers is None else layers:
        each = resid[:, None].expand(-1, dims.n_kv_heads, -1)
        v = model.read_in(layer, "v", each).repeat_interleave(dims.heads_per_kv, dim=1)
        written = model.head_outputs(layer, v)
        for column, sign in enumerate((1, -1)):
            logits = model.unembed(sign * written)
            own = logits.gather(-1, answers.expand(-1, dims.n_heads, 1))
            found[:, layer, :, column] = ((logits > own).sum(-1) < TOP).float()
    return found


def writes(prompts: Prompts, edits: Sequence[probe.Edit] = ()) -> Tensor:
    """What each head writes at the end, less its p_ABC mean, to the logit difference.

    In nats, by the final norm of the run without edits: [batch, layer, head].
    """
    model, encoded = prompts.model, prompts.encoded
    trace = model.trace(encoded, ["z"], edits=edits)
    scale = model.trace(encoded, ["ln_final_scale"]).sel("ln_final_scale", pos=-1)[:, None]
    unembedding = model.weights.W_U
    direction = (
        unembedding[:, encoded.need_answers()] - unembedding[:, encoded.need_wrong_answers()]
    )
    found = []
    for layer in range(model.dims.n_layers):
        change = prompts.pick(trace["z", layer] - prompts.means[layer], "END")
        read = model.read_out(model.head_outputs(layer, change), scale)
        found.append(torch.einsum("bhd,db->bh", read, direction))
    return torch.stack(found, dim=1)


# --- classes -------------------------------------------------------------------------------------


def classes(prompts: Prompts) -> dict[str, Heads]:
    """The heads of each class, the strongest first; a head may be in two."""
    looks = {pair: each.mean(0) for pair, each in seen(prompts).items()}
    direct, per_kv = writes(prompts), prompts.model.dims.heads_per_kv
    found: dict[str, Heads] = {}
    at_io = where(looks["END>IO"] >= LOOKS)
    copied = copies(prompts, sorted({layer for layer, _ in at_io})).mean(0)[..., 0]
    found["name mover"] = [head for head in at_io if copied[head] >= COPIES]
    others = [head for head in at_io if head not in found["name mover"]]
    found["negative name mover"] = acting(prompts, -direct, others)
    gone = writes(prompts, prompts.without(at_end(prompts, found["name mover"])))
    after = [head for head in where(gone.mean(0) > 0) if head not in found["name mover"]]
    found["backup name mover"] = acting(prompts, gone - direct, after)
    found["S-inhibition"] = through(
        prompts,
        where(looks["END>S2"] >= LOOKS),
        [f"q.{name(h)}" for h in found["name mover"]],
        [-1],
    )
    values = [f"v.{layer}.{head // per_kv}" for layer, head in found["S-inhibition"]]
    after_s1, at_s1 = (looks[f"S2>{place}"] for place in ("S1+1", "S1"))
    marks = through(prompts, where(torch.maximum(after_s1, at_s1) >= LOOKS), values, None)
    found["induction"] = [head for head in marks if after_s1[head] >= at_s1[head]]
    found["duplicate token"] = [head for head in marks if head not in found["induction"]]
    keys = [f"k.{layer}.{head // per_kv}" for layer, head in found["induction"]]
    found["previous token"] = through(prompts, where(looks["S1+1>S1"] >= LOOKS), keys, None)
    found["writes against S"] = acting(prompts, direct, where(looks["END>S2"] >= LOOKS))
    nowhere = torch.stack([looks[f"END>{place}"] for place in ("IO", "S1", "S2")]).amax(0) < LOOKS
    found["writes, looks at no name"] = acting(prompts, direct, where(nowhere))
    return found


def where(chosen: Tensor) -> Heads:
    """Heads of a table [layer, head]."""
    return [(int(layer), int(head)) for layer, head in chosen.nonzero()]


def at_end(prompts: Prompts, heads: Heads) -> Tensor:
    """These heads' nodes at the end."""
    nodes = ~prompts.whole
    for layer, head in heads:
        nodes[layer, head, NAMED.index("END")] = True
    return nodes


def acting(prompts: Prompts, effects: Tensor, heads: Heads) -> Heads:
    """Those whose effect, [batch, layer, head], lies above 1 % of F(M) with its whole interval."""
    floor = ACTS * abs(float(prompts.differences().mean()))
    means = effects.mean(0)
    strong = sorted((head for head in heads if means[head] > floor), key=lambda h: -means[h])
    return [
        head for head in strong
        if probe.over_examples(effects[:, head[0], head[1]], of="prompts").low > floor
    ]  # fmt: skip


def through(
    prompts: Prompts, senders: Heads, receivers: list[str], positions: list[int] | None
) -> Heads:
    """Those whose p_ABC output, sent to these receivers alone, costs the difference over 1 %."""
    last = max((int(receiver.split(".")[1]) for receiver in receivers), default=0)
    early = [head for head in senders if head[0] < last]
    if not early:
        return []
    frame = probe.run(
        "path_patching", model=prompts.model, task=prompts.encoded.task, direction="noise",
        senders=[name(head) for head in early], receivers=sorted(set(receivers)),
        positions=positions,
    ).frame  # fmt: skip
    effects = torch.zeros(len(prompts), *prompts.whole.shape[:2])
    for (layer, head), rows in frame.groupby(["layer", "head"]):
        effects[:, layer, head] = torch.tensor((rows["clean"] - rows["raw"]).to_numpy())
    return acting(prompts, effects, early)
