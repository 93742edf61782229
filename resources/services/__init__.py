"""The services of an installation: embedded ones start and stop here, external ones are only asked how they are."""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

from resources.services import broker, dagster_ui, postgres
from resources.services.supervisor import Supervisor, stop_all
from resources.settings import Settings, redacted
from seechange_assets.errors import ServiceUnavailable

State = Literal["running", "stopped", "external", "unreachable", "degraded"]


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    """One line of `seechange status`.

    Attributes
    ----------
    name : str
        ``postgres``, ``broker`` or ``dagster``.
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
        If one cannot be started or an external one does not answer. What had started stays up.
    """
    with _exclusively(settings):
        _record_external(settings)
        ensure_postgres(settings)
        ensure_broker(settings)
        if ui:
            _record(settings, ui_url=dagster_ui.start(settings, Supervisor(settings.home)))
        return status(settings)


def down(settings: Settings) -> list[str]:
    """Stop every embedded service and every run of this home; return the names of those that were running."""
    with _exclusively(settings):
        supervisor = Supervisor(settings.home)
        stopped = [dagster_ui.NAME] if supervisor.stop(dagster_ui.NAME) else []
        # Runs outlive the code server that launched them; they end while Postgres can still take their last words.
        serving = broker.find(supervisor)
        stop_all((run for run in supervisor.leftovers() if run != serving), patience_s=20.0)
        if supervisor.stop(broker.NAME, patience_s=5.0):
            stopped.append(broker.NAME)
        stop_all(supervisor.leftovers(), patience_s=5.0)
        if postgres.stop(settings.home):
            stopped.append("postgres")
        settings.state_file.unlink(missing_ok=True)
        return stopped


def status(settings: Settings) -> list[ServiceStatus]:
    """How every service is, asked now."""
    supervisor = Supervisor(settings.home)
    return [_postgres_status(settings), _broker_status(settings, supervisor), _dagster_status(supervisor)]


def ensure_postgres(settings: Settings) -> str:
    """URL of the server to use, with both databases in it; the embedded one is started if it is down.

    Raises
    ------
    ServiceUnavailable
        If it cannot be had.
    """
    state = settings.read_state()
    if settings.postgres_server is None and not state.get("postgres_is_external"):
        if state.get("postgres_url") and postgres.find(settings.home):
            return settings.postgres_url
        url = postgres.start(settings.home)
        postgres.ensure_databases(url)
        _record(settings, postgres_url=url, postgres_is_external=False)
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
    if settings.kafka_bootstrap is None:
        servers = broker.start(Supervisor(settings.home), settings.kafka_port)
        _record(settings, kafka_servers=servers)
        return servers
    if not broker.answers(settings.kafka_bootstrap, timeout_s=5.0):
        raise ServiceUnavailable(f"no broker answers at {settings.kafka_bootstrap} (SEECHANGE_KAFKA_SERVERS)")
    return settings.kafka_bootstrap


def _postgres_status(settings: Settings) -> ServiceStatus:
    process = postgres.find(settings.home)
    try:
        url = settings.postgres_url
    except ServiceUnavailable as error:
        return ServiceStatus("postgres", "stopped", detail=str(error))
    external = settings.postgres_server is not None or settings.read_state().get("postgres_is_external")
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
        state: State = "external" if broker.answers(settings.kafka_bootstrap) else "unreachable"
        return ServiceStatus("broker", state, settings.kafka_bootstrap)
    process = broker.find(supervisor)
    if process is None:
        return ServiceStatus("broker", "stopped")
    servers = supervisor.address(broker.NAME)
    if broker.answers(servers):
        return ServiceStatus("broker", "running", servers, process.pid, "topics are kept in memory")
    return ServiceStatus("broker", "degraded", servers, process.pid, "does not answer")


def _dagster_status(supervisor: Supervisor) -> ServiceStatus:
    process = dagster_ui.find(supervisor)
    if process is None:
        return ServiceStatus("dagster", "stopped")
    ui_url = supervisor.address(dagster_ui.NAME)
    complaints = dagster_ui.complaints(ui_url)
    return ServiceStatus("dagster", "degraded" if complaints else "running", ui_url, process.pid, "; ".join(complaints))


@contextlib.contextmanager
def _exclusively(settings: Settings) -> Iterator[None]:
    """One `up` or `down` of a home at a time; the others wait."""
    import filelock

    settings.home.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(settings.home / "up.lock"):
        yield


def _record(settings: Settings, **addresses: Any) -> None:
    """Add to the state file, which only the owner may read."""
    import filelock

    with filelock.FileLock(settings.home / "state.lock"):
        temporary = settings.state_file.with_suffix(".tmp")
        temporary.touch(mode=0o600)
        temporary.write_text(json.dumps(settings.read_state() | addresses, indent=1) + "\n")
        temporary.replace(settings.state_file)


def _record_external(settings: Settings) -> None:
    """Write down the servers the environment names, so that a process without it finds them; passwords never."""
    if settings.postgres_server is not None:
        url = settings.postgres_url
        _record(settings, postgres_url=url if redacted(url) == url else None, postgres_is_external=True)
    if settings.kafka_bootstrap is not None:
        _record(settings, kafka_servers=settings.kafka_bootstrap)
