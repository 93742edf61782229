"""The file archive: a local directory or any fsspec URL.

A local file appears by temporary name, fsync, rename: it is whole or absent.
Paths are relative to the root and every part passes the allow-list.
"""

import errno
import fcntl
import hashlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from seechange_assets.errors import ArchiveError, StorageFull
from seechange_assets.names import checked_name

TEMPORARY_PREFIX = ".partial-"
_LOCK_SUFFIX = ".lock"
#: What the kernel says where a disk, a quota or the size allowed to a process ends.
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class Archive:
    """Whole files under checked relative paths.

    Parameters
    ----------
    root : str
        A directory, or an fsspec URL such as ``s3://bucket/prefix``.
    """

    def __init__(self, root: str) -> None:
        self.root = root.rstrip("/")
        self._is_local = "://" not in root

    def __repr__(self) -> str:
        return f"Archive({self.root!r})"

    def write(self, path: str, writer: Callable[[Path], None]) -> tuple[str, int]:
        """Let `writer` fill a temporary file, then put it at `path` in one step.

        Returns
        -------
        (sha256, n_bytes) of the file.

        Raises
        ------
        StorageFull
            When there is no room for it; nothing of it stays.
        """
        checked_path(path)
        if not self._is_local:
            return self._upload(path, writer)
        target = Path(self.root, path)
        temporary = target.with_name(f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}-{target.name}")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            _remove_leftovers(target)
            with _claimed(temporary):
                writer(temporary)
                sha256, n_bytes = file_digest(temporary), temporary.stat().st_size
                _sync(temporary)
                temporary.replace(target)
                _sync(target.parent)
        except OSError as error:
            if not _is_for_want_of_room(error, temporary):
                raise
            raise StorageFull(
                f"{path}: no room left in the archive {self.root}, and nothing of the file stays; free space or raise "
                "the quota: what is missing is then made by itself"
            ) from error
        finally:
            temporary.unlink(missing_ok=True)
        return sha256, n_bytes

    def free_bytes(self) -> int | None:
        """Room for files of ours; None where nobody can tell (a remote archive, or none yet)."""
        try:
            return shutil.disk_usage(self.root).free if self._is_local else None
        except FileNotFoundError:
            return None

    @contextmanager
    def local_copy(self, path: str) -> Iterator[Path]:
        """The file at `path` as a local file (itself, or a temporary download).

        Raises
        ------
        ArchiveError
            When there is no such file.
        """
        checked_path(path)
        if self._is_local:
            if not Path(self.root, path).is_file():
                raise ArchiveError(
                    f"{path} is missing from the archive {self.root}; `seechange verify` lists all that is"
                )
            yield Path(self.root, path)
            return
        with tempfile.TemporaryDirectory() as folder:
            local = Path(folder, PurePosixPath(path).name)
            try:
                self._filesystem().get_file(f"{self.root}/{path}", str(local))
            except FileNotFoundError as error:
                raise ArchiveError(f"{path} is missing from the archive {self.root}") from error
            yield local

    def exists(self, path: str) -> bool:
        """Whether a file is at `path`."""
        checked_path(path)
        return Path(self.root, path).is_file() if self._is_local else self._filesystem().exists(f"{self.root}/{path}")

    def files(self) -> Iterator[str]:
        """Every file's path relative to the root, sorted; leftovers of killed writers included."""
        if self._is_local:
            yield from sorted(str(p.relative_to(self.root)) for p in Path(self.root).rglob("*") if p.is_file())
            return
        import fsspec

        filesystem, root = fsspec.core.url_to_fs(self.root)
        yield from sorted(str(name)[len(root) :].lstrip("/") for name in filesystem.find(self.root))

    def remove(self, path: str) -> None:
        """Remove a file; absent is fine."""
        checked_path(path)
        if self._is_local:
            Path(self.root, path).unlink(missing_ok=True)
        elif self.exists(path):
            self._filesystem().rm_file(f"{self.root}/{path}")

    def _upload(self, path: str, writer: Callable[[Path], None]) -> tuple[str, int]:
        with tempfile.TemporaryDirectory() as folder:
            local = Path(folder, PurePosixPath(path).name)
            writer(local)
            sha256, n_bytes = file_digest(local), local.stat().st_size
            filesystem = self._filesystem()
            filesystem.makedirs(f"{self.root}/{PurePosixPath(path).parent}", exist_ok=True)
            filesystem.put_file(str(local), f"{self.root}/{path}")
        return sha256, n_bytes

    def _filesystem(self):  # noqa: ANN202  (an fsspec AbstractFileSystem; fsspec has no types)
        import fsspec

        return fsspec.core.url_to_fs(self.root)[0]


def checked_path(path: str) -> str:
    """Return `path` when every part of it passes the allow-list of names."""
    for part in path.split("/"):
        checked_name(part, "path part")
    return path


def file_digest(path: Path) -> str:
    """SHA-256 of a file, as hexadecimal text."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _is_for_want_of_room(error: OSError, written: Path) -> bool:
    """Whether a file could not be written because there was no room.

    NumPy and astropy raise errors without a number. Astropy looks at the free space beforehand and says so; NumPy
    fills the disk, so there is no room for one more megabyte.
    """
    if error.errno is not None or "space" in str(error):
        return error.errno in {None, *_NO_ROOM}
    try:
        with written.open("ab") as stream:
            stream.write(bytes(1 << 20))
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as again:
        return again.errno in _NO_ROOM
    return False


@contextmanager
def _claimed(temporary: Path) -> Iterator[None]:
    """Hold a lock beside a temporary file while it is written; the kernel frees it when the writer dies."""
    lock = temporary.with_name(f"{temporary.name}{_LOCK_SUFFIX}")
    with lock.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def _remove_leftovers(target: Path) -> None:
    """Delete what writers of the same file left behind when they were killed."""
    for lock in target.parent.glob(f"{TEMPORARY_PREFIX}*-{target.name}{_LOCK_SUFFIX}"):
        with lock.open("w") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue  # its writer is alive
            lock.with_name(lock.name.removesuffix(_LOCK_SUFFIX)).unlink(missing_ok=True)
            lock.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
