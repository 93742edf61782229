"""How an error of ours ends a step of Dagster, and whether the run is tried again."""

import dagster as dg
from dagster._core.storage.tags import RETRY_ON_ASSET_OR_OP_FAILURE_TAG

from seechange_assets.errors import DataError, RetriableError, SeeChangeError, StorageFull

#: Trying again at once gives the same: the data are the same, or a full disk is (`sensors.repeats` waits for room).
_NOT_AT_ONCE = (DataError, StorageFull)


def as_failure(error: SeeChangeError, instance: dg.DagsterInstance, run_id: str) -> dg.Failure:
    """The failure to raise from the error, one line; where that is of no use, the run is marked as not to be repeated.

    What is left to Dagster's ``run_retries`` failed for another reason: a service was down.
    """
    if isinstance(error, _NOT_AT_ONCE):
        do_not_repeat(instance, run_id)
    return dg.Failure(f"{type(error).__name__}: {error}", allow_retries=isinstance(error, RetriableError))


def do_not_repeat(instance: dg.DagsterInstance, run_id: str) -> None:
    """Mark a run as not to be tried again when a step of it fails."""
    instance.add_run_tags(run_id, {RETRY_ON_ASSET_OR_OP_FAILURE_TAG: "false"})
