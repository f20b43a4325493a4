"""The public functions: what notebooks, the command line, the app and the experiments all call."""

import importlib
import importlib.metadata
import pkgutil
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import BaseModel, ValidationError

from probe.core import provenance
from probe.core.dictionary import Shelf
from probe.core.errors import OptionError, ProbeWarning, RunError, TaskError, nearest
from probe.core.model import Model
from probe.core.registry import METHODS, Method
from probe.core.result import Result
from probe.core.task import Encoded, Prompt, Task
from probe.core.vector import VectorResult
from probe.corpora import load_corpus, write_corpus
from probe.dictionaries.files import load_dictionary, shipped
from probe.dictionaries.harvest import harvest
from probe.dictionaries.train import train_crosscoder, train_sae, train_saes, train_transcoder
from probe.methods.lens.fit_tuned_lens import fit_tuned_lens
from probe.methods.vectors.evaluate_vector import evaluate_vector
from probe.methods.vectors.feature_vector import feature_vector
from probe.methods.vectors.function_vector import function_vector
from probe.methods.vectors.steering_vector import steering_vector
from probe.methods.vectors.task_vector import task_vector
from probe.methods.vectors.vector_cosines import vector_cosines
from probe.methods.vectors.vector_cost import vector_cost
from probe.methods.vectors.vector_transfer import vector_transfer
from probe.models import task_vector as weight_vectors
from probe.models.load import load_model
from probe.models.merge import merge
from probe.models.sources import ALWAYS_THERE
from probe.models.task_vector import WeightVector, weight_task_vector
from probe.runs import compare, report, store
from probe.runs import reproduce as reproducing
from probe.runs.reproduce import Reproduced
from probe.runs.study import METHOD, study
from probe.tasks import TASKS, load_task
from probe.tasks.check import check
from probe.tasks.icl import ICL_TASKS, icl_task

__all__ = [
    "compare_weight_vectors",
    "diff",
    "doctor",
    "evaluate_vector",
    "feature_vector",
    "fit_tuned_lens",
    "function_vector",
    "harvest",
    "icl_task",
    "icl_tasks",
    "load_corpus",
    "load_dictionary",
    "load_model",
    "load_result",
    "load_task",
    "load_vector",
    "merge",
    "methods",
    "models",
    "reproduce",
    "rerun",
    "run",
    "runs",
    "shipped_dictionaries",
    "steering_vector",
    "studies",
    "study",
    "task_vector",
    "tasks",
    "train_crosscoder",
    "train_sae",
    "train_saes",
    "train_transcoder",
    "vector_cosines",
    "vector_cost",
    "vector_transfer",
    "weight_task_vector",
    "write_corpus",
    "write_report",
]

COMPARING_WEIGHTS = "compare_weight_vectors"
"""What the record of such a comparison names as its method."""

PLUGINS = "probe.methods"
"""Entry-point group under which other packages register methods."""


# --- what there is -------------------------------------------------------------------------------


class Catalogue(dict[str, Any]):
    """Names and what they are; a table where tables are shown."""

    def __init__(self, entries: Mapping[str, Any], table: pd.DataFrame) -> None:
        super().__init__(entries)
        self.table = table

    def __repr__(self) -> str:
        return "\n".join(f"{name:<30} {about}" for name, about in self.table.iloc[:, :2].to_numpy())

    def _repr_html_(self) -> str:
        return self.table.to_html(index=False)


def methods() -> Catalogue:
    """Every method: the question it answers, what it needs, and its options.

    >>> "logit_lens" in methods()
    True
    """
    _load_methods()
    found = {name: METHODS.get(name) for name in METHODS}
    rows = [(m.name, m.question, m.room, m.needs, ", ".join(_fields(m))) for m in found.values()]
    return Catalogue(
        found, pd.DataFrame(rows, columns=["method", "question", "room", "needs", "options"])
    )


def tasks() -> Catalogue:
    """Every built-in task, and its options.

    >>> tasks()["ioi"].name
    'ioi'
    """
    found = {name: TASKS.get(name) for name in TASKS}
    rows = [(t.name, t.about, ", ".join(t.options.model_fields)) for t in found.values()]
    return Catalogue(found, pd.DataFrame(rows, columns=["task", "about", "options"]))


def icl_tasks() -> Catalogue:
    """Every built-in task shown by example: word forms, and facts.

    >>> len(icl_tasks()) >= 20
    True
    """
    rows = [(name, entry.about, entry.sort) for name, entry in ICL_TASKS.items()]
    return Catalogue(ICL_TASKS, pd.DataFrame(rows, columns=["task", "about", "sort"]))


def models() -> list[str]:
    """Models that load by name with no network. Any hub id, folder or .gguf file loads too.

    >>> {"smollm2", "attn-only-2l", "toy"} <= set(models())
    True
    """
    return list(ALWAYS_THERE)


