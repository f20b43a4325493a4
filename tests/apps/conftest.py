"""What the tests of the Explorer share."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from serving import CHROMIUM, FLAGS, ROOT, missing, served

collect_ignore = ["demo.py"]  # an app: importing it would draw it


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """A browser; where there is none, the tests that need one are skipped with the reason."""
    if reason := missing():
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def demo_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The views on made-up numbers."""
    with served(Path(__file__).with_name("demo.py"), tmp_path_factory.mktemp("demo") / "log") as at:
        yield at


@pytest.fixture(scope="session")
def explorer_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The Explorer itself."""
    log = tmp_path_factory.mktemp("explorer") / "log"
    with served(ROOT / "apps" / "explorer.py", log) as at:
        yield at
