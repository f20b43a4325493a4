"""How a number came to be: enough to make it again, and to see why it differs when it does."""

import hashlib
import importlib.metadata
import os
import platform
import re
import resource
import secrets
import subprocess
import sys
import time
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

import probe.core.model as core_model
from probe.core.errors import RunError

_PACKAGES = ("probe-workbench", "torch", "transformers", "transformer-lens", "numpy", "pandas")


class Provenance(BaseModel):
    """The record that travels with every Result."""

    run_id: str = Field(description="Sorts by time")
    started: str = Field(description="UTC, ISO 8601")
    method: str
    passed: dict[str, Any] = Field(description="Options the caller gave")
    defaulted: dict[str, Any] = Field(description="Options left at their defaults")
    model: dict[str, Any] = Field(description="Spec, with weight hash")
    health: dict[str, Any] = Field(default_factory=dict, description="Load check and doctor")
    tokenizer: dict[str, Any] = Field(default_factory=dict, description="Class, BOS and padding")
    task: dict[str, Any] = Field(default_factory=dict, description="Prompts and their hash")
    device: str = ""
    dtype: str = ""
    threads: int = 0
    seed: int | None = None
    versions: dict[str, str] = Field(default_factory=dict)
    git: dict[str, Any] = Field(default_factory=dict, description="Commit, and whether dirty")
    wall_seconds: float = 0.0
    peak_bytes: int = Field(default=0, description="Largest memory of the process so far")
    notes: list[str] = Field(default_factory=list, description="Fallbacks taken, things to know")

    def said(self, part: str, name: str) -> Any:
        """An entry of ``passed``, ``model`` or ``task`` that making the run again needs.

        Raises:
            RunError: It is not there: somebody edited the record.
        """
        found = getattr(self, part)
        if name not in found:
            raise RunError(
                f'the record of run {self.run_id} does not say "{name}" of its {part}',
                expected="a record as it was saved",
                remedy="copy the run again, or run the method again",
            )
        return found[name]


def new_run_id() -> str:
    """An id that sorts by time and says when."""
    return datetime.now(UTC).strftime("%Y%m%d-%H%M%S") + "-" + secrets.token_hex(3)


def now() -> str:
    """UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def describe(model: "core_model.Model") -> dict[str, Any]:
    """The fields of a Provenance that a model decides."""
    import torch

    return {
        "model": model.spec.model_dump(mode="json"),
        "health": dict(model.health),
        "tokenizer": {
            "class": type(model.tokenizer.hf).__name__,
            "n_vocab": model.tokenizer.n_vocab,
            "bos": model.tokenizer.bos,
            "padding": "right",
        },
        "device": str(model.device),
        "dtype": str(model.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
    }


def of_call(
    model: "core_model.Model",
    method: str,
    watch: "Stopwatch",
    *,
    task: dict[str, Any] | None = None,
    seed: int | None = None,
    **options: Any,
) -> Provenance:
    """The record of a public function that is no registered method, made when it is done."""
    return Provenance(
        run_id=new_run_id(),
        started=watch.started,
        method=method,
        passed=options,
        defaulted={},
        task=task or {},
        seed=seed,
        versions=versions(),
        git=git_state(),
        wall_seconds=round(watch.seconds, 3),
        peak_bytes=peak_bytes(),
        **describe(model),
    )


@lru_cache
def versions() -> dict[str, str]:
    """What decides numbers: Python, the machine, and the packages."""
    found = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": processor(),
    }
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def processor() -> str:
    """Its name, and the instructions that torch uses there.

    Another one rounds in another order: of a forward pass the last digits differ, of a training
    everything.
    """
    import torch

    listed = Path("/proc/cpuinfo")
    text = listed.read_text("utf-8", "replace") if listed.is_file() else ""
    about = dict(re.findall(r"^(model name|model)\s*:\s*(.+)$", text, re.M))
    # On rented machines the name alone may say no more than the make.
    named = "{model name}, model {model}".format_map(about) if len(about) == 2 else ""
    name = named or platform.processor() or platform.machine()
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"


@lru_cache
def git_state() -> dict[str, Any]:
    """Commit of the source tree probe runs from, and whether it has changes."""
    here = Path(__file__).parent

    def ask(*words: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", *words], cwd=here, capture_output=True, text=True, timeout=5, check=True
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    commit = ask("rev-parse", "HEAD")
    # An installed copy may lie inside somebody else's repository.
    if commit is None or ask("ls-files", "--error-unmatch", __file__) is None:
        return {}
    return {"commit": commit, "dirty": bool(ask("status", "--porcelain"))}


def peak_bytes() -> int:
    """Largest resident memory of this process so far."""
    status = Path("/proc/self/status")
    if status.is_file():
        # Not getrusage: there a new process begins with the peak of the one that started it.
        held = re.search(r"^VmHWM:\s+(\d+) kB$", status.read_text(), re.M)
        if held:
            return int(held[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def hash_text(text: str) -> str:
    """Sixteen hex digits that name a text."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


class Stopwatch:
    """Wall time since it was made, which is ``started``."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self.started = now()

    @property
    def seconds(self) -> float:
        """So far."""
        return time.perf_counter() - self._start


def user_dir(kind: str) -> Path:
    """The user's ``cache`` or ``data`` directory; ``PROBE_HOME`` overrides both."""
    home = os.environ.get("PROBE_HOME")
    if home:
        return Path(home) / kind
    import platformdirs

    where = platformdirs.user_cache_dir if kind == "cache" else platformdirs.user_data_dir
    return Path(where("probe-workbench"))
