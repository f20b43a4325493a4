"""A Mathematical Framework for Transformer Circuits (Elhage et al. 2021), on tiny models.

Attention-only models of no, one and two layers are trained from three seeds on the project's
everyday text. Their vocabulary is 1,024 tokens and a layer has eight heads of 64 (the paper: 50,000
and twelve of 64), so shares of heads come in eighths.
"""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from ideal_patterns import COUNTS
from safetensors.torch import load_file
from tiny_runs import models, prefix_matching, prefix_tokens, text_of, trained_folder

import probe

SOURCE = "Elhage et al. 2021, transformer-circuits.pub/2021/framework"
VIDEO = "authors' video on two-layer models (automatic captions)"
ALPHAS = (0.01, 0.03, 0.1, 0.3, 1.0)

BIGRAM = probe.Claim(
    "A model of no layers is a table of bigrams, W_U W_E",
    published="identity", source=f'{SOURCE}, "Zero-layer transformers"', mark="memory",
    rule="R: held-out loss within 0.05 nats of the counted bigram's, add-α chosen on other text; "
    "P: within 0.2",
    reproduced={"loss above the counted bigram, nats": probe.between(-0.05, 0.05)},
    partly={"loss above the counted bigram, nats": probe.between(-0.2, 0.2)},
)  # fmt: skip
PATHS = probe.Claim(
    "One layer's logits are the direct path and a sum over heads, patterns fixed",
    published="identity", source=f"{SOURCE}, path expansion", mark="read",
    rule="R: largest gap of a logit below 1e-4 in float32; else a bug, not a result",
    reproduced={"largest gap of a logit": probe.at_most(1e-4)},
)  # fmt: skip
COPYING = probe.Claim(
    "Most heads of one layer copy",
    published='10 of 12 heads "significantly copying"', source=SOURCE, mark="read",
    rule="eigenvalue statistic above 0.5, R: at least 2/3 of heads, and mean |statistic| of the "
    "same model untrained below 0.2; P: at least 1/3",
    reproduced={
        "heads that copy, share": probe.at_least(2 / 3),
        "mean |statistic| untrained": probe.at_most(0.2),
    },
    partly={"heads that copy, share": probe.at_least(1 / 3)},
)  # fmt: skip
BUGS = probe.Claim(
    'Skip-trigrams have bugs: "keep … in mind", "keep … at bay" → "keep … in bay"',
    published="qualitative", source=SOURCE, mark="memory",
    rule="R: at least 3 crossed triples that are false and boosted as two true ones are; P: 1",
    reproduced={"bugs found": probe.at_least(3)}, partly={"bugs found": probe.at_least(1)},
)  # fmt: skip
SECOND = probe.Claim(
    "Fewer, but most, heads of the second layer copy",
    published="7 of 12", source=VIDEO, mark="read",
    rule="R: share within 0.4 to 0.85; P: at least 0.25",
    reproduced={"heads that copy, share": probe.between(0.4, 0.85)},
    partly={"heads that copy, share": probe.at_least(0.25)},
)  # fmt: skip
CORNER = probe.Claim(
    "Induction heads have positive eigenvalues in both QK, via the previous-token head, and OV",
    published="six clearly, one messy of 12, in the extreme right-hand corner", source=VIDEO,
    mark="read",
    rule="R: every head with prefix matching above 0.4 has both statistics above 0.3, and no other "
    "head of its layer has; P: one exception",
    reproduced={"exceptions": probe.at_most(0), "induction heads": probe.at_least(1)},
    partly={"exceptions": probe.at_most(1), "induction heads": probe.at_least(1)},
)  # fmt: skip
COMPOSED = probe.Claim(
    "K-composition of the previous-token head and the induction head stands out",
    published="qualitative; a correction says a library bug spoilt the diagram", source=SOURCE,
    mark="read",
    rule="R: the largest K score belongs to previous-token head → induction head and is at least "
    "3 standard deviations above the mean K score; an induction head is one with prefix matching "
    "above 0.4, as for the eigenvalues",
    reproduced={
        "largest is previous → induction": probe.at_least(1),
        "standard deviations above the mean": probe.at_least(3),
    },
)  # fmt: skip
REPEATED = probe.Claim(
    "Induction works on uniformly random tokens, repeated",
    published="qualitative, off-diagonal stripes", source=SOURCE, mark="read",
    rule="period T of 20 to 60, loss on the second copy, R: two layers at most 0.5 ln T and one "
    "layer at least 0.9 ln T; P: two layers at most 0.8 ln T",
    reproduced={
        "two layers, loss / ln T": probe.at_most(0.5),
        "one layer, loss / ln T": probe.at_least(0.9),
    },
    partly={"two layers, loss / ln T": probe.at_most(0.8)},
)  # fmt: skip
ORDERS = probe.Claim(
    "Single heads matter most; virtual heads hardly",
    published="order 0, 1, 2: 1.8, 5.2, 0.3 nats (25, 71, 4 %); a term 1.8, about 0.2, 0.002",
    source=f"{VIDEO}; shares derived", mark="read",
    rule="order-2 share of the total drop, R: at most 10 %, P: 20 %; order 1 must be the largest",
    reproduced={"order-2 share": probe.at_most(0.1), "order 1 is the largest": probe.at_least(1)},
    partly={"order-2 share": probe.at_most(0.2), "order 1 is the largest": probe.at_least(1)},
)  # fmt: skip
DIRECT = probe.Claim(
    "The second layer's heads carry the direct effect",
    published="given the direct path 5.2 against 1.3 nats; on top of the other 4.0 against 0.05",
    source=VIDEO, mark="read",
    rule="ratio of what each layer's heads add on top of the other's, R: at least 10, P: 3",
    reproduced={"second / first, on top of the other": probe.at_least(10)},
    partly={"second / first, on top of the other": probe.at_least(3)},
)  # fmt: skip


