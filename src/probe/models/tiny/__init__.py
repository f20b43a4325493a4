"""Small transformers trained here, with their trainer: for the papers that are about them."""

from functools import lru_cache
from pathlib import Path

MODEL_TYPE = "probe_tiny"
"""What the configuration of a tiny model says it is."""
_WEIGHTS = Path(__file__).with_name("weights")


@lru_cache
def shipped() -> tuple[str, ...]:
    """Names of the trained models that come with the package."""
    return tuple(sorted(path.parent.name for path in _WEIGHTS.glob("*/config.json")))


def folder(name: str) -> Path:
    """Where a shipped model is."""
    return _WEIGHTS / name


def register() -> None:
    """Let Hugging Face's loader read folders of tiny models."""
    from probe.models.tiny.architecture import register as on_transformers

    on_transformers()


def teach_bridge() -> None:
    """Let TransformerBridge wrap tiny models."""
    from probe.models.tiny.adapter import register as on_bridge

    on_bridge()
