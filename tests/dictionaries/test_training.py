"""A training ends with the same bits however often it was cut off, and its folds are exact."""

import json
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from probe.core.errors import DictionaryError, OptionError
from probe.core.progress import listening
from probe.dictionaries.dictionary import SparseDictionary
from probe.dictionaries.files import load_dictionary
from probe.dictionaries.recipe import ARCHITECTURES
from probe.dictionaries.scaling import Data
from probe.dictionaries.store import ActivationStore
from probe.dictionaries.train import train_crosscoder, train_sae, train_saes, train_transcoder
from probe.dictionaries.trainer import Trainer

SMALL = {"d_sae": 24, "n_tokens": 1920, "batch_size": 64, "lr": 3e-3, "dead_after": 300}


def weights(path: Path) -> bytes:
    return (path / "sae_weights.safetensors").read_bytes()


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> ActivationStore:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(500, 8, generator=generator) * 3 + torch.arange(8.0)
    y = x.sin() * 5 + 2
    return ActivationStore.from_array(
        {"mlp_in.0": x, "mlp_out.0": y}, out=tmp_path_factory.mktemp("s") / "s", shard_rows=128
    )


def options(architecture: str) -> dict:
    own = {"k": 4} if "topk" in architecture else {"sparsity": 0.5}
    return {**SMALL, "architecture": architecture, **own}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_folded_weights_reconstruct_what_the_training_ones_do(architecture, store, tmp_path):
    for kind, train in [("sae", train_sae), ("transcoder", train_transcoder)]:
        if kind == "transcoder" and architecture == "gated":
            with pytest.raises(OptionError, match="a gated transcoder"):
                train(store, out=tmp_path / kind, **options(architecture))
            return
        more = {"site": "mlp_in.0"} if kind == "sae" else {"skip": True}
        d = train(store, out=tmp_path / kind, **options(architecture), **more)
        rows = {name: store.head(name, 100) for name in store.names}
        # the training's own reconstruction, from a trainer brought to the same step
        data = Data.of(store, *d_names(d), normalise=True, outliers=10.0)
        trainer = again(data, d)
        scaled = data.batch(rows, torch.device("cpu"))
        p = trainer.parameters
        product = (scaled.x - p["b_dec"] if data.tied else scaled.x) @ p["E"].T
        if architecture == "gated":
            f = torch.relu(product * p["r_mag"].exp() + p["b_mag"]) * (product + p["b_gate"] > 0)
        else:
            f = torch.relu(product + p["b_enc"])
            if architecture == "jumprelu":
                f = f * (product + p["b_enc"] > p["log_threshold"].exp())
            elif architecture == "topk":
                f = f * (f >= f.topk(4, dim=-1).values[:, -1:])
            elif architecture != "standard":
                f = f * (f > trainer.threshold)
        out = f @ p["D"] + p["b_dec"] + (scaled.x @ p["S"].T if "S" in p else 0)
        scaling = data.scalings[data.writes[0]]
        expected = out * scaling.scale + scaling.mean
        x = rows[data.reads[0]]
        torch.testing.assert_close(d.decode(d.encode(x), x), expected, rtol=1e-4, atol=1e-4)


def d_names(d: SparseDictionary) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return tuple(map(str, d.reads)), tuple(map(str, d.writes))


def again(data: Data, d: SparseDictionary) -> Trainer:
    from probe.dictionaries.recipe import Recipe

    recipe = Recipe(**d.metadata["options"])
    trainer = Trainer(recipe, data)
    batches = data.store.batches(recipe.batch_size, names=data.names, seed=recipe.seed)
    while not trainer.done:
        trainer.learn(data.batch(next(batches), torch.device("cpu")))
    return trainer


