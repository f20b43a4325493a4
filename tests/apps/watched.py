"""A browser page that remembers what a reader must never cause: console errors, outside hosts."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlparse

LOCAL = {"127.0.0.1", "localhost", ""}


@contextmanager
def watched(browser: Any, *, scheme: str = "light", height: int = 1000) -> Iterator[Any]:
    """A page that must end without console errors, dialogs or requests beyond this machine."""
    context = browser.new_context(
        viewport={"width": 1440, "height": height}, color_scheme=scheme, reduced_motion="reduce"
    )
    page, seen = context.new_page(), []

    def request(sent: Any) -> None:
        if urlparse(sent.url).hostname not in {*LOCAL, None}:
            seen.append(f"request to {sent.url}")

    def console(message: Any) -> None:
        where = urlparse(message.location.get("url", "")).path
        # Opened at a page's own address, Streamlit's client first looks for its server below it.
        looked_below = "/_stcore/" in where and not where.startswith("/_stcore/")
        if message.type == "error" and not looked_below:
            seen.append(f"console: {message.text} {where}")

    page.on("request", request)
    page.on("console", console)
    page.on("pageerror", lambda error: seen.append(f"page error: {error}"))
    page.on("dialog", lambda dialog: seen.append(f"dialog: {dialog.message}"))
    page.set_default_timeout(240_000)
    try:
        yield page
        assert seen == []
    finally:
        context.close()
