"""The services of an installation: embedded ones start and stop here, external ones are only asked how they are."""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

from resources.kept_settings import write_json
from resources.services import broker, dagster_ui, keeper, postgres, queue, workers
from resources.services.supervisor import Supervisor, stop_all
from resources.settings import Settings, redacted
from seechange_assets.errors import ServiceUnavailable

#: Workers import everything, and Dagster loads its definitions.
RENEWAL_TIMEOUT_S = 180.0
State = Literal["running", "stopped", "external", "unreachable", "degraded"]


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    """One line of `seechange status`.

    Attributes
    ----------
    name : str
        ``postgres``, ``broker``, ``dagster``, and where they are used ``queue``, ``workers``, ``keeper``.
    state : str
        ``running`` (embedded), ``stopped``, ``external`` (answers), ``unreachable`` (external, does not answer) or
        ``degraded`` (runs, but `detail` says what is wrong).
    address : str or None
        Without a password.
    pid : int or None
        Of an embedded service.
    detail : str
        Version, or what is wrong.
    """

    name: str
    state: State
    address: str | None = None
    pid: int | None = None
    detail: str = ""

    @property
    def is_up(self) -> bool:
        """Whether it can be used."""
        return self.state in {"running", "external", "degraded"}

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


def up(settings: Settings, *, ui: bool = True) -> list[ServiceStatus]:
    """Start what is not running yet and wait until it answers.

    Parameters
    ----------
    settings : Settings
        Where; services it names as external are only checked.
    ui : bool
        Also start Dagster (web server, daemon, code server).

    Returns
    -------
    list of ServiceStatus

    Raises
    ------
    ServiceUnavailable
        If one cannot be started or an external one does not answer (what had started stays up), or if a variable with a
        secret is lacking that the last `up` had.
    """
    with exclusively(settings):
        start_all(settings, ui=ui)
        if ui:
            keeper.start(settings, Supervisor(settings.home))
        return status(settings)


def start_all(settings: Settings, *, ui: bool) -> None:
    """Start what is down, in the order in which one needs the other; see `up`."""
    settings.require("")  # an embedded server must not take the place of the user's own
    settings.drop.mkdir(parents=True, exist_ok=True)
    ensure_postgres(settings)
    ensure_broker(settings)
    settings.keep()  # before the processes that read it
    if ui:
        supervisor = Supervisor(settings.home)
        dagster_ui.stop_unusable(settings, supervisor)  # before its workers, to which it would go on handing runs
        ensure_workers(settings, supervisor)
        record(settings, ui_url=dagster_ui.start(settings, supervisor))


def down(settings: Settings) -> list[str]:
    """Stop every embedded service and every run of this home; return the names of those that were running."""
    with exclusively(settings):
        supervisor = Supervisor(settings.home)
        keeper.stop(supervisor)  # first: it would start again what is stopped here
        stopped = [name for name in (dagster_ui.NAME, workers.NAME) if supervisor.stop(name)]
        # Runs outlive the code server that launched them; they end while Postgres can still take their last words.
        serving = (broker.find(supervisor), queue.find(supervisor))
        stop_all((run for run in supervisor.leftovers() if run not in serving), patience_s=20.0)
        stopped += [name for name in (queue.NAME, broker.NAME) if supervisor.stop(name, patience_s=5.0)]
        stop_all(supervisor.leftovers(), patience_s=5.0)
        if postgres.stop(settings.home):
            stopped.append("postgres")
        settings.state_file.unlink(missing_ok=True)
        return stopped


def renew_workers(settings: Settings) -> bool:
    """Have the keeper start Dagster and its warm workers anew where they are of older code or configuration.

    They keep the settings that `up` gave them and finish the runs in hand. Returns whether that was necessary; without
    workers on this machine it never is, as each run reads everything anew.

    Raises
    ------
    ServiceUnavailable
        If there is no keeper, or what it starts is not of this version.
    """
    supervisor = Supervisor(settings.home)
    if workers.find(supervisor) is None or _is_of_this_code(settings, supervisor):
        return False
    if supervisor.find(keeper.NAME) is None:
        raise ServiceUnavailable("the warm workers are of an older version of the configuration: run `seechange up`")
    with exclusively(settings):
        supervisor.stop(dagster_ui.NAME)  # first: it would hand runs to workers that are gone
        supervisor.stop(workers.NAME, patience_s=120.0)
    give_up = time.monotonic() + RENEWAL_TIMEOUT_S
    while time.monotonic() < give_up:
        time.sleep(1.0)
        is_back = workers.find(supervisor) is not None and dagster_ui.find(supervisor) is not None
        if is_back and dagster_ui.answers(str(settings.ui_url)):
            if _is_of_this_code(settings, supervisor):
                return True
            break
    raise ServiceUnavailable("the services do not have the configuration of this command: run `seechange up`")


