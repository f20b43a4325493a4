"""Does a finding survive another choice: one sweep over metrics, directions, prompts and seeds."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

import pandas as pd
import torch
from pydantic import Field

from probe.core.errors import OptionError, TaskError, nearest
from probe.core.model import Model
from probe.core.registry import METHODS, Method, method
from probe.core.result import View
from probe.core.task import Encoded
from probe.methods.variants import Variant, by_tag

_COLUMNS = {
    "varied": "what was chosen otherwise; all counts every run once",
    "cell": "part of the model",
    "sender": "component whose output is sent",
    "layer": "layer",
    "head": "head (key/value head for k and v)",
    "pos": "position",
    "neuron": "dimension of the site's last axis",
    "part": "what a position is to the subject",
    "value": "share of these runs in which the cell is among the k strongest",
    "effect": "mean effect over these runs, each run's strongest being 1 or -1",
    "k": "how many cells count as strongest",
    "n": "number of runs",
}
_CELL = ("sender", "layer", "head", "pos", "neuron", "part")
_REMEDY = "probe.methods() names each method's options"


@method(
    needs="answers",
    view=View(kind="bar", x="cell", y="value", color="varied", scale="share"),
    columns=_COLUMNS,
)
def robustness(
    model: Model,
    encoded: Encoded,
    *,
    sweep: Annotated[
        str,
        Field(description="The method: activation_patching, ablation, attribution_patching, ..."),
    ] = "activation_patching",
    options: Annotated[
        dict[str, Any] | None, Field(description="Its options, where not its defaults")
    ] = None,
    k: Annotated[int, Field(ge=1, description="How many cells count as strongest")] = 10,
    metrics: Annotated[
        Sequence[str] | None, Field(description="Metrics to try, one after another")
    ] = ("logit_diff", "log_prob", "prob"),
    directions: Annotated[
        Sequence[str] | None, Field(description="Directions to try: denoise, noise")
    ] = None,
    ablations: Annotated[
        Sequence[str] | None, Field(description="Kinds of ablation to try: zero, mean, resample")
    ] = None,
    template: Annotated[
        str | None, Field(description="Tag by which prompts are split, such as template")
    ] = None,
    seeds: Annotated[int, Field(ge=0, description="Random halves of the prompts to try")] = 4,
    seed: Annotated[int, Field(description="Random seed of the halves")] = 0,
) -> pd.DataFrame:
    """Which cells stay on top when the sweep is run another way?

    One thing is varied at a time, the others as in ``options``: each metric, each direction, each
    kind of ablation, the prompts of each value of a tag, and random halves of the prompts. A cell's
    effect in a run is its mean over prompts of what the intervention did, measured from where that
    run began: ``raw`` less ``corrupted`` when denoising, less ``clean`` otherwise, or the method's
    own number where it has no ``raw``. Cells are ranked by its size.

    ``value``: 1 for a cell that is always among the ``k`` strongest; with nothing to be found it is
    about k by the number of cells. Shares over few runs are coarse: ``n`` says how few.

    Raises:
        OptionError: An unknown method or option, or nothing to vary.
        TaskError: A tag that a prompt does not have, or too few prompts to halve.

    Cost: that of the sweep, for each metric, direction, kind and tag value (prompts are divided
    among these), and half of it for each seed.

    Source: Zhang and Nanda 2023, "Towards Best Practices of Activation Patching" (metrics and
    corruptions disagree).

    >>> from probe.api import run
    >>> found = run("robustness", model="toy", task="ioi", options={"kind": "z"}, k=2, seeds=2)
    >>> sorted(found.frame["varied"].unique())
    ['all', 'metric', 'seed']
    """
    chosen = _method(sweep)
    if chosen.needs == "pairs":
        encoded.need_corrupted()
    given = dict(options or {})
    tried = {"metric": metrics, "direction": directions, "ablations": ablations}
    variants = [
        *_by_option(chosen, given, tried),
        *(by_tag(encoded, template) if template else ()),
        *_by_half(encoded, seeds, seed),
    ]
    if len(variants) < 2:
        raise OptionError("fewer than two runs to compare", remedy='metrics=["logit_diff", "prob"]')
    runs = [_effects(chosen, model, encoded, given, variant) for variant in variants]
    counted = [(variant.varied, run) for variant, run in zip(variants, runs, strict=True)]
    parts = [_shares("all", runs, k)]
    for varied in dict.fromkeys(name for name, _ in counted):
        parts.append(_shares(varied, [run for name, run in counted if name == varied], k))
    return pd.concat(parts, ignore_index=True)


def _method(name: str) -> Method:
    chosen = METHODS.get(name)
    if chosen.needs not in ("answers", "pairs") or name == "robustness":
        raise OptionError(f"{name} sweeps no cells on prompts with answers", remedy=_REMEDY)
    return chosen


def _by_option(
    chosen: Method, given: Mapping[str, Any], tried: Mapping[str, Sequence[str] | None]
) -> Iterator[Variant]:
    for name, values in tried.items():
        if values is not None and name not in chosen.options.model_fields:
            raise OptionError(
                f'{chosen.name} has no option "{name}" to vary',
                remedy=nearest(name, chosen.options.model_fields),
            )
        for value in values or ():
            yield Variant(name, {name: [value] if name == "ablations" else value})


def _by_half(encoded: Encoded, seeds: int, seed: int) -> Iterator[Variant]:
    if seeds and len(encoded) < 4:
        raise TaskError(
            f"random halves of {len(encoded)} prompts", expected="at least 4", remedy="seeds=0"
        )
    generator = torch.Generator().manual_seed(seed)
    for _ in range(seeds):
        order = torch.randperm(len(encoded), generator=generator)
        yield Variant("seed", rows=sorted(order[: len(encoded) // 2].tolist()))


def _effects(
    chosen: Method, model: Model, encoded: Encoded, given: Mapping[str, Any], variant: Variant
) -> pd.Series:
    """Each cell's mean effect in one run."""
    parsed = chosen.parse({**given, **variant.options})
    part = variant.of(encoded)
    spelt = {name: getattr(parsed, name) for name in type(parsed).model_fields}
    frame = chosen.function(model, part, **spelt)
    axes = [name for name in _CELL if name in chosen.view_for(parsed).axes]
    if not axes:
        raise OptionError(f"{chosen.name} gives no number for each cell", remedy=_REMEDY)
    return _effect(frame, spelt, chosen.view_for(parsed).number).groupby(
        [frame[name] for name in axes], sort=False
    ).mean()  # fmt: skip


