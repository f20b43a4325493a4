"""What is known of one head: scores with ranks, its circuits in tokens, who it works with."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
import streamlit as st

import probe
from apps import library, panels, patterns
from apps.components.glyphs import visible
from apps.context import Context

TOKENS_SHOWN = 24
"""Tokens of a prompt whose partners are listed; of more, the last ones."""
PROMPTS = 16
"""Prompts of the task that a head is ablated on."""

KINDS = {"Q": "queries", "K": "keys", "V": "values"}


def ranks(here: Context) -> pd.DataFrame:
    """The head's scores, each with its place among all heads, highest first."""
    means = patterns.mean_scores(here)
    copying = copying_of(here).result.frame[["layer", "head", "value"]]
    table = means.merge(copying.rename(columns={"value": "copying"}), on=["layer", "head"])
    own = (table["layer"] == here.state.layer) & (table["head"] == here.state.head)
    rows = []
    for name in table.columns.drop(["layer", "head"]):
        value = float(table.loc[own, name].iloc[0])
        place = int((table[name] > value).sum()) + 1
        score = str(name).replace("_", " ")
        rows.append({"score": score, "value": value, "rank": f"{place} of {len(table)}"})
    return pd.DataFrame(rows)


def copying_of(here: Context) -> panels.Asked:
    """Copying of every head, by eigenvalues."""
    return panels.ask("copying_score", here.state.model, None)


def tokens_of(here: Context, circuit: str) -> panels.Asked | None:
    """What the head's circuit makes of the prompt's tokens; None where none can be asked about."""
    tokenizer = here.model.tokenizer
    texts = [
        token.text
        for token, number in zip(here.tokens, here.ids, strict=True)
        if tokenizer.single(token.text) == number
    ]
    chosen = list(dict.fromkeys(texts))[-TOKENS_SHOWN:]
    if not chosen:
        return None
    return panels.ask(
        "head_tokens",
        here.state.model,
        None,
        layer=here.state.layer,
        head=here.state.head,
        circuit=circuit,
        tokens=chosen,
        top=5,
    )


def partners_in_line(frame: pd.DataFrame) -> pd.DataFrame:
    """A row a token, its partners in order with their numbers."""
    partner = frame["other"].map(visible) + frame["value"].map(lambda v: f" {v:.1f}")
    rows = frame.assign(token=frame["token"].map(visible), partner=partner)
    wide = rows.pivot(index="token_id", columns="place", values="partner")
    wide.columns = [f"{place + 1}" for place in wide.columns]
    names = rows.drop_duplicates("token_id").set_index("token_id")["token"]
    return pd.concat([names, wide.loc[names.index]], axis=1).reset_index(drop=True)


def composition_of(here: Context) -> panels.Asked:
    """Composition scores of every pair the head is in."""
    of = (here.state.layer, here.state.head)
    return panels.ask("composition_scores", here.state.model, None, of=of)


def partners(here: Context, frame: pd.DataFrame, *, earlier: bool, top: int = 8) -> pd.DataFrame:
    """The heads it reads from (earlier ones) or is read by, strongest first."""
    name = f"{here.state.layer}.{here.state.head}"
    rows = frame[frame["receiver" if earlier else "sender"] == name].nlargest(top, "value")
    layer, head = ("sender_layer", "sender_head") if earlier else ("layer", "head")
    return pd.DataFrame(
        {
            "head": [f"L{a}H{b}" for a, b in zip(rows[layer], rows[head], strict=True)],
            "by its" if earlier else "into its": rows["kind"].map(KINDS),
            "above chance": rows["value"],
            "beyond chance": rows["raw"] > rows["high"],
            "layer": rows[layer],
            "number": rows[head],
        }
    ).reset_index(drop=True)


def rotary_of(here: Context) -> panels.Asked:
    """Which rotary frequencies the layer's heads use on this prompt."""
    layers = [here.state.layer]
    return panels.ask("rotary_usage", here.state.model, here.question, layers=layers)


def shares(here: Context, frame: pd.DataFrame) -> dict[str, tuple[Sequence[Any], Sequence[float]]]:
    """Pair → share, of the head's queries and of the keys it reads."""
    shared = here.state.head // here.model.dims.heads_per_kv
    lines = {}
    for name, rows in (
        ("queries", frame[(frame["part"] == "q") & (frame["head"] == here.state.head)]),
        ("keys it reads", frame[(frame["part"] == "k") & (frame["kv_head"] == shared)]),
    ):
        lines[name] = (rows["pair"].tolist(), rows["share"].tolist())
    return lines


def ablated(here: Context, task: str) -> panels.Asked:
    """What a task loses without the head, in three ways."""
    options = {"kind": "z", "layers": [here.state.layer], "heads": [here.state.head]}
    with st.spinner(f"taking the head away on {PROMPTS} prompts of {task} …", show_time=True):
        result, code = library.ask_task("ablation", here.state.model, task, PROMPTS, options)
    return panels.Asked(result, code)


def lost(result: probe.Result) -> pd.DataFrame:
    """What is put in the head's place → change, with its interval over prompts."""
    summary = result.summary(["ablation"])
    names = ["ablation", "value", "low", "high"]
    return summary[names].rename(columns={"ablation": "in its place", "value": "change"})