def shipped_dictionaries() -> list[str]:
    """Dictionaries that load by name with no network. Any folder in SAELens' format loads too."""
    return shipped()


def _fields(method: Method) -> Sequence[str]:
    return list(method.options.model_fields)


@lru_cache
def _load_methods() -> None:
    """Import every method module, and the plug-ins; one that fails is a warning, not a wall."""
    for name in ("probe.methods", "probe.dictionaries.features"):
        room = importlib.import_module(name)
        for module in pkgutil.walk_packages(room.__path__, f"{name}."):
            importlib.import_module(module.name)
    for entry in importlib.metadata.entry_points(group=PLUGINS):
        try:
            entry.load()
        except (ImportError, AttributeError, OptionError) as error:
            warnings.warn(
                f"the plug-in {entry.name} could not be loaded: {error}", ProbeWarning, stacklevel=2
            )


# --- running a method ----------------------------------------------------------------------------


def run(
    method: str,
    *,
    model: "Model | str | Path",
    task: Task | Encoded | str | None = None,
    prompt: str | Sequence[str] | None = None,
    save: bool = False,
    **options: Any,
) -> Result:
    """Ask a model one question.

    Args:
        method: One of ``probe.methods()``.
        model: A loaded model, or what ``load_model`` takes.
        task: Prompts with answers: a Task, an encoded one, or a built-in task's name.
        prompt: Instead of a task, a prompt or several.
        save: Keep the result under the runs directory.
        **options: The method's own.

    Raises:
        OptionError: An unknown method or option, or a value it cannot have.
        TaskError: Prompts that lack what the method needs.

    >>> run("next_token", model="toy", prompt="When Mary and John went to", top=2).frame.shape[0]
    2
    """
    _load_methods()
    chosen = METHODS.get(method)
    parsed = chosen.parse(options)
    loaded = load_model(model) if isinstance(model, str | Path) else model
    encoded = _encode(chosen, loaded, task, prompt)
    watch, started = provenance.Stopwatch(), provenance.now()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ProbeWarning)
        given = {name: getattr(parsed, name) for name in type(parsed).model_fields}
        inputs = (loaded,) if encoded is None else (loaded, encoded)
        frame = chosen.function(*inputs, **given)
    record = provenance.Provenance(
        run_id=provenance.new_run_id(),
        started=started,
        method=method,
        passed={k: v for k, v in _dump(parsed).items() if k in options},
        defaulted={k: v for k, v in _dump(parsed).items() if k not in options},
        task={} if encoded is None else _describe_task(encoded),
        seed=given.get("seed", None if encoded is None else encoded.task.seed),
        versions=provenance.versions(),
        git=provenance.git_state(),
        wall_seconds=round(watch.seconds, 3),
        peak_bytes=provenance.peak_bytes(),
        notes=_notes(caught),
        **provenance.describe(loaded),
    )
    result = Result(
        frame.reset_index(drop=True), chosen.columns_of(frame), chosen.view_for(parsed), record
    )
    if save:
        result.save()
    return result


def _encode(
    method: Method,
    model: Model,
    task: Task | Encoded | str | None,
    prompt: str | Sequence[str] | None,
) -> Encoded | None:
    if task is not None and prompt is not None:
        raise TaskError("both a task and a prompt were given", expected="one of them")
    if task is None and prompt is None:
        if method.needs == "nothing":
            return None
        raise TaskError(
            f"{method.name} needs {_NEEDS[method.needs]}, and none was given",
            remedy='task="ioi"' if method.needs != "prompts" else 'prompt="..." or task="ioi"',
        )
    if method.needs == "nothing":
        raise TaskError(f"{method.name} asks the model alone", expected="no task and no prompt")
    if isinstance(task, str):
        task = load_task(task)
    if prompt is not None:
        task = Task.from_prompts(prompt)
    if isinstance(task, Encoded) and task.tokenizer is not model.tokenizer:
        task = task.task  # made for another model: its token ids may mean other words here
    encoded = task.encode(model) if isinstance(task, Task) else task
    assert encoded is not None  # a task or a prompt was given
    if method.needs in ("answers", "pairs"):
        encoded.need_answers()
    if method.needs == "pairs":
        encoded.need_corrupted()
    return encoded


_NEEDS = {
    "prompts": "prompts",
    "answers": "prompts with answers",
    "pairs": "pairs of clean and corrupted prompts with answers",
}


def _dump(options: BaseModel) -> dict[str, Any]:
    return options.model_dump(mode="json")


def _describe_task(encoded: Encoded) -> dict[str, Any]:
    prompts = [p.model_dump(exclude_none=True, exclude_defaults=True) for p in encoded.task.prompts]
    return {
        "name": encoded.task.name,
        "n": len(encoded),
        "seed": encoded.task.seed,
        "hash": encoded.hash,
        "prompts": prompts,
    }


