"""Files that appear in the drop directory become exposures; new exposures become runs."""

import hashlib
import json
import os
import re
import time
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg

from io_managers.claims import Claims
from io_managers.exposures import one_line
from io_managers.nights import exposure_states
from resources.archive import file_digest
from seechange_assets import partitions
from seechange_assets.errors import BadExposure, DataError, RetriableError
from sensors.announce import announce
from sensors.runs import in_work

#: A tick must stay well below Dagster's 60 s: 5 exposures x 32 CCDs are 160 requests.
MAX_EXPOSURES = 5
#: A collection ends after this: the largest files take seconds each [s].
MAX_SECONDS = 20.0
#: A file younger than this may still be growing [s]; one that is whole is registered after it.
SETTLE_S = 2.0
#: What is refused must have been untouched this long: a transfer that stalls looks like a truncated file [s].
REFUSE_AFTER_S = 60.0
LIVE_PRIORITY = "10"
#: Expired claims looked at in a tick, and how often lost runs of an exposure are requested again.
MAX_EXPIRED, MAX_REPEATS = 5, 2
#: ``<file>.done`` beside a file says that it is whole.
_MARKER = ".done"
#: Longest name kept in ``refused/``; a reason and a hash still fit into the 255 bytes of a file name.
_MAX_NAME = 200


@dg.sensor(
    job_name="process_ccd",
    minimum_interval_seconds=5,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Registers files of the drop directory and requests one run per exposure and CCD, oldest first.",
)
def new_exposures(
    context: dg.SensorEvaluationContext,
    registry: dg.ResourceParam[Any],
    settings: dg.ResourceParam[Any],
    recipes: dg.ResourceParam[Any],
    database: dg.ResourceParam[Any],
    instrument: dg.ResourceParam[Any],
) -> dg.SensorResult:
    """One tick. The cursor names the newest tick that requested something, and up to where all is requested."""
    problems = collect_drop(Path(settings.drop), registry)
    for problem in problems:
        context.log.warning(problem)
    claims = Claims(database, instrument.name)
    tick, after = _read_cursor(context.cursor)
    claims.confirm(tick)
    rows, after = claims.open(after, MAX_EXPOSURES)
    requests = [request for row in rows for request in _requests(row, sorted(row.filters))]
    if rows:
        announce(context.instance, rows, recipes)
        tick = uuid.uuid4().hex
        claims.claim([row.key for row in rows], tick)
    requests += _repeat_lost(context.instance, claims, database, recipes, instrument)
    return dg.SensorResult(
        run_requests=requests,
        skip_reason=None if requests else dg.SkipReason(_told(problems)),
        cursor=json.dumps({"tick": tick, "after": after}),
    )


def _told(problems: list[str]) -> str:
    """What the page of a tick shows: it has no log here."""
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return "no new exposures" + (f"; {problems[0]}{more}" if problems else "")


def _read_cursor(cursor: str | None) -> tuple[str, int]:
    told = json.loads(cursor or "{}")
    return (told.get("tick", ""), told.get("after", 0)) if isinstance(told, dict) else ("", 0)


def _requests(row: Any, ccds: Iterable[str], attempt: int = 0) -> list[dg.RunRequest]:
    return [
        dg.RunRequest(
            run_key=f"{row.key}/{ccd}" + (f"/{attempt}" if attempt else ""),
            partition_key=_partition(row.key, ccd),
            tags={"dagster/priority": LIVE_PRIORITY, "night": row.night},
        )
        for ccd in ccds
    ]


def _repeat_lost(
    instance: dg.DagsterInstance, claims: Claims, database: Any, recipes: Any, instrument: Any
) -> list[dg.RunRequest]:
    """Requests for CCDs whose claim has expired and whose run is gone without a word."""
    requests: list[dg.RunRequest] = []
    for row, attempt in claims.expired(MAX_EXPIRED):
        with database.session() as session:
            (state,) = exposure_states(session, recipes, instrument.name, keys=[row.key])
        open_ccds = {ccd.ccd: _partition(row.key, ccd.ccd) for ccd in state.ccds if ccd.state in {"claimed", "running"}}
        busy = in_work(instance, open_ccds.values())
        lost = [ccd for ccd, key in open_ccds.items() if str(key) not in busy]
        is_retired = not instance.has_dynamic_partition(partitions.EXPOSURE, row.key)
        if not open_ccds or is_retired or (lost and attempt >= MAX_REPEATS):
            claims.settle(row.key)
            continue
        claims.renew(row.key, attempt + bool(lost))
        requests += _requests(row, lost, attempt + 1)
    return requests


