"""A store holds what the model computed, row for row, and knows when it no longer does."""

import errno
import shutil
import warnings
from collections import namedtuple
from pathlib import Path

import families
import pytest
import torch

from probe.core.errors import DictionaryError, OptionError, ProbeWarning
from probe.core.progress import listening
from probe.corpora import load_corpus
from probe.dictionaries import store as store_module
from probe.dictionaries.harvest import harvest
from probe.dictionaries.store import ActivationStore
from probe.models.load import load_model

TEXTS = [
    f"{word} went to the store with Mary . " * 6 for word in "John Tom Anna Bill Kate".split()
] * 8
OPTIONS = {"site": ["mlp_in", "mlp_out"], "layer": 1, "n_pos": 24, "tokens_per_shard": 480}


def files(path: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(path.iterdir())}


@pytest.fixture(scope="module")
def whole(toy, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("whole")
    harvest(toy, TEXTS, out=path, **OPTIONS)
    return path


def test_every_row_is_the_models_activation_at_the_token_it_names(toy, whole):
    store = ActivationStore(whole)
    texts = [toy.tokenizer.encode(text, special=False) for text in TEXTS]
    seen = set()
    for number in range(len(store.manifest.shards)):
        shard = store.shard(number)
        for document, position, token in zip(
            *(shard[k].tolist() for k in ("document", "position", "tokens")), strict=True
        ):
            assert texts[document][position] == token
            seen.add((document, position))
    assert len(seen) == store.n_rows == sum(len(t) for t in texts)
    # the first row of text begins with BOS and then document 0: its activations by another route
    shards = [store.shard(i) for i in range(len(store.manifest.shards))]
    document, position, rows = (
        torch.cat([s[k] for s in shards]) for k in ("document", "position", "mlp_in.1")
    )
    n = 24 - len(toy.tokenizer.prefix)
    row = torch.tensor([toy.tokenizer.prefix + texts[0][:n]])
    expected = toy.trace(row, [("mlp_in", 1)])["mlp_in", 1][0, len(toy.tokenizer.prefix) :]
    first = [int(((document == 0) & (position == p)).nonzero()[0, 0]) for p in range(n)]
    torch.testing.assert_close(rows[first], expected, rtol=1e-4, atol=1e-5)


def test_rows_of_a_shard_come_from_many_documents_in_random_order(whole):
    store = ActivationStore(whole)
    documents = store.shard(0)["document"]
    assert len(documents.unique()) > 5
    assert (documents.diff() != 0).float().mean() > 0.5


def test_a_stopped_harvest_goes_on_to_the_same_files(toy, whole, tmp_path):
    calls = 0

    def stop_now_and_then(done: int, total: int, unit: str) -> bool:
        nonlocal calls
        calls += 1
        return calls % 6 != 0

    with listening(stop_now_and_then):
        for _ in range(40):
            harvest(toy, TEXTS, out=tmp_path, tokens_per_batch=120, **OPTIONS)
            if ActivationStore(tmp_path).manifest.complete:
                break
    once = tmp_path / "once"
    harvest(toy, TEXTS, out=once, tokens_per_batch=120, **OPTIONS)
    shutil.move(once, tmp_path.with_name("once"))
    assert files(tmp_path) == files(tmp_path.with_name("once"))


def test_a_flipped_byte_is_named_and_only_that_shard_is_made_again(toy, whole, tmp_path):
    shutil.copytree(whole, tmp_path / "s")
    path = tmp_path / "s"
    expected = files(path)
    damaged = path / "shard-00002.safetensors"
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(bytes(data))
    (path / "shard-00001.safetensors").unlink()
    store = ActivationStore(path)
    assert store.damaged() == ["shard-00001.safetensors", "shard-00002.safetensors"]
    with pytest.raises(DictionaryError, match="shard-00002.safetensors is damaged: its checksum"):
        store.shard(2)
    with pytest.raises(DictionaryError, match="shard-00001.safetensors is missing"):
        next(store.batches(store.n_rows))
    untouched = (path / "shard-00000.safetensors").stat().st_mtime_ns
    with pytest.warns(ProbeWarning, match="is missing or damaged, and is made again"):
        harvest(toy, TEXTS, out=path, **OPTIONS)
    assert files(path) == expected
    assert (path / "shard-00000.safetensors").stat().st_mtime_ns == untouched


def test_another_model_corpus_or_option_is_refused(toy, toy_mha, whole, tmp_path):
    shutil.copytree(whole, tmp_path / "s")
    with pytest.raises(DictionaryError, match="another harvest(.|\n)*weight_hash"):
        harvest(toy_mha, TEXTS, out=tmp_path / "s", **OPTIONS)
    with pytest.raises(DictionaryError, match=r"another harvest: dtype float32, and now float16"):
        harvest(toy, TEXTS, out=tmp_path / "s", dtype="float16", **OPTIONS)
    with pytest.raises(DictionaryError, match="the corpus has changed"):
        harvest(toy, TEXTS[::-1], out=tmp_path / "s", **OPTIONS)
    assert files(tmp_path / "s") == files(whole)
    with pytest.raises(OptionError, match="one activation for each token"):
        harvest(toy, TEXTS, site="pattern.0", out=tmp_path / "p")
    with pytest.raises(OptionError, match="fewer skipped than there are"):
        harvest(toy, TEXTS, out=tmp_path / "p", n_pos=8, skip_first=8)


def test_a_full_disk_loses_nothing(toy, whole, tmp_path, monkeypatch):
    write, written = store_module.write_bytes, []

    def full_after_two(path: Path, data: bytes) -> None:
        if len(written) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(path)
        write(path, data)

    monkeypatch.setattr(store_module, "write_bytes", full_after_two)
    with pytest.raises(
        DictionaryError, match=r"No space left on device(.|\n)*what is written stays"
    ):
        harvest(toy, TEXTS, out=tmp_path, **OPTIONS)
    monkeypatch.undo()
    assert len(ActivationStore(tmp_path).manifest.shards) == 2
    harvest(toy, TEXTS, out=tmp_path, **OPTIONS)
    assert files(tmp_path) == files(whole)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, 10_000_000))
    with pytest.raises(DictionaryError, match="10 MB are free"):
        harvest(toy, TEXTS, out=tmp_path / "t", **OPTIONS)


