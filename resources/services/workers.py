"""Warm workers on this machine: one Celery parent that has imported everything, and N forked children."""

import hashlib
import sys

import psutil

from resources.services import dagster_ui
from resources.services.supervisor import Supervisor
from resources.settings import Settings, project_root

NAME = "workers"
#: Arrays up to an image of single precision come from the heap and stay in it: with pages of their own the system would
#: clear these again for each (0.8 of 2.6 s in `diff`).
GLIBC = {"MALLOC_MMAP_THRESHOLD_": str(48 * 2**20), "MALLOC_TRIM_THRESHOLD_": str(2**30), "MALLOC_ARENA_MAX": "2"}
START_TIMEOUT_S = 120.0


def find(supervisor: Supervisor) -> psutil.Process | None:
    """The parent of the workers, or None if it is not running."""
    return supervisor.find(NAME)


def start(settings: Settings, supervisor: Supervisor) -> None:
    """Start `settings.workers` workers unless they are running; wait until they take runs.

    Workers of another number, version of the code or settings are stopped first: they finish the run in hand.

    Raises
    ------
    ServiceUnavailable
        If they end while starting.
    """
    if find(supervisor) is not None and supervisor.version(NAME) == settings.deployment:
        return
    supervisor.stop(NAME, patience_s=120.0)
    environment = {**GLIBC, **dagster_ui.environment(settings), "SEECHANGE_QUEUE_URL": settings.queue_url}
    node = node_of(settings)
    process = supervisor.start(
        NAME,
        command(settings, node),
        address=address(settings),
        version=settings.deployment,
        environment=environment,
        folder=project_root(),
    )
    supervisor.wait_until_ready(NAME, process, lambda: answers(settings, node), timeout_s=START_TIMEOUT_S)


def node_of(settings: Settings) -> str:
    """Name of the parent that `seechange up` starts: its successor answers under the same, others never do."""
    return f"home-{hashlib.sha256(str(settings.home).encode()).hexdigest()[:8]}"


def command(settings: Settings, node: str) -> list[str]:
    """What starts the workers; the same on a cluster, where a scheduler runs it.

    `node` must differ for each parent on one host: Celery takes those of one name for one, and answers get lost.
    """
    options = ["--hostname", f"{node}@%h", "--queues", settings.queue_name]
    options += ["--concurrency", str(settings.workers), "--loglevel", "warning"]
    # Workers need not know of one another; a child must not take a second run while it is busy.
    options += ["--without-gossip", "--without-mingle", "-O", "fair"]
    return [sys.executable, "-m", "celery", "--app", "seechange_assets.worker", "worker", *options]


def address(settings: Settings) -> str:
    """How many workers, and whose runs they take."""
    return f"{settings.workers} x {settings.queue_name}"


def answers(settings: Settings, node: str) -> bool:
    """Whether the parent of this name listens to the queue of this version."""
    from resources.roll_call import ask_workers
    from resources.run_launcher import celery_app

    queues = ask_workers(celery_app(settings), "active_queues", timeout_s=1.0) or {}
    own = [listed for name, listed in queues.items() if name.startswith(f"{node}@")]
    return any(queue["name"] == settings.queue_name for listed in own for queue in listed)
