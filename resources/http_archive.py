"""An observatory's archive asked over HTTP, as NOIRLab's Astro Data Archive answers: a search, and files by MD5.

``POST <url>/api/adv_search/find/?rectype=file`` takes a JSON search and gives a list: first what was understood, then a
record for each file; ``GET <url>/api/retrieve/<md5sum>/`` gives its bytes (https://astroarchive.noirlab.edu/api/docs).
"""

import hashlib
import http.client
import json
import re
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlencode

from seechange_assets.errors import ServiceUnavailable

_FIELDS = ("md5sum", "archive_filename", "filesize", "updated")
_MD5 = re.compile(r"[0-9a-f]{32}")
_NAME = re.compile(r"[A-Za-z0-9_.+-]{1,120}\.fits(\.fz|\.gz|\.bz2)?")
_CHUNK = 1 << 20
_TIMEOUT_S = 20.0
_FAR_FUTURE = "2999-01-01"
#: Answers that speak of one file, not of an archive in trouble: not ours to read, not there, gone, not to be had.
_REFUSALS = frozenset({401, 403, 404, 410, 416, 451})


class FileUnavailable(ServiceUnavailable):
    """An archive answers, and does not give this file, or gives other bytes under its name."""


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One raw file of the archive; ``updated`` is when its record changed last (ISO 8601)."""

    md5: str
    name: str
    n_bytes: int
    updated: str

    @classmethod
    def of(cls, record: Any) -> Self | None:
        """From a record; None for one that cannot be used: its name and hash become a path and an address."""
        if not isinstance(record, dict) or any(record.get(field) is None for field in _FIELDS):
            return None
        name = str(record["archive_filename"]).rsplit("/", 1)[-1]
        md5 = str(record["md5sum"]).lower()
        if name.startswith(".") or not _NAME.fullmatch(name) or not _MD5.fullmatch(md5):
            return None
        return cls(md5, name, int(record["filesize"]), str(record["updated"]))


class HttpArchive:
    """Raw files of one instrument.

    Parameters
    ----------
    url : address of the archive, ``http`` or ``https``.
    instrument : the archive's name of it, e.g. ``decam``.
    """

    def __init__(self, url: str, instrument: str) -> None:
        self._url, self._instrument = url.rstrip("/"), instrument

    def updated_since(self, since: str, limit: int) -> list[RemoteFile]:
        """Raw images whose record changed at or after `since`, the oldest change first.

        Raises
        ------
        ServiceUnavailable
            The archive does not answer, or not as expected.
        """
        body = {
            "outfields": list(_FIELDS),
            "search": [
                ["instrument", self._instrument],
                ["proc_type", "raw"],
                ["prod_type", "image"],
                ["updated", since, _FAR_FUTURE],
            ],
        }
        query = urlencode({"rectype": "file", "limit": limit, "sort": "updated"})
        request = self._request(f"/api/adv_search/find/?{query}")
        request.add_header("Content-Type", "application/json")
        try:
            with urllib.request.urlopen(request, json.dumps(body).encode(), timeout=_TIMEOUT_S) as answer:  # noqa: S310
                records = json.load(answer)
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise ServiceUnavailable(f"{self._url} does not answer a search: {error}") from error
        if not isinstance(records, list):
            raise ServiceUnavailable(f"{self._url} answers a search with {str(records)[:80]!r}, not with a list")
        return sorted(filter(None, map(RemoteFile.of, records)), key=lambda file: (file.updated, file.name))

    def fetch(self, file: RemoteFile, folder: Path, *, until: float) -> bool:
        """Bring a file into a folder, whole and with the right MD5; False if time ran out, then call again.

        It grows under a hidden name and goes on where it was broken off.

        Parameters
        ----------
        until : time of `time.monotonic` at which to stop.

        Raises
        ------
        FileUnavailable
            The archive refuses this file, or gives other bytes; those are thrown away.
        ServiceUnavailable
            The archive does not give anything now.
        """
        partial = folder / f".{file.md5}.part"
        try:
            is_whole = self._download(file, partial, until)
        except urllib.error.HTTPError as error:
            kind = FileUnavailable if error.code in _REFUSALS else ServiceUnavailable
            raise kind(f"{self._url} does not give {file.name}: {error}") from error
        except (OSError, http.client.HTTPException) as error:
            raise ServiceUnavailable(f"{self._url} broke off {file.name}: {error}") from error
        if not is_whole:
            return False
        with partial.open("rb") as stream:
            found = hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
        if found != file.md5:
            partial.unlink()
            raise FileUnavailable(f"{self._url} gave {file.name} with MD5 {found}, its record says {file.md5}")
        partial.replace(folder / file.name)
        return True

    def _download(self, file: RemoteFile, partial: Path, until: float) -> bool:
        n_there = partial.stat().st_size if partial.exists() else 0
        if n_there > file.n_bytes:
            partial.unlink()
            n_there = 0
        if n_there == file.n_bytes and n_there:
            return True
        request = self._request(f"/api/retrieve/{file.md5}/")
        if n_there:
            request.add_header("Range", f"bytes={n_there}-")
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:  # noqa: S310  (scheme is checked)
            is_continued = answer.status == http.HTTPStatus.PARTIAL_CONTENT
            with partial.open("ab" if is_continued else "wb") as target:
                while chunk := answer.read(_CHUNK):
                    target.write(chunk)
                    if target.tell() > file.n_bytes:
                        return True  # more than its record says: the hash will not fit
                    if time.monotonic() > until:
                        break
        return partial.stat().st_size >= file.n_bytes

    def _request(self, path: str) -> urllib.request.Request:
        if not self._url.startswith(("http://", "https://")):
            raise ServiceUnavailable("SEECHANGE_POLL_URL: expected an address that begins with http:// or https://")
        return urllib.request.Request(self._url + path)  # noqa: S310
