"""Which failed runs Dagster tries again: those that met a service that was down, not those that would fail again."""

from types import SimpleNamespace
from typing import ClassVar

import dagster as dg
import pytest
from dagster._daemon.auto_run_reexecution.auto_run_reexecution import should_retry

from io_managers.archive import ArchiveIOManager
from seechange_assets import process
from seechange_assets.errors import (
    ArchiveError,
    BadPixels,
    CatalogError,
    ServiceUnavailable,
    StorageFull,
    TooFewStars,
)
from seechange_assets.parameters import Parameters
from seechange_assets.products import Scores
from tests.publish.sky import scores

RETRIES = {"enabled": True, "max_retries": 2, "retry_on_asset_or_op_failure": True}
KEY = dg.MultiPartitionKey({"exposure": "e1", "ccd": "01"})
BY_CCD = dg.MultiPartitionsDefinition(
    {"exposure": dg.StaticPartitionsDefinition(["e1"]), "ccd": dg.StaticPartitionsDefinition(["01"])}
)


def partitioned(spec: dg.AssetSpec) -> dg.AssetSpec:
    return spec.replace_attributes(partitions_def=BY_CCD)


class ProbeParameters(Parameters):
    """Of an asset that only these tests have."""

    process: ClassVar[str] = "probe"


class FakeStore:
    """Fails where it is told to, and keeps what is reported."""

    def __init__(self, place: str, error: Exception) -> None:
        self.place, self.error, self.reports = place, error, []

    def meet(self, place: str) -> None:
        if place == self.place:
            raise self.error

    def recognised(self, *_):
        return None

    def report(self, step, partition, *, outcome, error, **_):
        self.reports.append((step, outcome, type(error).__name__))

    def save(self, *_):
        self.meet("save")
        return {}

    def path(self, *_):
        return "file"

    def load(self, *_):
        self.meet("load")
        return scores(1)


@pytest.fixture(scope="module")
def instance():
    with dg.instance_for_test(overrides={"run_retries": RETRIES}) as instance:
        yield instance


@pytest.fixture
def run(monkeypatch, instance):
    """Run a chain of two assets against a store that fails; (failed event, whether it will be tried again, reports)."""
    monkeypatch.setattr(process, "PARAMETER_MODELS", {})

    def evaluate(place, error, selection=None):
        store = FakeStore(place, error)

        @process.data_product(ProbeParameters)
        def probe(parameters: ProbeParameters) -> Scores:
            """Made first."""
            store.meet("compute")
            return scores(1)

        @process.data_product(ProbeParameters)
        def follower(probe: Scores) -> Scores:
            """Made of it."""
            return probe

        assets = [made.asset().map_asset_specs(partitioned) for made in (probe, follower)]
        resources = {
            "store": store,
            "recipes": SimpleNamespace(parameters=lambda _: ProbeParameters()),
            "archive": dg.IOManagerDefinition.hardcoded_io_manager(ArchiveIOManager(store)),
        }
        definitions = dg.Definitions(assets, resources=resources, jobs=[dg.define_asset_job("all")])
        result = definitions.resolve_job_def("all").execute_in_process(
            instance=instance, partition_key=KEY, raise_on_error=False,
            asset_selection=[dg.AssetKey(name) for name in selection or ("probe", "follower")],
        )  # fmt: skip
        (event,) = [event for event in result.all_events if event.is_step_failure]
        return event, should_retry(instance.get_run_by_id(result.run_id), instance), store.reports

    return evaluate


@pytest.mark.parametrize(
    ("place", "error", "is_tried_again"),
    [
        ("compute", TooFewStars("psf", 3, 10), False),
        ("compute", BadPixels("all are NaN"), False),
        ("compute", ServiceUnavailable("Postgres does not answer"), True),
        ("compute", CatalogError("the catalogue does not answer"), True),
        ("compute", ZeroDivisionError("a fault of ours"), True),
        ("save", ServiceUnavailable("Postgres does not answer"), True),
        ("save", StorageFull("no room left in the archive"), False),
    ],
)
def test_only_what_may_end_better_is_tried_again(run, place, error, is_tried_again):
    event, again, reports = run(place, error)
    assert again is is_tried_again
    assert reports[-1] == ("probe", "failed", type(error).__name__)
    told = event.step_failure_data.error
    assert f"{type(error).__name__}: {error}" in (told.message if told.cause is None else str(told))


def test_a_damaged_input_is_not_tried_again(run):
    event, again, reports = run("load", ArchiveError("psf.fits differs from its row"), ["follower"])
    assert not again
    assert reports == [("follower", "failed", "ArchiveError")]
    assert "ArchiveError: psf.fits differs from its row" in event.step_failure_data.error.message
