"""Pools of connections that notice a server's restart without a round trip for every transaction."""

import time
from typing import Any

import sqlalchemy as sa

#: A connection that was used so recently is taken to be alive [s].
_FRESH_S = 1.0


def check_after_a_pause(engine: sa.Engine) -> None:
    """Replace a dead connection before use, as ``pool_pre_ping`` does, but ask only one that was idle for a moment."""
    sa.event.listen(engine, "checkin", _note_the_time)
    sa.event.listen(engine, "checkout", _ping_unless_fresh)


def _note_the_time(_: Any, record: sa.pool.ConnectionPoolEntry) -> None:
    record.info["used_at"] = time.monotonic()


def _ping_unless_fresh(connection: Any, record: sa.pool.ConnectionPoolEntry, _: Any) -> None:
    if time.monotonic() - record.info.get("used_at", 0.0) < _FRESH_S:
        return
    try:
        with connection.cursor() as cursor:
            cursor.execute("select 1")
        connection.rollback()
    except connection.Error as error:
        raise sa.exc.DisconnectionError from error  # the pool opens another
