"""Text written by the model itself: a corpus nobody else owns, on its own distribution."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from probe.core.errors import CorpusError, OptionError
from probe.core.model import Generation, Model
from probe.core.progress import progress_bar
from probe.core.provenance import hash_text
from probe.corpora.documents import Corpus, load_corpus
from probe.corpora.openings import opening

_CHAT_PROBE = "a request stands here"


def write_corpus(
    model: Model,
    out: str | Path,
    *,
    n_tokens: int = 100_000,
    max_new_tokens: int = 256,
    batch_size: int = 64,
    temperature: float = 1.0,
    openings: Sequence[str] | None = None,
    seed: int = 0,
) -> Corpus:
    """Have the model write a corpus.

    A JSONL file of ``text``, ``opening`` and ``batch``. A killed run goes on after its last whole
    batch, and ends with the same file.

    Args:
        model: The writer.
        out: The file to write, ending in ``.jsonl``.
        n_tokens: Stop after the batch in which so many tokens have been written.
        max_new_tokens: The longest text.
        batch_size: Texts written at once.
        temperature: 1 is the model's own distribution.
        openings: What the texts continue, in turn. By default begun sentences and, where the
            tokenizer has a chat format, requests in it, drawn from a list of some thousands.
        seed: Of openings and draws.

    Raises:
        CorpusError: A file of that name that was written with other options.
        OptionError: A number out of range.

    Cost: a forward pass over one token for each token written, in batches.
    """
    path = Path(out)
    if path.suffix != ".jsonl" or n_tokens < 1 or batch_size < 1:
        raise OptionError(
            f"out={path.name!r}, n_tokens={n_tokens}, batch_size={batch_size}",
            expected="a file ending in .jsonl, and numbers of at least 1",
        )
    begin, chat = _openings(model, openings, seed)
    made = hash_text(
        f"{model.spec} {max_new_tokens} {batch_size} {temperature} {openings} {seed} {chat}"
    )
    rows = _written(path, made)
    done = sum(row["n_tokens"] for row in rows)
    with progress_bar("writing text") as report:
        while done < n_tokens:
            batch = len(rows) // batch_size
            prompts = [begin(batch * batch_size + i) for i in range(batch_size)]
            texts = model.sample(
                prompts, max_new_tokens=max_new_tokens, temperature=temperature,
                seed=hash_seed(seed, batch),
            )  # fmt: skip
            rows += [_row(model, text, chat, batch, made) for text in texts]
            done = sum(row["n_tokens"] for row in rows)
            _save(path, rows)
            if report(min(done, n_tokens), n_tokens, "tokens") is False:
                break
    return load_corpus(path)


def hash_seed(*parts: int) -> int:
    """A seed of its own for each part of a run.

    >>> hash_seed(0, 1) != hash_seed(1, 0)
    True
    """
    return int(hash_text(" ".join(str(part) for part in parts)), 16) >> 2


def _openings(
    model: Model, openings: Sequence[str] | None, seed: int
) -> tuple[Callable[[int], str], str]:
    """Number → opening, and how the tokenizer's chat format puts a request."""
    if openings is not None:
        if not openings:
            raise OptionError("no opening was given", expected="at least one text to continue")
        return lambda number: openings[number % len(openings)], ""
    chat = "{}"
    if model.tokenizer.hf.chat_template:
        chat = model.tokenizer.hf.apply_chat_template(
            [{"role": "user", "content": _CHAT_PROBE}], tokenize=False, add_generation_prompt=True
        ).replace(_CHAT_PROBE, "{}")
    return lambda number: opening(number, seed, chat), chat if chat != "{}" else ""


def _row(model: Model, text: Generation, chat: str, batch: int, made: str) -> dict[str, Any]:
    """A begun text is kept whole; of a request only the answer."""
    tokens = [t for t in text.tokens if not model.tokenizer.is_special(t)]
    before, after = chat.split("{}") if chat else ("", "")
    asked = bool(chat) and text.prompt.startswith(before) and text.prompt.endswith(after)
    written = model.tokenizer.decode(tokens)
    return {
        "text": (written if asked else text.prompt + written) or text.prompt,
        "opening": text.prompt.removeprefix(before).removesuffix(after) if asked else text.prompt,
        "batch": batch,
        "n_tokens": len(tokens),
        "made": made,
    }


def _written(path: Path, made: str) -> list[dict[str, Any]]:
    """The rows of an earlier run with the same options."""
    if not path.exists():
        return []
    try:
        rows = [json.loads(line) for line in path.read_text("utf-8").split("\n") if line]
        other = any(row["made"] != made for row in rows)
    except (ValueError, KeyError, TypeError):
        other, rows = True, []
    if other:
        raise CorpusError(
            f"{path} is there, and was not written by this model with these options",
            expected="a new file, or the options it was begun with",
            remedy="another name, or remove it",
        )
    return rows


def _save(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    temporary.write_text(text, "utf-8", newline="\n")
    temporary.replace(path)
