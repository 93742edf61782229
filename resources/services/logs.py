"""The services' log files: kept small, and read from their end."""

import os
import shutil
from pathlib import Path

LARGEST_BYTES = 20 * 2**20
GENERATIONS = 3
_TAIL_BYTES = 64 * 2**10


def rotate(path: Path, *, largest_bytes: int = LARGEST_BYTES) -> bool:
    """Move the content of a log that has grown beyond `largest_bytes` to ``<name>.1`` (.2, .3); True if it was moved.

    It is copied and cut, not renamed: whoever writes keeps the file open, and goes on at its new end because it was
    opened for appending. What is written between copy and cut is lost, a line or two in 20 MB.
    """
    try:
        if path.stat().st_size <= largest_bytes:
            return False
    except FileNotFoundError:
        return False
    for generation in range(GENERATIONS - 1, 0, -1):
        older = _generation(path, generation)
        if older.exists():
            older.replace(_generation(path, generation + 1))
    shutil.copyfile(path, _generation(path, 1))
    os.truncate(path, 0)
    return True


def end_of(path: Path) -> str:
    """The last 64 KB."""
    with path.open("rb") as stream:
        stream.seek(max(0, path.stat().st_size - _TAIL_BYTES))
        return stream.read().decode(errors="replace")


def _generation(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number}")
