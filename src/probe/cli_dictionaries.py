"""The command line of dictionaries: text → activations → dictionary → numbers and an index."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from probe.cli_words import (
    ModelName,
    options_of,
    print_rows,
    printable,
    show_result,
    stderr,
    stdout,
)
from probe.core.errors import OptionError, nearest

app = typer.Typer()

Text = Annotated[
    str, typer.Argument(help="A .txt, .jsonl or .parquet file, or hf:NAME, a dataset on the hub")
]
Column = Annotated[str, typer.Option(help="Field of a file or dataset that holds the text")]
Name = Annotated[str, typer.Argument(help="A folder, or the name of a shipped dictionary")]
Tokens = Annotated[int | None, typer.Option(help="Stop after so many; without it, read it all")]
Width = Annotated[int, typer.Option(help="Tokens the model sees at once")]

_KINDS = {"sae": "train_sae", "transcoder": "train_transcoder", "crosscoder": "train_crosscoder"}


@app.command()
def harvest(
    corpus: Text,
    out: Annotated[Path, typer.Option(help="The store; one begun with the same options goes on")],
    site: Annotated[list[str], typer.Option(help="Like resid_post.15; give several times")],
    model: ModelName = "smollm2",
    column: Column = "text",
    n_tokens: Tokens = None,
    n_pos: Width = 128,
    skip_first: Annotated[int, typer.Option(help="First tokens of a row that are left out")] = 0,
    dtype: Annotated[str, typer.Option(help="float32, float16 or bfloat16")] = "float32",
    seed: Annotated[int, typer.Option(help="Of the shuffle")] = 0,
) -> None:
    """Record what a model computes on a text, to train dictionaries on."""
    import probe

    text = probe.load_corpus(corpus, column=column)
    with stderr.status(f"loading {model}"):
        loaded = probe.load_model(model)
    store = probe.harvest(
        loaded, text, site=site, out=out, n_tokens=n_tokens, n_pos=n_pos, skip_first=skip_first,
        dtype=dtype, seed=seed,
    )  # fmt: skip
    _say(f"{out}: {store}")


@app.command(context_settings={"ignore_unknown_options": True})
def train(
    store: Annotated[Path, typer.Argument(help="What `probe harvest` has written")],
    out: Annotated[Path, typer.Option(help="The dictionary; one begun like this goes on")],
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="--OPTION VALUE", help="`probe list training` names them"),
    ] = None,
    kind: Annotated[str, typer.Option(help="sae, transcoder or crosscoder")] = "sae",
) -> None:
    """Train a dictionary; options of the training follow, as --option value."""
    import probe

    if kind not in _KINDS:
        raise OptionError(f'there is no kind of dictionary "{kind}"', remedy=nearest(kind, _KINDS))
    made = getattr(probe, _KINDS[kind])(
        probe.ActivationStore(store), out=out, **options_of(words or [])
    )
    about = made.metadata
    _say(f"{out}: {made}" + ("" if about["complete"] else ", not complete: run it again to go on"))
    print_rows(("last batches", "value"), about["last"].items())


@app.command()
def evaluate(
    dictionary: Name,
    corpus: Text,
    model: ModelName = "smollm2",
    column: Column = "text",
    n_tokens: Tokens = 100_000,
    ce_tokens: Annotated[int, typer.Option(help="Of them, for cross-entropy; 0: none")] = 20_000,
    n_pos: Width = 128,
    save: Annotated[bool, typer.Option(help="Keep the result under the runs directory")] = True,
) -> None:
    """Measure a dictionary on text it was not trained on."""
    import probe

    sae = probe.load_dictionary(dictionary)
    text = probe.load_corpus(corpus, column=column)
    with stderr.status(f"loading {model}"):
        loaded = probe.load_model(model)
    result = probe.evaluate_sae(
        sae, loaded, text, n_tokens=n_tokens, ce_tokens=ce_tokens, n_pos=n_pos
    )
    # densities, a row a feature, come last
    show_result(result, int(result.frame["feature"].isna().sum()))
    if save:
        _say(f"saved as {result.save().name}")


@app.command()
def index(
    dictionary: Name,
    corpus: Text,
    out: Annotated[Path, typer.Option(help="The file; an older one's labels are taken over")],
    model: ModelName = "smollm2",
    column: Column = "text",
    n_tokens: Tokens = None,
    n_pos: Width = 128,
) -> None:
    """Write the index of a dictionary's features, which the Explorer's Features page reads."""
    import probe

    text = probe.load_corpus(corpus, column=column)
    with stderr.status(f"loading {model}"):
        loaded = probe.load_model(model)
    made = probe.index_features(loaded, dictionary, text, out=out, n_tokens=n_tokens, n_pos=n_pos)
    _say(f"{out}: {len(made)} features, {made.about['tokens']} tokens")


def _say(text: str) -> None:
    stdout.print(escape(printable(text)), highlight=False)
