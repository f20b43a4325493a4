"""A feature index, read: one feature's page, and ways to find a feature."""

import json
import shutil
import sqlite3
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from probe.core import provenance
from probe.core.dictionary import Dictionary
from probe.core.errors import DictionaryError, nearest
from probe.core.model import Model
from probe.dictionaries import index_file
from probe.dictionaries.feature_page import FeaturePage, Reader, percentile, some
from probe.dictionaries.files import SHIPPED
from probe.dictionaries.named import named
from probe.dictionaries.on_prompt import activations_on

How = Literal["promoted", "suppressed", "fires_on"]
By = Literal["percentile", "of_max", "value"]
INDEX = "index.sqlite"
_COLUMNS = "id, n, density, max, mean, nearest"
_TOKEN_SEARCH = 200


class FeatureIndex:
    """The features of one dictionary on one text. Each call reads for itself: share it freely.

    Args:
        source: The file, the folder of a dictionary it lies in, or the name of a dictionary that
            comes with Probe; its index is copied to the user's data folder first, so that labels
            can be kept.

    Raises:
        DictionaryError: No index there, a damaged one, or one of another version.
    """

    def __init__(self, source: str | Path) -> None:
        self.path = _find(source)
        version = self.about.get("version")
        if version != index_file.VERSION:
            raise DictionaryError(
                f"{self.path} is of version {version}",
                expected=f"version {index_file.VERSION}",
                remedy="make it again with index_features",
            )

    @cached_property
    def about(self) -> dict[str, Any]:
        """How it was made: model, dictionary, text, numbers."""
        with index_file.opened(self.path) as file:
            rows = file.execute("select name, value from meta").fetchall()
        return {name: json.loads(value) for name, value in rows}

    @staticmethod
    def describe(file: sqlite3.Connection, about: dict[str, Any]) -> None:
        """Write how an index was made."""
        rows = [(name, json.dumps(value)) for name, value in about.items()]
        file.executemany("insert into meta values (?, ?)", rows)

    def __len__(self) -> int:
        return int(self.about["d_sae"])

    def __repr__(self) -> str:
        return (
            f"FeatureIndex({self.about['dictionary']}: {len(self)} features on "
            f"{self.about['tokens']} tokens of {self.about['corpus']})"
        )

    # --- one feature -------------------------------------------------------------------------

    def feature(self, number: int) -> FeaturePage:
        """One feature's page: one row, and the rows of text its examples stand in."""
        if not 0 <= number < len(self):
            raise DictionaryError(
                f"{self.about['dictionary']} has no feature {number}",
                expected=f"0 to {len(self) - 1}",
            )
        with index_file.opened(self.path) as file:
            found = file.execute(
                f"select {_COLUMNS}, page from features where id = ?", (number,)
            ).fetchone()
            label = file.execute("select label from labels where feature = ?", (number,)).fetchone()
            return Reader(file, index_file.unpack_page(found[-1])).page(
                found[:-1], label[0] if label else ""
            )

    def label(self, number: int, text: str) -> None:
        """Call a feature something; nothing removes its label.

        Raises:
            DictionaryError: A feature that is not there, an index that cannot be written.
        """
        if not 0 <= number < len(self):
            raise DictionaryError(
                f"{self.about['dictionary']} has no feature {number}",
                expected=f"0 to {len(self) - 1}",
            )
        with index_file.opened(self.path, write=True) as file:
            index_file.put_label(file, number, " ".join(text.split()), provenance.now())

    # --- finding features --------------------------------------------------------------------

    def features(self) -> pd.DataFrame:
        """Every feature with its statistics and label, one row each."""
        with index_file.opened(self.path) as file:
            return pd.read_sql_query(
                f"select {_COLUMNS}, coalesce(label, '') as label from features "
                "left join labels on feature = id order by id",
                file,
            ).rename(columns={"id": "feature"})

    def n_dead(self) -> int:
        """How many features fire nowhere in the text."""
        with index_file.opened(self.path) as file:
            return int(file.execute("select count(*) from features where n = 0").fetchone()[0])

    def by_token(self, token: str | int, how: How = "promoted", most: int = 50) -> pd.DataFrame:
        """Features for which this is among the ten tokens they promote, suppress, or fire on.

        Args:
            token: A token id, or text: tokens that are that text, with or without the space
                before it, in any case.
            how: ``promoted``, ``suppressed``, or ``fires_on`` (value: its share of the feature's
                whole activation).
            most: The most features.
        """
        order = "asc" if how == "suppressed" else "desc"
        with index_file.opened(self.path) as file:
            ids = [token] if isinstance(token, int) else _tokens(file, token)
            marks = ", ".join("?" * len(ids))
            return pd.read_sql_query(
                f"select feature, text as token, value, density, max, "
                f"coalesce(label, '') as label from tokens_of "
                f"join features on id = feature join vocabulary using (token) "
                f"left join labels using (feature) "
                f"where how = ? and token in ({marks}) order by value {order} limit ?",
                file, params=[how, *ids, most],
            )  # fmt: skip

    def by_label(self, text: str, most: int = 50) -> pd.DataFrame:
        """Features whose label holds all these words, or words that begin so; best match first."""
        words = [word.replace('"', "") for word in text.split()]
        asked = " ".join(f'"{word}"*' for word in words if word)
        if not asked:
            return self.labelled().head(most)
        with index_file.opened(self.path) as file:
            return pd.read_sql_query(
                "select labels_text.rowid as feature, labels_text.label, density, max "
                "from labels_text join features on id = labels_text.rowid "
                "where labels_text match ? order by rank limit ?",
                file, params=[asked, most],
            )  # fmt: skip

    def labelled(self) -> pd.DataFrame:
        """Every feature that has a label."""
        with index_file.opened(self.path) as file:
            return pd.read_sql_query(
                "select feature, label, density, max from labels "
                "join features on id = feature order by feature",
                file,
            )

    def by_prompt(
        self,
        model: Model,
        sae: Dictionary | str,
        prompt: str,
        *,
        by: By = "percentile",
        positions: Sequence[int] | None = None,
        densest: float = 0.01,
        most: int = 50,
    ) -> pd.DataFrame:
        """Features that fire on a prompt, each where it fires most.

        Args:
            model: The model.
            sae: The dictionary of this index, or its name.
            prompt: The prompt.
            by: Order: ``percentile`` among the activations where the feature fires, ``of_max``
                (share of its largest), or ``value``.
            positions: Only these; by default all but special tokens and the first ones left out
                of the index.
            densest: Leave out features that fire on a larger share of the text.
            most: The most features.

        Cost: one forward pass up to the dictionary's site.
        """
        sae = named(sae, model)
        self.check(sae)
        fired = activations_on(model, sae, prompt)
        skip = int(self.about["skip_first"])
        wanted = fired["pos"].isin(positions) if positions is not None else fired["pos"] >= skip
        fired = fired[wanted & ~fired["special"]].sort_values("value", ascending=False)
        fired = fired.drop_duplicates("feature").drop(columns="special")
        known = self.features().drop(columns=["n", "mean", "nearest"])
        found = fired.merge(known, on="feature")
        found = found[found["density"] <= densest]
        found["of_max"] = found["value"] / found["max"].where(found["max"] > 0)
        found["percentile"] = self._percentiles(found["feature"], found["value"])
        return found.sort_values([by, "value"], ascending=False).head(most).reset_index(drop=True)

    def check(self, sae: Dictionary) -> None:
        """Refuse a dictionary that this index is not of."""
        if (sae.name, sae.d_sae) != (self.about["dictionary"], len(self)):
            raise DictionaryError(
                f"this is the index of {self.about['dictionary']} with {len(self)} features, and "
                f"{sae.name} with {sae.d_sae} was given",
                expected="the dictionary it was made of",
            )

    def _percentiles(self, features: pd.Series, values: pd.Series) -> list[float]:
        with index_file.opened(self.path) as file:
            pages = dict(some(file, "select id, page from features where id", features))
            sizes = dict(some(file, "select id, n from features where id", features))
            ends = dict(some(file, "select id, max from features where id", features))
        return [
            percentile(index_file.unpack_page(pages[f])["histogram"], sizes[f], ends[f], v)
            for f, v in zip(features.tolist(), values.tolist(), strict=True)
        ]


def _tokens(file: sqlite3.Connection, text: str) -> list[int]:
    found = file.execute(
        "select token from vocabulary where text = ? or lower(trim(text)) = ? limit ?",
        (text, text.strip().lower(), _TOKEN_SEARCH),
    ).fetchall()
    return [token for (token,) in found]


def _find(source: str | Path) -> Path:
    """The file; a shipped index is copied to the user's folder, where labels can be kept."""
    shipped = {path.parent.name: path for path in SHIPPED.glob(f"*/{INDEX}")}
    if str(source) not in shipped:
        path = Path(source) / INDEX if Path(source).is_dir() else Path(source)
        if not path.is_file():
            raise DictionaryError(
                f"there is no feature index at {str(path)!r}",
                expected="a file made by index_features, or the name of a shipped dictionary",
                remedy=nearest(str(source), shipped),
            )
        return path
    original = shipped[str(source)]
    stat = original.stat()
    own = provenance.user_dir("data") / "indexes" / f"{source}-{stat.st_size}-{int(stat.st_mtime)}"
    path = own.with_suffix(".sqlite")
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{provenance.new_run_id()}.part")
        shutil.copyfile(original, part)
        part.replace(path)
    return path
