"""Every view on made-up numbers, so the drawing can be looked at without a model."""

import sys
from pathlib import Path

import numpy as np
import streamlit as st

sys.path.insert(0, str(Path(__file__).parents[2]))

from apps.components.attention_text import attention_text, text_view
from apps.components.colours import Limits, limits
from apps.components.head_wall import Head, head_wall, wall_view
from apps.components.matrix import Axis, Cell, matrix, matrix_view
from apps.components.tokens import Channel, Token, token_row, tokens_view

HOSTILE = ["<img src=x onerror=alert(1)>", " $x$", ":red[x]", "\n", "שלום", "\u202eabc", "\x00"]
TOKENS = [Token("<|im_start|>", special=True), *map(Token, [" When", " Mary", *HOSTILE])]
N = len(TOKENS)

st.set_page_config(layout="wide")
rng = np.random.default_rng(0)
raw = np.tril(rng.random((30, 9, N, N)) ** 4) + np.eye(N) * 0.1
patterns = raw / raw.sum(-1, keepdims=True)
picked = st.session_state.setdefault("picked", {})

labels = [[f"L{i}H{j}", "previous 0.10", "induction 0.91"] for i in range(30) for j in range(9)]
lock = picked.get("head", Head(2, 3))
wall = wall_view(patterns, labels, lock, ends=Limits(0, 1), gamma=0.5, legend="attention 0 to 1, √")
head_wall(wall, key="wall", on_pick=lambda head: picked.update(head=head))

at = picked.get("position", N - 1)
surprise = Channel([float("nan"), *np.linspace(0, 8, N - 1)], "activation", Limits(0, 8))
doubt = Channel(list(np.linspace(0, 5, N)), "attention", Limits(0, 5))
tips = [[f"{i}", token.text] for i, token in enumerate(TOKENS)]
pills = tokens_view(TOKENS, tips, at, colour=surprise, line=doubt, legend="colour: surprise")
token_row(pills, key="pills", on_pick=lambda p: picked.update(position=p))
attention_text(
    text_view(patterns[lock.layer, lock.head], TOKENS, at, gamma=0.5),
    key="text",
    on_pick=lambda p: picked.update(position=p),
)

values = rng.normal(size=(12, N))
cell = picked.get("cell", Cell(3, 4))
matrix(
    matrix_view(
        values,
        Axis("layer", [str(i) for i in range(12)]),
        Axis("position", [f"{i} {token.text}" for i, token in enumerate(TOKENS)]),
        [[f"layer {i}", f"position {j}"] for i in range(12) for j in range(N)],
        scale="signed",
        ends=limits(values, "signed"),
        words=[f"·w{i}" for i in range(12 * N)],
        selected=cell,
        legend=limits(values, "signed").words(),
    ),
    key="matrix",
    on_pick=lambda c: picked.update(cell=c),
)
st.text(f"picked {lock} {at} {cell}")
