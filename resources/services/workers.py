"""Warm workers on this machine: one Celery parent that has imported everything, and N forked children."""

import sys

import psutil

from resources.services import dagster_ui
from resources.services.supervisor import Supervisor
from resources.settings import Settings, project_root

NAME = "workers"
#: Arrays up to an image of single precision come from the heap and stay in it during a run: with pages of their own the
#: system would clear these again for each (0.8 of 2.6 s in `diff`). After the run the worker gives them back.
GLIBC = {"MALLOC_MMAP_THRESHOLD_": str(48 * 2**20), "MALLOC_TRIM_THRESHOLD_": str(2**30), "MALLOC_ARENA_MAX": "2"}
START_TIMEOUT_S = 120.0


def find(supervisor: Supervisor) -> psutil.Process | None:
    """The parent of the workers, or None if it is not running."""
    return supervisor.find(NAME)


def start(settings: Settings, supervisor: Supervisor) -> None:
    """Start `settings.workers` workers unless they are running; wait until they take runs.

    Workers of another number or of an older version of the code are stopped first: they finish the run in hand.

    Raises
    ------
    ServiceUnavailable
        If they end while starting.
    """
    wanted = address(settings)
    running = find(supervisor)
    if running is not None and supervisor.address(NAME) == wanted:
        return
    supervisor.stop(NAME, patience_s=120.0)
    environment = {**GLIBC, **dagster_ui.environment(settings), "SEECHANGE_QUEUE_URL": settings.queue_url}
    process = supervisor.start(NAME, command(settings), address=wanted, environment=environment, folder=project_root())
    supervisor.wait_until_ready(NAME, process, lambda: answers(settings), timeout_s=START_TIMEOUT_S)


def command(settings: Settings) -> list[str]:
    """What starts the workers; the same on a cluster, where a scheduler runs it."""
    options = ["--queues", settings.queue_name, "--concurrency", str(settings.workers), "--loglevel", "warning"]
    # Workers need not know of one another; a child must not take a second run while it is busy.
    options += ["--without-gossip", "--without-mingle", "-O", "fair"]
    return [sys.executable, "-m", "celery", "--app", "seechange_assets.worker", "worker", *options]


def address(settings: Settings) -> str:
    """How many workers, and whose runs they take."""
    return f"{settings.workers} x {settings.queue_name}"


def answers(settings: Settings) -> bool:
    """Whether a worker of this version listens to the queue."""
    from resources.run_launcher import ask_workers, celery_app

    queues = ask_workers(celery_app(settings), "active_queues", timeout_s=1.0) or {}
    return any(queue["name"] == settings.queue_name for listed in queues.values() for queue in listed)
