"""Where each feature fires in a corpus, on disk while an index is made: a part can be lost safely.

A part holds some batches of text and every activation in them, sorted by feature, so that a few
features can be read from all parts without reading the rest.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors import safe_open
from torch import Tensor

from probe.core.dictionary import Dictionary
from probe.core.errors import DictionaryError
from probe.core.model import Model
from probe.core.progress import Report
from probe.dictionaries.passes import Seen, Text, activations, encoded
from probe.dictionaries.writing import write_json, write_tensors

_PLAN = "plan.json"


@dataclass(frozen=True, eq=False)
class Firings:
    """Activations of a few features, in the order of the text.

    Attributes:
        offsets: Where each feature's begin, and where the last one's end.
        row: Row of text.
        pos: Position in the row.
        value: Activation.
    """

    offsets: Int[np.ndarray, " feature_and_one"]
    row: Int[np.ndarray, " firing"] = field(repr=False)
    pos: Int[np.ndarray, " firing"] = field(repr=False)
    value: Float[np.ndarray, " firing"] = field(repr=False)

    def of(self, place: int) -> "Firings":
        """One feature's."""
        part = slice(self.offsets[place], self.offsets[place + 1])
        return self.at(part)

    def at(self, chosen: Any) -> "Firings":
        """Some of them, as of one feature."""
        row = self.row[chosen]
        return Firings(np.array([0, len(row)]), row, self.pos[chosen], self.value[chosen])

    def __len__(self) -> int:
        return len(self.value)


class Parts:
    """The folder that holds them.

    Args:
        folder: Where.
        plan: Everything that decides what is in it; a folder of another plan is refused.
        batches: Batches of text in a part.
    """

    def __init__(self, folder: Path, plan: dict[str, Any], batches: int) -> None:
        self.folder, self.batches = folder, batches
        folder.mkdir(parents=True, exist_ok=True)
        place = folder / _PLAN
        if not place.exists():
            write_json(place, plan)
        elif (old := json.loads(place.read_text("utf-8"))) != json.loads(json.dumps(plan)):
            differing = sorted(name for name in {*old, *plan} if old.get(name) != plan.get(name))
            raise DictionaryError(
                f"{folder} holds an index begun with another {', '.join(differing)}",
                expected="the arguments it was begun with",
                remedy=f"give another out, or remove {folder}",
            )

    @property
    def files(self) -> list[Path]:
        """Whole parts, in order, up to the first that is missing."""
        found = []
        while (path := self._path(len(found))).exists():
            found.append(path)
        return found

    def _path(self, number: int) -> Path:
        return self.folder / f"part-{number:05d}.safetensors"

    def fill(self, sae: Dictionary, model: Model, text: Text, report: Report) -> None:
        """Read the text from the first missing part on; when asked to stop, keep whole parts.

        Cost: a forward pass over each batch, stopped after the dictionary's site.
        """
        have = self.files
        waiting: list[tuple[Seen, Tensor, Tensor, Tensor]] = []
        total, done = text.n_tokens or 0, sum(n_counted(path) for path in have)
        for seen in activations(sae, model, text, skip=len(have) * self.batches):
            waiting.append((seen, *_firing(sae, seen)))
            done += len(seen.reads)
            if len(waiting) == self.batches:
                self._write(sae, waiting, text)
                waiting = []
            if report(min(done, total or done), total or done, "tokens") is False:
                return
        if waiting:
            self._write(sae, waiting, text)

    def _write(self, sae: Dictionary, waiting: Sequence[tuple], text: Text) -> None:
        first = waiting[0][0].before
        tokens, row, pos, feature, value, counted, lengths = [], [], [], [], [], 0, []
        for seen, where, which, size in waiting:
            place = seen.counted.nonzero()[where]
            start = (seen.before - first) * text.batch_size
            row.append(place[:, 0] + start)
            pos.append(place[:, 1])
            feature.append(which)
            value.append(size)
            lengths.append(seen.batch.lengths)
            ids = torch.zeros(len(seen.batch.tokens), text.n_pos, dtype=torch.int32)
            ids[:, : seen.batch.tokens.shape[1]] = seen.batch.tokens
            tokens.append(ids)
            counted += int(seen.counted.sum())
        features = torch.cat(feature)
        order = features.argsort(stable=True)
        offsets = torch.zeros(sae.d_sae + 1, dtype=torch.int64)
        offsets[1:] = torch.bincount(features, minlength=sae.d_sae).cumsum(0)
        write_tensors(
            self._path(first // self.batches),
            {
                "offsets": offsets,
                "row": (torch.cat(row)[order] + first * text.batch_size).int(),
                "pos": torch.cat(pos)[order].int(),
                "value": torch.cat(value)[order].float(),
                "tokens": torch.cat(tokens),
                "lengths": torch.cat(lengths).int(),
                "counted": torch.tensor([counted]),
            },
        )

    def blocks(self, d_sae: int, size: int) -> Iterator[tuple[range, Firings]]:
        """All features, a few at a time, each with all its firings."""
        files = self.files
        for start in range(0, d_sae, size):
            yield range(start, min(start + size, d_sae)), read(files, start, start + size)

    def rows(self) -> Iterator[tuple[int, list[int]]]:
        """Every row of text and its tokens."""
        number = 0
        for path in self.files:
            with safe_open(path, "pt") as file:
                tokens, lengths = file.get_tensor("tokens"), file.get_tensor("lengths")
            for ids, length in zip(tokens.tolist(), lengths.tolist(), strict=True):
                yield number, ids[:length]
                number += 1


def _firing(sae: Dictionary, seen: Seen) -> tuple[Tensor, Tensor, Tensor]:
    """Token that counts, feature and activation of everything that fires in a batch."""
    token, feature, value = [], [], []
    for part, features in encoded(sae, seen):
        where = features.nonzero()
        token.append(where[:, 0].cpu() + (part.start or 0))
        feature.append(where[:, 1].cpu())
        value.append(features[where[:, 0], where[:, 1]].cpu())
    if not token:
        nothing = torch.zeros(0, dtype=torch.int64)
        return nothing, nothing, torch.zeros(0)
    return torch.cat(token), torch.cat(feature), torch.cat(value)


def n_counted(path: Path) -> int:
    """Tokens of a part that count."""
    with safe_open(path, "pt") as file:
        return int(file.get_tensor("counted")[0])


def read(files: Sequence[Path], start: int, stop: int) -> Firings:
    """The firings of these features in these parts."""
    pieces: dict[str, list[np.ndarray]] = {"feature": [], "row": [], "pos": [], "value": []}
    n_features = 0
    for path in files:
        with safe_open(path, "np") as file:
            offsets = file.get_tensor("offsets")[start : stop + 1]
            n_features = len(offsets) - 1
            part = slice(int(offsets[0]), int(offsets[-1]))
            for name in ("row", "pos", "value"):
                pieces[name].append(file.get_slice(name)[part])
            pieces["feature"].append(np.repeat(np.arange(n_features), np.diff(offsets)))
    feature, row, pos, value = (np.concatenate(pieces[n]) for n in pieces)
    order = np.argsort(feature, kind="stable")
    offsets = np.zeros(n_features + 1, dtype=np.int64)
    offsets[1:] = np.bincount(feature, minlength=n_features).cumsum()
    return Firings(offsets, row[order], pos[order], value[order])
