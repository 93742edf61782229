"""Stale partitions made again by themselves; off until somebody turns it on."""

from typing import Any

import dagster as dg

from io_managers.staleness import DIMENSIONS, Staleness, in_window
from sensors import backfill

#: Partitions of one backfill; the next follows when it is done.
MAX_PARTITIONS = 500


@dg.sensor(
    minimum_interval_seconds=60,
    default_status=dg.DefaultSensorStatus.STOPPED,
    description="Makes again what other recipes made than those in force, a few hundred partitions at a time.",
    jobs=[],
)
def stale_partitions(context: dg.SensorEvaluationContext, store: dg.ResourceParam[Any]) -> dg.SkipReason:
    """One tick: a backfill of the newest stale exposures, unless one of ours is not finished."""
    store.register_recipes()  # the tag has to name these recipes; nobody moves it here
    if backfill.unfinished_backfills(context.instance, store.tag):
        return dg.SkipReason("a backfill is not finished")
    held = {name: set(context.instance.get_dynamic_partitions(name)) for name in DIMENSIONS}
    with store.database.session() as session:
        compared = Staleness(session, store.recipes, store.instrument)
        work = in_window(compared.work(), held)[:MAX_PARTITIONS]
        known = compared.recognisable()
    n_told = backfill.recognise(context.instance, store, known)
    if not work:
        return dg.SkipReason(f"{n_told} products recognised" if n_told else "nothing is stale")
    location: Any = context.repository_def
    title = f"stale under tag {store.tag}"
    name = backfill.submit(context.instance, location.asset_graph, work, tag=store.tag, title=title)
    return dg.SkipReason(f"backfill {name}: {len(work)} partitions")
