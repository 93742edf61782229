"""Who may import whom (contracts in pyproject.toml), and what must not be imported before it is used."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]
HEAVY = {"torch", "matplotlib", "photutils", "galsim"}
# The command answers --help at once; dagster and sqlalchemy take a second to import.
NOT_FOR_HELP = HEAVY | {"dagster", "sqlalchemy", "scipy", "astropy", "numba"}


def imported_by(code: str) -> set[str]:
    """Top-level packages in `sys.modules` after a new interpreter ran `code`."""
    script = f"{code}\nimport sys; print(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", script], cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return set(done.stdout.split())


def test_contracts():
    """`lint-imports` prints which import breaks which rule."""
    code = "from importlinter.cli import lint_imports; raise SystemExit(lint_imports(no_cache=True))"
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


@pytest.mark.parametrize("module", ["seechange_assets.definitions", "resources.dagster_storage"])
def test_nothing_heavy_is_imported_to_load_definitions(module):
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not written yet")
    assert imported_by(f"import {module}") & HEAVY == set()


def test_the_command_line_answers_without_heavy_imports():
    assert imported_by("from seechange_assets.cli.main import build_app; build_app()") & NOT_FOR_HELP == set()