def _notes(caught: Sequence[warnings.WarningMessage]) -> list[str]:
    """Our own warnings become notes of the record; all are passed on."""
    notes: dict[str, None] = {}
    for warning in caught:
        if issubclass(warning.category, ProbeWarning):
            notes[str(warning.message)] = None
        warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    return list(notes)


# --- what was run --------------------------------------------------------------------------------


def load_result(run_id: str | Path) -> Result:
    """A saved result, by id, unique beginning of an id, ``"last"``, or folder (a Path)."""
    return store.load(run_id)


def load_vector(path: str | Path) -> VectorResult:
    """A vector that was saved with ``vector.save(path)``."""
    return VectorResult.load(path)


def runs() -> pd.DataFrame:
    """The saved runs, newest last."""
    return store.list_runs()


def diff(a: "Result | str | Path", b: "Result | str | Path") -> compare.RunDiff:
    """What differs between two results: options, model, prompts, numbers."""
    return compare.diff(_result(a), _result(b))


def _result(result: "Result | str | Path") -> Result:
    return result if isinstance(result, Result) else store.load(result)


@dataclass(frozen=True)
class Rerun:
    """A run made again, and whether it gave the same numbers."""

    result: Result
    same: bool
    difference: float
    about: str

    def __str__(self) -> str:
        return self.about

    __repr__ = __str__


def rerun(run: "Result | str | Path", *, model: Model | None = None) -> Rerun:
    """Run a saved result again from its record, and compare.

    Args:
        run: The result, or what ``load_result`` takes.
        model: The model, where it cannot be loaded by its name.

    Raises:
        RunError: The record names a model object, or weights that are not the same now.
    """
    old = _result(run)
    record = old.provenance
    if record.method.startswith(METHOD):
        with tempfile.TemporaryDirectory() as folder:
            return _compare(old, reproducing.again(old, Path(folder)))
    if record.method == COMPARING_WEIGHTS:
        vectors, measure, by = (
            record.said("passed", name) for name in ("vectors", "measure", "by")
        )
        named = {name: WeightVector.recorded(terms) for name, terms in vectors.items()}
        new = compare_weight_vectors(named, measure=measure, by=by)
        return _compare(old, new)
    loaded = model or _model_of(record)
    if loaded.spec.model_dump()["weight_hash"] != record.said("model", "weight_hash"):
        raise RunError(
            f"{record.said('model', 'name')} has other weights now than in run {old.id}",
            expected=f"weight hash {record.model['weight_hash']}",
            remedy="load the revision in the record",
        )
    options = {**record.defaulted, **record.passed}
    task = _task_of(record)
    encoded = task.encode(loaded) if task else None
    new = run_again(record.method, loaded, encoded, options, passed=set(record.passed))
    return _compare(old, new)


def run_again(
    method: str, model: Model, encoded: Encoded | None, options: dict, passed: set[str]
) -> Result:
    """Run with every option spelt out, remembering which of them the first caller gave."""
    new = run(method, model=model, task=encoded, **options)
    record = new.provenance.model_copy(
        update={
            "passed": {k: v for k, v in new.provenance.passed.items() if k in passed},
            "defaulted": {k: v for k, v in new.provenance.passed.items() if k not in passed},
        }
    )
    return Result(new.frame, new.columns, new.view, record)


def _model_of(record: provenance.Provenance) -> Model:
    parts = ("source", "name", "location", "revision", "dtype", "bos_asked")
    source, name, location, revision, dtype, bos = (record.said("model", part) for part in parts)
    if source == "object":
        raise RunError(
            f"run {record.run_id} used a model object ({name}), which has no name to load it by",
            remedy="probe.rerun(id, model=...)",
        )
    where = location if source in ("folder", "hub") else name
    return load_model(where, revision=revision, dtype=dtype, bos=bos)


def _task_of(record: provenance.Provenance) -> Task | None:
    prompts = record.task.get("prompts")
    if not prompts:
        return None
    try:
        read = tuple(Prompt.model_validate(one) for one in prompts)
    except ValidationError as error:
        raise RunError(
            f"the record of run {record.run_id} holds prompts that are none: {error}",
            expected="a record as it was saved",
        ) from None
    return Task(record.said("task", "name"), read, seed=record.said("task", "seed"))


def _compare(old: Result, new: Result) -> Rerun:
    found = compare.diff(old, new)
    if found.same:
        about = f"reproduced: {len(new.frame)} rows, every number the same as in run {old.id}"
    elif found.same_rows:
        about = (
            f"run {old.id}: same rows, numbers differ by up to {found.max_difference:.3g}"
            f" ({found.where})"
        )
        words = found.numbers[found.numbers["max_abs"].isna()].set_index("column")["changed"]
        said = [f"{name}: {n} of {len(new.frame)} rows differ" for name, n in words.items() if n]
        said += ["every verdict is the same"] if words.get("verdict") == 0 else []
        about = "\n".join([about, *said, *_made_elsewhere(found.fields)])
    else:
        about = f"did not reproduce run {old.id}:\n{found}"
    return Rerun(new, found.same, found.max_difference, about)


