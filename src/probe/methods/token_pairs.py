"""Largest entries of a table tokens × tokens that is never made whole."""

from collections.abc import Iterable

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from probe.core.progress import Report
from probe.core.tokens import Tokenizer
from probe.methods.lowrank import LowRank

ROWS = 512
"""Rows of the table at once: 100 MB for 50 000 tokens."""

Found = tuple[Int[Tensor, " pair"], Int[Tensor, " pair"], Float[Tensor, " pair"]]
"""Row, column and value of each."""


def largest(table: LowRank, top: int, *, each_row: bool, report: Report) -> Found:
    """The largest entries: of each row, or of the whole table, largest first.

    Args:
        table: Tokens × tokens by its factors.
        top: How many.
        each_row: So many of each row, rather than of all.
        report: Hears how far it is; returning False keeps what is found.
    """
    parts: list[Found] = []
    for start in range(0, len(table.left), ROWS):
        block = table.left[start : start + ROWS] @ table.right
        part = _of_rows(block, start, top) if each_row else _of_block(block, start, top)
        parts.append(part if each_row else _best([*parts[-1:], part], top))
        if report(start + len(block), len(table.left), "tokens") is False:
            break
    return _joined(parts) if each_row else parts[-1]


def _of_rows(block: Tensor, start: int, top: int) -> Found:
    values, columns = block.topk(min(top, block.shape[1]), dim=1)
    rows = torch.arange(start, start + len(block))[:, None].expand_as(columns)
    return rows.flatten(), columns.flatten().cpu(), values.flatten().cpu()


def _of_block(block: Tensor, start: int, top: int) -> Found:
    values, places = block.flatten().topk(min(top, block.numel()))
    places = places.cpu()
    return start + places // block.shape[1], places % block.shape[1], values.cpu()


def _joined(parts: Iterable[tuple[Tensor, Tensor, Tensor]]) -> Found:
    rows, columns, values = (torch.cat(each) for each in zip(*parts, strict=True))
    return rows, columns, values


def _best(parts: Iterable[Found], top: int) -> Found:
    rows, columns, values = _joined(parts)
    best = values.argsort(descending=True, stable=True)[:top]
    return rows[best], columns[best], values[best]


def frame(
    tokenizer: Tokenizer,
    found: Found,
    rows: Int[Tensor, " token"],
    columns: Int[Tensor, " other"],
    names: tuple[str, str],
) -> pd.DataFrame:
    """The entries found as a table: both tokens with their ids, and the value."""
    made: dict[str, object] = {}
    for name, ids in zip(names, (rows[found[0]], columns[found[1]]), strict=True):
        made[name] = tokenizer.strings(ids.tolist())
        made[f"{name}_id"] = ids.tolist()
    return pd.DataFrame({**made, "value": found[2].double().numpy()})
