"""Results on disk: save, load, list, compare. One folder a run, no pickle.

``runs/<id>/result.json`` says what was asked and how the numbers came to be; ``frame.parquet``
holds them.
"""

from probe.runs.compare import RunDiff, diff
from probe.runs.store import find, list_runs, load, runs_root, save

__all__ = ["RunDiff", "diff", "find", "list_runs", "load", "runs_root", "save"]
