"""What is read from Dagster's tables directly is what Dagster says; so is the newest migration."""

import dagster as dg
from alembic.script import ScriptDirectory

from io_managers.staleness import DIMENSIONS, Work
from resources.dagster_rows import DagsterRows
from resources.database import Database
from resources.settings import Settings
from seechange_assets.definitions import build_definitions
from seechange_assets.partition import Partition
from sensors.backfill import submit


def test_a_database_dagster_never_used_holds_nothing(database_url):
    rows = DagsterRows(database_url)
    assert rows.held(DIMENSIONS) == {name: set() for name in DIMENSIONS}
    assert not rows.has_unfinished_backfills()


def test_partitions_and_backfills_are_those_of_dagster(database_url, tmp_path):
    overrides = {"storage": {"postgres": {"postgres_url": database_url}}}
    with dg.DagsterInstance.local_temp(str(tmp_path), overrides=overrides) as instance:
        rows = DagsterRows(database_url)
        instance.add_dynamic_partitions("exposure", ["a", "b"])
        instance.add_dynamic_partitions("night", ["2026-11-22"])
        assert rows.held(DIMENSIONS) == {name: set(instance.get_dynamic_partitions(name)) for name in DIMENSIONS}
        assert not rows.has_unfinished_backfills()
        definitions = build_definitions(
            Settings.from_environment({"SEECHANGE_HOME": str(tmp_path), "SEECHANGE_INSTRUMENT": "demo"})
        )
        work = [Work(Partition("a", "01"), None, ("wcs", "zp"))]
        submit(instance, definitions.resolve_asset_graph(), work, tag="current", title="test")
        assert rows.has_unfinished_backfills()


def test_the_newest_migration_is_the_one_alembic_finds(database_url):
    database = Database(database_url)
    head = ScriptDirectory.from_config(database._alembic()).get_current_head()
    assert database.revisions() == (None, head)
    database.upgrade()
    assert database.revisions() == (head, head)
    database.engine.dispose()
