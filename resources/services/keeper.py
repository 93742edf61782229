"""The keeper: looks at the services every few seconds and starts again what has died.

It also gives up runs whose task is lost, keeps the logs small and serves the reports.
``python -m resources.services`` runs it; `seechange up` starts it last and `seechange down` stops it first. Workers on
other machines are not its business: there the scheduler starts them again.
"""

import contextlib
import logging
import sys
import time
from collections.abc import Callable, Iterator

import psutil

from resources.services import postgres, reports
from resources.services.logs import rotate
from resources.services.lost_runs import LostRuns
from resources.services.supervisor import Supervisor
from resources.settings import Settings, deployed_version, project_root

NAME = "keeper"
_PERIOD_S = 2.0
_START_TIMEOUT_S = 60.0
_LONGEST_PAUSE_S = 30.0
_log = logging.getLogger("seechange.keeper")


def find(supervisor: Supervisor) -> psutil.Process | None:
    """The keeper's process, or None if it is not running."""
    return supervisor.find(NAME)


def start(settings: Settings, supervisor: Supervisor) -> None:
    """Start the keeper of this home, anew if it keeps other settings than this `up`; wait until it serves the reports.

    Raises
    ------
    ServiceUnavailable
        If it ends while starting.
    """
    from resources import services

    if find(supervisor) is not None and supervisor.version(NAME) == settings.deployment:
        return
    stop(supervisor)
    services.record(settings, reports_url=None)
    process = supervisor.start(
        NAME,
        [sys.executable, "-m", "resources.services"],
        version=settings.deployment,
        environment=services.dagster_ui.environment(settings),
        folder=project_root(),
    )
    supervisor.wait_until_ready(NAME, process, lambda: settings.reports_url is not None, timeout_s=_START_TIMEOUT_S)


def stop(supervisor: Supervisor) -> None:
    """Stop the keeper of this home alone: the services that it has started again go on."""
    supervisor.stop(NAME, with_children=False)


def keep(settings: Settings, *, period_s: float = _PERIOD_S, rounds: int | None = None) -> None:
    """Look after the services until stopped; after a failed look the pause doubles, up to half a minute.

    Parameters
    ----------
    rounds : int, optional
        Looks to take; without end by default.
    """
    pause, lost_runs = period_s, LostRuns(settings)
    while rounds is None or rounds > 0:
        time.sleep(pause)
        try:
            look(settings, lost_runs)
        except Exception as error:  # noqa: BLE001 (nobody starts the keeper again: whatever ails a service, it goes on)
            pause = min(2 * pause, _LONGEST_PAUSE_S)
            _log.error("next look in %.0f s: %s: %s", pause, type(error).__name__, error)
        else:
            pause = period_s
        rounds = None if rounds is None else rounds - 1


def look(settings: Settings, lost_runs: LostRuns) -> None:
    """One look after everything."""
    if restarted := revive(settings):
        _log.warning("started again: %s", ", ".join(restarted))
    if lost := lost_runs.close():
        _log.warning("lost runs, marked as failed: %s", ", ".join(lost))
    for log in (*settings.logs.glob("*.log"), postgres.log_file(settings.home)):
        rotate(log)


@contextlib.contextmanager
def serving_reports(settings: Settings) -> Iterator[None]:
    """Serve the night reports meanwhile and write down where."""
    from resources import services

    with reports.serve(settings.home / "reports") as server:
        services.record(settings, reports_url=reports.url_of(server))
        yield
        server.shutdown()


def revive(settings: Settings) -> list[str]:
    """Start again whatever is down; return the names.

    Raises
    ------
    ServiceUnavailable
        If one cannot be started.
    """
    from resources import services

    supervisor = Supervisor(settings.home)
    if all(alive() for alive in _signs_of_life(settings, supervisor).values()):
        return []
    deployed_version.cache_clear()  # what starts now is of the code and configuration of now, and so is its queue
    with services.exclusively(settings):  # an `up` or `down` under way may have stopped it on purpose
        if supervisor.find(NAME) is None:
            return []
        dead = [name for name, alive in _signs_of_life(settings, supervisor).items() if not alive()]
        services.start_all(settings, ui=True)
        return dead


def _signs_of_life(settings: Settings, supervisor: Supervisor) -> dict[str, Callable[[], object]]:
    """Of each embedded service, whether its process is there."""
    from resources.services import broker, dagster_ui, postgres, queue, workers

    signs: dict[str, Callable[[], object]] = {
        dagster_ui.NAME: lambda: (process := dagster_ui.find(supervisor)) and dagster_ui.is_whole(process)
    }
    if settings.postgres_server is None:
        signs["postgres"] = lambda: postgres.find(settings.home)
    if settings.kafka_bootstrap is None:
        signs[broker.NAME] = lambda: broker.find(supervisor)
    if settings.workers:
        signs[workers.NAME] = lambda: workers.find(supervisor)
        if settings.queue_server is None:
            signs[queue.NAME] = lambda: queue.find(supervisor)
    return signs
