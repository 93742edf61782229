"""`make bench-orchestration`: what a run of one exposure and CCD costs beside its algorithms.

    make bench-orchestration                          320 runs through two warm workers
    make bench-orchestration ARGS="--runs 2000"       memory over many runs
    make bench-orchestration ARGS="--json --keep"     for machines; leave services and home as they are

The real definitions and services (sensors, daemon, code server, warm workers, Postgres, queue, broker, files), with
ready-made products of tiny CCDs in place of what algorithms compute (`benchmarks/trivial.py`). Exposures of 32 CCDs
arrive one after another in the drop directory, the next when the one before is about to be done.
"""

import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ.setdefault(variable, "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np  # noqa: E402  (after the number of threads is set)
import sqlalchemy as sa  # noqa: E402
import typer  # noqa: E402

from benchmarks.meter import Meter  # noqa: E402
from benchmarks.tiny_survey import TinySurvey, settings_of  # noqa: E402
from resources import services  # noqa: E402
from resources.database import Database  # noqa: E402
from resources.settings import Settings  # noqa: E402
from seechange_assets.cli.common import print_json, progress_bar  # noqa: E402
from seechange_assets.cli.services import start  # noqa: E402
from sql.models import AlertSetRow, ReportRow  # noqa: E402

#: What a run may cost, and a tick of the sensor.
TARGETS = {"core_s_per_run": 0.8, "wall_s_per_run": 0.6, "tick_s": 15.0}
#: Exposures that are processed before anything is counted: imports, compiled code, caches.
N_WARM_UP = 2
#: Exposures of which no CCD is done yet, kept so that no worker waits for the camera.
N_AHEAD = 2
#: Exposures that arrive at once, for the longest tick of the sensor.
N_BURST = 5
_STALLS_AFTER_S = 180.0


class Night:
    """Exposures that arrive, and what they cost."""

    def __init__(self, settings: Settings, n_ccds: int) -> None:
        self.settings, self.n_ccds = settings, n_ccds
        self.survey = TinySurvey(settings, n_ccds)
        self.database = Database(lambda: settings.database_url)
        self.dagster = Database(lambda: settings.dagster_url)
        self._first = self._n_dropped = 0
        self._files: Any = None

    def start(self, show: Callable[[str], None], n_exposures: int) -> None:
        """Services, model, then Dagster; the warm-up is done when this returns."""
        start(self.settings, ui=False)
        self.survey.prepare(show)
        show("start Dagster and the workers")
        start(self.settings, ui=True)
        self._first = self.n_done()
        self._files = self.survey.arrivals(n_exposures)
        self.process(N_WARM_UP, lambda what, _: show(f"warm up: {what}"))

    def count_anew(self) -> None:
        """Take what is done now as what has been dropped so far: rows came that are none of ours."""
        self._first = self.n_done() - self.n_ccds * self._n_dropped

    def n_done(self) -> int:
        """CCDs that have reached their alerts."""
        with self.database.session() as session:
            return session.scalar(sa.select(sa.func.count()).select_from(AlertSetRow)) or 0

    def process(self, n_exposures: int, show: Callable[[str, float], None], ahead: int = N_AHEAD) -> None:
        """Let exposures arrive, at most `ahead` that are not begun; return when all their CCDs are done."""
        begun = self._n_dropped
        wanted = self._first + self.n_ccds * (begun + n_exposures)
        last, moved_at = -1, time.monotonic()
        while (done := self.n_done()) < wanted:
            while self._n_dropped < min(begun + n_exposures, (done - self._first) // self.n_ccds + ahead):
                next(self._files)
                self._n_dropped += 1
            if done != last:
                last, moved_at = done, time.monotonic()
            elif time.monotonic() - moved_at > _STALLS_AFTER_S:
                raise RuntimeError(f"no run has ended for {_STALLS_AFTER_S:.0f} s: {self.failures()}")
            n = done - self._first - self.n_ccds * begun
            show(f"{n} runs", n / (self.n_ccds * n_exposures))
            time.sleep(0.5)

    def burst(self, n_exposures: int, show: Callable[[str, float], None]) -> None:
        """Let exposures arrive all at once; return when all their CCDs are done."""
        self.survey.burst(n_exposures)
        self._n_dropped += n_exposures
        wanted = self._first + self.n_ccds * self._n_dropped
        while (done := self.n_done()) < wanted:
            show(f"{wanted - done} of a burst left", 1.0 - (wanted - done) / (self.n_ccds * n_exposures))
            time.sleep(0.5)

    def failures(self) -> list[str]:
        """What failed and why."""
        with self.database.session() as session:
            rows = session.scalars(sa.select(ReportRow).where(ReportRow.outcome == "failed").limit(5)).all()
        return [f"{row.step}: {row.error}: {row.message}" for row in rows]

    def sizes(self) -> dict[str, int]:
        """Bytes of the two databases."""
        query = sa.text("select pg_database_size(current_database())")
        sized = {}
        for name, database in (("survey", self.database), ("dagster", self.dagster)):
            with database.session() as session:
                sized[name] = session.scalar(query)
        return sized

    def rows_of_dagster(self, statement: str, **values: Any) -> list[Any]:
        """A query on Dagster's tables."""
        with self.dagster.session() as session:
            return list(session.execute(sa.text(statement), values))


def measure(night: Night, n_exposures: int, show: Callable[[str, float], None]) -> dict[str, Any]:
    """The figures of a number of exposures."""
    meter = Meter(night.settings.home)
    meter.start()
    before, began = night.sizes(), time.time()
    meter.begin()
    night.process(n_exposures, show)
    spent = meter.stop()
    n_runs = n_exposures * night.n_ccds
    told = {"steps_ms": steps(night), "events_per_run": events(night, began, n_runs), **pace(night, began)}
    grown = {name: round((size - before[name]) / n_runs / 1024, 1) for name, size in night.sizes().items()}
    burst_began = time.time()
    night.burst(N_BURST, show)
    return {
        "runs": n_runs,
        "core_s_per_run": round(sum(spent.values()) / n_runs, 3),
        "core_ms_per_run_by_part": {part: round(1000 * s / n_runs) for part, s in sorted(spent.items())},
        **told,
        "tick_s": ticks(night, burst_began),
        "database_kb_per_run": grown,
        "peak_mb": meter.peaks(),
        "growth_mb_per_1000_runs": growth(meter.samples, n_runs),
        "load": os.getloadavg()[0],
    }


def pace(night: Night, began: float) -> dict[str, float]:
    """Wall clock per run while the workers have work, and how long a run takes in its worker."""
    rows = night.rows_of_dagster(
        "select start_time, end_time from runs where start_time > :began and end_time is not null", began=began
    )
    start, end = np.array([tuple(map(float, row)) for row in rows]).T
    return {
        "wall_s_per_run": round(float(end.max() - start.min()) / len(rows), 3),
        "run_s": round(float(np.median(end - start)), 3),
    }


def steps(night: Night) -> dict[str, float]:
    """CPU time inside the assets by what they report [ms]."""
    query = sa.select(ReportRow.step, sa.func.avg(ReportRow.cpu_seconds)).group_by(ReportRow.step)
    with night.database.session() as session:
        return {step: round(1000 * seconds, 1) for step, seconds in session.execute(query)}


def ticks(night: Night, began: float) -> dict[str, Any]:
    """How long the ticks of the sensor took that requested runs [s], and what they requested."""
    rows = night.rows_of_dagster(
        "select tick_body from job_ticks where status = 'SUCCESS' and tick_body like '%new_exposures%'"
        " and timestamp > to_timestamp(:began) at time zone 'utc'", began=began
    )  # fmt: skip
    bodies = [json.loads(row[0]) for row in rows]
    told = [(b["end_timestamp"] - b["timestamp"], len(b.get("run_ids", []))) for b in bodies if b.get("run_ids")]
    return {"longest": round(max((s for s, _ in told), default=0.0), 2), "runs": max((n for _, n in told), default=0)}


def events(night: Night, began: float, n_runs: int) -> dict[str, float]:
    """Rows of the event log by type."""
    rows = night.rows_of_dagster(
        "select coalesce(dagster_event_type, 'log'), count(*) from event_logs"
        " where timestamp > to_timestamp(:began) at time zone 'utc' group by 1 order by 2 desc", began=began
    )  # fmt: skip
    return {"all": round(sum(n for _, n in rows) / n_runs, 1), **{kind: round(n / n_runs, 1) for kind, n in rows}}


def growth(samples: list[tuple[float, dict[str, float]]], n_runs: int) -> dict[str, float]:
    """Slope of the resident memory of each part [MB per 1,000 runs], least squares over the second half."""
    half = samples[len(samples) // 2 :]
    found = {}
    for part in sorted({part for _, sample in half for part in sample}):
        points = np.array([(t, sample[part]) for t, sample in half if part in sample])
        if len(points) > 5:
            slope = np.polyfit(points[:, 0], points[:, 1], 1)[0]
            found[part] = round(float(slope * samples[-1][0] / n_runs * 1000), 1)
    return found


def main(
    runs: Annotated[int, typer.Option(min=1, help="Runs to count, beside the warm-up.")] = 320,
    ccds: Annotated[int, typer.Option(min=1, max=32, help="CCDs per exposure.")] = 32,
    workers: Annotated[int, typer.Option(min=1)] = 2,
    home: Annotated[Path | None, typer.Option(help="Folder of the benchmark; default a temporary one.")] = None,
    keep: Annotated[bool, typer.Option(help="Leave services and folder.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON alone.")] = False,
) -> None:
    """Run them and print the figures."""
    folder = home or Path(tempfile.mkdtemp(prefix="seechange-orch-"))
    night = Night(settings_of(folder, workers), ccds)
    n_exposures = -(-runs // ccds)
    try:
        with progress_bar("orchestration") as show:
            night.start(lambda what: show(what, 0.0), N_WARM_UP + n_exposures)
            figures = measure(night, n_exposures, show)
    finally:
        if not keep:
            services.down(night.settings)
            shutil.rmtree(folder)
    if as_json:
        print_json(figures)
        return
    for name, value in figures.items():
        target = TARGETS.get(name)
        print(f"{name:>26}  {value}" + (f"   (at most {target})" if target else ""))


if __name__ == "__main__":
    typer.run(main)