def _is_of_this_code(settings: Settings, supervisor: Supervisor) -> bool:
    """Whether the workers listen to the queue of this version of code and configuration, whatever else they know."""
    return supervisor.version(workers.NAME).split(" ")[0] == settings.queue_name


def status(settings: Settings) -> list[ServiceStatus]:
    """How every service is, asked now."""
    supervisor = Supervisor(settings.home)
    listed = [_postgres_status(settings), _broker_status(settings, supervisor)]
    has_workers = settings.workers > 0 or workers.find(supervisor) is not None
    if has_workers or settings.uses_queue:
        listed.append(_queue_status(settings, supervisor))
    if has_workers:
        listed.append(_workers_status(settings, supervisor))
    elif settings.uses_queue:
        listed.append(_workers_elsewhere_status(settings, is_asked=listed[-1].is_up))
    return [*listed, _dagster_status(settings, supervisor), *_keeper_status(settings, supervisor)]


def ensure_postgres(settings: Settings) -> str:
    """URL of the server to use, with both databases in it; the embedded one is started if it is down.

    Raises
    ------
    ServiceUnavailable
        If it cannot be had.
    """
    settings.require("POSTGRES_URL")
    if settings.postgres_server is None:
        if settings.read_state().get("postgres_url") and postgres.find(settings.home):
            return settings.postgres_url
        url = postgres.start(settings.home)
        postgres.ensure_databases(url)
        record(settings, postgres_url=url)
        return url
    postgres.ensure_databases(settings.postgres_url)
    return settings.postgres_url


def ensure_broker(settings: Settings) -> str:
    """Bootstrap servers of the broker to use; the embedded one is started if it is down.

    Raises
    ------
    ServiceUnavailable
        If it cannot be had.
    """
    settings.require("KAFKA_")
    if settings.kafka_bootstrap is None:
        servers = broker.start(Supervisor(settings.home), settings.kafka_port)
        record(settings, kafka_servers=servers)
        return servers
    if not broker.answers(settings.kafka_bootstrap, timeout_s=5.0, security=settings.kafka_options):
        raise ServiceUnavailable(f"no broker answers at {settings.kafka_bootstrap} (SEECHANGE_KAFKA_SERVERS)")
    return settings.kafka_bootstrap


def ensure_workers(settings: Settings, supervisor: Supervisor) -> None:
    """The queue and the warm workers, where any are wanted here; those of an earlier `up` are stopped where none are.

    Without workers of this machine the queue is the user's own, and whoever looks after its workers starts them.

    Raises
    ------
    ServiceUnavailable
        If they cannot be had.
    """
    if not settings.workers:
        supervisor.stop(workers.NAME, patience_s=120.0)
    if settings.queue_server is not None or not settings.workers:
        supervisor.stop(queue.NAME)
    else:
        record(settings, queue_url=queue.start(supervisor, settings.read_state().get("queue_url")))
    if settings.uses_queue and not queue.answers(settings.queue_url):
        raise ServiceUnavailable(
            f"no queue answers at {queue.redacted_address(settings.queue_url)} (SEECHANGE_QUEUE_URL)"
        )
    if settings.workers:
        workers.start(settings, supervisor)


def _queue_status(settings: Settings, supervisor: Supervisor) -> ServiceStatus:
    try:
        address = queue.redacted_address(settings.queue_url)
    except ServiceUnavailable as error:
        return ServiceStatus("queue", "stopped", detail=str(error))
    reachable = queue.answers(settings.queue_url)
    if settings.queue_server is not None:
        return ServiceStatus("queue", "external" if reachable else "unreachable", address)
    process = queue.find(supervisor)
    if process is None:
        return ServiceStatus("queue", "stopped", address)
    return ServiceStatus("queue", "running" if reachable else "degraded", address, process.pid)


def _workers_status(settings: Settings, supervisor: Supervisor) -> ServiceStatus:
    process = workers.find(supervisor)
    if process is None:
        return ServiceStatus("workers", "stopped")
    address = supervisor.address(workers.NAME)
    if not _is_of_this_version(settings, supervisor, workers.NAME):
        return ServiceStatus("workers", "degraded", address, process.pid, "of an older version: `seechange up`")
    return ServiceStatus("workers", "running", address, process.pid)


def _workers_elsewhere_status(settings: Settings, *, is_asked: bool) -> ServiceStatus:
    """Whether workers of a cluster serve this version, by what they answer; without their queue none can be asked."""
    from resources.roll_call import listeners
    from resources.run_launcher import celery_app

    queue_name = settings.queue_name
    if not is_asked:
        return ServiceStatus("workers", "unreachable", queue_name, detail="their queue does not answer")
    found = listeners(celery_app(settings))
    n_own = found.pop(queue_name, 0)
    others = f"; {found.total()} listen to {', '.join(sorted(found))}" if found else ""
    if n_own:
        return ServiceStatus("workers", "running", queue_name, detail=f"{n_own} `seechange workers` listen{others}")
    told = f"no worker listens to {queue_name}{others}: start workers of this version"
    return ServiceStatus("workers", "degraded", queue_name, detail=told)


def _postgres_status(settings: Settings) -> ServiceStatus:
    process = postgres.find(settings.home)
    try:
        url = settings.postgres_url
    except ServiceUnavailable as error:
        return ServiceStatus("postgres", "stopped", detail=str(error))
    external = settings.postgres_server is not None
    if not external and process is None:
        return ServiceStatus("postgres", "stopped", detail="it was up; `seechange up` starts it again")
    pid = None if external or process is None else process.pid
    try:
        return ServiceStatus(
            "postgres", "external" if external else "running", redacted(url), pid, postgres.answer(url)
        )
    except ServiceUnavailable as error:
        return ServiceStatus("postgres", "unreachable" if external else "degraded", redacted(url), pid, str(error))


def _broker_status(settings: Settings, supervisor: Supervisor) -> ServiceStatus:
    if settings.kafka_bootstrap is not None:
        is_up = broker.answers(settings.kafka_bootstrap, security=settings.kafka_options)
        state: State = "external" if is_up else "unreachable"
        return ServiceStatus("broker", state, settings.kafka_bootstrap)
    try:
        settings.require("KAFKA_", "HOP_")
    except ServiceUnavailable as error:
        return ServiceStatus("broker", "stopped", detail=str(error))
    process = broker.find(supervisor)
    if process is None:
        return ServiceStatus("broker", "stopped")
    servers = supervisor.address(broker.NAME)
    if broker.answers(servers):
        return ServiceStatus("broker", "running", servers, process.pid, "topics are kept in memory")
    return ServiceStatus("broker", "degraded", servers, process.pid, "does not answer")


def _dagster_status(settings: Settings, supervisor: Supervisor) -> ServiceStatus:
    process = dagster_ui.find(supervisor)
    if process is None:
        return ServiceStatus("dagster", "stopped")
    ui_url = supervisor.address(dagster_ui.NAME)
    complaints = dagster_ui.complaints(ui_url) + dagster_ui.idle(ui_url)
    if settings.uses_queue and not _is_of_this_version(settings, supervisor, dagster_ui.NAME):
        complaints.append("its runs go to workers of an older version: `seechange up`")
    return ServiceStatus("dagster", "degraded" if complaints else "running", ui_url, process.pid, "; ".join(complaints))


def _keeper_status(settings: Settings, supervisor: Supervisor) -> list[ServiceStatus]:
    """One line where there is, or should be, a keeper: it comes and goes with Dagster."""
    process = keeper.find(supervisor)
    if process is not None:
        return [ServiceStatus("keeper", "running", settings.reports_url, process.pid)]
    if dagster_ui.find(supervisor) is None:
        return []
    return [ServiceStatus("keeper", "stopped", detail="nothing that dies is started again: `seechange up`")]


def _is_of_this_version(settings: Settings, supervisor: Supervisor, name: str) -> bool:
    """Whether a running service was started with this code and configuration; other settings it may well have."""
    return supervisor.version(name).partition(" ")[0] == settings.queue_name


@contextlib.contextmanager
def exclusively(settings: Settings) -> Iterator[None]:
    """One `up` or `down` of a home at a time; the others wait."""
    import filelock

    settings.home.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(settings.home / "up.lock"):
        yield


def record(settings: Settings, **addresses: Any) -> None:
    """Add to the state file, which only the owner may read."""
    import filelock

    with filelock.FileLock(settings.home / "state.lock"):
        write_json(settings.state_file, settings.read_state() | addresses)
