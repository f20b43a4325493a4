import families
import pandas as pd
import pytest
import torch

from probe.core.errors import ModelError, OptionError, ProbeWarning, RunError
from probe.core.task import Task
from probe.methods import _translators
from probe.methods._translators import TunedLens, cached
from probe.methods.lens import fit_tuned_lens as fitting
from probe.methods.lens.logit_lens import logit_lens
from probe.methods.lens.tuned_lens import tuned_lens
from probe.models.load import load_model

pytestmark = pytest.mark.slow  # left to make test

fit_tuned_lens = fitting.fit_tuned_lens
CORPUS = torch.randint(3, 555, (40, 24), generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("PROBE_HOME", str(tmp_path))


@pytest.fixture(scope="module")
def model():
    return load_model("toy")


@pytest.fixture(scope="module")
def encoded(model):
    texts = ["When Mary and John went to the store", "The cat is in the red house"]
    return Task.from_prompts(texts).encode(model)


@pytest.mark.parametrize("show", ["probability", "entropy", "kl", "top"])
def test_before_training_it_is_the_logit_lens(model, encoded, show):
    ours = tuned_lens(model, encoded, show=show)
    assert set(ours.lens) == {"identity, not trained"}
    pd.testing.assert_frame_equal(ours.drop(columns="lens"), logit_lens(model, encoded, show=show))


def test_training_reduces_kl_on_tokens_it_has_not_seen(model, encoded):
    before = tuned_lens(model, encoded, show="kl")
    lens = fit_tuned_lens(model, CORPUS, steps=60, lr=3e-3)
    after = tuned_lens(model, encoded, show="kl")
    assert set(after.lens) == {"trained 60 steps"} and lens.steps == 60
    first = before.layer == 0
    assert after.value[first].mean() < 0.9 * before.value[first].mean()
    assert (after.value[~first] == 0).all()


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "neox", "mixtral"])
def test_training_reduces_kl_in_other_families(family):
    model = load_model(families.build(family), tokenizer=families.tokenizer())
    generator = torch.Generator().manual_seed(1)
    corpus = torch.randint(3, 61, (40, 16), generator=generator)
    held_out = Task.from_prompts(["t5 t9 t30 t31 t7", "t8 t44 t3"]).encode(model)
    before = tuned_lens(model, held_out, show="kl")
    fit_tuned_lens(model, corpus, steps=20, tokens_per_step=128, lr=3e-3)
    after = tuned_lens(model, held_out, show="kl")
    assert after.value[after.layer < 2].mean() < before.value[before.layer < 2].mean()


def test_half_precision_trains_in_single_and_reads_in_half():
    model = load_model("toy", dtype="bfloat16")
    lens = fit_tuned_lens(model, CORPUS, steps=5, tokens_per_step=96, lr=3e-3)
    assert lens.A.dtype == torch.float32 and torch.isfinite(lens.A).all()
    frame = tuned_lens(model, Task.from_prompts("When Mary went").encode(model), show="kl")
    assert set(frame.lens) == {"trained 5 steps"} and frame.value.notna().all()


def test_a_final_norm_of_another_sort_is_refused(model, monkeypatch):
    unembed = model.unembed
    monkeypatch.setattr(model, "unembed", lambda resid: 3 * unembed(resid))
    with pytest.raises(ModelError, match=r"departs by .* nats from a LayerNorm"):
        fit_tuned_lens(model, CORPUS, steps=1, tokens_per_step=24)


def test_same_seed_same_lens_and_another_seed_another(model, tmp_path):
    fits = [
        fit_tuned_lens(model, CORPUS, steps=3, tokens_per_step=48, seed=s, path=tmp_path / "x")
        for s in (0, 0, 1)
    ]
    assert torch.equal(fits[0].A, fits[1].A) and torch.equal(fits[0].b, fits[1].b)
    assert not torch.equal(fits[0].A, fits[2].A)


def test_texts_are_read_without_their_padding(model, monkeypatch):
    texts = ["When Mary and John went to the store", "Mary went"]
    trace = model.trace

    def poisoned(*args, **kwargs):
        found = trace(*args, **kwargs)
        padded = torch.arange(found.tokens.shape[1]) >= found.lengths[:, None]
        assert padded.any()
        for site in found:
            found[site][padded] = torch.nan
        return found

    expected = fit_tuned_lens(model, texts, steps=2, tokens_per_step=100)
    monkeypatch.setattr(model, "trace", poisoned)
    lens = fit_tuned_lens(model, texts, steps=2, tokens_per_step=100)
    assert torch.equal(lens.A, expected.A) and lens.A.abs().max() > 0


