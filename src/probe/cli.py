"""The command line: the same functions as the notebook, and one clear line for each mistake."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from probe import cli_dictionaries
from probe.cli_words import (
    ModelName,
    number,
    options_of,
    print_options,
    print_rows,
    printable,
    show_result,
    stderr,
    stdout,
)
from probe.core.errors import OptionError, ProbeError, RunError, nearest

app = typer.Typer(
    help="From a prompt to a mechanism.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
RunName = Annotated[
    str, typer.Argument(help='A run id, its beginning, "last", or the folder of a result')
]
_LISTS = ("methods", "tasks", "models", "metrics", "training")
app.add_typer(cli_dictionaries.app)


def main() -> None:
    """Run the command line; a mistake is one message and exit status 2, never a traceback."""
    try:
        app()
    except ProbeError as error:
        stderr.print(f"[bold red]error:[/] {escape(printable(str(error)))}", highlight=False)
        sys.exit(2)
    except KeyboardInterrupt:
        stderr.print("stopped")
        sys.exit(130)


@app.command("list")
def list_(
    what: Annotated[
        str, typer.Argument(help="methods, tasks, models, metrics, training, or one method or task")
    ] = "methods",
) -> None:
    """List what there is to run; of one method, task or a training, its options."""
    import probe
    from probe.core.metric import METRICS

    if what not in _LISTS:
        found = {**probe.methods(), **probe.tasks()}
        if what not in found:
            raise OptionError(
                f'there is nothing called "{what}"', remedy=nearest(what, [*_LISTS, *found])
            )
        stdout.print(escape(found[what].question))
        print_options(found[what].options)
        return
    if what == "training":
        from probe.dictionaries.recipe import Recipe

        print_options(Recipe)
        return
    if what == "models":
        rows = [(name, "") for name in probe.models()]
        rows.append(("any hub id, model folder or .gguf file", ""))
    elif what == "metrics":
        rows = [(m.name, m.about) for m in METRICS.values()]
    else:
        table = (probe.methods() if what == "methods" else probe.tasks()).table
        rows = list(table.iloc[:, :2].itertuples(index=False, name=None))
    print_rows((what.removesuffix("s"), "about"), rows)


@app.command(context_settings={"ignore_unknown_options": True})
def run(
    method: Annotated[str, typer.Argument(help="A method; `probe list` names them")],
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="--OPTION VALUE", help="The method's own options"),
    ] = None,
    model: ModelName = "smollm2",
    task: Annotated[str | None, typer.Option(help="A built-in task or a .jsonl file")] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="A prompt; give several times")] = None,
    n: Annotated[int | None, typer.Option(help="Prompts of a built-in task")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of a built-in task")] = None,
    save: Annotated[bool, typer.Option(help="Keep the result under the runs directory")] = True,
    rows: Annotated[int, typer.Option(min=0, help="Rows to print")] = 20,
) -> None:
    """Run a method; its own options follow, as --option value."""
    import probe

    options = options_of(words or [])
    chosen = probe.methods()
    if method not in chosen:
        raise OptionError(f'there is no method "{method}"', remedy=nearest(method, chosen))
    drawn = {name: value for name, value in (("n", n), ("seed", seed)) if value is not None}
    built_in = task is not None and not task.endswith(".jsonl")
    if not built_in:  # then they can only be the method's own
        options |= drawn
    chosen[method].parse(options)  # before a model is loaded for nothing
    given = _task(task, drawn if built_in else {})
    with stderr.status(f"loading {model}"):
        loaded = probe.load_model(model)
    with stderr.status(f"{method} on {loaded.name}"):
        result = probe.run(method, model=loaded, task=given, prompt=prompt or None, **options)
    show_result(result, rows)
    if save:
        stdout.print(f"saved as [bold]{result.save().name}[/]")


@app.command()
def show(
    run_id: RunName = "last",
    rows: Annotated[int, typer.Option(min=0, help="Rows to print")] = 20,
    html: Annotated[Path | None, typer.Option(help="Write a self-contained page here")] = None,
) -> None:
    """Show a saved run: its table, and how it came to be."""
    import probe

    result = probe.load_result(_run(run_id))
    show_result(result, rows)
    record = result.provenance
    print_rows(
        ("field", "value"),
        [(k, json.dumps(v)[:200]) for k, v in record.model_dump(mode="json").items() if v],
    )
    if html is not None:
        from probe.viz.html import page

        try:
            html.write_text(page(result), "utf-8")
        except OSError as error:
            raise RunError(f"cannot write {html}: {error}") from None
        stdout.print(f"wrote {html}")


@app.command()
def runs() -> None:
    """List the saved runs."""
    import probe

    table = probe.runs()
    print_rows(list(table.columns), list(table.itertuples(index=False, name=None)))


@app.command()
def diff(a: RunName, b: RunName) -> None:
    """Say what differs between two saved runs."""
    import probe

    stdout.print(escape(printable(str(probe.diff(_run(a), _run(b))))), highlight=False)


@app.command()
def rerun(
    run_id: RunName = "last",
) -> None:
    """Run a saved run again and compare the numbers; exit status 1 where they differ."""
    import probe

    with stderr.status("running again"):
        again = probe.rerun(_run(run_id))
    stdout.print(escape(again.about), highlight=False)
    if not again.same:
        raise typer.Exit(1)


@app.command()
def reproduce(
    names: Annotated[list[str] | None, typer.Argument(help="Studies; without any, a list")] = None,
    every: Annotated[bool, typer.Option("--all", help="All studies")] = False,
    quick: Annotated[bool, typer.Option(help="Small sizes, kept apart from the full ones")] = False,
    seed: Annotated[
        int, typer.Option(min=0, help="The first seed; other than 0 is kept apart")
    ] = 0,
    jobs: Annotated[
        int, typer.Option(min=1, help="How many run side by side, on one thread each")
    ] = 1,
    report: Annotated[bool, typer.Option(help="Only write the report from what is saved")] = False,
) -> None:
    """Measure published claims again; exit status 1 if a study fails to run."""
    import probe

    if report:
        stdout.print(f"wrote {probe.write_report(quick=quick)}")
        return
    if names and every:
        raise OptionError(f"{' '.join(names)} and --all", expected="some studies, or all")
    if not names and not every:
        print_rows(("study", "about"), list(probe.studies().items()))
        return
    done = probe.reproduce(*(names or ()), quick=quick, seed=seed, jobs=jobs)
    for one in done:
        if one.said:
            stdout.print(escape(printable(one.said)), highlight=False)
    counts = [", ".join(f"{n} {verdict}" for verdict, n in one.verdicts.items()) for one in done]
    names = [one.name for one in done]
    print_rows(("study", "claims"), zip(names, [c or "FAILED" for c in counts], strict=True))
    if not all(one.folder for one in done):
        raise typer.Exit(1)


@app.command()
def doctor(
    model: Annotated[str, typer.Argument(help="Name, hub id, folder or .gguf file")] = "smollm2",
    dtype: Annotated[str, typer.Option(help="float32, float16 or bfloat16")] = "float32",
) -> None:
    """Compare what is recorded with Hugging Face's own outputs; exit status 1 if a row fails."""
    import probe

    with stderr.status(f"loading {model}"):
        checks = probe.doctor(model, dtype=dtype)
    rows = [
        ("ok" if row.ok else "FAILED", row.name, number(row.value), number(row.limit), row.about)
        for row in checks.itertuples(index=False)
    ]
    print_rows(("", "check", "found", "limit", "about"), rows)
    if not checks.ok.all():
        raise typer.Exit(1)


