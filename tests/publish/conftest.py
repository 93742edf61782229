"""The tables of the survey for the tests of this folder, emptied after each of them."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from resources.database import Database
from resources.services import broker
from resources.services.supervisor import Supervisor, free_port
from resources.settings import psycopg2_url
from sql.base import Base
from tests.publish.sky import PROVENANCES

TABLES = (
    "measurements", "forced_photometry", "objects", "object_name_max_used", "alerts_outbox", "alert_files",
    "differences", "association_sets", "forced_photometry_sets", "refs", "exposures",
)  # fmt: skip


@pytest.fixture(scope="session")
def tables(postgres_url: str) -> Iterator[Database]:
    """A database with all tables and the provenances of these tests."""
    import sql.alerts
    import sql.object_records
    from sql.models import ProvenanceRow

    assert sql.alerts.OutboxRow.__table__ in Base.metadata.sorted_tables
    server = sa.create_engine(postgres_url, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with server.connect() as connection:
        connection.execute(sa.text("create database test_publish"))
    database = Database(psycopg2_url(postgres_url, "test_publish"))
    Base.metadata.create_all(database.engine)
    with database.session() as session:
        for process, key in PROVENANCES.items():
            session.merge(ProvenanceRow(id=key, process=process, algorithm_version="1", parameters={}))
    yield database
    database.engine.dispose()
    with server.connect() as connection:
        connection.execute(sa.text("drop database test_publish with (force)"))


@pytest.fixture
def database(tables: Database) -> Iterator[Database]:
    """The survey's database, empty but for the provenances."""
    yield tables
    with tables.session() as session:
        session.execute(sa.text(f"truncate {', '.join(TABLES)} cascade"))


class SwitchedBroker:
    """A broker of its own that a test starts and stops; its address stays the same."""

    def __init__(self, home: Path) -> None:
        self._supervisor, self._port = Supervisor(home), free_port()
        self.servers = f"127.0.0.1:{self._port}"

    def start(self) -> None:
        broker.start(self._supervisor, self._port)

    def stop(self) -> None:
        self._supervisor.stop(broker.NAME)


@pytest.fixture
def switched_broker(short_home: Path) -> SwitchedBroker:
    return SwitchedBroker(short_home)
