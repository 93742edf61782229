"""What a session says when its server ends: that Postgres does not answer, however the driver names it."""

import psycopg2
import pytest
import sqlalchemy as sa

from resources.database import Database
from seechange_assets.errors import ServiceUnavailable

ENDED = "server closed the connection unexpectedly\n\tThis probably means the server terminated abnormally"


@pytest.mark.parametrize("kind", [psycopg2.DatabaseError, psycopg2.OperationalError, psycopg2.InterfaceError])
@pytest.mark.parametrize("method", ["do_commit", "do_execute"])
def test_a_server_that_ends_is_an_outage(postgres_url, monkeypatch, kind, method):
    database = Database(postgres_url)
    with database.session() as session:
        assert session.scalar(sa.text("select 1")) == 1

    def end(*_arguments, **_options):
        raise kind(ENDED)

    with monkeypatch.context() as patched:
        patched.setattr(database.engine.dialect, method, end)
        with pytest.raises(ServiceUnavailable, match="Postgres does not answer"), database.session() as session:
            session.execute(sa.text("select 1"))
    with database.session() as session:
        assert session.scalar(sa.text("select 1")) == 1


def test_a_mistake_in_a_query_is_none(postgres_url):
    with pytest.raises(sa.exc.ProgrammingError), Database(postgres_url).session() as session:
        session.execute(sa.text("select nothing"))