@probe.study(
    paper="Elhage et al. 2021",
    full={"seeds": 3, "changes": {}, "documents": None, "n": 64},
    quick={"seeds": 3, "changes": None, "documents": 1500, "n": 16},
)
def framework(
    *, seed: int, seeds: int, changes: dict | None, documents: int | None, n: int
) -> Iterator:
    """Train (quick: take the shipped models), then read the weights and freeze the patterns."""
    rows = text_of(documents, shipped=changes is None)
    which = range(seed, seed + seeds)

    if changes is None:
        yield BIGRAM.leave_out("models of no layers are not shipped; see the full size")
    else:
        yield bigrams(rows, [trained_folder("attn-only-0l", rows, s, changes) for s in which])

    one = models("attn-only-1l", rows, which, changes)
    yield from one
    untrained = [trained_folder("attn-only-1l", rows, s, {"steps": 1}) for s in which]
    blank = [probe.load_model(folder.parent / "step-000000") for folder in untrained]
    gaps = [largest_gap(model, rows.held_out[:n].long()) for model in one]
    yield PATHS.judge(
        {"largest gap of a logit": probe.over_seeds(gaps)},
        note="here and below heads have 64 dimensions, the paper's size; first measured with 32",
    )
    copies = [copying(model)[0] for model in one]
    yield COPYING.judge(
        {
            "heads that copy, share": probe.over_seeds([(found > 0.5).mean() for found in copies]),
            "mean |statistic| untrained": probe.over_seeds(
                [copying(model)[0].abs().mean() for model in blank]
            ),
        }
    )
    bugs = [crossed(model, rows.train) for model in one]
    yield BUGS.judge(
        {"bugs found": probe.over_seeds([len(found) for found in bugs])},
        note="; ".join(bugs[0][:5]),
    )

    two = models("attn-only-2l", rows, which, changes)
    yield from two
    yield from heads_of_two(two, prefix_tokens(rows.train))
    periods = np.random.default_rng(seed).integers(20, 61, size=n)
    yield REPEATED.judge(
        {
            "two layers, loss / ln T": probe.over_seeds([second_copy(m, periods) for m in two]),
            "one layer, loss / ln T": probe.over_seeds([second_copy(m, periods) for m in one]),
            **{
                f"{name}, tokens of the text, loss / ln T": probe.over_seeds(
                    [second_copy(m, periods, prefix_tokens(rows.train)) for m in models]
                )
                for name, models in (("two layers", two), ("one layer", one))
            },
        },
        note="the training text has recitals of invented words, never of random tokens; an eighth "
        "of the tokens are bytes that it never has, and are left out of what is told of tokens of "
        "the text",
    )
    yield from orders(two, rows.held_out[:n])


# --- no layers -----------------------------------------------------------------------------------


