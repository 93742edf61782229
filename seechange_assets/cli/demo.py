"""`make demo`: a simulated night from raw pixels to alerts read back from the broker.

Everything runs as in production: files appear in the drop directory, sensors register
them and request runs, the daemon launches one run per exposure and CCD.
"""

import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from seechange_assets.errors import SeeChangeError, ServiceUnavailable

#: A transient counts as found when an alert of the same exposure lies this close [arcsec].
MATCH_RADIUS_ARCSEC = 2.0
MARKER = ".seechange-demo"
#: What a full-size demonstration must reach.
MIN_COMPLETENESS, MAX_SPURIOUS = 0.9, 20.0


@dataclass(slots=True)
class Demo:
    """What one demonstration knows while it runs."""

    home: Path
    seed: int
    n_exposures: int
    n_ccds: int
    reference_epochs: int
    timeout_s: float
    started: float = field(default_factory=time.monotonic)
    settings: Any = None
    instrument: Any = None
    database: Any = None
    progress: Any = None


def main(
    seed: Annotated[int, typer.Option(help="Seed of the simulated sky and camera.")] = 1,
    exposures: Annotated[int, typer.Option(min=1, help="Science exposures.")] = 2,
    ccds: Annotated[int, typer.Option(min=1, max=32, help="CCDs per exposure.")] = 2,
    reference_epochs: Annotated[int, typer.Option(min=3, help="Exposures that make the reference.")] = 3,
    instrument: Annotated[str, typer.Option(help="ls4, or demo for small CCDs.")] = "ls4",
    workers: Annotated[int | None, typer.Option(min=0, help="Warm workers; default the cores.")] = None,
    home: Annotated[Path | None, typer.Option(help="Folder of the demonstration (emptied first).")] = None,
    keep_up: Annotated[bool, typer.Option(help="Leave services and UI running.")] = False,
    timeout_s: Annotated[float, typer.Option(help="Give up after this many seconds.")] = 1500.0,
) -> None:
    """Simulate a night and run it through the whole pipeline."""
    from resources import services
    from resources.settings import Settings, available_cores, project_root

    home = (home or project_root() / "demo").resolve()
    demo = Demo(home, seed, exposures, ccds, reference_epochs, timeout_s)
    for name in [name for name in os.environ if name.startswith("SEECHANGE_")]:
        del os.environ[name]  # a simulated night must never reach a survey's own archive, database or broker
    os.environ |= {"SEECHANGE_HOME": str(home), "SEECHANGE_INSTRUMENT": instrument}
    os.environ["SEECHANGE_CATALOG"] = str(home / "simulation" / "catalog" / "gaia.fits")
    os.environ["SEECHANGE_WORKERS"] = str(available_cores() if workers is None else workers)
    os.environ["SEECHANGE_SETTLE_S"] = "8"  # the frames come at once here, but a tick of 5 s registers only some
    demo.settings = Settings.from_environment()
    _empty(demo)
    demo.settings = Settings.from_environment()  # without what the folder kept of an earlier `up`
    try:
        summary = _run(demo)
    finally:
        if not keep_up:
            services.down(demo.settings)
    _finish(demo, summary, keep_up)


def _run(demo: Demo) -> dict[str, Any]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = [SpinnerColumn(), TextColumn("{task.description:<46}"), BarColumn(), TextColumn("{task.fields[state]}")]
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True)) as demo.progress:
        simulated = _step(demo, "simulate the sky and the camera", lambda show: _simulate(demo, show))
        _step(demo, "start Postgres, broker, Dagster", lambda show: _start(demo, show))
        files = _by_purpose(demo, simulated)
        wait = _Waiter(demo)
        _drop(demo, files["calibration"])
        n_ccds = demo.n_ccds
        _step(
            demo,
            "master bias and flat frames",
            lambda s: wait.until(lambda: wait.rows("calibrator_files"), 2 * n_ccds, s),
        )
        _drop(demo, files["reference"])
        n_epochs = demo.reference_epochs * n_ccds
        _step(
            demo, "calibrate the reference epochs", lambda s: wait.until(lambda: wait.rows("zero_points"), n_epochs, s)
        )
        _step(demo, "build the references", lambda s: wait.until(lambda: wait.rows("refs"), n_ccds, s))
        _drop(demo, files["survey"])
        n_science = demo.n_exposures * n_ccds
        _step(
            demo, "subtract, detect, score, alert", lambda s: wait.until(lambda: wait.rows("alert_sets"), n_science, s)
        )
        alerts = _step(demo, "read the alerts back from the broker", lambda s: _read_back(demo, s))
    return _judge(demo, alerts)


