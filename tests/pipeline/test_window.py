"""The survey that went through the whole chain leaves Dagster and comes back: all it says is what it said."""

import dagster as dg
from dagster._core.asset_graph_view.asset_graph_view import AssetGraphView
from dagster._core.definitions.data_version import CachingStaleStatusResolver
from dagster._core.definitions.partitions.context import partition_loading_context
from dagster._core.storage.partition_status_cache import get_and_update_asset_status_cache_value

from seechange_assets.definitions import build_definitions
from sensors.tell_again import CHAIN


def told(world, definitions):
    """Materialized and failed partitions of every asset, their tags, and whether and why they are stale."""
    instance, graph = world.session.instance, definitions.resolve_asset_graph()
    answer = {}
    with partition_loading_context(dynamic_partitions_store=instance):
        resolver = CachingStaleStatusResolver(instance, graph, AssetGraphView.for_test(definitions, instance))
        for name in CHAIN:
            key, by_ccd = dg.AssetKey(name), graph.get(dg.AssetKey(name)).partitions_def
            cached = get_and_update_asset_status_cache_value(instance, key, by_ccd, dynamic_partitions_loader=instance)
            made = cached.deserialize_materialized_partition_subsets(by_ccd).get_partition_keys()
            failed = cached.deserialize_failed_partition_subsets(by_ccd).get_partition_keys()
            answer[name] = sorted(made), sorted(failed)
            for partition in made:
                record = instance.get_latest_data_version_record(key, partition_key=partition)
                tags = record.event_log_entry.asset_materialization.tags
                told = {
                    name: tags[name] for name in tags if not name.startswith(("dagster/input_", "dagster/backfill"))
                }
                causes = [cause.reason for cause in resolver.get_stale_causes(key, partition)]
                answer[name, partition] = told, resolver.get_status(key, partition).value, causes
    return answer


def test_the_night_leaves_and_comes_back(world, exposure, second_exposure):
    instance = world.session.instance
    with world.as_environment():
        definitions = build_definitions(world.settings)
    before = told(world, definitions)
    assert before["alerts"][0]
    stale = world.cli("stale", "--json").json
    counts = world.counts()

    retired = world.cli("retire", "--before", "2099-01-01", "--json").json
    assert retired["n_exposures"] == len(world.simulated.references) + 2
    assert instance.get_dynamic_partitions("exposure") == []
    assert told(world, definitions)["alerts"] == ([], [])
    assert world.cli("activate", *retired["nights"], "--json").json == {"exposures": retired["n_exposures"]}
    assert told(world, definitions) == before
    assert {answer[1] for key, answer in before.items() if isinstance(key, tuple)} == {"FRESH"}
    assert world.cli("stale", "--json").json == stale
    assert world.counts() == counts
    assert world.process(exposure, "01").success
