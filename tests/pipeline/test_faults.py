"""Processes killed while exposures are being worked on: nothing lost, nothing doubled, no human needed."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import dagster as dg
import psutil
import pytest
import sqlalchemy as sa

from resources import services
from resources.archive import TEMPORARY_PREFIX
from resources.database import Database
from resources.services import keeper, postgres, queue, workers
from resources.services.supervisor import Supervisor
from resources.settings import Settings
from seechange_assets.errors import ServiceUnavailable
from seechange_assets.simulation.survey import simulate_survey
from sql.alerts import OutboxRow
from sql.models import ReportRow
from tests.pipeline.world import SEED, World

CCDS = ("01", "02")
RECOVERY_S = 120.0
DISK_BYTES = 1 << 30
POSTGRES_IMMEDIATE_SHUTDOWN = signal.SIGQUIT

pytestmark = pytest.mark.faults


class SmallDisk:
    """A file system of its own that can be filled; without the right to mount one it is an ordinary folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._filler = folder, folder / f"{TEMPORARY_PREFIX}filler"  # none of the archive's files
        folder.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)]
        self.is_mounted = subprocess.run(mount, check=False, capture_output=True).returncode == 0

    def fill(self, leave_bytes: int) -> None:
        with self._filler.open("ab") as stream:
            while (n_bytes := shutil.disk_usage(self.folder).free - leave_bytes) > 0:
                with suppress(OSError):  # somebody else has just taken some of it
                    os.posix_fallocate(stream.fileno(), os.fstat(stream.fileno()).st_size, n_bytes)

    def make_room(self) -> None:
        self._filler.unlink(missing_ok=True)

    def unmount(self) -> None:
        if self.is_mounted:
            subprocess.run(["umount", "--lazy", str(self.folder)], check=True)


class LiveWorld(World):
    """A survey under `seechange up --workers 2`, whose exposures arrive when a test says so."""

    @property
    def supervisor(self) -> Supervisor:
        return Supervisor(self.home)

    def drop(self, files: tuple[Path, ...]) -> list[str]:
        """Put files into the drop directory; return the keys of their exposures."""
        for file in files:
            shutil.copyfile(file, self.settings.drop / f".{file.name}")
            (self.settings.drop / f".{file.name}").rename(self.settings.drop / file.name)
        return [self.simulated.keys[file] for file in files]

    def is_whole(self) -> bool:
        """Whether every service is up and nothing is wrong with any."""
        return all(service.state == "running" for service in services.status(self.settings))

    def next_exposure(self) -> str:
        """Let the next science exposure arrive."""
        return self.drop((self.arrivals.pop(),))[0]

    def wait(self, done: Callable[[], bool], what: str, timeout_s: float = RECOVERY_S) -> float:
        """Seconds until `done`; fails the test after `timeout_s`."""
        start = time.monotonic()
        while not done():
            if time.monotonic() - start > timeout_s:
                pytest.fail(f"not within {timeout_s:.0f} s: {what}; {self.state()}")
            time.sleep(0.2)
        return time.monotonic() - start

    def state(self) -> str:
        """What there is to know when something did not come."""
        runs = self.session.instance.get_runs(limit=20)
        told = [f"{run.job_name} {run.tags.get('dagster/partition')} {run.status.value}" for run in runs]
        return "; ".join([*self.failures(), *told])

    def is_running(self, exposure: str) -> bool:
        """Whether a worker is computing a CCD of the exposure right now."""
        started = dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED])
        runs = self.session.instance.get_runs(started)
        return any(exposure in run.tags.get("dagster/partition", "") for run in runs)

    def has_alerts(self, exposure: str) -> bool:
        """Whether every CCD of the exposure has reached the end of the chain."""
        done = (
            sa.select(ReportRow.ccd)
            .where(ReportRow.partition == exposure, ReportRow.step == "alerts", ReportRow.outcome == "computed")
            .distinct()
        )
        try:
            with self.session.store.database.session() as session:
                return len(session.scalars(done).all()) == len(CCDS)
        except (sa.exc.DBAPIError, ServiceUnavailable):  # Postgres may be down just now: that is the test
            return False


@pytest.fixture(scope="module")
def live() -> Iterator[LiveWorld]:
    """Masters and references built, sensors running, no science exposure yet."""
    home = Path(tempfile.mkdtemp(prefix="seechange-faults-"))
    environment = {"SEECHANGE_HOME": str(home), "SEECHANGE_SETTLE_S": "3", "SEECHANGE_WORKERS": "2"}
    disks = {"archive": SmallDisk(home / "archive"), "postgres": SmallDisk(postgres.cluster(home))}
    world = LiveWorld(home, environment)
    world.disks = disks
    world.simulated = simulate_survey(
        home / "simulation", seed=SEED, exposures=22, ccds=CCDS, biases=3, flats=3, instrument="demo"
    )
    world.arrivals = list(reversed(world.simulated.science))
    try:
        with world.as_environment():
            services.up(world.settings, ui=False)
            Database(world.settings.database_url).upgrade()
            services.up(world.settings)
            world.drop((*world.simulated.biases, *world.simulated.flats, *world.simulated.references))
            first = world.next_exposure()
            world.wait(lambda: world.has_alerts(first), "the first exposure", timeout_s=900)
            yield world
    finally:
        for disk in disks.values():
            disk.make_room()
        services.down(Settings.from_environment(world.environment))
        for disk in disks.values():
            disk.unmount()
        shutil.rmtree(home)