def _step(demo: Demo, title: str, work: Callable[[Callable[[str], None]], Any]) -> Any:
    """Run one step of the demonstration under its own progress line."""
    task = demo.progress.add_task(title, total=None, state="")
    if not demo.progress.console.is_terminal:  # a log shows no bars: say what begins
        typer.echo(f"{time.monotonic() - demo.started:6.0f} s  {title}", err=True)
    result = work(lambda state: demo.progress.update(task, state=state))
    demo.progress.update(task, total=1, completed=1)
    return result


def _empty(demo: Demo) -> None:
    """Empty the folder of an earlier demonstration; refuse to empty anything else."""
    from resources import services

    if demo.home.exists() and any(demo.home.iterdir()):
        if not (demo.home / MARKER).exists():
            raise SeeChangeError(f"{demo.home} is not a folder of the demonstration; name another with --home")
        services.down(demo.settings)
        shutil.rmtree(demo.home)
    demo.home.mkdir(parents=True, exist_ok=True)
    (demo.home / MARKER).touch()


def _simulate(demo: Demo, show: Callable[[str], None]) -> Path:
    from seechange_assets.instruments.base import get_instrument
    from seechange_assets.simulation.survey import simulate_survey

    demo.instrument = get_instrument(demo.settings.instrument)
    out = demo.home / "simulation"
    simulate_survey(
        out,
        seed=demo.seed,
        exposures=demo.n_exposures,
        reference_epochs=demo.reference_epochs,
        ccds=demo.instrument.ccds[: demo.n_ccds],
        instrument=demo.settings.instrument,
        progress=lambda what, fraction: show(f"{what} {fraction:.0%}"),
    )
    return out


def _start(demo: Demo, show: Callable[[str], None]) -> None:
    from resources.database import Database
    from seechange_assets.cli.services import start

    start(demo.settings, ui=True)
    demo.database = Database(demo.settings.database_url)
    demo.settings.drop.mkdir(parents=True, exist_ok=True)
    show(demo.settings.ui_url or "")


def _by_purpose(demo: Demo, simulated: Path) -> dict[str, list[Path]]:
    files: dict[str, list[Path]] = {"calibration": [], "reference": [], "survey": []}
    for path in sorted((simulated / "raw").glob("*.fits")):
        info = demo.instrument.read_exposure(path)
        files[info.project if info.kind == "science" else "calibration"].append(path)
    return files


def _drop(demo: Demo, files: list[Path]) -> None:
    """Put files into the drop directory as a camera would: whole, under their final name."""
    for file in files:
        file.rename(demo.settings.drop / file.name)


class _Waiter:
    """Watch the database until a step is complete, and stop at the first failure."""

    def __init__(self, demo: Demo) -> None:
        self._demo = demo

    def rows(self, table: str) -> int:
        import sqlalchemy as sa

        with self._demo.database.session() as session:
            return int(session.scalar(sa.select(sa.func.count()).select_from(sa.table(table))) or 0)

    def until(self, count: Callable[[], int], total: int, show: Callable[[str], None]) -> None:
        """Poll until `count` reaches `total`.

        Raises
        ------
        SeeChangeError
            When a step failed.
        ServiceUnavailable
            When the time is up.
        """
        while (done := count()) < total:
            show(f"{done}/{total}")
            self._stop_on_failure()
            if time.monotonic() - self._demo.started > self._demo.timeout_s:
                raise ServiceUnavailable(
                    f"not finished after {self._demo.timeout_s:.0f} s; see {self._demo.settings.logs}"
                )
            time.sleep(0.5)
        show(f"{total}/{total}")

    def _stop_on_failure(self) -> None:
        import sqlalchemy as sa

        from sql.models import RejectedFileRow, ReportRow

        with self._demo.database.session() as session:
            failed = session.scalar(sa.select(ReportRow).where(ReportRow.outcome == "failed").limit(1))
            refused = session.scalar(sa.select(RejectedFileRow).limit(1))
        if failed:
            raise SeeChangeError(
                f"{failed.step} of {failed.partition} CCD {failed.ccd} failed: {failed.error}: {failed.message}"
            )
        if refused:
            raise SeeChangeError(f"{refused.name} was refused: {refused.message}")


def _read_back(demo: Demo, show: Callable[[str], None]) -> list[dict[str, Any]]:
    """Every alert of the broker, decoded with the published schema."""
    from resources.alert_stream import listen
    from seechange_assets.cli.alerts import waiting_alerts

    deadline = time.monotonic() + 60
    while waiting_alerts(demo.database) and time.monotonic() < deadline:
        time.sleep(0.5)
    expected = _count_sent(demo)
    alerts = []
    for alert in listen(demo.settings.kafka_servers, from_beginning=True, timeout_s=10.0, maximum=expected):
        alerts.append(alert)
        show(f"{len(alerts)}/{expected}")
    return alerts


