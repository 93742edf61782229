"""`make bench-night`: a simulated night through warm workers, and the cores that the survey's rate needs by it.

Full-size CCDs, real services. Prints where the CPU time went: the steps themselves, the rest of the workers (archive,
hashes, database, Dagster's events), and the services beside them (Postgres, web server, daemon, queue, broker).
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import sqlalchemy as sa
import typer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.meter import Meter
from resources.database import Database
from resources.settings import Settings
from sql.alerts import OutboxRow
from sql.models import ExposureRow, ReportRow

#: LS4: 32 CCDs a minute [CCD images per second].
SURVEY_RATE = 32 / 60


def main(
    exposures: Annotated[int, typer.Option(min=1)] = 10,
    ccds: Annotated[int, typer.Option(min=1, max=32)] = 4,
    workers: Annotated[int, typer.Option(min=1)] = 2,
    seed: int = 1,
    instrument: Annotated[str, typer.Option(help="ls4, or demo for small CCDs.")] = "ls4",
) -> None:
    """Run the night and print one JSON object."""
    with tempfile.TemporaryDirectory(prefix="seechange-night-") as folder:
        home = Path(folder) / "night"
        command = [sys.executable, "-m", "seechange_assets.cli.demo", "--home", str(home), "--seed", str(seed)]
        command += ["--exposures", str(exposures), "--ccds", str(ccds), "--workers", str(workers)]
        command += ["--instrument", instrument, "--keep-up"]
        settings = Settings.of_home(str(home))
        meter = Meter(home, period_s=1.0)
        meter.start()
        try:
            subprocess.run(command, check=True)
            figures = measure(settings, meter)
        finally:
            subprocess.run(
                [sys.executable, "-m", "seechange_assets.cli.main", "down"], check=True, env=environment(home)
            )
    print(json.dumps(figures, indent=2))


def environment(home: Path) -> dict[str, str]:
    """The environment of a command for that home."""
    import os

    return os.environ | {"SEECHANGE_HOME": str(home)}


def measure(settings: Settings, meter: Meter) -> dict[str, Any]:
    """The split of the CPU time, latencies and the cores that the survey needs."""
    spent = meter.stop()
    with Database(settings.database_url).session() as session:
        steps = dict(
            session.execute(
                sa.select(ReportRow.step, sa.func.avg(ReportRow.cpu_seconds)).group_by(ReportRow.step)
            ).all()
        )
        compute = session.scalar(sa.select(sa.func.sum(ReportRow.cpu_seconds))) or 0.0
        n_runs = len(session.execute(sa.select(ReportRow.partition, ReportRow.ccd).distinct()).all())
        times = sa.select(OutboxRow.sent_at, ExposureRow.created_at).join(
            ExposureRow, ExposureRow.key == OutboxRow.exposure
        )
        latency = [(sent - made).total_seconds() for sent, made in session.execute(times) if sent]
    services = sum(seconds for part, seconds in spent.items() if part not in {"workers", "other"})
    per_ccd = (spent.get("workers", 0.0) + services) / n_runs
    return {
        "ccd_runs": n_runs,
        "core_seconds_per_step": {step: round(seconds, 3) for step, seconds in steps.items()},
        "compute_per_ccd": round(compute / n_runs, 2),
        "archive_and_events_per_ccd": round((spent.get("workers", 0.0) - compute) / n_runs, 2),
        "services_per_ccd": round(services / n_runs, 2),
        "core_seconds_per_ccd": round(per_ccd, 2),
        "cores_for_ls4": round(per_ccd * SURVEY_RATE, 1),
        "registered_to_alert_s": {f"p{q}": round(float(np.percentile(latency, q)), 1) for q in (50, 98) if latency},
        "core_seconds_by_part": spent,
        "peak_mb_by_part": meter.peaks(),
    }


if __name__ == "__main__":
    typer.run(main)
