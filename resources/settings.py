"""Where things are: the only module that reads the environment.

Every process (command line, web server, daemon, run worker) builds the same `Settings`: from the environment first,
then from what the last `up` left in the home (`resources.kept_settings`). The addresses of embedded services are in the
state file that `resources.services.up` writes.
"""

import difflib
import functools
import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import pydantic

from resources import kept_settings
from resources.kept_settings import PREFIX
from seechange_assets.errors import ParameterError, ServiceUnavailable
from seechange_assets.names import checked_name

SURVEY_DATABASE = "seechange"
DAGSTER_DATABASE = "seechange_dagster"
DEFAULT_UI_PORT = 3000
#: Where workers of a number unknown here serve a queue. What is too much waits in the queue, live runs before others.
MAX_RUNS_ELSEWHERE = 128
#: Variable behind ``SEECHANGE_KAFKA_`` -> option of librdkafka.
KAFKA_OPTIONS = {
    "SECURITY_PROTOCOL": "security.protocol",
    "SASL_MECHANISM": "sasl.mechanism",
    "USERNAME": "sasl.username",
    "PASSWORD": "sasl.password",
    "CA_FILE": "ssl.ca.location",
    "CERTIFICATE_FILE": "ssl.certificate.location",
    "KEY_FILE": "ssl.key.location",
    "KEY_PASSWORD": "ssl.key.password",
}
HOP_OPTIONS = ("URL", "USERNAME", "PASSWORD")
#: Field -> variable behind ``SEECHANGE_``, where it has another name.
SERVERS = {"postgres_server": "POSTGRES_URL", "kafka_bootstrap": "KAFKA_SERVERS", "queue_server": "QUEUE_URL"}
#: Fields that are several variables, or none.
_COMPOSED = {"kafka_security", "hop", "kept", "lacking"}
#: Variables that are no settings: the mark of a service's process, and where tests find real data.
_NO_SETTINGS = {"SERVICE_OF", "TEST_DATA"}


def project_root() -> Path:
    """Folder with `workspace.yaml` and `dagster_home/`: the checkout, or the current folder if installed elsewhere."""
    checkout = Path(__file__).resolve().parents[1]
    return checkout if (checkout / "dagster_home" / "dagster.yaml").exists() else Path.cwd()


