"""Raw files of an archive that is asked over HTTP come into the drop directory; off until somebody turns it on."""

import json
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
from sqlalchemy.dialects.postgresql import insert

from io_managers.exposures import one_line
from resources.http_archive import FileUnavailable, HttpArchive, RemoteFile
from seechange_assets.errors import ServiceUnavailable
from sql.models import RejectedFileRow

#: Files of one tick, and the time they may take; Dagster ends a tick after 60 s.
MAX_FILES, MAX_SECONDS = 5, 40.0
#: A file that the archive refuses so often, once a tick, is given up; an archive that is down is asked for ever.
MAX_TRIES = 10
#: Nothing is fetched while so many files wait in the drop directory.
MAX_WAITING = 20
#: Without a cursor, so much of the past is asked for.
FIRST_LOOK = timedelta(days=1)
#: Records asked for at once: more than can change in the same second, so that the cursor always moves on.
_MAX_RECORDS = 500


@dg.sensor(
    minimum_interval_seconds=60,
    default_status=dg.DefaultSensorStatus.STOPPED,
    description="Fetches new raw files from the archive at SEECHANGE_POLL_URL into the drop directory.",
    jobs=[],
)
def http_archive(
    context: dg.SensorEvaluationContext, settings: dg.ResourceParam[Any], database: dg.ResourceParam[Any]
) -> dg.SensorResult | dg.SkipReason:
    """One tick.

    The cursor holds the time of the newest record seen, what of that time has been fetched or given up, and how often
    the archive has refused what is open.
    """
    if settings.poll_url is None:
        return dg.SkipReason("SEECHANGE_POLL_URL names no archive")
    drop = Path(settings.drop)
    drop.mkdir(parents=True, exist_ok=True)
    if sum(not file.name.startswith(".") for file in drop.iterdir()) >= MAX_WAITING:
        return dg.SkipReason("the drop directory is full enough")
    cursor = json.loads(context.cursor or "{}")
    since = cursor.get("since") or (datetime.now(UTC) - FIRST_LOOK).strftime("%Y-%m-%dT%H:%M:%S")
    done = set(cursor.get("done", ()))
    archive = HttpArchive(settings.poll_url, settings.instrument)
    try:
        listed = archive.updated_since(since, _MAX_RECORDS)
    except ServiceUnavailable as error:
        return dg.SkipReason(str(error))
    fetched, refused, problem = _fetch(archive, [file for file in listed if file.md5 not in done], drop)
    tries = Counter(cursor.get("tries", {})) + Counter(file.md5 for file, _ in refused)
    given_up = [(file, why) for file, why in refused if tries[file.md5] >= MAX_TRIES]
    for file, why in given_up:
        context.log.warning("given up after %d tries: %s", MAX_TRIES, why)
        _remember(database, file, why)
    done |= {file.md5 for file in fetched} | {file.md5 for file, _ in given_up}
    open_tries = {file.md5: tries[file.md5] for file in listed if file.md5 in tries.keys() - done}
    told = f"{len(fetched)} files fetched" + (f"; {problem}" if problem else "")
    return dg.SensorResult(
        skip_reason=dg.SkipReason(told),
        cursor=json.dumps(_next_cursor(since, listed, done) | {"tries": open_tries}),
    )


def _fetch(
    archive: HttpArchive, files: list[RemoteFile], drop: Path
) -> tuple[list[RemoteFile], list[tuple[RemoteFile, FileUnavailable]], str]:
    """(files that are in the drop directory now, those that were refused and why, why not more)."""
    until = time.monotonic() + MAX_SECONDS
    fetched: list[RemoteFile] = []
    refused = []
    problems = []
    for file in files:
        if len(fetched) == MAX_FILES or time.monotonic() > until:
            break
        try:
            if archive.fetch(file, drop, until=until):
                fetched.append(file)
            else:
                problems.append(f"{file.name} goes on at the next tick")
        except ServiceUnavailable as error:
            problems.append(str(error))
            if isinstance(error, FileUnavailable):
                refused.append((file, error))
    return fetched, refused, "; ".join(problems)[:500]


def _remember(database: Any, file: RemoteFile, why: FileUnavailable) -> None:
    """A row where refused files are looked for; what the file holds nobody knows, only its MD5."""
    values = {
        "sha256": f"md5:{file.md5}",
        "name": file.name,
        "error": type(why).__name__,
        "message": one_line(why, 2000),
    }
    with database.session() as session:
        session.execute(insert(RejectedFileRow).values(**values).on_conflict_do_nothing())


def _next_cursor(since: str, listed: list[RemoteFile], done: set[str]) -> dict[str, Any]:
    """Go on from the first record that is not done; before it, all is."""
    open_files = [file for file in listed if file.md5 not in done]
    since = min((file.updated for file in open_files), default=max((file.updated for file in listed), default=since))
    return {"since": since, "done": sorted(file.md5 for file in listed if file.md5 in done and file.updated >= since)}
