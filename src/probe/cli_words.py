"""What the commands share: words to options, and results to a terminal that may be a pipe."""

import json
import sys
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from probe.core.errors import OptionError

# A pipe has no width: nothing is cut or wrapped for a program that reads it.
_WIDE = 10_000
_NAME = 40
"""Characters up to which a text is a name."""
_FINDINGS = ["claim", "verdict", "measure", "value", "low", "high"]
stdout = Console(width=None if sys.stdout.isatty() else _WIDE)
stderr = Console(stderr=True)

ModelName = Annotated[str, typer.Option("--model", "-m", help="Name, hub id, folder or .gguf file")]


def print_options(options: Any) -> None:
    """The options of a pydantic model, with their defaults."""
    print_rows(
        ("option", "default", "about"),
        [
            (f"--{name}", "" if f.is_required() else repr(f.default), f.description)
            for name, f in options.model_fields.items()
        ],
    )


def options_of(words: list[str]) -> dict[str, Any]:
    """``--layers [0,1] --top 3 --centre`` as keyword arguments; values are JSON where they can be.

    >>> options_of(["--layers", "[0, 1]", "--show=rank", "--centre"])
    {'layers': [0, 1], 'show': 'rank', 'centre': True}
    """
    options: dict[str, Any] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            raise OptionError(f'"{word}" stands alone', expected="--option value")
        name, equals, text = word[2:].partition("=")
        if not equals and rest and not rest[0].startswith("--"):
            text, equals = rest.pop(0), "="
        options[name.replace("-", "_")] = _value(text) if equals else True
    return options


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def show_result(result: Any, rows: int) -> None:
    """The first rows of a result's table, and its notes; of findings what is read first."""
    frame = result.frame
    if set(_FINDINGS) <= set(frame.columns):
        frame = frame[_FINDINGS]
    print_rows(list(frame.columns), list(frame.head(rows).itertuples(index=False, name=None)))
    if len(frame) > rows:
        stdout.print(f"… {len(frame) - rows} more rows")
    for note in result.provenance.notes:
        stdout.print(f"note: {escape(note)}", highlight=False)


def print_rows(names: Any, rows: Any) -> None:
    """A table of rows."""
    table = Table(box=None, pad_edge=False)
    cells = [[printable(number(cell)) for cell in row] for row in rows]
    for place, name in enumerate(names):
        # the first column is what one copies, an id, a name; unless it is a sentence
        whole = place == 0 and all(len(row[0]) <= _NAME for row in cells)
        table.add_column(escape(str(name)), no_wrap=whole, overflow="fold")
    for row in cells:
        table.add_row(*map(escape, row))
    stdout.print(table)


def number(cell: Any) -> str:
    """A cell as text; four digits of a number, nothing for what is missing."""
    if isinstance(cell, float):
        return "" if cell != cell else f"{cell:.4g}"
    return "" if cell is None else str(cell)


def printable(text: str) -> str:
    """Control characters would move the terminal's cursor; they are shown as what they are."""
    return "".join(c if c.isprintable() or c == "\n" else f"\\x{ord(c):02x}" for c in text)
