"""A reference is requested when its images are there, and not again while it is being built."""

import uuid

import dagster as dg
import pytest

from io_managers.reference_news import Seen
from seechange_assets.partitions import Partition
from sensors.references import new_references
from sensors.runs import UNFINISHED

FIELD = Partition("f1.r", "01")


class Wanted:
    """A store that knows what is to be built (the rules are tested where they are written)."""

    def __init__(self, n, partition=FIELD):
        self.n, self.partition = n, partition

    def references_to_build(self, selection, field):
        assert field == ""  # the one name that is tried where there are no images
        return {self.partition: [f"exposure{i}" for i in range(self.n)]} if self.n else {}


@pytest.fixture
def tick(recipes, instance, store, monkeypatch):
    """Evaluate the sensor for the first time; what it requests."""

    def evaluate(wanted):
        monkeypatch.setattr(store, "references_to_build", wanted.references_to_build)
        context = dg.build_sensor_context(instance=instance, resources={"store": store, "recipes": recipes})
        result = new_references(context)
        evaluate.cursor = result.cursor
        return result.run_requests

    return evaluate


def test_what_is_to_be_built_is_requested(tick, instance):
    assert tick(Wanted(0)) == []
    (request,) = tick(Wanted(3))
    assert request.partition_key == dg.MultiPartitionKey({"field_filter": "f1.r", "ccd": "01"})
    assert instance.get_dynamic_partitions("field_filter") == ["f1.r"]


def test_a_field_is_looked_at_until_its_reference_is_there(tick):
    tick(Wanted(0))
    assert Seen.read(tick.cursor).open == []
    tick(Wanted(3))
    assert Seen.read(tick.cursor).open == [""]


def test_a_newer_one_is_a_partition_of_its_own(tick, instance):
    tick(Wanted(3))
    (request,) = tick(Wanted(6, Partition("f1.r.v2", "01")))
    assert request.partition_key == dg.MultiPartitionKey({"field_filter": "f1.r.v2", "ccd": "01"})
    assert instance.get_dynamic_partitions("field_filter") == ["f1.r", "f1.r.v2"]


def test_a_queued_run_counts_as_unfinished():
    """Dagster lets nobody but its daemon make one, so the next test leaves it out."""
    assert dg.DagsterRunStatus.QUEUED in UNFINISHED


@pytest.mark.parametrize("status", ["STARTING", "STARTED", "CANCELING"])
def test_nothing_is_requested_while_a_run_is_unfinished(tick, instance, status):
    run(instance, status)
    assert tick(Wanted(9)) == []


def test_runs_of_others_and_failed_runs_do_not_count(tick, instance):
    run(instance, "FAILURE")
    run(instance, "STARTED", partition="02|f1.r")
    run(instance, "STARTED", partition="01|f1.g")
    (first,) = tick(Wanted(9))
    (second,) = tick(Wanted(10))  # after a failure, with another image: another attempt
    assert first.run_key != second.run_key


def run(instance, status, partition="01|f1.r"):
    tags = {"dagster/partition": partition}
    run_id = str(uuid.uuid4())
    instance.add_run(
        dg.DagsterRun(job_name="build_reference", run_id=run_id, status=dg.DagsterRunStatus[status], tags=tags)
    )