class Settings(pydantic.BaseModel):
    """Paths, names and addresses of one installation.

    Of these, `instrument`, `config`, `catalog`, `orbits` and `galaxies` say what products are made of; the others
    cannot change one.

    Attributes
    ----------
    home : Path
        Everything written lies below it (``SEECHANGE_HOME``, default ``<project>/var``).
    instrument : str
        ``SEECHANGE_INSTRUMENT``, default ``ls4``.
    config : tuple of Path
        YAML files with parameters, later over earlier (``SEECHANGE_CONFIG``, colon-separated).
    tag : str
        Provenance tag readers ask for (``SEECHANGE_TAG``, default ``current``).
    archive : str
        Folder or fsspec URL of the products (``SEECHANGE_ARCHIVE``, default ``<home>/archive``).
    drop : Path
        Folder watched for raw files (``SEECHANGE_DROP``, default ``<home>/drop``).
    catalog : str or None
        Where the sky catalogue is, or ``gaia`` (``SEECHANGE_CATALOG``, default ``<home>/catalog`` if it exists).
    orbits, galaxies : Path or None
        Orbits of minor planets as in ``MPCORB.DAT`` (``SEECHANGE_ORBITS``), and a catalogue of galaxies
        (``SEECHANGE_GALAXIES``; FITS, CSV or ECSV): local files, used where they are given.
    workspace : Path
        What Dagster loads (``SEECHANGE_WORKSPACE``, default ``<project>/workspace.yaml``).
    postgres_server : SecretStr or None
        An external server (``SEECHANGE_POSTGRES_URL``); None means the embedded one.
    kafka_bootstrap : str or None
        An external broker (``SEECHANGE_KAFKA_SERVERS``); None means the embedded one.
    kafka_security : mapping of librdkafka's option to SecretStr
        TLS and SASL of the external broker: ``SEECHANGE_KAFKA_SECURITY_PROTOCOL`` (``SSL``, ``SASL_SSL``,
        ``SASL_PLAINTEXT``), ``_SASL_MECHANISM``, ``_USERNAME``, ``_PASSWORD``, ``_CA_FILE``, ``_CERTIFICATE_FILE``,
        ``_KEY_FILE``, ``_KEY_PASSWORD``.
    hop : mapping of str to SecretStr
        HOPSKOTCH: ``SEECHANGE_HOP_URL`` (``kafka://kafka.scimma.org``), ``_USERNAME``, ``_PASSWORD``.
    kafka_port, ui_port : int
        Ports on loopback (``SEECHANGE_KAFKA_PORT``, ``SEECHANGE_UI_PORT``); 0 takes any free one. Without a
        value the UI takes 3000, or any free port if 3000 is taken.
    max_runs : int or None
        Runs handed over at the same time (``SEECHANGE_MAX_RUNS``); without a value see `runs_at_once`.
    workers : int
        Warm workers of this machine (``SEECHANGE_WORKERS``). With 0, the default, runs go to the workers of
        `queue_server` if it is given, and else each gets a process of its own.
    worker_memory_mb : int
        A worker that has grown beyond is replaced after its run (``SEECHANGE_WORKER_MEMORY_MB``, default 1000).
    queue_server : SecretStr or None
        An external Redis, Valkey or RabbitMQ (``SEECHANGE_QUEUE_URL``); None means the embedded one.
    poll_url : str or None
        Archive whose new raw files the sensor `http_archive` fetches (``SEECHANGE_POLL_URL``).
    settle_s : float
        Seconds without a further calibration frame after which a night's frames count as complete
        (``SEECHANGE_SETTLE_S``, default 120: several exposures with their read-out).
    kept : mapping of str to str
        Variables that came from the last `up` of this home, not from the environment.
    lacking : tuple of str
        Variables that the last `up` had, that may hold a secret and so were not written down, and that are not given.
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    home: Path
    instrument: str = "ls4"
    config: tuple[Path, ...] = ()
    tag: str = "current"
    archive: str
    drop: Path
    catalog: str | None = None
    orbits: Path | None = None
    galaxies: Path | None = None
    workspace: Path
    postgres_server: pydantic.SecretStr | None = None
    kafka_bootstrap: str | None = None
    kafka_security: dict[str, pydantic.SecretStr] = {}
    hop: dict[str, pydantic.SecretStr] = {}
    kafka_port: int = pydantic.Field(0, ge=0, le=65535)
    ui_port: int | None = pydantic.Field(None, ge=0, le=65535)
    max_runs: int | None = pydantic.Field(None, ge=1)
    workers: int = pydantic.Field(0, ge=0, le=1000)
    worker_memory_mb: int = pydantic.Field(1000, ge=200)
    queue_server: pydantic.SecretStr | None = None
    poll_url: str | None = None
    settle_s: float = pydantic.Field(120.0, ge=0, le=86400)
    kept: dict[str, str] = pydantic.Field({}, exclude=True)
    lacking: tuple[str, ...] = pydantic.Field((), exclude=True)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Self:
        """Read the ``SEECHANGE_*`` variables; where one is absent, the last `up` of the home tells its value.

        An empty variable is given, and means the default.

        Raises
        ------
        ParameterError
            For an unknown variable, with the nearest valid one, and for a value that cannot be used.
        InvalidName
            If the instrument or the tag breaks the allow-list.
        ServiceUnavailable
            If the archive, the catalogue or the archive to poll was at an address with a secret, and is not given.
        """
        given = _given(os.environ if environment is None else environment)
        home = _absolute(given.get("HOME") or str(project_root() / "var"))
        found = kept_settings.read(home)
        kept = {name: value for name, value in found.values.items() if name.removeprefix(PREFIX) not in given}
        settings = cls._of(
            {**{name.removeprefix(PREFIX): value for name, value in kept.items()}, **given},
            kept=kept,
            lacking=tuple(name for name in found.secrets if _is_lacking(name.removeprefix(PREFIX), given)),
        )
        settings.require("ARCHIVE", "CATALOG", "POLL_URL")
        return settings

    @classmethod
    def _of(cls, variables: Mapping[str, str], **more: Any) -> Self:
        """From variables named without prefix; empty ones count as unset."""
        given = {name: value for name, value in variables.items() if value}
        root = project_root()
        home = _absolute(given.get("HOME", str(root / "var")))
        catalog = given.get("CATALOG")
        values = {
            "home": home,
            "instrument": checked_name(given.get("INSTRUMENT", "ls4"), "SEECHANGE_INSTRUMENT"),
            "config": tuple(_absolute(part) for part in given.get("CONFIG", "").split(":") if part),
            "tag": checked_name(given.get("TAG", "current"), "SEECHANGE_TAG"),
            "archive": _location(given.get("ARCHIVE", str(home / "archive"))),
            "drop": _absolute(given.get("DROP", str(home / "drop"))),
            "catalog": _catalog(catalog) if catalog else _existing(home / "catalog"),
            "orbits": _absolute(given["ORBITS"]) if "ORBITS" in given else None,
            "galaxies": _absolute(given["GALAXIES"]) if "GALAXIES" in given else None,
            "workspace": _absolute(given.get("WORKSPACE", str(root / "workspace.yaml"))),
            "postgres_server": given.get("POSTGRES_URL"),
            "kafka_bootstrap": given.get("KAFKA_SERVERS"),
            "kafka_security": {
                option: given[f"KAFKA_{name}"] for name, option in KAFKA_OPTIONS.items() if f"KAFKA_{name}" in given
            },
            "hop": {name.lower(): given[f"HOP_{name}"] for name in HOP_OPTIONS if f"HOP_{name}" in given},
            "kafka_port": given.get("KAFKA_PORT", 0),
            "ui_port": given.get("UI_PORT"),
            "max_runs": given.get("MAX_RUNS"),
            "workers": given.get("WORKERS", cls.model_fields["workers"].default),
            "worker_memory_mb": given.get("WORKER_MEMORY_MB", cls.model_fields["worker_memory_mb"].default),
            "queue_server": given.get("QUEUE_URL"),
            "poll_url": given.get("POLL_URL"),
            "settle_s": given.get("SETTLE_S", cls.model_fields["settle_s"].default),
        }
        try:
            return cls(**values, **more)
        except pydantic.ValidationError as error:
            first = error.errors(include_input=False)[0]
            raise ParameterError(f"{_variable_of(str(first['loc'][0]))}: {first['msg']}") from None

    @classmethod
    def of_home(cls, home: str | None) -> Self:
        """As `from_environment`, for another home if one is given."""
        return cls.from_environment({**os.environ, "SEECHANGE_HOME": home} if home else None)

    @property
    def dagster_home(self) -> Path:
        """``DAGSTER_HOME``, absolute as Dagster demands."""
        return self.home / "dagster"

    @property
    def logs(self) -> Path:
        """Folder of the services' log files."""
        return self.home / "logs"

    @property
    def state_file(self) -> Path:
        """JSON with the addresses of the services that are up."""
        return self.home / "services.json"

    @property
    def postgres_url(self) -> str:
        """URL of the server, for psycopg2, password included: not for printing.

        Raises
        ------
        ServiceUnavailable
            If none is named in the environment and none is up.
        """
        self.require("POSTGRES_URL")
        if self.postgres_server is not None:
            return psycopg2_url(self.postgres_server.get_secret_value())
        return str(self._from_state("postgres_url", "Postgres", "SEECHANGE_POSTGRES_URL"))

    @property
    def database_url(self) -> str:
        """URL of the survey's database."""
        return psycopg2_url(self.postgres_url, SURVEY_DATABASE)

    @property
    def dagster_url(self) -> str:
        """URL of the database with Dagster's runs and events."""
        return psycopg2_url(self.postgres_url, DAGSTER_DATABASE)

    @property
    def kafka_servers(self) -> str:
        """Bootstrap servers of the broker.

        Raises
        ------
        ServiceUnavailable
            If none is named in the environment and none is up, or if a secret of a broker of alerts is lacking.
        """
        self.require("KAFKA_", "HOP_")
        if self.kafka_bootstrap is not None:
            return self.kafka_bootstrap
        return str(self._from_state("kafka_servers", "Kafka broker", "SEECHANGE_KAFKA_SERVERS"))

    @property
    def kafka_options(self) -> dict[str, str]:
        """Security options for librdkafka, secrets included: not for printing."""
        return {option: value.get_secret_value() for option, value in self.kafka_security.items()}

    @property
    def queue_url(self) -> str:
        """URL of the workers' queue, password included: not for printing.

        Raises
        ------
        ServiceUnavailable
            If none is named in the environment and none is up.
        """
        self.require("QUEUE_URL")
        if self.queue_server is not None:
            return self.queue_server.get_secret_value()
        return str(self._from_state("queue_url", "queue of workers", "SEECHANGE_QUEUE_URL"))

    @property
    def uses_queue(self) -> bool:
        """Whether runs are tasks of warm workers, here or anywhere else, and not processes of their own."""
        return self.workers > 0 or self.queue_server is not None or "SEECHANGE_QUEUE_URL" in self.lacking

    @property
    def runs_at_once(self) -> int:
        """Runs that Dagster hands over at the same time."""
        if self.max_runs is not None:
            return self.max_runs
        if self.workers:  # one in hand and one at hand for each: a worker never waits, a live run waits for one at most
            return 2 * self.workers
        return MAX_RUNS_ELSEWHERE if self.uses_queue else available_cores()

    @property
    def queue_name(self) -> str:
        """Name of the queue of this version of code and configuration: older workers never take its runs."""
        return f"seechange.{deployed_version(self.instrument, self.config)}"

    @property
    def deployment(self) -> str:
        """The queue's name, then what tells these settings from others: services that differ in it are restarted."""
        values = self.model_dump()
        if self.catalog == str(self.home / "catalog"):  # found, not given: it may appear at any time
            values["catalog"] = None
        text = json.dumps(values, sort_keys=True, default=_plain)
        return f"{self.queue_name} {hashlib.sha256(text.encode()).hexdigest()[:10]}"

    def as_environment(self) -> dict[str, str]:
        """The variables that give another process these settings; servers and secrets, which it inherits, apart."""
        names = type(self).model_fields.keys() - SERVERS.keys() - _COMPOSED
        values = {name: getattr(self, name) for name in type(self).model_fields if name in names}
        if self.catalog == str(self.home / "catalog"):
            values["catalog"] = None
        return {_variable_of(name): _text(value) for name, value in values.items()}

    def keep(self) -> None:
        """Write into the home what commands without these variables go on with; see `kept_settings`."""
        default = self._of({"HOME": str(self.home)}).as_environment()
        given = {name: value for name, value in self.as_environment().items() if value != default[name]}
        servers: dict[str, Any] = {_variable_of(field): getattr(self, field) for field in SERVERS}
        servers |= {f"{PREFIX}KAFKA_{name}": self.kafka_security.get(option) for name, option in KAFKA_OPTIONS.items()}
        servers |= {f"{PREFIX}HOP_{name.upper()}": value for name, value in self.hop.items()}
        given |= {name: _plain(value) for name, value in servers.items() if value is not None}
        kept_settings.write(self.home, given)

    def require(self, *beginnings: str) -> None:
        """Refuse to go on without variables that the last `up` had.

        Parameters
        ----------
        *beginnings : str
            Of their names behind ``SEECHANGE_``; ``""`` means all.

        Raises
        ------
        ServiceUnavailable
            Naming what to set.
        """
        names = [name for name in self.lacking if name.removeprefix(PREFIX).startswith(beginnings)]
        if names:
            raise ServiceUnavailable(
                f"the last `up` of {self.home} had what is never written down: set {', '.join(names)} "
                "(empty: go without)"
            )

    @property
    def reports_url(self) -> str | None:
        """Address under which the folder `reports` of the home is served, or None if it is not."""
        return self.read_state().get("reports_url")

    @property
    def ui_url(self) -> str | None:
        """Address of the Dagster UI, or None if it is not up."""
        return self.read_state().get("ui_url")

    def read_state(self) -> dict[str, Any]:
        """Content of the state file; empty if there is none."""
        try:
            return dict(json.loads(self.state_file.read_text()))
        except FileNotFoundError:
            return {}

    def _from_state(self, key: str, what: str, variable: str) -> Any:
        state = self.read_state()
        if state.get(key):
            return state[key]
        raise ServiceUnavailable(f"no {what} is up for {self.home}: run `seechange up` or set {variable}")


