"""What a method found: a tidy table, how to look at it, and how it came to be."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
import pandas as pd
from pydantic import BaseModel, Field

from probe.core.errors import OptionError, ProbeError, nearest
from probe.core.provenance import Provenance

Kind = Literal["heatmap", "line", "bar", "tokens", "scatter", "table", "wall", "graph"]
Scale = Literal["signed", "activation", "attention", "share"]

_EXAMPLES = ("batch", "seed")
_BOOTSTRAP = 1000
_BLOCK = 2000


class View(BaseModel, frozen=True):
    """How to look at a frame: which column is which axis of which figure."""

    kind: Kind
    x: str
    y: str = "value"
    color: str | None = Field(
        default=None, description="Heatmap, wall, graph: the number. Line: one line for each"
    )
    facet: str | None = Field(default=None, description="One panel for each value of this column")
    text: str | None = Field(
        default=None,
        description="A column printed in the cell or on hover; graph: nodes y is an input of",
    )
    scale: Scale = Field(default="signed", description="Which colour scale fits the number")
    title: str = ""

    @property
    def number(self) -> str:
        """The column that holds the number drawn."""
        return (self.color or "value") if self.kind in ("heatmap", "wall", "graph") else self.y

    @property
    def axes(self) -> list[str]:
        """The columns a mean over examples keeps apart."""
        named = (self.x, self.y, self.facet, None if self.number == self.color else self.color)
        return [name for name in named if name and name != self.number]


@runtime_checkable
class Drawer(Protocol):
    """What draws and keeps Results. The api, which may import every room, provides it."""

    def draw(self, result: "Result") -> Any:
        """A plotly figure."""
        ...

    def html(self, result: "Result") -> str:
        """A self-contained page fragment."""
        ...

    def display(self, result: "Result") -> None:
        """Show figure and table in a notebook."""
        ...

    def save(self, result: "Result") -> Any:
        """Keep it, and say where."""
        ...


@dataclass(frozen=True, eq=False)
class Result:
    """One row an observation; axes are columns; the number is ``value``.

    Attributes:
        frame: The table.
        columns: Column name → what it means, with unit and sign.
        view: How to draw it.
        provenance: How it came to be.
    """

    frame: pd.DataFrame = field(repr=False)
    columns: Mapping[str, str] = field(repr=False)
    view: View
    provenance: Provenance = field(repr=False)

    drawer: ClassVar[Drawer | None] = None

    def __post_init__(self) -> None:
        """A table without a description of each column is not a Result."""
        undescribed = [str(name) for name in self.frame.columns if name not in self.columns]
        absent = [name for name in self.columns if name not in self.frame.columns]
        if undescribed or absent:
            raise ProbeError(
                f"{self.provenance.method}: columns without description {undescribed}, "
                f"descriptions without column {absent}",
                expected="a description for each column and a column for each description",
            )

    @property
    def id(self) -> str:
        """The run's id."""
        return self.provenance.run_id

    def summary(
        self, by: Sequence[str] | None = None, *, n_boot: int = _BOOTSTRAP, seed: int = 0
    ) -> pd.DataFrame:
        """Mean over examples with a 95 % bootstrap interval: columns value, low, high, n.

        Args:
            by: Columns to keep apart; by default the axes of the view. A missing entry is a
                place of its own.
            n_boot: Bootstrap draws, over examples. With one example low and high are missing.
            seed: Random seed of the bootstrap.
        """
        by = list(dict.fromkeys(self.view.axes if by is None else by))
        for name in by:
            if name not in self.frame:
                raise OptionError(f"no column {name!r}", remedy=nearest(name, self.columns))
        number = self.view.number
        # Seeds of one prompt are no further examples: they are averaged before the bootstrap.
        over = [name for name in _EXAMPLES if name in self.frame and name not in by][:1]
        if not over:
            return self.frame[[*by, number]].assign(low=np.nan, high=np.nan, n=1)
        cell, example = _codes(self.frame, by), _codes(self.frame, over)
        means = self.frame[number].groupby([cell, example]).mean()
        at_cell, at_example = (means.index.get_level_values(level) for level in (0, 1))
        matrix = np.full((example.max(initial=-1) + 1, cell.max(initial=-1) + 1), np.nan)
        matrix[at_example, at_cell] = means
        low, high = _intervals(matrix, n_boot, seed)
        first = np.unique(cell, return_index=True)[1]
        return (
            self.frame[by]
            .iloc[first]
            .reset_index(drop=True)
            .assign(**{number: _mean(matrix)}, low=low, high=high, n=(~np.isnan(matrix)).sum(0))
        )

    def plot(self) -> Any:
        """The figure of its view, as a plotly Figure."""
        return self._need_drawer().draw(self)

    def save(self) -> Any:
        """Keep it under the runs directory; returns the folder."""
        return self._need_drawer().save(self)

    def _need_drawer(self) -> Drawer:
        if Result.drawer is None:
            raise ProbeError("nothing to draw or save with yet", remedy="import probe.api")
        return Result.drawer

    def _ipython_display_(self) -> None:
        self._need_drawer().display(self)

    def _repr_html_(self) -> str:
        return self._need_drawer().html(self)

    def __repr__(self) -> str:
        p = self.provenance
        return f"Result({p.method}, {len(self.frame)} rows, {p.model.get('name')}, {self.id})"


def _codes(frame: pd.DataFrame, columns: list[str]) -> np.ndarray:
    """Which group of equal entries each row is in, by first appearance; missing ones are one."""
    if not columns:
        return np.zeros(len(frame), dtype=int)
    groups = frame.groupby(columns, sort=False, observed=True, dropna=False)
    return groups.ngroup().to_numpy()


def _mean(matrix: np.ndarray) -> np.ndarray:
    count = (~np.isnan(matrix)).sum(0)
    return np.where(count > 0, np.nansum(matrix, 0) / np.maximum(count, 1), np.nan)


def _intervals(matrix: np.ndarray, n_boot: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Percentile bootstrap of the mean over rows; missing cells are left out."""
    n, cells = matrix.shape
    if n < 2:
        return np.full(cells, np.nan), np.full(cells, np.nan)
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(n, np.full(n, 1 / n), size=n_boot).astype(float)
    low, high = np.empty(cells), np.empty(cells)
    for start in range(0, cells, _BLOCK):
        block = matrix[:, start : start + _BLOCK]
        present = ~np.isnan(block)
        total = weights @ np.where(present, block, 0.0)
        count = weights @ present
        means = np.where(count > 0, total / np.where(count > 0, count, 1), np.nan)
        alone = present.sum(0) < 2
        means[:, alone] = 0.0
        edges = np.nanpercentile(means, [2.5, 97.5], axis=0)
        edges[:, alone] = np.nan
        low[start : start + _BLOCK], high[start : start + _BLOCK] = edges
    return low, high
