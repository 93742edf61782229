"""The sensor that makes stale partitions again, ticked as the daemon does: off at first, one backfill at once."""

import dagster as dg
import pytest

from io_managers.tags import Tags
from resources.settings import Settings
from seechange_assets.definitions import build_definitions
from sensors.backfill import BACKFILL_TAG, unfinished_backfills
from sensors.stale import stale_partitions
from tests.io_managers import many_rows
from tests.io_managers.test_tags import configured

ASSETS = ["wcs", "zp"]


@pytest.fixture
def instance(tmp_path):
    """One with storage on disk: that in memory does not find backfills by their tags."""
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        yield instance


@pytest.fixture
def tick(database, store, instance, tmp_path):
    """Evaluate the sensor; what it says."""
    environment = {"SEECHANGE_HOME": str(tmp_path), "SEECHANGE_INSTRUMENT": "demo"}
    definitions = build_definitions(Settings.from_environment(environment))

    def evaluate() -> str:
        context = dg.build_sensor_context(instance=instance, definitions=definitions, resources={"store": store})
        return stale_partitions(context).skip_message

    instance.add_dynamic_partitions("exposure", ["demo_000001", "demo_000002"])
    return evaluate


def processed(database, recipes, n_exposures=3):
    """Exposures whose third one is not in Dagster's window any more."""
    Tags(database).create("then", recipes.values())
    with database.session() as session:
        many_rows.insert_exposures(session, recipes, n_exposures)
        many_rows.insert_products(session, recipes, n_exposures, 1, ASSETS)


def test_it_is_off_until_somebody_turns_it_on():
    assert stale_partitions.default_status == dg.DefaultSensorStatus.STOPPED


def test_nothing_is_requested_while_nothing_is_stale(tick, database, recipes, instance):
    processed(database, recipes)
    assert tick() == "nothing is stale"
    assert instance.get_backfills() == []


def test_what_is_stale_and_in_the_window_is_one_backfill(tick, database, instance, tmp_path):
    processed(database, configured(tmp_path, "wcs: {max_stars: 1500}"))
    assert "2 partitions" in tick()
    (backfill,) = unfinished_backfills(instance, "current")
    assert backfill.tags[BACKFILL_TAG] == "current"
    subset = backfill.asset_backfill_data.target_subset
    requested = {key.path[-1]: set(subset.get_partitions_subset(key).get_partition_keys()) for key in subset.asset_keys}
    assert requested == {asset: {"01|demo_000001", "01|demo_000002"} for asset in ASSETS}
    assert tick() == "a backfill is not finished"
    assert len(instance.get_backfills()) == 1