def test_activations_that_are_not_finite_are_named(tmp_path):
    hf = families.build("llama")
    model = load_model(hf, tokenizer=families.tokenizer())
    with torch.no_grad():
        hf.model.layers[1].mlp.down_proj.weight[3] = 1e5
        hf.model.layers[1].mlp.down_proj.weight[4] = torch.nan
    texts = ["t3 t4 t5 t6"] * 5
    with pytest.raises(DictionaryError, match=r"rows of mlp_out.1 are not finite, the first in"):
        harvest(model, texts, site="mlp_out.1", out=tmp_path / "a")
    with torch.no_grad():
        hf.model.layers[1].mlp.down_proj.weight[4] = 0.0
    with pytest.raises(DictionaryError, match=r"mlp_out.1 as float16(.|\n)*bfloat16"):
        harvest(model, texts, site="mlp_out.1", out=tmp_path / "b", dtype="float16")
    with pytest.raises(
        DictionaryError, match="1 of 3 rows of x are not finite, the first in row 1"
    ):
        ActivationStore.from_array(torch.tensor([[0.0], [torch.inf], [1.0]]), out=tmp_path / "c")


def test_half_precision_says_what_it_changed(toy, whole, tmp_path):
    half = harvest(toy, TEXTS, out=tmp_path, dtype="float16", **OPTIONS)
    exact = ActivationStore(whole)
    for i, shard in enumerate(half.manifest.shards):
        x, y = exact.shard(i)["mlp_out.1"], half.shard(i)["mlp_out.1"]
        assert y.dtype == torch.float16
        error = float((y.float() - x).norm() / x.norm())
        assert shard.rounding["mlp_out.1"] == pytest.approx(error, rel=1e-3)
        assert 0 < error < 1e-3


def test_n_tokens_and_skip_first_leave_tokens_out(toy, tmp_path):
    store = harvest(toy, TEXTS, out=tmp_path, n_tokens=700, skip_first=3, **OPTIONS)
    assert 700 <= store.n_rows < 700 + 24
    assert sum(s.left_out for s in store.manifest.shards) > 0
    per_row = 24 - max(3, len(toy.tokenizer.prefix))
    assert store.manifest.shards[0].rows <= 20 * per_row


def test_batches_are_each_row_once_an_epoch_and_found_by_number(tmp_path):
    x = torch.arange(1000.0)[:, None].repeat(1, 2)
    store = ActivationStore.from_array(x, out=tmp_path, shard_rows=64)
    stream = store.batches(30, seed=4)
    batches = [next(stream)["x"] for _ in range(100)]
    flat = torch.cat(batches)[:, 0]
    for epoch in range(3):
        rows = flat[1000 * epoch : 1000 * (epoch + 1)]
        assert rows.sort().values.tolist() == list(range(1000))
    assert not torch.equal(flat[:1000], flat[1000:2000])
    for number in (0, 1, 33, 34, 99):
        assert torch.equal(next(store.batches(30, seed=4, start=number))["x"], batches[number])


def test_memory_does_not_grow_with_the_store(tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "_MIX_BYTES", 3 * 64 * 2 * 4)
    x = torch.arange(1000.0)[:, None].repeat(1, 2)
    store = ActivationStore.from_array(x, out=tmp_path, shard_rows=64)
    assert max(len(group) for group in store._groups(0, 0)) == 3
    stream = store.batches(30, seed=4)
    rows = torch.cat([next(stream)["x"] for _ in range(34)])[:1000, 0]
    assert rows.sort().values.tolist() == list(range(1000))


def test_an_encoder_is_never_shown_padding(tmp_path):
    model = load_model(families.build("bert"), tokenizer=families.tokenizer())
    texts = ["t3 t4 t5 t6 t7", "t8 t9", "t5 t6 t7 t8"]
    store = harvest(model, texts, site="resid_post.1", out=tmp_path, pack=False, n_pos=8)
    shard = store.shard(0)
    for document, text in enumerate(texts):
        ids = torch.tensor([model.tokenizer.encode(text)])
        expected = model.trace(ids, ["resid_post.1"])["resid_post", 1][0]
        at = shard["position"][shard["document"] == document].long()
        special = len(model.tokenizer.prefix)
        rows = shard["resid_post.1"][shard["document"] == document]
        torch.testing.assert_close(rows, expected[at + special], rtol=1e-4, atol=1e-5)


def test_other_refusals(tmp_path, toy):
    with pytest.raises(DictionaryError, match="no activation store in"):
        ActivationStore(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(DictionaryError, match=r"manifest.json cannot be read"):
        ActivationStore(tmp_path)
    store = ActivationStore.from_array(torch.randn(4, 2), out=tmp_path / "s")
    with pytest.raises(DictionaryError, match='holds no "y"'):
        store.width("y")
    with pytest.raises(DictionaryError, match="holds a store already"):
        ActivationStore.from_array(torch.randn(4, 2), out=tmp_path / "s")
    with pytest.raises(DictionaryError, match="as many rows in each"):
        ActivationStore.from_array({"a": torch.ones(2, 1), "b": torch.ones(3, 1)}, out=tmp_path)
    assert len(load_corpus(TEXTS[:2]).name) > 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "4 rows of x [2]" in repr(store)