@pytest.mark.parametrize(
    ("architecture", "more"),
    [
        ("batchtopk", {}), ("topk", {"revive": "resample", "resample_every": 400}),
        ("standard", {"revive": "ghost"}), ("jumprelu", {}),
    ],
)  # fmt: skip
def test_a_stopped_training_ends_with_the_same_bits(architecture, more, store, tmp_path):
    given = {**options(architecture), "site": "mlp_in.0", **more}
    train_sae(store, out=tmp_path / "whole", **given)
    calls, runs = 0, 0

    def stop_now_and_then(done: int, total: int, unit: str) -> bool:
        nonlocal calls
        calls += 1
        return calls % 7 != 0

    with listening(stop_now_and_then):
        complete = False
        while not complete:
            d = train_sae(store, out=tmp_path / "parts", **given)
            complete, runs = bool(d.metadata["complete"]), runs + 1
    assert runs > 3
    ours = load_file(tmp_path / "parts" / "sae_weights.safetensors")
    whole = load_file(tmp_path / "whole" / "sae_weights.safetensors")
    assert all(torch.equal(ours[name], whole[name]) for name in whole)
    histories = [
        json.loads((tmp_path / part / "training.json").read_text())["history"]
        for part in ("parts", "whole")
    ]
    assert histories[0] == histories[1]
    assert not (tmp_path / "parts" / "checkpoint.safetensors").exists()


def test_several_in_one_pass_are_each_what_they_are_alone(store, tmp_path):
    settings = [{"architecture": "topk", "k": 3}, {"architecture": "standard", "sparsity": 0.4}]
    both = train_saes(store, settings, out=tmp_path / "both", site="mlp_in.0", **SMALL)
    for i, own in enumerate(settings):
        train_sae(store, out=tmp_path / str(i), site="mlp_in.0", **SMALL, **own)
        assert weights(tmp_path / "both" / str(i)) == weights(tmp_path / str(i))
    assert [d.architecture for d in both] == ["topk", "standard"]
    with pytest.raises(OptionError, match="one batch_size for all"):
        train_saes(
            store, [{}, {"batch_size": 3}], out=tmp_path / "x", site="mlp_in.0", **SMALL | {"k": 3}
        )


def test_a_finished_training_is_loaded_and_another_refused(store, tmp_path):
    given = {**options("topk"), "site": "mlp_in.0", "out": tmp_path}
    first = train_sae(store, **given)
    began = time.monotonic()
    assert torch.equal(train_sae(store, **given).W_dec, first.W_dec)
    assert time.monotonic() - began < 1.0
    with pytest.raises(DictionaryError, match="holds another dictionary"):
        train_sae(store, **{**given, "seed": 1})


def test_a_crosscoders_layers_are_reconstructed_each(store, tmp_path):
    d = train_crosscoder(store, out=tmp_path, **{**options("batchtopk"), "n_tokens": 20_000})
    assert d.W_enc.shape == (2, 8, 24)
    rows = torch.stack([store.head(name, 400) for name in store.names], dim=1)
    out = d.decode(d.encode(rows))
    error = (out - rows).pow(2).sum((0, 2)) / (rows - rows.mean(0)).pow(2).sum((0, 2))
    assert (error < 0.7).all()
    again_from_disk = load_dictionary(tmp_path)
    assert torch.equal(again_from_disk.decode(again_from_disk.encode(rows)), out)


def test_the_log_says_how_it_went(store, tmp_path):
    train_sae(store, out=tmp_path, site="mlp_in.0", **options("batchtopk"))
    record = json.loads((tmp_path / "training.json").read_text())
    last = record["history"][-1]
    assert last["step"] == 30
    assert last["l0"] == pytest.approx(4.0, abs=0.01)
    assert 0 < last["explained_variance"] < 1
    assert len(record["density"]) == 24
    assert sum(record["density"]) == pytest.approx(last["l0"], abs=0.01)
    assert record["history"][0]["loss"] > last["loss"]


