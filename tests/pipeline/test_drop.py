"""Files in the drop directory, alerts out: the real sensors, evaluated in turn as the daemon does."""

import gzip
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import sqlalchemy as sa

from resources import services
from resources.alert_stream import listen
from resources.database import Database
from resources.services.dagster_ui import prepare_home
from resources.settings import Settings
from seechange_assets.simulation.survey import simulate_survey
from sensors import SENSORS
from sql.alerts import OutboxRow
from sql.models import ExposureRow
from tests.pipeline.world import SEED, World

CCD = "01"


@pytest.fixture
def empty_world() -> Iterator[World]:
    """Services and a simulated survey of one CCD, nothing of it registered."""
    home = Path(tempfile.mkdtemp(prefix="seechange-drop-"))
    environment = {"SEECHANGE_HOME": str(home), "SEECHANGE_SETTLE_S": "0"}
    settings = Settings.from_environment(environment)
    try:
        services.up(settings, ui=False)
        world = World(home, environment)
        prepare_home(world.settings)
        Database(world.settings.database_url).upgrade()
        world.settings.drop.mkdir(exist_ok=True)
        world.simulated = simulate_survey(
            home / "simulation", seed=SEED, exposures=1, ccds=(CCD,), biases=3, flats=3, instrument="demo"
        )
        with world.as_environment():
            yield world
    finally:
        services.down(settings)
        shutil.rmtree(home)


class Daemon:
    """Evaluates the sensors in order, carries their cursors, and runs what they request, once per run key."""

    def __init__(self, world: World) -> None:
        self._session = world.session
        self._cursors: dict[str, str | None] = {}
        self._run_keys: set[tuple[str, str]] = set()
        self.runs: list[tuple[str, str]] = []

    def run_until_idle(self, max_rounds: int = 20) -> None:
        for _ in range(max_rounds):
            if not sum(self._tick(sensor) for sensor in SENSORS):
                return
        pytest.fail(f"the sensors request without end: {self.runs[-5:]}")

    def _tick(self, sensor: dg.SensorDefinition) -> int:
        """Number of runs of one tick; ticks whose cursor moved count too."""
        before = self._cursors.get(sensor.name)
        resources = {key: self._session.definitions.resources[key] for key in sensor.required_resource_keys}
        with dg.build_sensor_context(self._session.instance, before, resources=resources) as context:
            result = sensor(context)
        if isinstance(result, dg.SkipReason):
            return 0
        self._cursors[sensor.name] = result.cursor if result.cursor is not None else before
        new = [r for r in result.run_requests or [] if (sensor.name, r.run_key) not in self._run_keys]
        self._run_keys |= {(sensor.name, request.run_key) for request in new}
        for request in new:
            self._execute(sensor, request)
        return len(new) + (_without_times(self._cursors[sensor.name]) != _without_times(before))

    def _execute(self, sensor: dg.SensorDefinition, request: dg.RunRequest) -> None:
        job = self._session.definitions.resolve_job_def(sensor.job_name)
        result = job.execute_in_process(
            instance=self._session.instance,
            partition_key=request.partition_key,
            asset_selection=request.asset_selection,
            tags=dict(request.tags),
            raise_on_error=False,
            run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
        )
        assert result.success, (sensor.name, request.run_key)
        run = self._session.instance.get_run_by_id(result.run_id)
        assert run.tags["dagster/partition"] == request.partition_key  # what `new_references` looks for
        self.runs.append((sensor.name, str(request.partition_key)))

    def count(self, sensor: str) -> int:
        return sum(name == sensor for name, _ in self.runs)


def _without_times(cursor: str | None) -> Any:
    """What a cursor says beside when its tick was."""
    told = json.loads(cursor or "{}")
    if not isinstance(told, dict):
        return told
    return {name: value for name, value in told.items() if name not in {"until", "swept_at"}}


def drop_files(world: World, files: tuple[Path, ...]) -> None:
    """As a camera does: whole, some seconds ago."""
    for file in files:
        target = world.settings.drop / file.name
        shutil.copyfile(file, target)
        os.utime(target, (time.time() - 10,) * 2)


def test_from_the_drop_directory_to_alerts(empty_world):
    world, simulated = empty_world, empty_world.simulated
    daemon = Daemon(world)

    # The science image comes first, compressed, and waits for everything.
    (science,) = simulated.science
    compressed = science.with_name(f"{science.name}.gz")
    compressed.write_bytes(gzip.compress(science.read_bytes(), 1))
    drop_files(world, (compressed,))
    daemon.run_until_idle()
    key = simulated.keys[science]
    assert world.session.store.latest_report(key, CCD).waits_for == f"master_bias//{CCD}"
    assert daemon.runs == [("new_exposures", f"{CCD}|{key}")]

    drop_files(world, (*simulated.biases, *simulated.flats))
    daemon.run_until_idle()
    assert daemon.count("calibration_runs") >= 1
    freed_by_masters = daemon.count("waiting_partitions")
    assert freed_by_masters in (1, 2)  # the limit of a tick may part biases from flats
    assert world.session.store.latest_report(key, CCD).waits_for == f"reference/r/{CCD}"

    drop_files(world, simulated.references)
    daemon.run_until_idle()
    assert daemon.count("new_exposures") == 1 + len(simulated.references)
    assert daemon.count("new_references") == 1
    assert daemon.count("waiting_partitions") == freed_by_masters + 1
    assert world.session.store.latest_report(key, CCD) is None

    assert list(world.settings.drop.iterdir()) == []
    with world.session.store.database.session() as session:
        assert session.get(ExposureRow, key).filepath.endswith(".fits.gz")
        sent = session.scalars(sa.select(OutboxRow).where(OutboxRow.sent_at.is_not(None))).all()
    assert sent
    received = listen(world.settings.kafka_servers, from_beginning=True, timeout_s=8.0, maximum=len(sent))
    assert {alert["alertId"] for alert in received} == {str(row.alert_id) for row in sent}
    assert world.cli("verify").code == 0