def _made_elsewhere(fields: pd.DataFrame) -> list[str]:
    """Options, script and versions that differ; of older records the processor is not known."""
    rows = fields[fields["a"].notna()].to_dict("records")
    said = []
    for kind, about in (("options.", "option "), ("task.hash", "script"), ("versions.", "")):
        mine = [row for row in rows if row["field"].startswith(kind)]
        said += [f"{about}{r['field'].removeprefix(kind)}: {r['a']}, now {r['b']}" for r in mine]
    return said


# --- published claims ----------------------------------------------------------------------------


def studies() -> Catalogue:
    """The studies of published claims in this clone: name, and what it is about."""
    found = reproducing.studies(reproducing.experiments())
    return Catalogue(found, pd.DataFrame(list(found.items()), columns=["study", "about"]))


def reproduce(*names: str, quick: bool = False, seed: int = 0, jobs: int = 1) -> list[Reproduced]:
    """Measure published claims again, keep the findings, and rewrite ``experiments/REPORT.md``.

    Args:
        *names: Of ``probe.studies()``; none means all.
        quick: Small sizes; their results and their report are kept apart.
        seed: Of the first of the seeds; results from another than 0 are kept apart, and the report
            tells which verdicts change with the seeds.
        jobs: How many studies run side by side, each on one thread if there are several.

    Raises:
        OptionError: There is no such study.
        RunError: This installation has no experiments beside it.
    """
    return reproducing.reproduce(list(names), quick=quick, seed=seed, jobs=jobs)


def write_report(*, quick: bool = False) -> Path:
    """Write ``experiments/REPORT.md`` from the saved findings, and say where it is."""
    return report.write_report(reproducing.experiments(), "quick" if quick else "full")


def doctor(model: "Model | str | Path" = "smollm2", **how: Any) -> pd.DataFrame:
    """Does what we record equal what Hugging Face computes? One row a check.

    Args:
        model: A loaded model, or what ``load_model`` takes.
        **how: More for ``load_model``.
    """
    from probe.models.doctor import table

    loaded: Any = load_model(model, **how) if isinstance(model, str | Path) else model
    return table(loaded.checks)


def compare_weight_vectors(
    vectors: Mapping[str, WeightVector],
    *,
    measure: str = "norm",
    by: weight_vectors.By = "layer",
) -> Result:
    """How far task vectors move each part of the weights, or how alike their directions are.

    Args:
        vectors: Name → vector, all from one checkpoint.
        measure: ``norm`` of each vector, also relative to the weights; ``cosine`` between each two.
        by: ``layer``: all tensors of a layer together, embeddings and the final norm left out;
            or ``tensor``, by its name in the checkpoint, for each layer.

    Cost: reads every checkpoint once, a slice at a time.
    """
    watch, started = provenance.Stopwatch(), provenance.now()
    ask = {"norm": weight_vectors.norms, "cosine": weight_vectors.cosines}
    if measure not in ask:
        raise OptionError(f'there is no measure "{measure}"', remedy=nearest(measure, ask))
    frame = ask[measure](vectors, by)
    record = provenance.Provenance(
        run_id=provenance.new_run_id(),
        started=started,
        method=COMPARING_WEIGHTS,
        passed={
            "vectors": {name: vector.record() for name, vector in vectors.items()},
            "measure": measure,
            "by": by,
        },
        defaulted={},
        model={"name": next(iter(vectors.values())).pre.name},
        versions=provenance.versions(),
        git=provenance.git_state(),
        wall_seconds=round(watch.seconds, 3),
        peak_bytes=provenance.peak_bytes(),
    )
    columns = {str(name): weight_vectors.COLUMNS[str(name)] for name in frame.columns}
    return Result(frame, columns, weight_vectors.view(measure, by), record)


# --- drawing and keeping -------------------------------------------------------------------------


class _Drawer:
    """Gives Results, which know no other room, their figure, their page and their place."""

    def draw(self, result: Result) -> Any:
        from probe.viz.figures import draw

        return draw(result)

    def html(self, result: Result) -> str:
        from probe.viz.html import result_html

        return result_html(result)

    def display(self, result: Result) -> None:
        from IPython.display import display

        from probe.viz.html import notebook_outputs

        for output in notebook_outputs(result):
            display(output, raw=True)

    def save(self, result: Result) -> Path:
        return store.save(result)


Result.drawer = _Drawer()
Task.checker = check
Shelf.opener = load_dictionary
