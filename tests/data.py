"""Where the real test data lie, or a skip that says so."""

import os
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]


def test_data(name: str) -> Path:
    """Folder `name` of the real data, or skip the calling test."""
    root = Path(os.environ.get("SEECHANGE_TEST_DATA", PROJECT.parent / "shared" / "data"))
    folder = root / name
    if not folder.exists():
        pytest.skip(f"real data set {name!r} not found under {root} (set SEECHANGE_TEST_DATA)")
    return folder


test_data.__test__ = False  # type: ignore[attr-defined]
