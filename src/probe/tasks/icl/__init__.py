"""Tasks for in-context learning, by name."""

from probe.tasks.icl.catalogue import ICL_TASKS, Entry, icl_task

__all__ = ["ICL_TASKS", "Entry", "icl_task"]
