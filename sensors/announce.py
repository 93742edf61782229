"""Tell Dagster of registered exposures: the partition, and a materialization without a run."""

from collections.abc import Iterable
from typing import Any

import dagster as dg

from seechange_assets import partitions
from seechange_assets.provenance import Recipes


def announce(instance: dg.DagsterInstance, rows: Iterable[Any], recipes: Recipes) -> None:
    """Add the exposure partitions and report the raw files; those known already stay as they are.

    Parameters
    ----------
    rows : rows of `sql.models.ExposureRow`, science exposures only.
    """
    for row in rows:
        if instance.has_dynamic_partition(partitions.EXPOSURE, row.key):
            continue
        # The event first: whoever sees the partition finds its exposure materialized.
        instance.report_runless_asset_event(materialization(row, recipes))
        instance.add_dynamic_partitions(partitions.EXPOSURE, [row.key])


def materialization(row: Any, recipes: Recipes) -> dg.AssetMaterialization:
    """What Dagster is told of a registered exposure."""
    return dg.AssetMaterialization(
        "exposure",
        partition=row.key,
        metadata={
            "night": row.night,
            "mjd": row.mjd,
            "exptime_s": row.exptime_s,
            "target": row.target,
            "file": row.filepath,
            "n_ccds": len(row.filters),
        },
        tags={"dagster/code_version": recipes["exposure"].id, "dagster/data_version": row.sha256},
    )
