"""Importing probe is free, and each room knows only what it may."""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "transformer_lens", "sae_lens", "transformers", "streamlit", "pandas", "plotly")


def imported(code: str, modules: tuple[str, ...] = HEAVY) -> set[str]:
    """Which of these modules a fresh Python has after running the code."""
    tail = f"import sys; print(*[m for m in {modules!r} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{tail}"], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_import_probe_brings_none_of_the_heavy_libraries() -> None:
    assert imported("import probe") == set()


@pytest.mark.slow  # an interpreter is started and loads torch
def test_the_check_can_fail() -> None:
    assert {"pandas", "torch"} <= imported("import probe; probe.Result")


def test_the_command_line_starts_without_them_too() -> None:
    assert imported("import probe.cli") == set()


def test_the_core_knows_no_model_library() -> None:
    names = ["site", "trace", "edit", "task", "metric", "result", "provenance", "registry", "model"]
    code = "; ".join(f"import probe.core.{name}" for name in names)
    libraries = ("transformer_lens", "sae_lens", "transformers", "streamlit", "plotly")
    assert imported(code, libraries) == set()


def test_every_public_name_is_there() -> None:
    import probe

    assert probe.__all__ == sorted(set(probe.__all__))
    for name in probe.__all__:
        assert callable(getattr(probe, name)), name
    assert set(probe.__all__) <= set(dir(probe))


def test_a_name_that_is_not_there_lists_those_that_are() -> None:
    import probe

    with pytest.raises(AttributeError, match="probe has no 'load_modle'; it has .*load_model"):
        probe.load_modle  # noqa: B018


@pytest.mark.slow  # an interpreter is started and loads torch
def test_rooms_do_not_hide_the_functions_of_their_name() -> None:
    code = (
        "import probe\n"
        "import probe.methods.lens.logit_lens, probe.tasks.ioi, probe.models.spec, probe.runs\n"
        "assert 'logit_lens' in probe.methods()\n"
        "assert 'ioi' in probe.tasks()\n"
        "assert 'toy' in probe.models()\n"
        "assert len(probe.runs()) == 0\n"
    )
    assert "torch" in imported(code)


# --- the contracts between the rooms -------------------------------------------------------------


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    """Run import-linter on the package in this folder."""
    code = (
        f"import sys; sys.path.insert(0, {str(folder / 'src')!r})\n"
        "from importlinter.cli import lint_imports\n"
        f"sys.exit(lint_imports(config_filename={str(folder / 'pyproject.toml')!r}, no_cache=True))"
    )
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def linted() -> bool:
    if importlib.util.find_spec("importlinter") is None:
        pytest.fail("import-linter is not installed: pip install -e '.[dev]'")
    return True


@pytest.fixture
def copy(tmp_path: Path, linted: bool) -> Path:
    """The package and its contracts, to be spoilt."""
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "src" / "probe", tmp_path / "src" / "probe", ignore=ignore)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


@pytest.mark.slow  # `make check` asks import-linter itself
def test_the_contracts_hold(copy: Path) -> None:
    done = lint_imports(copy)
    assert done.returncode == 0, done.stdout
    assert "0 broken" in done.stdout


@pytest.mark.slow  # here each is broken in turn
@pytest.mark.parametrize(
    ("file", "line", "contract"),
    [
        ("core/site.py", "import probe.models.spec", "one street"),
        ("viz/theme.py", "import probe.runs.store", "one street"),
        ("models/spec.py", "import probe.api", "one street"),
        (
            "methods/lens/logit_lens.py",
            "import probe.methods.lens.tuned_lens",
            "methods do not import one another",
        ),
        (
            "tasks/ioi.py",
            "import transformers",
            "only probe.models and probe.dictionaries know the model libraries",
        ),
        ("cli.py", "import streamlit", "the library knows no app toolkit"),
    ],
)
def test_a_planted_import_breaks_its_contract(
    copy: Path, file: str, line: str, contract: str
) -> None:
    planted = copy / "src" / "probe" / file
    planted.write_text(f"{planted.read_text('utf-8')}\n{line}\n", "utf-8")
    done = lint_imports(copy)
    assert done.returncode == 1
    broken = [row for row in done.stdout.splitlines() if row.endswith("BROKEN")]
    assert any(row.startswith(contract) for row in broken), done.stdout
