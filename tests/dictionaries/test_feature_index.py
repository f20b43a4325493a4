"""The feature index against brute force over every activation of a small corpus."""

import sqlite3
import threading
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from random_dictionaries import dictionary

import probe
from probe.core.errors import CorpusError, DictionaryError, OptionError
from probe.core.model import Model
from probe.core.progress import listening
from probe.corpora import token_batches
from probe.dictionaries.dictionary import SparseDictionary
from probe.dictionaries.feature_index import FeatureIndex
from probe.dictionaries.index_features import index_features
from probe.dictionaries.summaries import equal_count, equal_width

TEXTS = [
    "When Mary and John went to the store, John gave a drink to Mary. ",
    "<script>alert(1)</script> The keys to the cabinet are in the store. ",
    "The war lasted from the year 1732 to the year 17. ",
] * 6
OPTIONS = {"n_pos": 16, "batch_size": 4, "n_intervals": 4, "per_interval": 3}


def small(toy: Model) -> SparseDictionary:
    return dictionary("jumprelu", d_in=toy.dims.d_model)


@pytest.fixture(scope="module")
def built(toy: Model, tmp_path_factory: pytest.TempPathFactory) -> FeatureIndex:
    out = tmp_path_factory.mktemp("index") / "index.sqlite"
    return index_features(toy, small(toy), TEXTS, out=out, skip_first=1, **OPTIONS)


