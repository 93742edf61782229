"""Raw files of an archive that is asked over HTTP come into the drop directory; off until somebody turns it on."""

import json
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg

from resources.http_archive import HttpArchive, RemoteFile
from seechange_assets.errors import ServiceUnavailable

#: Files of one tick, and the time they may take; Dagster ends a tick after 60 s.
MAX_FILES, MAX_SECONDS = 5, 40.0
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
    context: dg.SensorEvaluationContext, settings: dg.ResourceParam[Any]
) -> dg.SensorResult | dg.SkipReason:
    """One tick. The cursor holds the time of the newest record seen, and what of that time has been fetched."""
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
    fetched, problem = _fetch(archive, [file for file in listed if file.md5 not in done], drop)
    told = f"{len(fetched)} files fetched" + (f"; {problem}" if problem else "")
    return dg.SensorResult(
        skip_reason=dg.SkipReason(told),
        cursor=json.dumps(_next_cursor(since, listed, done | {file.md5 for file in fetched})),
    )


def _fetch(archive: HttpArchive, files: list[RemoteFile], drop: Path) -> tuple[list[RemoteFile], str]:
    """(files that are in the drop directory now, why not more)."""
    until = time.monotonic() + MAX_SECONDS
    fetched: list[RemoteFile] = []
    problems = []
    for file in files:
        if len(fetched) == MAX_FILES or time.monotonic() > until:
            break
        try:
            if not archive.fetch(file, drop, until=until):
                problems.append(f"{file.name} goes on at the next tick")
                break
        except ServiceUnavailable as error:
            problems.append(str(error))
            continue
        fetched.append(file)
    return fetched, "; ".join(problems)[:500]


def _next_cursor(since: str, listed: list[RemoteFile], done: set[str]) -> dict[str, Any]:
    """Go on from the first record that is not done; before it, all is."""
    open_files = [file for file in listed if file.md5 not in done]
    since = min((file.updated for file in open_files), default=max((file.updated for file in listed), default=since))
    return {"since": since, "done": sorted(file.md5 for file in listed if file.md5 in done and file.updated >= since)}
