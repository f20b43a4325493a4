"""Which heads act through which: patch what one component sends to others, and nothing else."""

from typing import Annotated

import pandas as pd
from pydantic import BaseModel, Field

from probe.core.metric import get_metric
from probe.core.model import Model
from probe.core.progress import progress_bar
from probe.core.registry import method
from probe.core.result import View
from probe.core.task import Encoded
from probe.methods.patching import Direction, baselines, check_gap, normalised
from probe.methods.paths import Paths, read_receivers, read_senders

_COLUMNS = {
    "batch": "prompt pair",
    "sender": "component whose other run's output is sent: layer.head, or mlp.layer",
    "layer": "layer of the sender",
    "head": "head that sends",
    "value": "metric with the receivers reading what the sender sends: 0 at the corrupted run, "
    "1 at the clean run",
    "raw": "the same metric in its own unit",
    "clean": "metric of the clean run",
    "corrupted": "metric of the corrupted run",
}


def _view(options: BaseModel) -> View:
    senders = getattr(options, "senders", None)
    if senders is not None and any(sender.startswith("mlp") for sender in senders):
        return View(kind="bar", x="sender", y="value")
    return View(kind="heatmap", x="head", y="layer", color="value")


@method(needs="pairs", view=_view, columns=_COLUMNS)
def path_patching(
    model: Model,
    encoded: Encoded,
    *,
    receivers: Annotated[
        list[str] | None,
        Field(
            description='What reads the altered input: "q.9.6", "k.9.2", "v.9.2" (key/value heads '
            'for k and v), "mlp.9"; by default the final residual stream, "logits"',
            min_length=1,
        ),
    ] = None,
    senders: Annotated[
        list[str] | None,
        Field(description='Heads "9.6" and MLPs "mlp.9"; by default every head', min_length=1),
    ] = None,
    direction: Annotated[
        Direction,
        Field(
            description="denoise: the clean sender in the corrupted run; noise: the corrupted "
            "sender in the clean run, as in the paper"
        ),
    ] = "denoise",
    metric: Annotated[str, Field(description="What is read at the last token")] = "logit_diff",
    positions: Annotated[
        list[int] | None,
        Field(
            description="Only these positions of the receivers; negative ones count from each "
            "prompt's end",
            min_length=1,
        ),
    ] = None,
    freeze_mlps: Annotated[
        bool, Field(description="Hold MLPs too, so that only the direct path is left")
    ] = False,
) -> pd.DataFrame:
    """What does a component send to these receivers alone, and does the answer depend on it?

    For each sender: (1) both runs are recorded; (2) the base run is run again with the sender's
    output from the other run and every other head's output held at the base run's; MLPs are
    recomputed, or held under ``freeze_mlps``; what the receivers then read is recorded; (3) the
    base run is run with that in the receivers, all of them at once, and everything else free.

    A receiver's input reaches the model as what is computed from it: a head's queries, keys or
    values, an MLP's output. With ``logits`` steps 2 and 3 are one.

    What holds exactly: a sender that comes after all receivers leaves the base run's metric. With
    ``freeze_mlps`` the final residual stream is the base run's plus the difference of what the
    sender writes, and ``raw`` is the metric read from that: the direct effect, final norm and all.

    Value: 0 at the corrupted and 1 at the clean metric in both directions, as in
    ``activation_patching``: a sender that sends nothing is at 0 under ``denoise``, at 1 under
    ``noise``.

    Raises:
        OptionError: A sender or receiver that is not there; ``logits`` among other receivers,
            whose effects replacing the final residual stream would hide.
        EditError: A position outside a prompt.
        TaskError: Prompts between which the metric does not differ.

    Cost: for each sender one forward pass up to the last receiver, and one that the planner
    resumes at the first; under ``freeze_mlps`` one more for each MLP among the receivers.

    Source: Wang et al. 2022, "Interpretability in the wild", appendix B; Goldowsky-Dill et al.
    2023.

    >>> from probe.api import run
    >>> later = run("path_patching", model="toy", task="ioi", receivers=["q.0.1"])
    >>> float(later.frame["value"].abs().max())
    0.0
    """
    chosen = get_metric(metric)
    chosen.check(encoded)
    sent = read_senders(model, senders)
    read = read_receivers(model, receivers or ["logits"])
    clean, corrupted = baselines(model, encoded, chosen)
    check_gap(metric, clean, corrupted)
    paths = Paths.record(
        model, encoded, read, corrupted=direction == "denoise", positions=positions,
        freeze_mlps=freeze_mlps,
    )  # fmt: skip
    with progress_bar("path patching") as report:
        raw = paths.sweep(sent, chosen, report)
    n = len(encoded)
    frame = pd.DataFrame(
        {
            "batch": list(range(n)) * len(sent),
            "sender": [sender.name for sender in sent for _ in range(n)],
            "layer": [sender.layer for sender in sent for _ in range(n)],
        }
    )
    if all(sender.head is not None for sender in sent):
        frame["head"] = [sender.head for sender in sent for _ in range(n)]
    frame["value"] = normalised(raw, clean, corrupted).flatten().tolist()
    frame["raw"] = raw.flatten().tolist()
    frame["clean"] = clean.repeat(len(sent)).tolist()
    frame["corrupted"] = corrupted.repeat(len(sent)).tolist()
    return frame[frame["raw"].notna()].reset_index(drop=True)