def bigrams(rows, folders: list[Path]) -> object:
    """Models of no layers against counting, on the half of held-out rows that chose no α."""
    text = rows.held_out[1::2]
    counts, table = counted_bigrams(rows)
    losses = np.array([zero_layer_loss(folder, text) for folder in folders])
    rank = load_file(folders[0] / "model.safetensors")["lm_head.weight"].shape[1]
    return BIGRAM.judge(
        {
            "loss above the counted bigram, nats": probe.over_seeds(losses - loss_of(table, text)),
            "loss of the counted bigram, nats": probe.exactly(loss_of(table, text)),
            f"loss of its best fit of rank {rank}, nats": probe.exactly(
                loss_of(of_rank(table, counts.sum(1), rank), text)
            ),
        },
        note="negative where the model does better than the counts; best fit: least squares of "
        "log-probabilities, each token as often as it comes",
    )


def zero_layer_loss(folder: Path, rows: torch.Tensor) -> float:
    """Loss of the model that is embedding, norm and unembedding: its table of bigrams."""
    weights = load_file(folder / "model.safetensors")
    embedded = weights["model.embed_tokens.weight"].double()
    norm = embedded / (embedded.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()
    table = norm * weights["model.norm.weight"] @ weights["lm_head.weight"].double().T
    return loss_of(table.log_softmax(-1), rows)


def counted_bigrams(rows) -> tuple[torch.Tensor, torch.Tensor]:
    """Counts of the training text, [token, next], and their log-probabilities.

    Add-α, the best on every other held-out row.
    """
    size = int(rows.train.max()) + 1
    pairs = rows.train[:, :-1].long() * size + rows.train[:, 1:].long()
    counts = torch.bincount(pairs.flatten(), minlength=size**2).view(size, size).double()
    tables = [((counts + a) / (counts + a).sum(-1, keepdim=True)).log() for a in ALPHAS]
    return counts, min(tables, key=lambda table: loss_of(table, rows.held_out[::2]))


def of_rank(table: torch.Tensor, often: torch.Tensor, rank: int) -> torch.Tensor:
    """The log-probabilities nearest to a table that logits of that rank give."""
    weight = often.clamp(min=1).sqrt()[:, None]
    u, s, v = torch.linalg.svd(weight * (table - table.mean(1, keepdim=True)))
    return (u[:, :rank] * s[:rank] @ v[:rank] / weight).log_softmax(-1)


def loss_of(table: torch.Tensor, rows: torch.Tensor) -> float:
    """Mean loss of the next token by a table of log-probabilities, in nats."""
    rows = rows.long()
    return -table[rows[:, :-1], rows[:, 1:]].mean().item()


# --- one layer -----------------------------------------------------------------------------------


def largest_gap(model, tokens: torch.Tensor) -> float:
    """Between the model's logits and the sum of embedding and heads, each unembedded by itself."""
    made = probe.decompose(model, tokens, positions=range(tokens.shape[1]))
    logits = sum(model.read_out(part, made.scale) @ model.weights.W_U for part in made.vectors)
    return (logits - model.forward(tokens)).abs().max().item()


def copying(model) -> list[pd.Series]:
    """The eigenvalue statistic of W_U W_OV W_E, one series a layer."""
    frame = probe.run("copying_score", model=model).frame
    return [part.set_index("head").value for _, part in frame.groupby("layer")]


def crossed(model, rows: torch.Tensor, top: int = 300) -> list[str]:
    """False triples key … query → next that are boosted like the two true ones they cross.

    True: seen at least five times in the training text, the key anywhere before; false: never.
    """
    heads = range(model.dims.n_heads)
    frame = pd.concat([probe.run("skip_trigrams", model=model, head=head, top=top).frame
                       .assign(head=head) for head in heads])  # fmt: skip
    found = []
    for key, triples in frame.groupby("earlier_id"):  # counting takes longest: once a key
        seen = seen_after(rows, int(key), model.dims.d_vocab).numpy()
        counts = seen[triples.present_id, triples.next_id]
        for _, part in triples.assign(count=counts).groupby("head"):
            true = part[part["count"] >= 5]
            false = part[part["count"] == 0]
            bugs = false[false.present.isin(true.present) & false.next.isin(true.next)]
            found += [f"{row.earlier!r} … {row.present!r} → {row.next!r}"
                      for row in bugs.itertuples()]  # fmt: skip
    return found


def seen_after(rows: torch.Tensor, key: int, size: int) -> torch.Tensor:
    """How often each pair of tokens stands after the key in the same row; [present, next]."""
    some = rows[(rows == key).any(1)]
    behind = (some == key).cumsum(1)[:, :-2] > 0
    codes = some[:, 1:-1][behind].long() * size + some[:, 2:][behind]
    return torch.bincount(codes, minlength=size**2).view(size, size)


# --- two layers ----------------------------------------------------------------------------------


def heads_of_two(trained: list, tokens: torch.Tensor) -> Iterator:
    """Copying in the second layer, the eigenvalue plane, and K-composition."""
    shares, exceptions, numbers, right, strongest, above = [], [], [], [], [], []
    for model in trained:
        induction = pd.Series(prefix_matching(model, tokens)[1])
        before = probe.run("head_scores", model=model, scores=["previous"], layers=[0]).frame
        previous = int(before.groupby("head").value.mean().idxmax())
        ov = copying(model)[1]
        qk = probe.run("matching_score", model=model, via=[0, previous]).frame
        qk = qk[qk.layer == 1].set_index("head").value
        shares.append((ov > 0.5).mean())
        is_induction, in_corner = induction > COUNTS, (ov > 0.3) & (qk > 0.3)
        exceptions.append(int((is_induction != in_corner).sum()))
        numbers.append(int(is_induction.sum()))
        k = probe.run("composition_scores", model=model, kinds=["K"]).frame
        receiver = receives_most(k, previous)
        right.append(receiver is not None and is_induction[receiver])
        strongest.append(receiver == induction.idxmax())
        above.append((k.value.max() - k.value.mean()) / k.value.std())
    yield SECOND.judge({"heads that copy, share": probe.over_seeds(shares)})
    yield CORNER.judge(
        {"exceptions": probe.over_seeds(exceptions), "induction heads": probe.over_seeds(numbers)}
    )
    yield COMPOSED.judge(
        {
            "largest is previous → induction": probe.over_seeds(right),
            "largest is previous → the best of induction": probe.over_seeds(strongest),
            "standard deviations above the mean": probe.over_seeds(above),
        },
        note="no claim is made about Q- and V-composition",
    )


def receives_most(k: pd.DataFrame, sender: int) -> int | None:
    """The second-layer head with the largest score of all, if it has it with that sender."""
    best = k.loc[k.value.idxmax()]
    return int(best["head"]) if best.sender_head == sender else None


def second_copy(
    model, periods: np.ndarray, among: torch.Tensor | None = None, seed: int = 0
) -> float:
    """Loss on the second copy of random tokens over ln T, mean over periods T.

    A third copy would change nothing of the second.
    """
    draw = torch.Generator().manual_seed(seed)
    known = torch.arange(3, model.dims.d_vocab) if among is None else among
    shares = []
    for period in map(int, periods):
        once = known[torch.randperm(len(known), generator=draw)[:period]]
        tokens = torch.cat([torch.tensor([model.tokenizer.hf.bos_token_id]), once, once])[None]
        logits = model.forward(tokens).log_softmax(-1)[0]
        # the first token of the copy cannot be foreseen
        losses = -logits[period + 1 : -1].gather(-1, tokens[0, period + 2 :, None])
        shares.append(losses.mean().item() / math.log(period))
    return float(np.mean(shares))


def orders(trained: list, rows: torch.Tensor) -> Iterator:
    """Losses with the patterns frozen and paths through ever more heads."""
    share, largest, ratio = [], [], []
    for model in trained:
        texts = [model.tokenizer.hf.decode(row[1:200]) for row in rows]
        frame = probe.run("term_importance", model=model, task=probe.Task.from_prompts(texts)).frame
        gain = frame.groupby("kept").gain.mean()
        drops = np.array([gain[f"order {order}"] for order in range(3)])
        share.append(drops[2] / drops.sum())
        largest.append(drops.argmax() == 1)
        alone = {layer: gain[f"1 - layer {layer}"] for layer in (0, 1)}
        ratio.append(alone[1] / alone[0])
    yield ORDERS.judge(
        {
            "order-2 share": probe.over_seeds(share),
            "order 1 is the largest": probe.over_seeds(largest),
        },
        note="order 0 against a uniform guess",
    )
    yield DIRECT.judge({"second / first, on top of the other": probe.over_seeds(ratio)})


if __name__ == "__main__":
    framework.main()