def _partition(exposure: str, ccd: str) -> dg.MultiPartitionKey:
    return dg.MultiPartitionKey({"exposure": exposure, "ccd": ccd})


def collect_drop(drop: Path, registry: Any, limit: int = MAX_EXPOSURES) -> list[str]:
    """Register or refuse up to `limit` settled files of the drop directory, in the order of their names.

    A registered file leaves the directory once its row exists. What cannot be registered moves to
    ``refused/``, with its reason beside it, when it has been untouched for `REFUSE_AFTER_S`. While a
    service is down nothing is refused: every file stays for the next tick.

    Returns
    -------
    list of str
        One line per file that was refused or left behind.
    """
    deadline = time.monotonic() + MAX_SECONDS
    problems: list[str] = []
    n_done = 0
    for file in _settled(drop):
        if n_done == limit or time.monotonic() > deadline:
            break
        try:
            is_done, problem = _collect(file, registry)
        except RetriableError as error:
            problems.append(one_line(f"collection stopped: {error}"))
            break
        except (OSError, ValueError) as error:  # of this file alone: the others go on
            is_done, problem = False, f"left {file.name!r}: {error}"
        n_done += is_done
        problems += [one_line(problem)] if problem else []
    return problems


def _settled(drop: Path) -> Iterator[Path]:
    """The files that somebody has marked as whole or that nobody has written to for a moment, by name; and links."""
    for file in sorted(_arrived(drop)):
        if file.is_symlink() or (file.is_file() and (_marker(file).is_file() or _quiet_s(file) >= SETTLE_S)):
            yield file


def n_waiting(drop: Path) -> int:
    """How many files and links of the drop directory are to be registered or refused, settled or not."""
    return sum(file.is_symlink() or file.is_file() for file in _arrived(drop))


def _arrived(drop: Path) -> Iterator[Path]:
    """What lies in the drop directory, without hidden files and markers; in no order, folders included."""
    for file in drop.iterdir() if drop.is_dir() else ():
        if not file.name.startswith(".") and (file.suffix != _MARKER or file.is_symlink()):
            yield file


def _marker(file: Path) -> Path:
    return file.with_name(file.name + _MARKER)


def _quiet_s(file: Path) -> float:
    """Seconds since the file was written to; 0 if it is gone."""
    try:
        return time.time() - file.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _collect(file: Path, registry: Any) -> tuple[bool, str | None]:
    """(whether the file left the directory, what is wrong with it)."""
    if file.is_symlink():  # it may lead to any file of this machine; the archive keeps copies of what it is given
        link = BadExposure(f"{file.name}: a symbolic link: put the file itself into the directory")
        _refuse(file, link)
        return True, f"refused: {link}"
    is_marked = _marker(file).is_file()
    try:
        registry.register(file)
    except DataError as error:
        if not is_marked and _quiet_s(file) < REFUSE_AFTER_S:
            return False, None
        registry.reject(file, error)
        _refuse(file, error)
        _marker(file).unlink(missing_ok=True)
        return True, f"refused: {error}"
    file.unlink()
    _marker(file).unlink(missing_ok=True)
    return True, None


def _refuse(file: Path, error: Exception) -> None:
    """Move a file to ``refused/``: under its own name, or under a safe one with its hash where it needs one."""
    refused = file.parent / "refused"
    refused.mkdir(exist_ok=True)
    name = re.sub(r"[^A-Za-z0-9_.+ -]", "_", file.name)[-_MAX_NAME:]
    if name != file.name or os.path.lexists(refused / name):
        is_link = file.is_symlink()  # never read
        digest = hashlib.sha256(os.fsencode(file.name)).hexdigest() if is_link else file_digest(file)
        name = f"{digest[:10]}.{name}"
    reason = f"{one_line(file.name, 1000)}: {type(error).__name__}: {one_line(error, 2000)}\n"
    (refused / f"{name}.reason").write_text(reason, encoding="utf-8")
    file.replace(refused / name)