@pytest.fixture(scope="module")
def truth(toy: Model) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Row, position and features of every token that counts."""
    sae, rows, positions, found = small(toy), [], [], []
    first = 0
    for batch in token_batches(probe.load_corpus(TEXTS), toy.tokenizer, n_pos=16, batch_size=4):
        counted = ~batch.special
        counted[:, 0] = False
        place = counted.nonzero()
        x = toy.trace(batch.tokens, sae.reads[0])[sae.reads[0]]
        rows.append(place[:, 0] + first)
        positions.append(place[:, 1])
        found.append(sae.encode(x[counted]))
        first += len(batch.tokens)
    return torch.cat(rows), torch.cat(positions), torch.cat(found)


def test_statistics_are_those_of_all_activations(built: FeatureIndex, truth: tuple) -> None:
    _, _, features = truth
    frame = built.features()
    assert built.about["tokens"] == len(features)
    np.testing.assert_allclose(frame["density"], (features > 0).double().mean(0), atol=1e-9)
    np.testing.assert_allclose(frame["max"], features.max(0).values, rtol=1e-5)
    mean = features.sum(0) / (features > 0).sum(0).clamp(min=1)
    np.testing.assert_allclose(frame["mean"], mean, rtol=1e-4)
    for number in range(len(built)):
        values = features[:, number]
        values = values[values > 0].double().numpy()
        page = built.feature(number)
        assert page.n == len(values) == sum(page.histogram)
        assert page.dead == (len(values) == 0)
        if len(values):
            expected = np.histogram(values, 50, (0, values.max()))[0]
            assert np.abs(np.array(page.histogram) - expected).sum() <= 2  # at edges


def test_examples_stand_where_they_say(built: FeatureIndex, truth: tuple, toy: Model) -> None:
    rows, positions, features = truth
    at = {(int(r), int(p)): f for r, p, f in zip(rows, positions, features, strict=True)}
    for number in range(len(built)):
        page = built.feature(number)
        every = [*page.top, *(e for i in page.equal_width + page.equal_count for e in i.examples)]
        for example in every:
            assert example.value == pytest.approx(
                float(at[example.row, example.pos][number]), rel=1e-3
            )
            expected = [float(at[example.row, p][number]) if (example.row, p) in at else 0.0
                        for p in range(len(example.tokens))]  # fmt: skip
            assert list(example.activations) == pytest.approx(expected, rel=1e-3)
        if page.top:
            assert page.top[0].value == pytest.approx(page.max, rel=1e-3)
            values = [example.value for example in page.top]
            assert values == sorted(values, reverse=True)
            assert len({example.row for example in page.top}) == len(page.top)
            contexts = [e.tokens[max(0, e.pos - 5) : e.pos + 6] for e in page.top]
            assert len(set(contexts)) == len(contexts), "equal contexts are one example"
            assert max(example.alike for example in page.top) > 1


def test_intervals_hold_what_lies_between_their_ends(built: FeatureIndex, truth: tuple) -> None:
    _, _, features = truth
    page = max((built.feature(i) for i in range(len(built))), key=lambda page: page.n)
    values = features[:, page.id]
    values = values[values > 0].double().numpy()
    for kind in (page.equal_width, page.equal_count):
        assert sum(i.share for i in kind) == pytest.approx(1, abs=1e-3)
        assert [i.high for i in kind] == sorted((i.high for i in kind), reverse=True)
        for interval in kind:
            for example in interval.examples:
                assert interval.low * 0.999 <= example.value <= interval.high * 1.001
    widths = [i.high - i.low for i in page.equal_width]
    assert widths == pytest.approx([widths[0]] * len(widths), rel=1e-2)
    shares = [i.share for i in page.equal_count]
    assert max(shares) - min(shares) <= 1 / len(values) + 1e-3


def test_intervals_on_numbers_one_can_count() -> None:
    value = np.array([0.5, 1.0, 1.5, 4.0])
    wide = [(low, high, m.tolist()) for low, high, m in equal_width(value, 4)]
    assert wide == [(3.0, 4.0, [3]), (1.0, 2.0, [2]), (0.0, 1.0, [0, 1])]
    full = [(low, high, sorted(m.tolist())) for low, high, m in equal_count(value, 2)]
    assert full == [(1.5, 4.0, [2, 3]), (0.5, 1.0, [0, 1])]
    assert len(equal_count(value, 10)) == 4


def test_tokens_promoted_are_those_of_the_direct_path(built: FeatureIndex, toy: Model) -> None:
    sae = small(toy)
    rows = toy.read_out(sae.W_dec, torch.ones(sae.d_sae, 1)) @ toy.weights.W_U
    rows = rows - rows.mean(-1, keepdim=True)
    for number in (0, 5):
        page = built.feature(number)
        best = rows[number].topk(10)
        words = toy.tokenizer.strings(best.indices.tolist())
        assert [token for token, _ in page.promoted] == words
        assert [v for _, v in page.promoted] == pytest.approx(best.values.tolist(), rel=1e-3)
        assert page.suppressed[0][1] == pytest.approx(float(rows[number].min()), rel=1e-3)
        assert sum(page.logits) == toy.dims.d_vocab
        found = built.by_token(int(best.indices[0]), "promoted")
        assert number in set(found["feature"])


def test_neighbours_and_correlations(built: FeatureIndex, truth: tuple, toy: Model) -> None:
    _, _, features = truth
    unit = torch.nn.functional.normalize(small(toy).W_dec, dim=1)
    cosines = unit @ unit.T - 3 * torch.eye(len(unit))
    with np.errstate(invalid="ignore"):
        pearson = np.corrcoef(features.double().numpy().T)
    np.fill_diagonal(pearson, -1)
    for number in range(len(built)):
        page = built.feature(number)
        assert page.neighbours[0][0] == int(cosines[number].argmax())
        assert page.neighbours[0][1] == pytest.approx(float(cosines[number].max()), abs=1e-3)
        for other, r in page.correlated:
            assert r == pytest.approx(pearson[number, other], abs=2e-3)
        if page.correlated:
            assert page.correlated[0][1] == pytest.approx(np.nanmax(pearson[number]), abs=2e-3)


def test_a_feature_is_found_by_what_it_fires_on(built: FeatureIndex) -> None:
    page = next(built.feature(i) for i in range(len(built)) if built.feature(i).fires_on)
    token, share, count = page.fires_on[0]
    found = built.by_token(token.upper(), "fires_on").set_index("feature")
    assert found.loc[page.id, "value"].max() == pytest.approx(share, rel=1e-3)
    assert 0 < share <= 1
    assert count >= 1
    assert built.by_token("no such token").empty


def test_a_feature_is_found_on_a_prompt(built: FeatureIndex, toy: Model) -> None:
    sae, prompt = small(toy), TEXTS[0]
    x = toy.trace(prompt, sae.reads[0])[sae.reads[0]]
    features = sae.encode(x)[0]
    special = [toy.tokenizer.is_special(t) for t in toy.tokenizer.encode(prompt)]
    for place, skipped in enumerate(special):
        if skipped or place < 1:
            features[place] = 0
    found = built.by_prompt(toy, sae, prompt, by="value", densest=1.0, most=100)
    assert found["value"].tolist() == pytest.approx(
        sorted(features.max(0).values[features.max(0).values > 0].tolist(), reverse=True)
    )
    assert found["percentile"].between(0, 1).all()
    page = built.feature(int(found["feature"][0]))
    assert page.percentile(page.max) == 1
    assert page.percentile(0.0) == 0
    one = built.by_prompt(toy, sae, prompt, positions=[3], densest=1.0)
    assert set(one["pos"]) == {3}
    with pytest.raises(DictionaryError, match="this is the index of a jumprelu with 24 features"):
        built.by_prompt(toy, dictionary("topk", d_in=toy.dims.d_model), prompt)


def test_labels_are_kept_searched_and_survive_a_new_index(toy: Model, tmp_path: Path) -> None:
    out = tmp_path / "i.sqlite"
    index = index_features(toy, small(toy), TEXTS[:3], out=out, **OPTIONS)
    index.label(3, "names   of people")
    index.label(5, 'a "quoted" <b>label</b> OR drop table')
    index.label(3, "names of persons")
    assert index.by_label("nam pers")["feature"].tolist() == [3]
    assert index.by_label('"quoted" OR')["feature"].tolist() == [5]
    assert index.by_label('"')["feature"].tolist() == [3, 5]
    assert index.by_label("people").empty
    again = index_features(toy, small(toy), TEXTS, out=out, **OPTIONS)
    assert again.feature(3).label == "names of persons"
    again.label(3, "")
    assert again.feature(3).label == ""
    assert again.by_label("names").empty
    assert again.labelled()["feature"].tolist() == [5]
    with pytest.raises(DictionaryError, match=r"no feature 24\nExpected: 0 to 23"):
        again.label(24, "x")
    with pytest.raises(DictionaryError, match=r"no feature -1"):
        again.feature(-1)


def contents(path: Path) -> list:
    with sqlite3.connect(path) as file:
        return [file.execute(f"select * from {table} order by 1").fetchall()
                for table in ("features", "texts", "vocabulary", "tokens_of")]  # fmt: skip


def test_a_stopped_build_goes_on_and_ends_with_the_same_file(
    toy: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after each part in turn: nothing is run twice, and the tables are the same."""
    monkeypatch.setattr("probe.dictionaries.index_features._TOKENS_PER_PART", 64)
    sae, whole, cut = small(toy), tmp_path / "whole.sqlite", tmp_path / "cut.sqlite"
    index_features(toy, sae, TEXTS, out=whole, **OPTIONS)
    batches = 0

    def kill(done: int, total: int, unit: str) -> bool:
        if unit == "tokens":
            raise KeyboardInterrupt
        return True

    for _ in range(3):
        with pytest.raises(KeyboardInterrupt), listening(kill):
            index_features(toy, sae, TEXTS, out=cut, **OPTIONS)
        parts = sorted((tmp_path / "cut.sqlite.part").glob("part-*.safetensors"))
        assert len(parts) == batches + 1
        batches = len(parts)
        assert not cut.exists()
    index_features(toy, sae, TEXTS, out=cut, **OPTIONS)
    assert contents(cut) == contents(whole)
    assert not (tmp_path / "cut.sqlite.part").exists()


