"""How SmolLM2 finds the indirect object, told from saved runs (Wang et al. 2022, on another model).

Steps back from the answer, as in the paper: who writes it (path patching to the logits), who tells
those heads where to look (to their queries), and what those read (to their keys and values). Beside
each head: where it looks from the last token, what it writes from there, and what kind of head it
is on random repeated tokens. A head belongs to a step if the 95 % interval of its effect over
prompts lies beyond FLOOR of the gap between the clean and the corrupted run.

    python experiments/ioi_smollm2.py [--n 32] [--seed 0]
"""

from dataclasses import replace

import pandas as pd
import typer

import probe

FLOOR = 0.01
GPT2_SMALL = (
    "GPT-2 small, as published (12 layers): name movers 9.6 9.9 10.0 look at IO and copy it; "
    "negative ones 10.7 11.10 do the opposite; S-inhibition 7.3 7.9 8.6 8.10 act on the movers' "
    "queries; induction 5.5 5.8 5.9 6.9 and duplicate-token heads 0.1 0.10 3.0 act on their values"
)


def main(n: int = 32, seed: int = 0) -> None:
    model = probe.load_model("smollm2")
    checked = probe.load_task("ioi", n=n, seed=seed).check(model)
    print(checked, "\n")
    task = checked.correct
    about = describe(model, task)

    answer = step(model, task, None, None)
    tell("Who writes the answer: path patching to the logits", answer, about)
    writers = [
        s for s, effect in zip(answer["sender"], answer["effect"], strict=True) if effect > 0
    ]
    asks = step(model, task, [f"q.{name}" for name in writers], [-1])
    tell(f"Who tells {' '.join(writers)} where to look: to their queries, last token", asks, about)
    askers = [name for name in asks["sender"] if name not in writers]
    for kind in ("k", "v") if askers else ():
        read = step(model, task, sorted({shared(model, name, kind) for name in askers}), None)
        tell(f"What {' '.join(askers)} read: to their {kind}", read, about)

    whole = probe.run("activation_patching", model=model, task=task, kind="z", save=True)
    print("Total effect of a head, clean into corrupted, ten largest:")
    print(whole.summary().nlargest(10, "value").round(3).to_string(index=False), "\n")
    print(GPT2_SMALL)


def step(
    model: probe.Model, task: probe.Task, receivers: list[str] | None, at: list[int] | None
) -> pd.DataFrame:
    """Heads whose corrupted output, sent to these receivers alone, costs the clean run its answer.

    The effect is the drop of each prompt's own metric, as a share of the mean gap.
    """
    result = probe.run(
        "path_patching", model=model, task=task, receivers=receivers, positions=at,
        direction="noise", save=True,
    )  # fmt: skip
    frame = result.frame
    gap = (frame["clean"] - frame["corrupted"]).mean()
    paired = replace(result, frame=frame.assign(value=(frame["clean"] - frame["raw"]) / gap))
    found = paired.summary(by=["sender"]).rename(columns={"value": "effect"})
    found = found[(found["low"] > FLOOR) | (found["high"] < -FLOOR)]
    return found.sort_values("effect", key=abs, ascending=False)[
        ["sender", "effect", "low", "high"]
    ]


def describe(model: probe.Model, task: probe.Task) -> pd.DataFrame:
    """For every head: attention to and logit difference from each name; its scores elsewhere."""
    role = name_positions(model, task)

    def by_role(method: str, **options: str) -> pd.DataFrame:
        frame = probe.run(method, model=model, task=task, queries=[-1], **options).frame
        frame = frame.assign(
            to=[role.get(k) for k in zip(frame["batch"], frame["key"], strict=True)]
        )
        total = frame.dropna(subset="to").groupby(["layer", "head", "to"])["value"].sum()
        return (total / len(task)).unstack("to").fillna(0.0)[["IO", "S1", "S2"]]

    looks = by_role("attention_patterns").add_prefix("looks ")
    writes = by_role("attention_contribution", measure="logit_diff").add_prefix("writes ")
    scores = probe.run("head_scores", model=model, save=True).summary(by=["layer", "head", "score"])
    kinds = scores.pivot(index=["layer", "head"], columns="score", values="value")
    table = looks.join(writes[["writes IO", "writes S2"]])
    table = table.join(kinds[["previous", "duplicate", "induction"]])
    table.index = [f"{layer}.{head}" for layer, head in table.index]
    return table


def name_positions(model: probe.Model, task: probe.Task) -> dict[tuple[int, int], str]:
    """(prompt, position) → IO, S1 or S2."""
    encoded, role = task.encode(model), {}
    for row, prompt in enumerate(encoded.task.prompts):
        words = [token.strip() for token in encoded.str_tokens(row)]
        giver = [p for p, word in enumerate(words) if word == prompt.wrong_answer.strip()]
        role |= {(row, p): name for p, name in zip(giver, ("S1", "S2"), strict=False)}
        role |= {(row, p): "IO" for p, word in enumerate(words) if word == prompt.answer.strip()}
    return role


def shared(model: probe.Model, name: str, kind: str) -> str:
    """The key or value head a query head reads."""
    layer, head = name.split(".")
    return f"{kind}.{layer}.{int(head) // model.dims.heads_per_kv}"


def tell(title: str, found: pd.DataFrame, about: pd.DataFrame) -> None:
    """One step as a table."""
    print(f"{title}: {len(found)} heads")
    if found.empty:
        return
    print(found.head(12).join(about, on="sender").round(2).to_string(index=False), "\n", flush=True)


if __name__ == "__main__":
    typer.run(main)