@app.command()
def merge(
    models: Annotated[list[str], typer.Argument(help="Folders, hub ids, .gguf files, or smollm2")],
    out: Annotated[Path, typer.Option(help="The new model folder")],
    how: Annotated[
        str, typer.Option(help="linear, slerp, arithmetic, ties, dare or dare_ties")
    ] = "linear",
    base: Annotated[str | None, typer.Option(help="What all were tuned from")] = None,
    weights: Annotated[
        str | None, typer.Option(help="One a model, like 0.3,0.7 (linear, arithmetic, dare)")
    ] = None,
    t: Annotated[float | None, typer.Option(help="0: first model, 1: second (slerp)")] = None,
    scale: Annotated[float | None, typer.Option(help="λ, where there is a base")] = None,
    keep: Annotated[float | None, typer.Option(help="Share kept by trimming (ties)")] = None,
    drop: Annotated[float | None, typer.Option(help="Share dropped (dare)")] = None,
    seed: Annotated[int | None, typer.Option(help="Random seed (dare)")] = None,
) -> None:
    """Merge models of one architecture into a folder that loads like any other."""
    import probe

    named = {"t": t, "scale": scale, "keep": keep, "drop": drop, "seed": seed}
    options: dict[str, Any] = {name: value for name, value in named.items() if value is not None}
    if weights is not None:
        options["weights"] = weights.split(",")
    made = probe.merge(models, out=out, how=how, base=base, **options)
    stdout.print(f"wrote {escape(str(made))}", highlight=False)


@app.command()
def explore(
    model: ModelName = "smollm2",
    prompt: Annotated[str, typer.Option(help="Open on this prompt")] = "",
    port: Annotated[int, typer.Option(help="Port on this machine")] = 8501,
) -> None:
    """Open the Explorer in a browser, on this machine only."""
    from urllib.parse import urlencode

    page = Path(__file__).resolve().parents[2] / "apps" / "explorer.py"
    if not page.is_file():
        raise RunError(
            "the Explorer is not part of this installation",
            expected=f"{page}",
            remedy="run it from a clone of the repository: make explore",
        )
    query = urlencode({"v": 1, "m": model, **({"q": prompt} if prompt else {})})
    stdout.print(f"http://127.0.0.1:{port}/?{query}")
    command = [sys.executable, "-m", "streamlit", "run", str(page)]
    command += [f"--server.port={port}", "--server.address=127.0.0.1"]
    command += ["--browser.gatherUsageStats=false"]
    raise typer.Exit(subprocess.run(command, check=False, cwd=page.parents[1]).returncode)


def _run(word: str) -> str | Path:
    """A run by its id; or by its folder, where that of a study stands for its findings."""
    from probe.runs.study import FINDINGS

    folder = Path(word)
    if word and folder.is_dir():
        return folder / FINDINGS if (folder / FINDINGS).is_dir() else folder
    if len(folder.parts) > 1:
        raise RunError(f"there is no folder {word}", remedy="probe runs, which lists the runs")
    return word


def _task(name: str | None, drawn: dict[str, int]) -> Any:
    import probe

    if name is None:
        return None
    if name.endswith(".jsonl"):
        return probe.Task.from_jsonl(name)
    return probe.load_task(name, **drawn)