def _effect(frame: pd.DataFrame, options: Mapping[str, Any], number: str) -> pd.Series:
    """What the intervention did, from where its run began."""
    if "raw" not in frame:
        return frame[number]
    denoised = "corrupted" in frame and options.get("direction", "denoise") == "denoise"
    begin = next(
        (
            name
            for name in (["corrupted"] if denoised else []) + ["noised", "clean"]
            if name in frame
        ),
        None,
    )
    return frame[number] if begin is None else frame["raw"] - frame[begin]


def _shares(varied: str, runs: Sequence[pd.Series], k: int) -> pd.DataFrame:
    """How often each cell is among the k strongest; cells a run does not have are not."""
    table = pd.concat(runs, axis=1)
    size = table.abs()
    top = size.rank(axis=0, ascending=False, method="first") <= k
    frame = table.index.to_frame(index=False)
    frame.insert(0, "varied", varied)
    frame.insert(
        1, "cell", [_name(row) for row in table.index.to_frame(index=False).to_dict("records")]
    )
    return frame.assign(
        value=top.mean(axis=1).to_numpy(),
        effect=(table / size.max()).mean(axis=1).to_numpy(),
        k=k,
        n=len(runs),
    ).sort_values(["value", "effect"], key=abs, ascending=False)


def _name(cell: Mapping[Any, Any]) -> str:
    return " ".join(f"{axis} {place}" for axis, place in cell.items())
