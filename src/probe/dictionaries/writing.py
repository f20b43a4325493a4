"""Files written whole or not at all: under a temporary name, to the disk, then renamed."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from probe.core.errors import DictionaryError


def write_bytes(path: Path, data: bytes) -> None:
    """Put these bytes at a path; a crash or a full disk leaves what was there before."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def clear_unfinished(folder: Path) -> None:
    """Remove what runs that were killed in the middle of a file have left in a folder."""
    for part in folder.glob(".*.part"):
        part.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Put a value at a path as JSON."""
    write_bytes(path, (json.dumps(value, indent=1, sort_keys=True) + "\n").encode())


def tensor_bytes(tensors: Mapping[str, Tensor], about: Mapping[str, str] | None = None) -> bytes:
    """Tensors as the bytes of a safetensors file."""
    from safetensors.torch import save

    whole = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    return save(whole, metadata=dict(about) if about else None)


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, str] | None = None
) -> None:
    """Put tensors at a path as safetensors."""
    write_bytes(path, tensor_bytes(tensors, about))


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """A disk that is full or not writable is our error, which says that nothing is lost."""
    try:
        yield
    except OSError as error:
        raise DictionaryError(
            f"{path} cannot be written: {error.strerror}",
            expected="a folder with room",
            remedy="make room and call again: what is written stays, and the rest follows",
        ) from None