@functools.cache
def deployed_version(instrument: str, config: tuple[Path, ...]) -> str:
    """Ten characters that change with the code, the configuration files or the instrument."""
    digest = hashlib.sha256(instrument.encode())
    checkout = Path(__file__).resolve().parents[1]
    for package in ("io_managers", "resources", "seechange_assets", "sensors", "sql"):
        for path in sorted((checkout / package).rglob("*")):
            if path.suffix in {".py", ".yaml", ".avsc", ".npz"}:
                digest.update(path.relative_to(checkout).as_posix().encode() + path.read_bytes())
    for path in config:
        digest.update(path.read_bytes() if path.is_file() else b"")
    return digest.hexdigest()[:10]


def available_cores() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def psycopg2_url(url: str, database: str | None = None) -> str:
    """`url` with the psycopg2 driver named, because SQLAlchemy 2.1 takes psycopg 3 for a bare ``postgresql://``.

    Raises
    ------
    ParameterError
        If `url` is no Postgres URL. The URL is not repeated, it may hold a password.
    """
    import sqlalchemy

    try:
        parsed = sqlalchemy.make_url(url)
    except (sqlalchemy.exc.ArgumentError, ValueError):
        parsed = None
    if parsed is None or not parsed.drivername.startswith("postgres"):
        raise ParameterError("SEECHANGE_POSTGRES_URL: expected postgresql://user:password@host:port/database")
    parsed = parsed.set(drivername="postgresql+psycopg2", database=database or parsed.database or "postgres")
    return parsed.render_as_string(hide_password=False)


