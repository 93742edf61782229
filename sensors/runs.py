"""What Dagster is working on."""

import dagster as dg

_FINISHED = (dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED)
UNFINISHED = [status for status in dg.DagsterRunStatus if status not in _FINISHED]


def is_in_work(instance: dg.DagsterInstance, key: dg.MultiPartitionKey) -> bool:
    """Whether a run of this partition is queued or at work, whoever started it."""
    unfinished = dg.RunsFilter(statuses=UNFINISHED, tags={"dagster/partition": str(key)})
    return bool(instance.get_run_ids(unfinished, limit=1))
