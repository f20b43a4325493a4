"""Long work in the background: one job at a time for all readers, heard from and stopped at will.

A job is named by its content, so the same request from two pages is one job. It never draws: a
page looks at it now and then, and shows what it has found so far.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Literal

import streamlit as st

Status = Literal["waiting", "running", "finished", "stopped", "failed"]

JOBS_KEPT = 16


@dataclass(eq=False)
class Job:
    """One piece of work.

    Attributes:
        key: What it is, in full.
        found: What it has found so far, oldest first; only the worker adds to it.
        share: How much of it is done, 0 to 1.
    """

    key: str
    found: list[Any] = field(default_factory=list)
    share: float = 0.0
    _future: "Future[bool]" = field(default_factory=Future)
    _stop: threading.Event = field(default_factory=threading.Event)

    @property
    def status(self) -> Status:
        """Where it stands."""
        if not self._future.done():
            return "running" if self._future.running() else "waiting"
        if self._future.exception() is not None:
            return "failed"
        return "finished" if self._future.result() else "stopped"

    @property
    def active(self) -> bool:
        """Whether there is more to come."""
        return not self._future.done()

    @property
    def error(self) -> BaseException | None:
        """Why it failed."""
        return self._future.exception() if self._future.done() else None

    @property
    def stopping(self) -> bool:
        """Whether it should stop: asked to, or the Explorer is being closed."""
        return self._stop.is_set() or not threading.main_thread().is_alive()

    def stop(self) -> None:
        """Ask it to stop; what it has found is kept."""
        self._stop.set()

    def join(self, seconds: float) -> None:
        """Wait until it is over, however it ends."""
        self._future.exception(timeout=seconds)


Work = Callable[[Job], bool]
"""Adds to ``job.found``; returns whether it came to its end."""


class JobManager:
    """The jobs of this server, one at a time."""

    def __init__(self) -> None:
        self._jobs: dict[str, Job] = {}
        self._guard = threading.Lock()
        self._turn = threading.Lock()

    def get(self, key: str) -> Job | None:
        """The job of that name, if it was ever asked for and is remembered."""
        return self._jobs.get(key)

    def submit(self, key: str, work: Work) -> Job:
        """Begin it, or go on with one that was stopped or failed; otherwise the one there is."""
        with self._guard:
            old = self._jobs.pop(key, None)
            if old is not None and (old.active or old.status == "finished"):
                self._jobs[key] = old
                return old
            job = Job(key, old.found if old else [], old.share if old else 0.0)
            self._jobs[key] = job
            for name in [k for k, j in self._jobs.items() if not j.active][:-JOBS_KEPT]:
                del self._jobs[name]
        # No daemon, although the page that asks is one: killed while the model runs, it aborts.
        worker = threading.Thread(
            target=self._run, args=(job, work), name="probe-job", daemon=False
        )
        worker.start()
        return job

    def _run(self, job: Job, work: Work) -> None:
        while not self._turn.acquire(timeout=0.2):
            if job.stopping:
                job._future.set_result(False)
                return
        try:
            job._future.set_running_or_notify_cancel()
            job._future.set_result(not job.stopping and work(job))
        except Exception as error:  # the page that looks at the job shows it
            job._future.set_exception(error)
        finally:
            self._turn.release()


@st.cache_resource(show_spinner=False)
def manager() -> JobManager:
    """The one manager of this server."""
    return JobManager()
