"""Files and strings as documents, and what is said of those that are none."""

import inspect
import json
import tracemalloc
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from probe.core.errors import CorpusError, OptionError, ProbeError
from probe.corpora import Corpus, load_corpus

TEXTS = ["one text", "a\nsecond", "שלום <b>$x$</b> :red[x] \u2028 \x85 \x00", "four"]
SOURCES = ["list", "tuple", "jsonl", "parquet", "txt"]


def written(kind: str, texts: list[str], folder: Path, column: str = "text") -> object:
    path = folder / f"corpus.{kind}"
    if kind == "list":
        return texts
    if kind == "tuple":
        return tuple(texts)
    if kind == "jsonl":
        rows = [json.dumps({column: t, "n": i}, ensure_ascii=False) for i, t in enumerate(texts)]
        path.write_text("\n\n".join(rows), "utf-8", newline="")
    elif kind == "parquet":
        pd.DataFrame({column: texts, "n": range(len(texts))}).to_parquet(path)
    else:
        path.write_text("\n\n \n".join(texts) + "\n", "utf-8", newline="")
    return path


def read(corpus: Corpus) -> list[str]:
    documents = list(corpus)
    assert [document.id for document in documents] == list(range(len(documents)))
    return [document.text for document in documents]


@pytest.mark.parametrize("kind", SOURCES)
def test_the_same_texts_each_time_whatever_they_are_in(kind: str, tmp_path: Path) -> None:
    corpus = load_corpus(written(kind, TEXTS, tmp_path))
    assert read(corpus) == TEXTS
    assert read(corpus) == TEXTS


@pytest.mark.parametrize("kind", SOURCES)
def test_a_limit_takes_the_first(kind: str, tmp_path: Path) -> None:
    assert read(load_corpus(written(kind, TEXTS, tmp_path), limit=2)) == TEXTS[:2]
    assert read(load_corpus(written(kind, TEXTS, tmp_path), limit=99)) == TEXTS


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_another_column(kind: str, tmp_path: Path) -> None:
    path = written(kind, TEXTS, tmp_path, column="content")
    assert read(load_corpus(path, column="content")) == TEXTS
    with pytest.raises(CorpusError, match=r'no (column )?"conten".*\nTry: did you mean "content"'):
        read(load_corpus(path, column="conten"))


def test_a_path_may_be_a_string_and_its_ending_in_capitals(tmp_path: Path) -> None:
    path = tmp_path / "A.TXT"
    path.write_text("first\n\nsecond")
    corpus = load_corpus(str(path))
    assert read(corpus) == ["first", "second"]
    assert corpus.name == "A.TXT"


def test_windows_line_ends_and_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("\ufefffirst\r\nline\r\n\r\nsecond\r\n".encode())
    assert read(load_corpus(path)) == ["first\nline", "second"]


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=5))
def test_any_text_survives_jsonl(tmp_path_factory: pytest.TempPathFactory, texts: list) -> None:
    path = written("jsonl", texts, tmp_path_factory.mktemp("any"))
    assert read(load_corpus(path)) == texts


def test_reading_a_file_holds_little_of_it(tmp_path: Path) -> None:
    path = tmp_path / "large.jsonl"
    line = json.dumps({"text": "word " * 200}) + "\n"
    with path.open("w") as file:
        file.writelines(line for _ in range(10_000))
    tracemalloc.start()
    count = sum(1 for _ in load_corpus(path))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 10_000
    assert peak < 200_000 < path.stat().st_size


def test_a_generator_is_read_once() -> None:
    corpus = load_corpus((text for text in TEXTS), limit=2)
    assert read(corpus) == TEXTS[:2]
    with pytest.raises(CorpusError, match="this generator has been read\nExpected: texts that can"):
        read(corpus)


def test_no_texts_is_an_empty_corpus(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n \n")
    assert read(load_corpus([])) == read(load_corpus(tmp_path / "a.txt")) == []


@pytest.mark.parametrize("source", ["no text of a file", "wikitext", "data.csv", "a" * 5000])
def test_an_unknown_ending_is_refused(source: str) -> None:
    with pytest.raises(CorpusError, match=r"Expected: a file ending in one of \.txt, \.jsonl, \.p"):
        load_corpus(source)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"absent\.txt' does not exist"):
        load_corpus("absent.txt")
    with pytest.raises(CorpusError, match=r"' does not exist|cannot be read"):
        load_corpus("a" * 5000 + ".txt")
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(CorpusError, match="is a folder"):
        load_corpus(tmp_path / "folder.txt")


@pytest.mark.parametrize("source", [b"bytes", 7, None])
def test_what_holds_no_strings_is_refused(source: object) -> None:
    with pytest.raises(ProbeError, match=r"a corpus cannot be made of (bytes|int|NoneType)"):
        inspect.unwrap(load_corpus)(source)


def test_a_limit_below_one_is_refused() -> None:
    with pytest.raises(OptionError, match="limit=0\nExpected: at least one document"):
        load_corpus(TEXTS, limit=0)


def line_error(path: Path, line: str) -> str:
    path.write_text('{"text": "good"}\n' + line + "\n", "utf-8")
    documents = iter(load_corpus(path))
    assert next(documents).text == "good"
    with pytest.raises(CorpusError) as error:
        next(documents)
    assert f"{path}, line 2" in str(error.value)
    return str(error.value)


def test_bad_lines_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    assert "is not JSON: Expecting property name" in line_error(path, "{broken")
    assert "is not JSON" in line_error(path, '{"text": ')
    assert "holds list: '[1, 2]'" in line_error(path, "[1, 2]")
    assert 'has no "text"\nTry: did you mean "txt"? Known: txt, n' in line_error(
        path, '{"txt": "a", "n": 1}'
    )
    assert "is NoneType, not text: 'None'" in line_error(path, '{"text": null}')
    assert "is int, not text: '7'" in line_error(path, '{"text": 7}')
    assert "character 1 of " in line_error(path, '{"text": "a\\ud800"}')
    assert "is a lone surrogate (U+D800)" in line_error(path, '{"text": "a\\ud800"}')


def test_bytes_that_are_no_text_are_named(tmp_path: Path) -> None:
    for name in ("a.txt", "a.jsonl"):
        path = tmp_path / name
        path.write_bytes(b'{"text": "a"}\n\xff\xfe\n')
        with pytest.raises(CorpusError, match=r"a\.\w+, line 2, byte 0 is not UTF-8"):
            list(load_corpus(path))


def test_strings_that_are_none_are_named() -> None:
    with pytest.raises(CorpusError, match="text 1 is int, not text: '3'"):
        list(Corpus("mixed", ["a", 3]))
    with pytest.raises(CorpusError, match=r"character 0 of text 0 is a lone surrogate \(U\+DC00\)"):
        list(load_corpus(["\udc00"]))


def test_a_bad_parquet_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(b"not parquet at all")
    with pytest.raises(CorpusError, match=r"a\.parquet is not a whole Parquet file"):
        list(load_corpus(path))
    pd.DataFrame({"text": ["a", None]}).to_parquet(path)
    with pytest.raises(CorpusError, match=r'"text" in .*a\.parquet, row 1 is NoneType'):
        list(load_corpus(path))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CorpusError, match=r"a\.parquet is not a whole Parquet file"):
        list(load_corpus(path))
