"""Files that appear in the drop directory become exposures; new exposures become runs."""

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg

from io_managers.exposures import one_line
from resources.archive import file_digest
from seechange_assets.errors import DataError, RetriableError
from sensors.announce import announce

#: A tick must stay well below Dagster's 60 s: 5 exposures x 32 CCDs are 160 requests.
MAX_EXPOSURES = 5
#: A collection ends after this: the largest files take seconds each [s].
MAX_SECONDS = 20.0
#: A file younger than this may still be growing [s]; one that is whole is registered after it.
SETTLE_S = 2.0
#: What is refused must have been untouched this long: a transfer that stalls looks like a truncated file [s].
REFUSE_AFTER_S = 60.0
LIVE_PRIORITY = "10"
#: Longest name kept in ``refused/``; a reason and a hash still fit into the 255 bytes of a file name.
_MAX_NAME = 200


@dg.sensor(
    job_name="process_ccd",
    minimum_interval_seconds=5,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Registers files of the drop directory and requests one run per exposure and CCD.",
)
def new_exposures(
    context: dg.SensorEvaluationContext,
    registry: dg.ResourceParam[Any],
    settings: dg.ResourceParam[Any],
    recipes: dg.ResourceParam[Any],
) -> dg.SensorResult | dg.SkipReason:
    """One tick. The cursor is the registration sequence of the newest exposure handled."""
    problems = collect_drop(Path(settings.drop), registry)
    for problem in problems:
        context.log.warning(problem)
    rows = registry.after(int(context.cursor or 0), limit=MAX_EXPOSURES)
    if not rows:
        return dg.SkipReason("no new exposures" + (f"; {len(problems)} problem(s), see the log" if problems else ""))
    science = [row for row in rows if row.kind == "science"]
    announce(context.instance, science, recipes)
    requests = [
        dg.RunRequest(
            run_key=f"{row.key}/{ccd}",
            partition_key=dg.MultiPartitionKey({"exposure": row.key, "ccd": ccd}),
            tags={"dagster/priority": LIVE_PRIORITY, "night": row.night},
        )
        for row in science
        for ccd in sorted(row.filters)
    ]
    return dg.SensorResult(run_requests=requests, cursor=str(rows[-1].sequence))


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
    """The files of the directory that nobody has written to for a moment, by name."""
    for file in sorted(drop.iterdir()) if drop.is_dir() else []:
        if not file.name.startswith(".") and file.is_file() and _quiet_s(file) >= SETTLE_S:
            yield file


def _quiet_s(file: Path) -> float:
    """Seconds since the file was written to; 0 if it is gone."""
    try:
        return time.time() - file.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _collect(file: Path, registry: Any) -> tuple[bool, str | None]:
    """(whether the file left the directory, what is wrong with it)."""
    try:
        registry.register(file)
    except DataError as error:
        if _quiet_s(file) < REFUSE_AFTER_S:
            return False, None
        registry.reject(file, error)
        _refuse(file, error)
        return True, f"refused: {error}"
    file.unlink()
    return True, None


def _refuse(file: Path, error: Exception) -> None:
    """Move a file to ``refused/``: under its own name, or under a safe one with its hash where it needs one."""
    refused = file.parent / "refused"
    refused.mkdir(exist_ok=True)
    name = re.sub(r"[^A-Za-z0-9_.+ -]", "_", file.name)[-_MAX_NAME:]
    if name != file.name or (refused / name).exists():
        name = f"{file_digest(file)[:10]}.{name}"
    reason = f"{one_line(file.name, 1000)}: {type(error).__name__}: {one_line(error, 2000)}\n"
    (refused / f"{name}.reason").write_text(reason, encoding="utf-8")
    file.replace(refused / name)
