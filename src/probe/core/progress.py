"""How a long computation says how far it is, and hears that it should stop."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

Report = Callable[[int, int, str], bool | None]
"""``(done, total, unit)``, called now and then; returning False asks the computation to stop."""

_PATIENCE = 2.0
_LISTENER: ContextVar[Report | None] = ContextVar("listener", default=None)


@contextmanager
def listening(report: Report) -> Iterator[None]:
    """Inside the with-block, progress goes to ``report`` instead of a bar; it can stop the work."""
    token = _LISTENER.set(report)
    try:
        yield
    finally:
        _LISTENER.reset(token)


@contextmanager
def progress_bar(title: str) -> Iterator[Report]:
    """A bar on the terminal or in the notebook for what takes longer than two seconds."""
    listener = _LISTENER.get()
    if listener is not None:
        yield listener
        return
    from rich.progress import Progress, TimeElapsedColumn, TimeRemainingColumn

    bar = Progress(
        *Progress.get_default_columns()[:3], TimeRemainingColumn(), TimeElapsedColumn(),
        transient=True,
    )  # fmt: skip
    state: dict[str, Any] = {"began": time.monotonic(), "task": None}

    def report(done: int, total: int, unit: str) -> None:
        if state["task"] is None:
            if time.monotonic() - state["began"] < _PATIENCE or done >= total:
                return
            bar.start()
            state["task"] = bar.add_task(title, total=total)
        bar.update(state["task"], completed=done, total=total, description=f"{title}, {unit}")

    try:
        yield report
    finally:
        if state["task"] is not None:
            bar.stop()
