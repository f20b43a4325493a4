"""A number for each pair of positions, of each head, as a table of bounded size."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float
from torch import Tensor

from probe.core.errors import OptionError, SizeError
from probe.core.model import Dims
from probe.core.task import Encoded

MOST_ROWS = 2_000_000
"""Rows of the largest table made: about 150 MB in memory."""


@dataclass(frozen=True)
class Squares:
    """Which layers, heads and query positions of a batch of prompts are asked for.

    Attributes:
        layers: Block indices.
        heads: Query heads.
        queries: Query positions, negative ones counted from each prompt's end; None for all.
        causal: Whether keys after the query are left out, being out of reach.
    """

    layers: tuple[int, ...]
    heads: tuple[int, ...]
    queries: tuple[int, ...] | None
    causal: bool

    @classmethod
    def choose(
        cls,
        dims: Dims,
        layers: Sequence[int] | None,
        heads: Sequence[int] | None,
        queries: Sequence[int] | None = None,
    ) -> "Squares":
        """All layers or heads where None is given.

        Raises:
            OptionError: A layer or head the model does not have, or a list of none.
        """
        if queries is not None and not queries:
            raise OptionError("no query was asked for", remedy="leave queries out to have all")
        return cls(
            _within("layer", layers, dims.n_layers),
            _within("head", heads, dims.n_heads),
            None if queries is None else tuple(queries),
            dims.causal,
        )

    def places(self, length: int, row: int) -> dict[int, int]:
        """Query position of a prompt → its place among the recorded queries."""
        if self.queries is None:
            return {query: query for query in range(length)}
        for query in self.queries:
            if not -length <= query < length:
                raise OptionError(
                    f"query position {query} lies outside prompt {row}",
                    expected=f"{-length} to {length - 1}: the prompt has {length} tokens",
                )
        return {query % length: place for place, query in enumerate(self.queries)}

    def check_fits(self, encoded: Encoded) -> None:
        """Refuse a table of too many rows before anything is run.

        Raises:
            SizeError: More than MOST_ROWS, or an OptionError for a query outside a prompt.
        """
        pairs = 0
        for row, length in enumerate(encoded.lengths.tolist()):
            seen = self.places(length, row)
            pairs += sum(query + 1 if self.causal else length for query in seen)
        rows = pairs * len(self.layers) * len(self.heads)
        if rows > MOST_ROWS:
            raise SizeError(
                f"the table would have {rows:,} rows: {len(self.layers)} layers, "
                f"{len(self.heads)} heads, {pairs:,} pairs of positions in {len(encoded)} prompts",
                expected=f"at most {MOST_ROWS:,}",
                remedy="layers=[...], heads=[...], queries=[-1], fewer or shorter prompts; "
                'or model.trace(prompts, sites="pattern"), which keeps tensors',
            )

    def frame(
        self, values: Float[Tensor, "layer batch head query key"], encoded: Encoded
    ) -> pd.DataFrame:
        """One row for each prompt, layer, head, query and key in reach.

        Args:
            values: The layers, heads and queries chosen, in their order.
            encoded: The prompts, for their lengths and tokens.
        """
        return pd.concat(
            [self._prompt(values[:, row], encoded, row) for row in range(len(encoded))],
            ignore_index=True,
        )

    def _prompt(
        self, values: Float[Tensor, "layer head query key"], encoded: Encoded, row: int
    ) -> pd.DataFrame:
        length = int(encoded.lengths[row])
        places = self.places(length, row)
        queries, keys = np.array(list(places)), np.arange(length)
        reach = keys <= queries[:, None] if self.causal else np.ones((len(places), length), bool)
        at, key = np.nonzero(reach)
        numbers = values.float().cpu().numpy()[:, :, np.array(list(places.values()))[at], key]
        strings = np.array(encoded.str_tokens(row), dtype=object)
        n_layers, n_heads, n_pairs = numbers.shape
        return pd.DataFrame(
            {
                "batch": row,
                "layer": np.repeat(self.layers, n_heads * n_pairs),
                "head": np.tile(np.repeat(self.heads, n_pairs), n_layers),
                "query": np.tile(queries[at], n_layers * n_heads),
                "key": np.tile(key, n_layers * n_heads),
                "query_token": np.tile(strings[queries[at]], n_layers * n_heads),
                "key_token": np.tile(strings[key], n_layers * n_heads),
                "value": numbers.reshape(-1),
            }
        )


COLUMNS = {
    "batch": "prompt within the task",
    "layer": "block, counted from 0",
    "head": "query head",
    "query": "position attended from",
    "key": "position attended to; of a causal model, up to the query",
    "query_token": "token at the query position",
    "key_token": "token at the key position",
}
"""What the columns mean that are not the number."""


def _within(what: str, asked: Sequence[int] | None, size: int) -> tuple[int, ...]:
    if asked is None:
        return tuple(range(size))
    for one in asked:
        if not 0 <= one < size:
            raise OptionError(
                f"{what} {one}", expected=f"0 to {size - 1}: the model has {size} {what}s"
            )
    if not asked:
        raise OptionError(f"no {what} was asked for", remedy=f"leave {what}s out to have all")
    return tuple(dict.fromkeys(asked))
