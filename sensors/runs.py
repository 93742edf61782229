"""What Dagster holds and is working on."""

from collections.abc import Collection
from typing import Any

import dagster as dg
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY

_FINISHED = (dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED)
UNFINISHED = [status for status in dg.DagsterRunStatus if status not in _FINISHED]
#: A run that was made but not queued (the database failed in between) is queued by the same request, made again.
_IN_WORK = [status for status in UNFINISHED if status is not dg.DagsterRunStatus.NOT_STARTED]
_PARTITION_TAG = "dagster/partition"


def is_in_work(instance: dg.DagsterInstance, key: dg.MultiPartitionKey) -> bool:
    """Whether a run of this partition is queued or at work, whoever started it."""
    return bool(in_work(instance, [key]))


def in_work(instance: dg.DagsterInstance, keys: Collection[dg.MultiPartitionKey]) -> set[str]:
    """Those of the partitions that a run is queued for or at work on; one question for all."""
    if not keys:
        return set()
    unfinished = dg.RunsFilter(statuses=_IN_WORK, tags={_PARTITION_TAG: [str(key) for key in keys]})
    return {run.tags[_PARTITION_TAG] for run in instance.get_runs(unfinished)}


def is_one_of(column: Any, keys: Collection[str]) -> sa.ColumnElement[bool]:
    """``column = any(keys)``: one array, where ``in`` would be a parameter for each of thousands of partitions."""
    return column == sa.any_(sa.cast(list(keys), ARRAY(sa.String)))
