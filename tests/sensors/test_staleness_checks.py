"""What is stale is told on the assets' nodes, by a check that no run of theirs evaluates."""

import dagster as dg
import pytest

from io_managers.tags import Tags
from resources.settings import Settings
from seechange_assets.definitions import build_definitions
from sensors.staleness_checks import CHECK, staleness
from sql.models import PRODUCT_ROWS
from tests.io_managers import many_rows
from tests.io_managers.test_tags import configured

ASSETS = ["psf", "wcs", "zp"]


@pytest.fixture
def instance(tmp_path):
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        yield instance


@pytest.fixture
def definitions(tmp_path):
    environment = {"SEECHANGE_HOME": str(tmp_path), "SEECHANGE_INSTRUMENT": "demo"}
    return build_definitions(Settings.from_environment(environment))


@pytest.fixture
def tick(definitions, store, instance):
    """Evaluate the sensor with the cursor it left; what it says."""
    cursor = [None]

    def evaluate() -> str:
        resources = {"store": store}
        with dg.build_sensor_context(
            instance=instance, definitions=definitions, resources=resources, cursor=cursor[0]
        ) as context:
            said = staleness(context).skip_message
            cursor[0] = context.cursor
        return said

    return evaluate


def processed(database, recipes, assets=tuple(ASSETS)):
    Tags(database).create("then", recipes.values())
    with database.session() as session:
        many_rows.insert_exposures(session, recipes, 3)
        many_rows.insert_products(session, recipes, 3, 1, list(assets))


def told(instance) -> dict:
    """The newest evaluation of each asset."""
    keys = [dg.AssetCheckKey(dg.AssetKey(name), CHECK) for name in PRODUCT_ROWS]
    records = instance.event_log_storage.get_asset_check_summary_records(keys)
    return {
        key.asset_key.path[-1]: record.last_check_execution_record.evaluation
        for key, record in records.items()
        if record.last_check_execution_record
    }


def test_what_is_stale_is_a_warning_with_count_reason_and_command(tick, database, instance, tmp_path):
    processed(database, configured(tmp_path, "wcs: {max_stars: 1500}"))
    assert tick() == "stale: wcs 3, zp 3"
    found = told(instance)
    assert {name for name, evaluation in found.items() if not evaluation.passed} == {"wcs", "zp"}
    assert found.keys() == set(PRODUCT_ROWS)
    assert found["wcs"].severity == dg.AssetCheckSeverity.WARN
    metadata = {name: entry.value for name, entry in found["zp"].metadata.items()}
    assert metadata == {
        "stale partitions": 3, "reason": "wcs.max_stars 1500 -> 2000", "to make them again": "seechange backfill",
    }  # fmt: skip


def test_it_is_told_until_nothing_is_stale_and_then_only_at_news(tick, database, recipes, instance, tmp_path):
    old = configured(tmp_path, "wcs: {max_stars: 1500}")
    processed(database, old)
    tick()
    before = told(instance)["wcs"]
    assert tick() == "stale: wcs 3, zp 3"  # again: a materialization in between hides what was told
    assert told(instance)["wcs"] is not before
    with database.session() as session:
        many_rows.insert_products(session, recipes, 3, 1, ["wcs", "zp"])
    assert tick() == "nothing is stale"
    assert all(evaluation.passed for evaluation in told(instance).values())
    count = len(instance.event_log_storage.get_asset_check_execution_history(_key("wcs"), limit=100))
    assert count == 3
    assert tick() == "no recipe has changed and nothing was stale"
    assert len(instance.event_log_storage.get_asset_check_execution_history(_key("wcs"), limit=100)) == count


def test_no_run_of_an_asset_evaluates_it(definitions):
    """Neither the job of new exposures nor a backfill or a person's "Materialize": there a run costs no event more."""
    assets = {dg.AssetKey(name) for name in ASSETS}
    everything = definitions.resolve_implicit_global_asset_job_def()
    for job in (definitions.resolve_job_def("process_ccd"), everything.get_subset(asset_selection=assets)):
        assert set(ASSETS) <= set(job.graph.node_dict)
        assert CHECK not in job.graph.node_dict
        assert _key("wcs") not in job.asset_layer.asset_graph.asset_check_keys
    alone = everything.get_subset(asset_check_selection={_key("wcs")})
    assert set(alone.graph.node_dict) == {CHECK}


def test_a_person_may_evaluate_it(definitions, store, database, instance, tmp_path):
    processed(database, configured(tmp_path, "wcs: {max_stars: 1500}"))
    resources = {**definitions.resources, "store": store}
    mine = dg.Definitions(
        assets=definitions.assets, asset_checks=definitions.asset_checks, resources=resources,
        executor=dg.in_process_executor,
    )  # fmt: skip
    job = mine.resolve_implicit_global_asset_job_def().get_subset(asset_check_selection={_key("wcs"), _key("psf")})
    assert job.execute_in_process(instance=instance).success
    assert {name: evaluation.passed for name, evaluation in told(instance).items()} == {"wcs": False, "psf": True}


def _key(asset: str) -> dg.AssetCheckKey:
    return dg.AssetCheckKey(dg.AssetKey(asset), CHECK)
