"""The keeper: looks at the services every few seconds and starts again what has died.

``python -m resources.services`` runs it; `seechange up` starts it last and `seechange down` stops it first.
On a cluster the scheduler does this (``restartPolicy``, ``systemd``), and the keeper is not used.
"""

import logging
import sys
import time
from collections.abc import Callable

import psutil

from resources.services.supervisor import Supervisor
from resources.settings import Settings, project_root
from seechange_assets.errors import SeeChangeError

NAME = "keeper"
_PERIOD_S = 2.0
_LONGEST_PAUSE_S = 60.0
_log = logging.getLogger("seechange.keeper")


def start(settings: Settings, supervisor: Supervisor) -> psutil.Process:
    """Start the keeper of this home, anew: it keeps what the last `up` asked for."""
    from resources.services import dagster_ui

    stop(supervisor)
    environment = dagster_ui.environment(settings)
    return supervisor.start(
        NAME, [sys.executable, "-m", "resources.services"], environment=environment, folder=project_root()
    )


def stop(supervisor: Supervisor) -> None:
    """Stop the keeper of this home alone: the services that it has started again go on."""
    supervisor.stop(NAME, with_children=False)


def keep(settings: Settings, *, period_s: float = _PERIOD_S, rounds: int | None = None) -> None:
    """Look after the services until stopped; after a failed start the pause doubles, up to a minute.

    Parameters
    ----------
    rounds : int, optional
        Looks to take; without end by default.
    """
    pause = period_s
    while rounds is None or rounds > 0:
        time.sleep(pause)
        try:
            restarted = revive(settings)
        except (SeeChangeError, OSError, psutil.Error) as error:
            pause = min(2 * pause, _LONGEST_PAUSE_S)
            _log.error("cannot start again (next try in %.0f s): %s", pause, error)
        else:
            pause = period_s
            if restarted:
                _log.warning("started again: %s", ", ".join(restarted))
        rounds = None if rounds is None else rounds - 1


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
