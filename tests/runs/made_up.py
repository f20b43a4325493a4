"""A result to save."""

from typing import Any

import numpy as np
import pandas as pd

from probe.core.provenance import Provenance
from probe.core.result import Result, View


def result_of(
    frame: pd.DataFrame | None = None, run_id: str = "20260101-120000-aaaaaa", **record: Any
) -> Result:
    if frame is None:
        frame = pd.DataFrame(
            {
                "batch": [0, 0, 1, 1],
                "layer": [0, 1, 0, 1],
                "token": [" a", "<b>", " a", "\n"],
                "value": [0.1, -0.25, np.nan, 1e-30],
            }
        )
    given: dict[str, Any] = {
        "started": "2026-01-01T12:00:00+00:00",
        "method": "made_up",
        "passed": {"kind": "z", "text": "a\ud800b"},
        "defaulted": {"layers": None},
        "model": {"name": "toy", "hash": "abc"},
        "task": {"name": "ioi"},
        "versions": {"torch": "2.13.0"},
        "notes": ["a note"],
    }
    columns = {str(name): f"what {name} means" for name in frame.columns}
    view = View(kind="line", x="layer", title="Title")
    return Result(frame, columns, view, Provenance(run_id=run_id, **{**given, **record}))
