"""Files that appear in the drop directory become exposures; new exposures become runs."""

import time
from pathlib import Path
from typing import Any

import dagster as dg

from seechange_assets.errors import SeeChangeError
from sensors.announce import announce

#: A tick must stay well below Dagster's 60 s: 5 exposures x 32 CCDs are 160 requests.
MAX_EXPOSURES = 5
#: A file younger than this may still be growing [s].
SETTLE_S = 2.0
LIVE_PRIORITY = "10"


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
        return dg.SkipReason("no new exposures" + (f"; {len(problems)} file(s) refused" if problems else ""))
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
    """Register up to `limit` settled files of the drop directory, oldest name first.

    A registered file leaves the directory once its row exists; a refused one moves to
    ``refused/`` with its reason beside it.

    Returns
    -------
    list of str
        One line per refused file.
    """
    if not drop.is_dir():
        return []
    now = time.time()
    files = [f for f in sorted(drop.iterdir()) if f.is_file() and not f.name.startswith(".")]
    settled = [f for f in files if now - f.stat().st_mtime >= SETTLE_S]
    problems = []
    for file in settled[:limit]:
        try:
            registry.register(file)
            file.unlink()
        except SeeChangeError as error:
            registry.reject(file, error)
            _refuse(file, error)
            problems.append(f"refused: {error}")
    return problems


def _refuse(file: Path, error: Exception) -> None:
    refused = file.parent / "refused"
    refused.mkdir(exist_ok=True)
    (refused / f"{file.name}.reason").write_text(f"{type(error).__name__}: {error}\n")
    file.replace(refused / file.name)
