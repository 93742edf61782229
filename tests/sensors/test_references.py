"""A reference is requested when its images are there, and not again while it is being built."""

import uuid
from types import SimpleNamespace

import dagster as dg
import pytest

from seechange_assets.partitions import Partition
from sensors.references import UNFINISHED, new_references

FIELD = Partition("f1.r", "01")


class Candidates:
    """A store that knows which images qualify and whether the reference exists."""

    def __init__(self, n):
        self.n, self.exists = n, False

    def reference_candidates(self, selection):
        return [(FIELD, f"exposure{i}") for i in range(self.n)]

    def row(self, product, partition):
        return SimpleNamespace() if self.exists else None


@pytest.fixture
def tick(recipes, instance):
    def evaluate(store):
        context = dg.build_sensor_context(instance=instance, resources={"store": store, "recipes": recipes})
        result = new_references(context)
        return [] if isinstance(result, dg.SkipReason) else result.run_requests

    return evaluate


def test_enough_images_are_awaited(tick, recipes, instance):
    enough = recipes.parameters("reference").min_images
    assert tick(Candidates(enough - 1)) == []
    (request,) = tick(Candidates(enough))
    assert request.partition_key == dg.MultiPartitionKey({"field_filter": "f1.r", "ccd": "01"})
    assert instance.get_dynamic_partitions("field_filter") == ["f1.r"]


def test_one_that_exists_is_not_requested(tick):
    store = Candidates(9)
    store.exists = True
    assert tick(store) == []


def test_a_queued_run_counts_as_unfinished():
    """Dagster lets nobody but its daemon make one, so the next test leaves it out."""
    assert dg.DagsterRunStatus.QUEUED in UNFINISHED


@pytest.mark.parametrize("status", ["NOT_STARTED", "STARTING", "STARTED", "CANCELING"])
def test_nothing_is_requested_while_a_run_is_unfinished(tick, instance, status):
    run(instance, status)
    assert tick(Candidates(9)) == []


def test_runs_of_others_and_failed_runs_do_not_count(tick, instance):
    run(instance, "FAILURE")
    run(instance, "STARTED", partition="02|f1.r")
    run(instance, "STARTED", partition="01|f1.g")
    (first,) = tick(Candidates(9))
    (second,) = tick(Candidates(10))  # after a failure, with another image: another attempt
    assert first.run_key != second.run_key


def run(instance, status, partition="01|f1.r"):
    tags = {"dagster/partition": partition}
    run_id = str(uuid.uuid4())
    instance.add_run(
        dg.DagsterRun(job_name="build_reference", run_id=run_id, status=dg.DagsterRunStatus[status], tags=tags)
    )