def test_a_build_of_something_else_is_not_continued(toy: Model, tmp_path: Path) -> None:
    def kill(*_: object) -> bool:
        raise KeyboardInterrupt

    out = tmp_path / "i.sqlite"
    with pytest.raises(KeyboardInterrupt), listening(kill):
        index_features(toy, small(toy), TEXTS, out=out, **OPTIONS)
    with pytest.raises(DictionaryError, match=r"begun with another n_pos(.|\n)*remove"):
        index_features(toy, small(toy), TEXTS, out=out, **{**OPTIONS, "n_pos": 8})


def test_readers_are_not_disturbed_by_a_writer(built: FeatureIndex) -> None:
    failures: list[BaseException] = []

    def read() -> None:
        try:
            for number in range(40):
                assert built.feature(number % len(built)).id == number % len(built)
        except BaseException as error:
            failures.append(error)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for number in range(20):
        built.label(number % len(built), f"label {number}")
    for reader in readers:
        reader.join()
    for number in range(len(built)):
        built.label(number, "")
    assert failures == []


def test_an_index_that_cannot_be_written_can_still_be_read(
    built: FeatureIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder in which SQLite may not make the files it wants beside the index."""
    connect = sqlite3.connect

    def refuse(where: str, **how: object) -> sqlite3.Connection:
        if "immutable" not in where:
            raise sqlite3.OperationalError("unable to open database file")
        return connect(where, **how)

    monkeypatch.setattr(sqlite3, "connect", refuse)
    assert built.feature(0).id == 0
    with pytest.raises(DictionaryError, match=r"cannot be written: attempt to write a readonly"):
        built.label(0, "x")


@pytest.mark.slow  # writes some 200 MB
def test_a_page_opens_in_less_than_100_ms_at_65k_features(
    built: FeatureIndex, tmp_path: Path
) -> None:
    """The same features again and again: rows as long as real ones, an index as deep."""
    out, n = tmp_path / "large.sqlite", len(built)
    with closing(sqlite3.connect(built.path)) as small, closing(sqlite3.connect(out)) as large:
        small.backup(large)
        large.execute(
            "with recursive copy(k) as (select 1 union all select k + 1 from copy where k < ?) "
            "insert into features select id + ? * k, n, density, max, mean, nearest, page "
            "from features, copy",
            (65_536 // n, n),
        )
        large.execute("update meta set value = '65536' where name = 'd_sae'")
        large.commit()
    index, rng, times = FeatureIndex(out), np.random.default_rng(0), []
    for feature in rng.integers(len(index), size=60).tolist():
        start = time.perf_counter()
        assert index.feature(feature).id == feature
        times.append(1000 * (time.perf_counter() - start))
    assert np.median(times) < 100


def test_mistakes_are_named(toy: Model, tmp_path: Path) -> None:
    sae, out = small(toy), tmp_path / "i.sqlite"
    with pytest.raises(CorpusError, match="no token of list counts"):
        index_features(toy, sae, [""], out=out)
    with pytest.raises(OptionError, match=r"n_top=0(.|\n)*at least 1"):
        index_features(toy, sae, TEXTS, out=out, n_top=0)
    with pytest.raises(DictionaryError, match="there is no feature index at 'nowhere'"):
        FeatureIndex("nowhere")
    out.write_bytes(b"not a database at all" * 100)
    with pytest.raises(DictionaryError, match=r"cannot be read: file is not a database"):
        FeatureIndex(out)


def test_a_transcoder_and_a_crosscoder_have_pages_too(toy: Model, tmp_path: Path) -> None:
    for form in ("transcoder", "crosscoder"):
        sae = dictionary(form, d_in=toy.dims.d_model)
        index = index_features(toy, sae, TEXTS[:3], out=tmp_path / form, **OPTIONS)
        page = index.feature(0)
        assert len(page.promoted) == 10
        assert (page.encoder_cosine is None) == (form == "transcoder")