def test_refusals_keep_what_there_is(store, tmp_path):
    with pytest.raises(
        OptionError, match='training has no option "dsae"(.|\n)*did you mean "d_sae"'
    ):
        train_sae(store, out=tmp_path, site="mlp_in.0", dsae=3)
    for wrong, message in [
        ({"architecture": "topkk"}, 'did you mean "topk"'),
        ({"k": 100}, "k=100(.|\n)*at most d_sae=24"),
        ({"lr": -1.0}, "lr=-1.0"),
        ({"revive": "ghost"}, 'revive="ghost" for batchtopk'),
        ({"groups": (3, 24)}, "none, except for matryoshka"),
        ({"architecture": "matryoshka_batchtopk", "groups": (9, 3)}, "rising widths that end in"),
        ({"skip": True}, "skip=True for an autoencoder"),
    ]:
        with pytest.raises(OptionError, match=message):
            train_sae(store, out=tmp_path, site="mlp_in.0", **{**SMALL, "k": 4, **wrong})
    with pytest.raises(DictionaryError, match="site=, one of them"):
        train_sae(store, out=tmp_path, **SMALL)
    single = ActivationStore.from_array(torch.randn(50, 4), out=tmp_path / "one")
    with pytest.raises(DictionaryError, match="input and the output of a module"):
        train_transcoder(single, out=tmp_path, **SMALL)
    with pytest.raises(DictionaryError, match="two or more of one width"):
        train_crosscoder(single, out=tmp_path, **SMALL)
    with pytest.raises(DictionaryError, match=r"the loss is (nan|inf)(.|\n)*learning rate below"):
        train_sae(single, out=tmp_path / "n", **{**options("standard"), "lr": 1e30})
    assert (tmp_path / "n" / "checkpoint.safetensors").exists()
    with pytest.raises(DictionaryError, match="is of another training"):
        train_sae(single, out=tmp_path / "n", **options("standard"))
    (tmp_path / "n" / "checkpoint.safetensors").write_bytes(b"1234")
    with pytest.raises(DictionaryError, match="is damaged"):
        train_sae(single, out=tmp_path / "n", **options("standard"))


def test_ctrl_c_saves_a_checkpoint(store, tmp_path):
    def interrupt(done: int, total: int, unit: str) -> bool:
        if done == 9:
            raise KeyboardInterrupt
        return True

    with listening(interrupt), pytest.raises(KeyboardInterrupt):
        train_sae(store, out=tmp_path / "c", site="mlp_in.0", **options("topk"))
    train_sae(store, out=tmp_path / "c", site="mlp_in.0", **options("topk"))
    train_sae(store, out=tmp_path / "whole", site="mlp_in.0", **options("topk"))
    ours, whole = (load_file(tmp_path / n / "sae_weights.safetensors") for n in ("c", "whole"))
    assert all(torch.equal(ours[name], whole[name]) for name in whole)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_known_dictionary_is_found_again(architecture, tmp_path):
    generator = torch.Generator().manual_seed(0)
    true = torch.nn.functional.normalize(torch.randn(256, 64, generator=generator), dim=-1)
    shown = torch.rand(100_000, 256, generator=generator) < 0.02
    x = (shown * (0.5 + torch.rand(100_000, 256, generator=generator))) @ true
    store = ActivationStore.from_array(x, out=tmp_path / "store")
    own = (
        {"k": 5}
        if "topk" in architecture
        else {"sparsity": 1.0 if architecture == "jumprelu" else 2.0}
    )
    d = train_sae(
        store, architecture=architecture, d_sae=256, n_tokens=1_000_000, batch_size=1024, lr=3e-3,
        out=tmp_path / "d", **own,
    )  # fmt: skip
    cosine = torch.nn.functional.normalize(d.W_dec, dim=-1) @ true.T
    found = float(cosine.max(0).values.mean())
    assert found >= (0.95 if architecture in ("topk", "batchtopk") else 0.9), found


def test_outliers_are_left_out_of_scaling_and_batches(tmp_path):
    x = torch.randn(2000, 8, generator=torch.Generator().manual_seed(0))
    x[::100] *= 1000
    store = ActivationStore.from_array(x, out=tmp_path / "s")
    data = Data.of(store, ("x",), ("x",), normalise=True, outliers=10.0)
    batch = data.batch({"x": x}, torch.device("cpu"))
    assert len(batch.x) == 1980
    assert float(batch.x.pow(2).sum(-1).mean()) == pytest.approx(8.0, rel=1e-3)
    every = Data.of(store, ("x",), ("x",), normalise=True)
    assert len(every.batch({"x": x}, torch.device("cpu")).x) == 2000
