"""What was found out of a file holds until the file changes."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

Found = TypeVar("Found")
#: Files remembered by each function: the exposures that the workers of a machine have in hand.
_MAX_FILES = 16


def once_per_file(find_out: Callable[[Path], Found]) -> Callable[[Path], Found]:
    """`find_out`, which is not asked again of a file that is the same since: device, inode, size and times.

    A raw file of 32 CCDs is half a gigabyte, and each of its 32 runs needs its hash and its headers.
    """

    @functools.lru_cache(maxsize=_MAX_FILES)
    def of(path: Path, _signature: tuple[int, ...]) -> Found:
        return find_out(path)

    def ask(path: Path) -> Found:
        stat = path.stat()
        return of(path, (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns))

    return ask
