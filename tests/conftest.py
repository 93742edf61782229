"""Services for tests that need them: started once per test process, stopped and removed at the end."""

import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from resources import services
from resources.services import broker, postgres
from resources.services.supervisor import Supervisor
from resources.settings import Settings, psycopg2_url
from seechange_assets.errors import ServiceUnavailable


@pytest.fixture(autouse=True)
def _environment_of_the_project_is_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """A developer's SEECHANGE_* variables must not reach a test."""
    for name in list(os.environ):
        if name.startswith("SEECHANGE_") and name != "SEECHANGE_TEST_DATA":
            monkeypatch.delenv(name)


@pytest.fixture
def short_home() -> Iterator[Path]:
    """A home of its own with a short path (a socket's is limited to 107 bytes); whatever runs in it is stopped."""
    home = Path(tempfile.mkdtemp(prefix="seechange-"))
    yield home
    _remove_home(home)


@pytest.fixture(scope="session")
def service_home() -> Iterator[Path]:
    """The home of the services that tests share."""
    home = Path(tempfile.mkdtemp(prefix="seechange-tests-"))
    yield home
    _remove_home(home)


@pytest.fixture(scope="session")
def postgres_url(service_home: Path) -> str:
    """An embedded Postgres server with the survey's and Dagster's (empty) databases."""
    try:
        url = postgres.start(service_home)
    except ServiceUnavailable as error:
        pytest.skip(str(error))
    postgres.ensure_databases(url)
    return url


@pytest.fixture
def database_url(postgres_url: str) -> Iterator[str]:
    """A new, empty database, dropped after the test."""
    import sqlalchemy

    name = f"test_{uuid.uuid4().hex[:12]}"
    engine = sqlalchemy.create_engine(postgres_url, isolation_level="AUTOCOMMIT", poolclass=sqlalchemy.NullPool)
    with engine.connect() as connection:
        connection.execute(sqlalchemy.text(f"create database {name}"))
    yield psycopg2_url(postgres_url, name)
    with engine.connect() as connection:
        connection.execute(sqlalchemy.text(f"drop database {name} with (force)"))


@pytest.fixture(scope="session")
def kafka_servers(service_home: Path) -> str:
    """An embedded broker."""
    try:
        return broker.start(Supervisor(service_home))
    except ServiceUnavailable as error:
        pytest.skip(str(error))


@pytest.fixture
def settings(postgres_url: str, kafka_servers: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings with a home of its own and the shared services, which are external to it."""
    monkeypatch.setenv("SEECHANGE_HOME", str(tmp_path))
    monkeypatch.setenv("SEECHANGE_POSTGRES_URL", postgres_url)
    monkeypatch.setenv("SEECHANGE_KAFKA_SERVERS", kafka_servers)
    return Settings.from_environment()


def _remove_home(home: Path) -> None:
    services.down(Settings.from_environment({"SEECHANGE_HOME": str(home)}))
    shutil.rmtree(home)