def processes(world: LiveWorld, *words: str) -> list[psutil.Process]:
    """Processes of this home whose command line has every word."""
    return [p for p in world.supervisor.leftovers() if all(word in " ".join(p.cmdline()) for word in words)]


def kill_busy_worker(world: LiveWorld) -> None:
    parent = workers.find(world.supervisor)
    busiest = max(parent.children(), key=lambda child: child.cpu_percent(0.2))
    busiest.kill()


def kill_all_workers(world: LiveWorld) -> None:
    parent = workers.find(world.supervisor)
    for process in [parent, *parent.children()]:
        process.kill()


def kill_daemon(world: LiveWorld) -> None:
    world.wait(lambda: processes(world, "dagster._daemon"), "the daemon")
    processes(world, "dagster._daemon")[0].kill()


def kill_webserver(world: LiveWorld) -> None:
    processes(world, "dagster_webserver")[0].kill()


def kill_code_server(world: LiveWorld) -> None:
    for process in processes(world, "api", "grpc"):
        process.kill()


def kill_queue(world: LiveWorld) -> None:
    queue.find(world.supervisor).kill()


def stop_postgres_at_once(world: LiveWorld) -> None:
    os.kill(postgres.find(world.home).pid, POSTGRES_IMMEDIATE_SHUTDOWN)


def stop_postgres_within_an_association(world: LiveWorld) -> None:
    """When its transaction has locked the sky and waits to write its first rows."""
    database = world.session.store.database
    waiting = "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and query ilike '%measurements%'"

    def is_within() -> bool:
        with database.session() as session:  # a new transaction: within one, the view does not change
            return bool(session.scalar(sa.text(waiting)))

    with suppress(sa.exc.DBAPIError), database.engine.connect() as connection, connection.begin():
        connection.execute(sa.text("lock table measurements in share row exclusive mode"))
        world.wait(is_within, "an association")
        stop_postgres_at_once(world)


FAULTS = [
    kill_busy_worker,
    kill_all_workers,
    kill_daemon,
    kill_webserver,
    kill_code_server,
    kill_queue,
    stop_postgres_at_once,
    stop_postgres_within_an_association,
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_an_exposure_survives(live, fault):
    """From a fault while it is computed to alerts of all CCDs within two minutes, all of it sound."""
    exposure = live.next_exposure()
    live.wait(lambda: live.is_running(exposure), "a run of the exposure")
    fault(live)
    began = time.monotonic()
    seconds = live.wait(lambda: live.has_alerts(exposure), f"alerts after {fault.__name__}")
    sys.stderr.write(f"{fault.__name__}: alerts of all CCDs {seconds:.0f} s after the fault\n")
    assert_sound(live, exposure)
    live.wait(live.is_whole, f"all services after {fault.__name__}", RECOVERY_S - (time.monotonic() - began))
    sys.stderr.write(f"{fault.__name__}: all services up {time.monotonic() - began:.0f} s after it, or before\n")


@pytest.mark.parametrize("disk", ["archive", "postgres"])
def test_a_disk_that_fills_up_and_gets_room_again(live, disk):
    """What fails meanwhile says why, nothing is half-written, and with room all goes on by itself."""
    if not live.disks[disk].is_mounted:
        pytest.skip("no right to mount a small file system")
    exposure = live.next_exposure()
    live.wait(lambda: live.is_running(exposure), "a run of the exposure")
    live.disks[disk].fill(leave_bytes=100_000)
    try:
        if disk == "archive":
            live.wait(lambda: any("StorageFull" in told and exposure in told for told in live.failures()), "a failure")
            verified = live.cli("verify", "--json")
            assert verified.code == 0, verified.out + verified.err
        else:
            time.sleep(20)
        assert not live.has_alerts(exposure)
    finally:
        live.disks[disk].make_room()
    seconds = live.wait(lambda: live.has_alerts(exposure), f"alerts after {disk} had room")
    sys.stderr.write(f"disk of {disk} full: alerts of all CCDs {seconds:.0f} s after there was room\n")
    assert_sound(live, exposure)


def test_exposures_that_arrive_while_the_daemon_is_down(live):
    """None is forgotten, none is registered or requested twice."""
    live.wait(live.is_whole, "all services")
    keeper.stop(live.supervisor)
    kill_daemon(live)
    exposures = [live.next_exposure() for _ in range(10)]
    time.sleep(5)
    services.up(live.settings)
    seconds = live.wait(lambda: all(map(live.has_alerts, exposures)), "alerts of ten exposures", timeout_s=240)
    sys.stderr.write(f"ten exposures: alerts {seconds:.0f} s after the daemon was back\n")
    for exposure in exposures:
        assert_sound(live, exposure)


def assert_sound(world: LiveWorld, exposure: str) -> None:
    """Files and rows agree, and each alert stands in the outbox once."""
    verified = world.cli("verify", "--json")
    assert verified.code == 0, verified.out + verified.err
    with world.session.store.database.session() as session:
        ids = session.scalars(sa.select(OutboxRow.alert_id)).all()
    assert len(ids) == len(set(ids))
    runs = world.session.instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED]))
    assert not [run for run in runs if exposure in run.tags.get("dagster/partition", "")]
