"""Files that are no model, or half of one: each is refused in a sentence, and nothing is run."""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import families
import pytest
import torch
from safetensors.torch import load_file, save_file

from probe.core.errors import ModelError
from probe.models.load import load_model


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good folder, to be spoilt in copies."""
    folder = tmp_path_factory.mktemp("good")
    families.build("llama").save_pretrained(folder)
    families.tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return shutil.copytree(saved, tmp_path / "model")


def refusal(name: object) -> str:
    with pytest.raises(ModelError) as error:
        load_model(name)
    assert error.value.expected or error.value.remedy or ":" in error.value.what
    return str(error.value)


def configure(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | changes))

    return change


def cut(size: int) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        file = folder / "model.safetensors"
        file.write_bytes(file.read_bytes()[:size])

    return change


def reweigh(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def rewrite(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    return rewrite


Q = "model.layers.1.self_attn.q_proj.weight"
SPOILT: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), "is no model: it has no config.json"),
    "config cut short": (
        lambda f: (f / "config.json").write_text('{"model_type": "ll'),
        "config.json is not JSON: Unterminated string",
    ),
    "config of bytes": (
        lambda f: (f / "config.json").write_bytes(b"\xff\xfe\x00"), "config.json is not JSON"
    ),
    "config of no object": (
        lambda f: (f / "config.json").write_text("[]"), "config.json holds a list"
    ),
    "config of no type": (
        lambda f: (f / "config.json").write_text("{}"), "Should have a `model_type` key"
    ),
    "config of a wrong type": (configure(hidden_size="wide"), "hidden_size"),
    "no layers": (configure(num_hidden_layers=0), "has 0 layers"),
    "unknown architecture": (configure(model_type="nope"), "does not recognize this architecture"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "has no weights"),
    "empty weights": (cut(0), "are damaged or cut short"),
    "cut header": (cut(500), "are damaged or cut short"),
    "cut weights": (cut(20_000), "are damaged or cut short"),
    "a missing tensor": (reweigh(lambda w: w.pop(Q)), f"lack 1 of the model's tensors: {Q}"),
    "a tensor of another shape": (
        reweigh(lambda w: w.update({Q: torch.ones(3, 3)})), "could not be loaded"
    ),
    "no tokenizer": (
        lambda f: [file.unlink() for file in f.glob("*token*")], "could not be loaded"
    ),
    "a tokenizer cut short": (
        lambda f: (f / "tokenizer.json").write_text("{"), "could not be loaded"
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage", SPOILT)
def test_a_spoilt_folder_is_refused(folder: Path, damage: str) -> None:
    spoil, said = SPOILT[damage]
    spoil(folder)
    message = refusal(folder)
    assert said in message
    assert str(folder) in message


def test_the_good_folder_is_good(folder: Path) -> None:
    assert load_model(folder).health["ok"] is True


def test_many_missing_tensors_are_counted(folder: Path) -> None:
    reweigh(lambda w: [w.pop(key) for key in list(w) if "q_proj" in key or "norm" in key])(folder)
    assert "lack 10 of the model's tensors: model.layers.0.input_layernorm.weight" in refusal(
        folder
    )


class Evil:
    """Pickled, this creates a file when it is loaded."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.proof,)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pth"])
def test_pickled_weights_are_refused_and_not_loaded(
    folder: Path, tmp_path: Path, name: str
) -> None:
    proof = tmp_path / "proof"
    payload = pickled(Evil(proof))
    (folder / name).write_bytes(payload)
    (folder / "model.safetensors").unlink()
    message = refusal(folder)
    assert f"are pickled ({name}); loading them could run code\nExpected: safetensors" in message
    assert not proof.exists()
    unpickle(payload)
    assert proof.exists(), "the trap would have shown"


def test_pickled_weights_beside_good_ones_are_left_alone(folder: Path, tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    (folder / "pytorch_model.bin").write_bytes(pickled(Evil(proof)))
    assert load_model(folder).health["ok"] is True
    assert not proof.exists()


def pickled(thing: object) -> bytes:
    import pickle  # noqa: TID251  (to plant the trap)

    return pickle.dumps(thing)


def unpickle(data: bytes) -> None:
    import pickle  # noqa: TID251  (to see it spring)

    pickle.loads(data)


GGUF: dict[str, tuple[bytes, str]] = {
    "of text": (b"hello", "is no GGUF file"),
    "empty": (b"", "is no GGUF file"),
    "cut in its header": (b"GGUF\x03\0\0\0", "could not be loaded"),
    "of a version to come": (b"GGUF" + bytes(range(200)), "could not be loaded"),
    "cut after its header": (
        b"GGUF\x03\0\0\0" + b"\2" + 7 * b"\0" + b"\1" + 7 * b"\0",
        "could not",
    ),
}


@pytest.mark.parametrize("kind", GGUF)
def test_a_gguf_file_that_is_none(tmp_path: Path, kind: str) -> None:
    data, said = GGUF[kind]
    file = tmp_path / "model.gguf"
    file.write_bytes(data)
    message = refusal(file)
    assert said in message
    assert "model.gguf" in message
    assert not list((tmp_path / "home").rglob("config.json")), "nothing is left in the cache"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("smolm2", 'did you mean "smollm2"?'),
        ("toi", 'did you mean "toy"?'),
        ("nobody/nothing-7b", "the hub did not give it"),
        ("/no/such/folder", "no folder and no file"),
        ("no such name", "no bundled model"),
        ("x" * 5000, "no bundled model"),
        ("a\0b", "no bundled model"),
        ("missing.gguf", "there is no file missing.gguf"),
        (__file__, "is a file\nExpected: a model folder or a .gguf file"),
    ],
)
def test_names_that_lead_nowhere_say_so_at_once(name: str, said: str) -> None:
    start = time.perf_counter()
    assert said in refusal(name)
    assert time.perf_counter() - start < 2


def test_a_folder_of_something_else_says_what_is_in_it(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "home").mkdir(exist_ok=True)
    assert "has no config.json (found: home, notes.txt)" in refusal(tmp_path)
