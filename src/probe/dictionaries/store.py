"""Activations on disk: shards of shuffled rows, each with a checksum, and a manifest."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from pydantic import BaseModel, Field, ValidationError
from torch import Tensor

from probe.core.errors import DictionaryError, SiteError, nearest
from probe.core.provenance import hash_text
from probe.core.site import Site
from probe.dictionaries.writing import disk_errors, tensor_bytes, write_bytes, write_json

MANIFEST = "manifest.json"
_VERSION = 1
_FROM_ARRAY_ROWS = 65_536
_MIX_BYTES = 400_000_000


class Shard(BaseModel):
    """One file of a store."""

    file: str
    rows: int
    sha256: str = Field(description="Of the file")
    source: str = Field(description="Hash of the token ids its rows come from")
    left_out: int = Field(default=0, description="Tokens not stored: special ones and the first")
    rounding: dict[str, float] = Field(
        default_factory=dict, description="What storing changed: ‖stored − exact‖ / ‖exact‖ by site"
    )


class Manifest(BaseModel):
    """What a store holds and how it came to be."""

    version: int = _VERSION
    names: list[str] = Field(description="Names of the tensors, sites where they come from a model")
    widths: list[int]
    dtype: str
    made: dict[str, Any] = Field(description="Model, corpus and options: all that decides the rows")
    shards: list[Shard] = []
    complete: bool = False


class ActivationStore:
    """Activations of one or several sites, row by row the same tokens, in shuffled order.

    Args:
        path: The folder, which must hold a manifest.

    Raises:
        DictionaryError: No store there, or one that cannot be read.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            text = (self.path / MANIFEST).read_text("utf-8")
            self.manifest = Manifest.model_validate_json(text)
        except FileNotFoundError:
            raise DictionaryError(
                f"there is no activation store in {str(self.path)!r}",
                expected=f"a folder with {MANIFEST}", remedy="probe.harvest(model, corpus, ...)",
            ) from None  # fmt: skip
        except (OSError, UnicodeDecodeError, ValidationError) as error:
            raise DictionaryError(
                f"{self.path / MANIFEST} cannot be read: {str(error).splitlines()[0]}",
                expected="the manifest that harvest wrote", remedy="harvest again to a new folder",
            ) from None  # fmt: skip

    @classmethod
    def from_array(
        cls,
        x: Float[Tensor, "row d_in"] | Mapping[str, Float[Tensor, "row _"]],
        *,
        out: str | Path,
        seed: int = 0,
        shard_rows: int = _FROM_ARRAY_ROWS,
    ) -> "ActivationStore":
        """A store of one's own activations.

        Args:
            x: Rows, or several tensors of as many rows by name; a name that is a site, like
                ``mlp_in.3``, is taken for one.
            out: A new folder.
            seed: Of the shuffle.
            shard_rows: Rows in a file.

        Raises:
            DictionaryError: Rows that do not match or are not finite; a folder that is in use.
        """
        tensors = {"x": x} if isinstance(x, Tensor) else dict(x)
        path, sizes = Path(out), {len(t) for t in tensors.values()}
        if len(sizes) != 1 or sizes == {0}:
            shapes = {name: tuple(t.shape) for name, t in tensors.items()}
            raise DictionaryError(f"arrays of shapes {shapes}", expected="as many rows in each")
        if (path / MANIFEST).exists():
            raise DictionaryError(f"{path} holds a store already", expected="a new folder")
        first = next(iter(tensors.values()))
        for name, rows in tensors.items():
            check_finite(name, rows, "in row")
        manifest = Manifest(
            names=list(tensors),
            widths=[t.shape[1] for t in tensors.values()],
            dtype=str(first.dtype).removeprefix("torch."),
            made={"array": [list(t.shape) for t in tensors.values()], "seed": seed},
        )
        order = torch.randperm(len(first), generator=torch.Generator().manual_seed(seed))
        with disk_errors(path):
            path.mkdir(parents=True, exist_ok=True)
            for number, rows in enumerate(order.split(shard_rows)):
                part = {name: t[rows] for name, t in tensors.items()}
                part["position"] = rows.int()
                manifest.shards.append(write_shard(path, number, part, source=""))
            manifest.complete = True
            write_json(path / MANIFEST, manifest.model_dump())
        return cls(path)

    # --- what is in it -----------------------------------------------------------------------

    @property
    def names(self) -> list[str]:
        """Names of its tensors."""
        return self.manifest.names

    @property
    def n_rows(self) -> int:
        """Rows: tokens whose activations are stored."""
        return sum(shard.rows for shard in self.manifest.shards)

    def __len__(self) -> int:
        return self.n_rows

    def width(self, name: str) -> int:
        """Length of one row of a tensor."""
        return self.manifest.widths[self.names.index(self.known(name))]

    def known(self, name: str) -> str:
        """The name, if there is such a tensor."""
        if name not in self.names:
            raise DictionaryError(
                f'{self.path} holds no "{name}"', remedy=nearest(name, self.names)
            )
        return name

    def site(self, name: str) -> Site | None:
        """The site of a tensor, None for an array of one's own."""
        try:
            return Site.parse(self.known(name))
        except SiteError:
            return None

    def __repr__(self) -> str:
        what = ", ".join(
            f"{n} [{w}]" for n, w in zip(self.names, self.manifest.widths, strict=True)
        )
        state = "" if self.manifest.complete else ", not complete"
        return f"ActivationStore({self.n_rows} rows of {what}, {self.manifest.dtype}{state})"

    def shard(self, number: int) -> dict[str, Tensor]:
        """The tensors of one shard, checked against its checksum.

        Beside those named there are ``tokens``, ``document`` and ``position`` of each row where
        they come from a corpus, ``position`` where they come from an array.

        Raises:
            DictionaryError: A missing or damaged file, named.
        """
        from safetensors.torch import load

        shard = self.manifest.shards[number]
        data = self._bytes(shard)
        if data is None or hashlib.sha256(data).hexdigest() != shard.sha256:
            how = "missing" if data is None else "damaged: its checksum is not the manifest's"
            raise DictionaryError(
                f"{self.path / shard.file} is {how}",
                expected=f"the {shard.rows} rows that were written",
                remedy="run the same harvest again: only this shard is made again",
            )
        return load(data)

    def damaged(self) -> list[str]:
        """Names of the shards that are missing or not what was written. Reads everything."""
        return [s.file for i, s in enumerate(self.manifest.shards) if not self.is_whole(i)]

    def is_whole(self, number: int) -> bool:
        """Whether a shard is there and is what was written."""
        data = self._bytes(self.manifest.shards[number])
        sha = self.manifest.shards[number].sha256
        return data is not None and hashlib.sha256(data).hexdigest() == sha

    def _bytes(self, shard: Shard) -> bytes | None:
        try:
            return (self.path / shard.file).read_bytes()
        except FileNotFoundError:
            return None

    def head(self, name: str, rows: int) -> Float[Tensor, "row width"]:
        """The first rows of a tensor, in float32; they are a random sample, being shuffled."""
        parts, found = [], 0
        for number in range(len(self.manifest.shards)):
            parts.append(self.shard(number)[self.known(name)].float())
            found += len(parts[-1])
            if found >= rows:
                break
        return torch.cat(parts)[:rows]

    def batches(
        self,
        batch_size: int,
        *,
        names: Sequence[str] | None = None,
        seed: int = 0,
        start: int = 0,
    ) -> Iterator[dict[str, Float[Tensor, "row _"]]]:
        """Batches without end, each epoch in another order, in the type they are stored in.

        An epoch is one long row of rows: shards in random order, some at a time mixed. A batch is
        the next piece of it, so batch ``start`` is found without reading what comes before it.

        Args:
            batch_size: Rows in a batch.
            names: The tensors wanted; all by default.
            seed: Of the order.
            start: The number of the first batch.

        Memory: about 400 MB of shards and one batch.
        """
        if not self.n_rows:
            raise DictionaryError(f"{self.path} holds no rows", remedy="finish the harvest")
        wanted = self.names if names is None else [self.known(name) for name in names]
        epoch, inside = divmod(start * batch_size, self.n_rows)
        parts, have = [], 0
        while True:
            for number, group in enumerate(self._groups(seed, epoch)):
                rows = sum(self.manifest.shards[i].rows for i in group)
                if inside >= rows:
                    inside -= rows
                    continue
                shards = [self.shard(i) for i in group]
                mixed = {name: torch.cat([s[name] for s in shards]) for name in wanted}
                del shards
                order = _shuffled(rows, seed, epoch, number)
                while inside < rows:
                    taken = order[inside : inside + batch_size - have]
                    parts.append({name: t[taken] for name, t in mixed.items()})
                    inside, have = inside + len(taken), have + len(taken)
                    if have == batch_size:
                        yield {name: torch.cat([p[name] for p in parts]) for name in wanted}
                        parts, have = [], 0
                inside = 0
            epoch += 1

    def _groups(self, seed: int, epoch: int) -> list[list[int]]:
        """Shards in this epoch's order, as many in a group as are held in memory together."""
        itemsize = getattr(torch, self.manifest.dtype).itemsize
        row_bytes = itemsize * sum(self.manifest.widths)
        groups: list[list[int]] = [[]]
        held = 0
        for number in _shuffled(len(self.manifest.shards), seed, epoch, -1).tolist():
            size = self.manifest.shards[number].rows * row_bytes
            if groups[-1] and held + size > _MIX_BYTES:
                groups.append([])
                held = 0
            groups[-1].append(number)
            held += size
        return groups


def write_shard(path: Path, number: int, tensors: Mapping[str, Tensor], **about: Any) -> Shard:
    """Write a shard and say what was written; ``about``: more fields of its entry."""
    data = tensor_bytes(tensors)
    file = f"shard-{number:05d}.safetensors"
    write_bytes(path / file, data)
    rows = len(next(iter(tensors.values())))
    return Shard(file=file, rows=rows, sha256=hashlib.sha256(data).hexdigest(), **about)


def check_finite(name: str, rows: Float[Tensor, "row width"], where: str) -> None:
    """Refuse activations that are NaN or infinite, naming the first of them."""
    bad = ~rows.isfinite().all(-1)
    if bad.any():
        first = int(bad.nonzero()[0, 0])
        raise DictionaryError(
            f"{int(bad.sum())} of {len(rows)} rows of {name} are not finite, the first {where} "
            f"{first}",
            expected="finite activations",
            remedy='a dtype that holds them: dtype="bfloat16" or "float32", or other weights',
        )


def _shuffled(n: int, *seeds: int) -> Int[Tensor, " n"]:
    generator = torch.Generator().manual_seed(int(hash_text(repr(seeds)), 16) >> 1)
    return torch.randperm(n, generator=generator)