@pytest.mark.parametrize("family", ["gpt2", "neox", "llama", "gemma2"])
def test_the_reading_with_a_gradient_equals_the_models(family):
    model = load_model(families.build(family), tokenizer=families.tokenizer())
    resid = 2 + 3 * torch.randn(7, 32, generator=torch.Generator().manual_seed(0))
    ours = fitting._Reader(model)(resid)
    torch.testing.assert_close(ours, model.unembed(resid).log_softmax(-1), rtol=1e-4, atol=1e-4)


def test_a_saved_lens_is_read_back(model, encoded, tmp_path):
    path = tmp_path / "deep" / "lens.safetensors"
    lens = fit_tuned_lens(model, CORPUS, steps=2, tokens_per_step=24, path=path)
    again = TunedLens.load(path, model)
    assert torch.equal(lens.A, again.A) and torch.equal(lens.b, again.b) and again.steps == 2
    assert [p.name for p in path.parent.iterdir()] == ["lens.safetensors"]
    assert set(tuned_lens(model, encoded, lens=str(path)).lens) == {"trained 2 steps"}
    assert set(tuned_lens(model, encoded).lens) == {"identity, not trained"}  # not in the cache


def test_a_failed_save_leaves_the_old_file(model, tmp_path, monkeypatch):
    path = tmp_path / "lens.safetensors"
    lens = TunedLens.identity(model)
    lens.save(path)
    before = path.read_bytes()

    def fail(tensors, part, metadata):
        part.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(_translators, "save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        lens.save(path)
    assert path.read_bytes() == before and list(tmp_path.glob("*.part")) == []


def test_another_models_lens_is_refused(model, tmp_path):
    path = TunedLens.identity(load_model("toy-mha")).save(tmp_path / "lens")
    with pytest.raises(ModelError, match="was fitted to toy-mha") as error:
        TunedLens.load(path, model)
    assert "a lens for toy" in str(error.value)


def test_a_missing_or_damaged_lens_is_named(model, encoded, tmp_path):
    with pytest.raises(OptionError, match="there is no tuned lens at"):
        tuned_lens(model, encoded, lens=str(tmp_path / "none"))
    (tmp_path / "bad").write_bytes(b"not a lens at all")
    with pytest.raises(RunError, match="cannot read"):
        tuned_lens(model, encoded, lens=str(tmp_path / "bad"))
    cut = TunedLens.identity(model).save(tmp_path / "cut")
    cut.write_bytes(cut.read_bytes()[:-5])
    with pytest.raises(RunError, match="fit the lens again"):
        tuned_lens(model, encoded, lens=str(cut))


def test_another_safetensors_file_is_no_lens(model, tmp_path):
    from safetensors.torch import save_file

    save_file({"A": torch.zeros(1)}, tmp_path / "other")
    with pytest.raises(RunError, match="is no tuned lens"):
        TunedLens.load(tmp_path / "other", model)


def test_ctrl_c_keeps_what_is_done(model, monkeypatch):
    trace, calls = model.trace, []

    def interrupted(*args, **kwargs):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return trace(*args, **kwargs)

    monkeypatch.setattr(model, "trace", interrupted)
    with pytest.warns(ProbeWarning, match="stopped after 3 of 9 steps"):
        lens = fit_tuned_lens(model, CORPUS, steps=9, tokens_per_step=24)
    assert lens.steps == 3 and TunedLens.find(model).steps == 3
    assert lens.A.abs().max() > 0


def test_ctrl_c_before_the_first_step_writes_nothing(model, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(model, "trace", interrupted)
    with pytest.warns(ProbeWarning, match="stopped after 0 of 9 steps"):
        lens = fit_tuned_lens(model, CORPUS, steps=9)
    assert not cached(lens.weight_hash).exists()


def test_a_bar_appears_on_stderr_when_it_takes_long(model, monkeypatch, capsys):
    fit_tuned_lens(model, CORPUS, steps=1, tokens_per_step=24)
    quiet = capsys.readouterr()
    assert quiet.out == quiet.err == ""
    monkeypatch.setattr(fitting, "_QUIET_SECONDS", -1.0)
    fit_tuned_lens(model, CORPUS, steps=2, tokens_per_step=24)
    loud = capsys.readouterr()
    assert loud.out == "" and "fitting the tuned lens" in loud.err


def test_nothing_to_train_on_is_refused(model):
    with pytest.raises(OptionError, match="the corpus is empty"):
        fit_tuned_lens(model, [])
    with pytest.raises(OptionError, match="steps=0"):
        fit_tuned_lens(model, CORPUS, steps=0)


def test_an_encoder_is_refused():
    bert = load_model(families.build("bert"), tokenizer=families.tokenizer())
    with pytest.raises(ModelError, match="not a norm and a matrix"):
        fit_tuned_lens(bert, CORPUS[:, :5] % 61, steps=1)
