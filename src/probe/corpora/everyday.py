"""Text the tiny models learn from, made again on any machine: nothing is downloaded or shipped.

Two halves, as documents in a fixed order:

- **Written by people.** The Python standard library of the interpreter that runs: each module's
  source, with its docstrings and comments, and each topic of its language reference. Tests, IDLE
  and tables of character codes are left out.
- **Generated.** Stories, ledgers, songs, talks and recitals in templated English, about people and
  things with invented names, which a reader can only know from the document itself. They come
  back throughout it, so that looking back pays: names in all of them, whole lines in songs and
  ledgers, and in recitals a list of invented words, said again and again.

The generated half depends on the seed alone, the other on the Python version; so a hash of the
whole goes into every training record.
"""

import random
import sysconfig
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from probe.core.errors import OptionError
from probe.corpora.documents import Corpus

_NOT_PROSE = frozenset(
    "site-packages dist-packages test tests idle_test idlelib lib2to3 ensurepip encodings "
    "pydoc_data __pycache__".split()
)


def everyday_corpus(n_generated: int = 6000, seed: int = 0, *, limit: int | None = None) -> Corpus:
    """Python's own library and generated English, as one stream of documents.

    Args:
        n_generated: Generated documents, of about 1,500 characters each.
        seed: Of the generated half.
        limit: The most documents of both halves; all by default.

    Raises:
        OptionError: A negative number of documents, or a limit below one.

    >>> next(iter(everyday_corpus(1))).id
    0
    """
    if n_generated < 0:
        raise OptionError(f"n_generated={n_generated}", expected="0 or more")
    return Corpus("everyday", _Mixed(n_generated, seed), limit=limit)


class _Mixed:
    """Generated documents and library modules, dealt alternately until both are out."""

    def __init__(self, n_generated: int, seed: int) -> None:
        self.n_generated, self.seed = n_generated, seed

    def __iter__(self) -> Iterator[str]:
        made = (generated_document(self.seed, number) for number in range(self.n_generated))
        found = library_documents()
        for text in made:
            yield text
            yield from _up_to_one(found)
        yield from found


def _up_to_one(texts: Iterator[str]) -> Iterator[str]:
    for text in texts:
        yield text
        return


def library_documents() -> Iterator[str]:
    """The running interpreter's modules and reference topics, in order of their names."""
    from pydoc_data.topics import topics

    for name in sorted(topics):
        yield topics[name]
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        if not _NOT_PROSE & set(path.relative_to(root).parts):
            yield path.read_text("utf-8", errors="replace")


# --- generated -----------------------------------------------------------------------------------

_ONSETS = "b br c ch d dr f fl g gr h j k l m n p pr r s sh st t tr v w".split()
_VOWELS = "a e i o u ai ea ee oo ou".split()
_CODAS = ["", "", "l", "n", "r", "s", "t", "m", "nd", "rk", "sk", "ll"]
_THINGS = (
    "lamp coat basket letter rope boat hammer blanket mirror clock kettle drum ladder bell candle "
    "saddle bucket ribbon map key coin stone book wheel chair bottle"
).split()
_KINDS = "old small red blue heavy broken bright wooden silver strange quiet long".split()
_PLACES = (
    "market river bridge harbour mill garden forest station tower school kitchen barn church "
    "library field road shop valley"
).split()
_TIMES = (
    "In the morning|After a while|Later that day|At noon|Before long|The next day|At last|"
    "Toward evening|When the rain stopped|Soon"
).split("|")
_FEELINGS = "glad tired afraid curious angry proud sorry calm hungry certain".split()
_IDIOMS = (
    "keep {x} in mind|keep {x} at bay|take {x} into account|take {x} by surprise|"
    "put {x} to rest|put {x} on hold|bring {x} to light|bring {x} under control"
).split("|")
_DEEDS = (
    "{a} gave the {k} {t} to {b}.|{a} found a {k} {t} near the {p}.|{a} and {b} walked to the {p}.|"
    "{a} asked {b} about the {t}.|{b} told {a} that the {t} was {k}.|{a} was {f}, but {b} was not.|"
    "{a} had never been to the {p} before.|{b} waited for {a} at the {p}.|"
    "{a} put the {t} back where {b} had left it.|{a} said that {b} should {i}.|"
    "It was {a} who wanted to {i}.|{b} could not find the {t}, so {a} looked in the {p}.|"
    "{a} carried the {t} from the {p} to the house of {b}.|Nobody but {b} knew what {a} had seen.|"
    "The {t} belonged to {b}, and {a} knew it.|{a} thought of {b} and felt {f}.|"
    "{a} lost the {k} {t}, and {b} was {f}.|There was a {k} {t} in the {p}, and {a} took it.|"
    "{b} wrote to {a} about the {p} and the {t}.|{a} sold the {t} to {b} for {n} coins.|"
    "When {a} came to the {p}, {b} had already gone.|They talked about the {t} until it was dark."
).split("|")
_SPEECH = (
    "I have seen the {t} at the {p}.|You should {i}.|Did you give the {t} to {b}?|"
    "I am {f} about the {t}.|We will meet at the {p}.|Where is the {k} {t}?|"
    "I think {b} has it.|I do not want to {i}.|It cost {n} coins.|Ask {b}, not me."
).split("|")


