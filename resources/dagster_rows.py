"""The little of Dagster's tables that a command asks which has no time to import Dagster.

Its minor version is pinned (`resources.dagster_storage`), and a test compares with what Dagster itself answers.
"""

from collections.abc import Iterable

import sqlalchemy as sa

_HELD = sa.text("select partitions_def_name, partition from dynamic_partitions where partitions_def_name = any(:names)")
_UNFINISHED = sa.text("select exists (select from bulk_actions where status = 'REQUESTED')")


class DagsterRows:
    """Rows of one Dagster instance, read-only.

    Parameters
    ----------
    url : str
        Its database; one that Dagster has never been started with holds nothing.
    """

    def __init__(self, url: str) -> None:
        self._engine = sa.create_engine(url, poolclass=sa.NullPool)

    def held(self, dimensions: Iterable[str]) -> dict[str, set[str]]:
        """Keys of the dynamic partitions of each dimension."""
        found: dict[str, set[str]] = {name: set() for name in dimensions}
        with self._engine.connect() as connection:
            if _exists(connection, "dynamic_partitions"):
                for name, key in connection.execute(_HELD, {"names": list(found)}):
                    found[name].add(key)
        return found

    def has_unfinished_backfills(self) -> bool:
        """Whether Dagster is working on any backfill."""
        with self._engine.connect() as connection:
            return _exists(connection, "bulk_actions") and bool(connection.scalar(_UNFINISHED))


def _exists(connection: sa.Connection, table: str) -> bool:
    return connection.scalar(sa.select(sa.func.to_regclass(table))) is not None
