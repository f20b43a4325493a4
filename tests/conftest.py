"""What every test shares: no network, its own folders, and models that are loaded once."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is first imported

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

if TYPE_CHECKING:
    from probe.models.bridge import BridgeModel

# Timings decide no test: the first example pays for imports, and another process may be busy.
hypothesis.settings.register_profile(
    "untimed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("untimed")

_USERS_HOME = os.environ.get("PROBE_HOME")


@contextmanager
def _users_cache() -> Iterator[None]:
    """The user's own cache, where SmolLM2 lies converted."""
    with pytest.MonkeyPatch.context() as patch:
        if _USERS_HOME is None:
            patch.delenv("PROBE_HOME", raising=False)
        else:
            patch.setenv("PROBE_HOME", _USERS_HOME)
        yield


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Families whose parts others have too are for the whole run: mixtral slides, qwen3 norms."""
    for item in items:
        call = getattr(item, "callspec", None)
        if call and any(value in ("mistral", "gemma3") for value in call.params.values()
                        if isinstance(value, str)):  # fmt: skip
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs and cached files of a test end with it."""
    monkeypatch.setenv("PROBE_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("PROBE_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="session")
def toy() -> "BridgeModel":
    """Grouped-query: 4 query heads over 2 key/value heads."""
    from probe.models.load import load_model

    return load_model("toy")


@pytest.fixture(scope="session")
def toy_mha() -> "BridgeModel":
    """Multi-head: 4 heads."""
    from probe.models.load import load_model

    return load_model("toy-mha")


@pytest.fixture(scope="session")
def smollm2() -> "BridgeModel":
    """A real language model; for tests marked slow."""
    from probe.models.load import load_model

    with _users_cache():
        return load_model("smollm2")