def redacted(url: str) -> str:
    """`url` with the password replaced by ``***``, fit for a terminal or a log."""
    import sqlalchemy

    return sqlalchemy.make_url(url).render_as_string(hide_password=True)


def _given(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables by their names without prefix; one that nobody reads is a mistake in its name."""
    given = {name.removeprefix(PREFIX): value for name, value in environment.items() if name.startswith(PREFIX)}
    valid = known_variables()
    for name in sorted(given.keys() - valid - _NO_SETTINGS):
        near = difflib.get_close_matches(name, sorted(valid), n=1, cutoff=0.0)
        raise ParameterError(f"unknown variable {PREFIX}{name}; did you mean {PREFIX}{near[0]}?")
    return given


def known_variables() -> set[str]:
    """Names of all variables that are settings, without prefix."""
    own = {SERVERS.get(name, name.upper()) for name in Settings.model_fields.keys() - _COMPOSED}
    return own | {f"KAFKA_{name}" for name in KAFKA_OPTIONS} | {f"HOP_{name}" for name in HOP_OPTIONS}


def _variable_of(field: str) -> str:
    return PREFIX + SERVERS.get(field, field.upper())


def _is_lacking(name: str, given: Mapping[str, str]) -> bool:
    """Whether a secret of the last `up` is absent, and not because its broker is given up."""
    is_given_up = name.startswith("KAFKA_") and given.get("KAFKA_SERVERS") == ""
    return name not in given and not is_given_up


def _absolute(path: str) -> Path:
    return Path(path).expanduser().resolve()


def _location(value: str) -> str:
    """A URL as it is, a path made absolute."""
    return value if re.match(r"[a-z0-9+]+://", value) else str(_absolute(value))


def _catalog(value: str) -> str:
    """As `_location`, but ``gaia`` is the archive of that name and no file."""
    return value if value.lower() == "gaia" else _location(value)


def _plain(value: Any) -> str:
    return value.get_secret_value() if isinstance(value, pydantic.SecretStr) else str(value)


def _text(value: Any) -> str:
    """As a variable; an empty one means the default."""
    return ":".join(map(str, value)) if isinstance(value, tuple) else "" if value is None else str(value)


def _existing(path: Path) -> str | None:
    return str(path) if path.exists() else None