def generated_document(seed: int, number: int) -> str:
    """One generated document; the same for the same seed and number.

    >>> generated_document(0, 5) == generated_document(0, 5) != generated_document(1, 5)
    True
    """
    draw = random.Random(f"{seed}/{number}")
    makers: list[Callable[[random.Random], str]] = [_story, _ledger, _song, _talk, _recital]
    return draw.choices(makers, weights=[3, 2, 2, 1, 2])[0](draw)


def invented_word(draw: random.Random) -> str:
    """A word of one to three syllables that is in no dictionary."""
    syllables = draw.choice([1, 2, 2, 3])
    part = partial(draw.choice)
    return "".join(part(_ONSETS) + part(_VOWELS) + part(_CODAS) for _ in range(syllables))


def _name(draw: random.Random) -> str:
    return invented_word(draw).capitalize()


class _Cast:
    """Who and what one document is about: few enough to come back."""

    def __init__(self, draw: random.Random) -> None:
        self.draw = draw
        self.people = [_name(draw) for _ in range(draw.randint(3, 5))]
        self.things = draw.sample(_THINGS, 4)
        self.things += [invented_word(draw), invented_word(draw)]
        self.places = [*draw.sample(_PLACES, 3), invented_word(draw)]

    def fill(self, template: str) -> str:
        """The template with this document's people, things and places."""
        draw = self.draw
        a, b = draw.sample(self.people, 2)
        idiom = draw.choice(_IDIOMS).format(x=draw.choice(["it", "that", "them", b]))
        return template.format(
            a=a, b=b, t=draw.choice(self.things), p=draw.choice(self.places), i=idiom,
            k=draw.choice(_KINDS), f=draw.choice(_FEELINGS), n=draw.randint(2, 99),
        )  # fmt: skip


def _story(draw: random.Random) -> str:
    cast = _Cast(draw)
    paragraphs = []
    for _ in range(draw.randint(5, 8)):
        deeds = [cast.fill(draw.choice(_DEEDS)) for _ in range(draw.randint(4, 7))]
        paragraphs.append(f"{draw.choice(_TIMES)}, " + " ".join(deeds))
    return "\n\n".join(paragraphs) + "\n"


def _ledger(draw: random.Random) -> str:
    """Entries, then questions about them, each entry several times in another order."""
    entries = [
        (_name(draw), f"{draw.randint(2, 99)} {invented_word(draw)}", draw.choice(_PLACES))
        for _ in range(draw.randint(6, 10))
    ]
    lines = [f"The ledger of the {draw.choice(_PLACES)} at {_name(draw)}"]
    for _ in range(5):
        lines.append(draw.choice(["", "Again:", "Checked:", "As it was written:"]))
        draw.shuffle(entries)
        lines += [f"{who} owes {what} to the {where}." for who, what, where in entries]
    return "\n".join(lines) + "\n"


def _song(draw: random.Random) -> str:
    """Verses that differ and a refrain of invented words that does not."""
    words = [invented_word(draw) for _ in range(12)]
    refrain = [" ".join(draw.choices(words, k=draw.randint(5, 8))) for _ in range(4)]
    cast = _Cast(draw)
    verses = []
    for _ in range(draw.randint(5, 7)):
        verse = [cast.fill(draw.choice(_DEEDS)) for _ in range(3)]
        verses.append("\n".join(verse + refrain))
    return "\n\n".join(verses) + "\n"


def _talk(draw: random.Random) -> str:
    cast = _Cast(draw)
    lines = []
    for _ in range(draw.randint(24, 36)):
        speaker = draw.choice(cast.people)
        lines.append(f'{speaker}: "{cast.fill(draw.choice(_SPEECH))}"')
    return "\n".join(lines) + "\n"


def _recital(draw: random.Random) -> str:
    """A list of invented words, said again and again in the same order."""
    words = [invented_word(draw) for _ in range(draw.randint(15, 40))]
    who, spoken = _name(draw), " ".join(words)
    times = max(3, 240 // len(words))
    return (
        f"What {who} knew by heart\n" + "\n".join(f"{who}: {spoken}." for _ in range(times)) + "\n"
    )