def _count_sent(demo: Demo) -> int:
    import sqlalchemy as sa

    from sql.alerts import OutboxRow

    with demo.database.session() as session:
        query = sa.select(sa.func.count()).select_from(OutboxRow).where(OutboxRow.sent_at.is_not(None))
        return int(session.scalar(query) or 0)


def _judge(demo: Demo, alerts: list[dict[str, Any]]) -> dict[str, Any]:
    """Compare alerts with the truth and with what the runs cost."""
    from astropy.table import Table

    from seechange_assets.simulation.judge import judge

    truth = Table.read(demo.home / "simulation" / "truth.ecsv")
    verdict = judge(truth, alerts, radius_arcsec=MATCH_RADIUS_ARCSEC, n_ccd_images=demo.n_exposures * demo.n_ccds)
    _print_table(verdict.table)
    return {
        "exposures": demo.n_exposures,
        "reference_epochs": demo.reference_epochs,
        "ccds": demo.n_ccds,
        "ccd_runs": (demo.n_exposures + demo.reference_epochs) * demo.n_ccds,
        "seed": demo.seed,
        "injected": verdict.injected,
        "found": verdict.found,
        "completeness_snr10": verdict.completeness_snr10,
        "spurious_per_ccd": verdict.spurious_per_ccd,
        "alerts_sent": _count_sent(demo),
        "alerts_read_back": len({alert["alertId"] for alert in alerts}),
        **_costs(demo),
        "wall_s": round(time.monotonic() - demo.started, 1),
        "ui_url": demo.settings.ui_url,
    }


def _costs(demo: Demo) -> dict[str, float]:
    """Core-seconds (whole run process, imports included) and peak memory of the complete runs."""
    import sqlalchemy as sa

    from sql.models import AlertSetRow, ReportRow

    per_run = (
        sa.select(
            sa.func.max(ReportRow.process_cpu_seconds).label("process"),
            sa.func.sum(ReportRow.cpu_seconds).label("compute"),
            sa.func.max(ReportRow.peak_rss_mb).label("rss"),
        )
        .join(AlertSetRow, sa.and_(AlertSetRow.partition == ReportRow.partition, AlertSetRow.ccd == ReportRow.ccd))
        .group_by(ReportRow.partition, ReportRow.ccd)
    )
    with demo.database.session() as session:
        rows = session.execute(per_run).all()
    return {
        "core_seconds_per_ccd": round(sum(r.process for r in rows) / len(rows), 2),
        "compute_core_seconds_per_ccd": round(sum(r.compute for r in rows) / len(rows), 2),
        "peak_rss_mb": round(max(r.rss for r in rows), 1),
    }


def _print_table(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="Truth against alerts")
    for name in rows[0] if rows else []:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*(f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values()))
    Console().print(table)


def _finish(demo: Demo, summary: dict[str, Any], keep_up: bool) -> None:
    path = demo.home / "summary.json"
    path.write_text(json.dumps(summary, indent=2) + "\n")
    for name, value in summary.items():
        typer.echo(f"{name:>30}  {value}")
    typer.echo(f"summary: {path}")
    if keep_up:
        typer.echo(f"Dagster UI: {summary['ui_url']}   (stop it with SEECHANGE_HOME={demo.home} seechange down)")
    else:
        typer.echo(f"Dagster UI was at {summary['ui_url']}; bring it back with SEECHANGE_HOME={demo.home} seechange up")
    if summary["alerts_read_back"] != summary["alerts_sent"]:
        raise SeeChangeError(f"{summary['alerts_sent']} alerts were sent, {summary['alerts_read_back']} came back")
    is_full_size = demo.settings.instrument == "ls4"  # the small CCDs of `demo` are crowded
    is_poor = summary["completeness_snr10"] < MIN_COMPLETENESS or summary["spurious_per_ccd"] > MAX_SPURIOUS
    if is_full_size and is_poor:
        raise SeeChangeError(
            f"below what is promised: completeness at S/N 10 {summary['completeness_snr10']} (at least "
            f"{MIN_COMPLETENESS}), {summary['spurious_per_ccd']} spurious alerts per CCD (at most {MAX_SPURIOUS})"
        )


def run() -> None:
    """Console entry: errors in one line."""
    try:
        typer.run(main)
    except SeeChangeError as error:
        typer.echo(f"seechange demo: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    run()
