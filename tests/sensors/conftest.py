"""A migrated database, the recipes of the demonstration camera, and a Dagster instance in memory."""

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
import sqlalchemy as sa

from io_managers.lookups import SurveyStore
from resources.archive import Archive
from resources.database import Database
from resources.settings import Settings, psycopg2_url
from seechange_assets.definitions import build_recipes
from seechange_assets.instruments.base import get_instrument
from sql.base import Base


@pytest.fixture
def instrument():
    return get_instrument("demo")


@pytest.fixture
def recipes(tmp_path: Path):
    return build_recipes(Settings.from_environment({"SEECHANGE_HOME": str(tmp_path), "SEECHANGE_INSTRUMENT": "demo"}))


@pytest.fixture(scope="session")
def migrated(postgres_url: str) -> Iterator[Database]:
    """One database for all tests of this folder: migrations take a second."""
    name = "sensors"
    server = sa.create_engine(psycopg2_url(postgres_url), isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with server.connect() as connection:
        connection.execute(sa.text(f"create database {name}"))
    database = Database(psycopg2_url(postgres_url, name))
    database.upgrade()
    yield database
    database.engine.dispose()


@pytest.fixture
def database(migrated: Database) -> Iterator[Database]:
    """An empty database."""
    yield migrated
    with migrated.session() as session:
        for table in reversed(Base.metadata.sorted_tables):
            session.execute(table.delete())


@pytest.fixture
def store(database: Database, recipes, tmp_path: Path) -> SurveyStore:
    store = SurveyStore(database, Archive(str(tmp_path / "archive")), recipes, "demo")
    store.register_recipes()
    return store


@pytest.fixture
def instance():
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance
