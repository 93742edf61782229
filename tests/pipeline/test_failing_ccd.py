"""A CCD that fails at one step after the other: the others reach their alerts, and it says itself where and why."""

import importlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from astropy.io import fits

from seechange_assets import data_product
from seechange_assets.errors import TooFewStars
from seechange_assets.partitions import Partition

BAD, GOOD = "01", "02"
#: Asset -> the function it calls.
FUNCTIONS = {
    "image": "science.detrend.detrend",
    "background": "science.background.measure_background",
    "sources": "science.sources.extract_sources",
    "psf": "science.psf_fit.build_psf",
    "wcs": "science.astrometry.solve_wcs",
    "zp": "science.photometric_calibration.calibrate_photometry",
    "diff": "science.difference.subtract",
    "detections": "science.detections.detect",
    "cutouts": "science.cutouts.make_cutouts",
    "measurements": "science.measurements.measure",
    "scores": "realbogus.scores.score",
    "associations": "publish.associations.associate_measurements",
    "forced_photometry": "publish.forced_photometry.force_at_objects",
    "alerts": "publish.alerts.build_alerts",
}
QUICK = ("diff",)
REASON = "fault: 3 usable stars found, 10 required. Take another field"
FAILURES = """query($run: ID!) { logsForRun(runId: $run) { ... on EventConnection { events {
  ... on ExecutionStepFailureEvent { stepKey error { message } } } } } }"""


def all_assets() -> list[Any]:
    return [name if name in QUICK else pytest.param(name, marks=pytest.mark.faults) for name in FUNCTIONS]


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Let the function of an asset fail where the CCD in work is the bad one."""

    def install(asset: str) -> None:
        path, _, name = f"seechange_assets.{FUNCTIONS[asset]}".rpartition(".")
        module = importlib.import_module(path)
        function, partition_of, at_work = getattr(module, name), Partition.of, []

        def note(context: Any) -> Partition:
            at_work[:] = [partition_of(context)]
            return at_work[0]

        def fail(*arguments: Any, **named: Any) -> Any:
            if at_work[0].ccd == BAD:
                raise TooFewStars("fault", 3, 10, "Take another field")
            return function(*arguments, **named)

        monkeypatch.setattr(data_product.Partition, "of", staticmethod(note))
        monkeypatch.setattr(module, name, fail)

    return install


def new_exposure(world: Any, folder: Path, asset: str) -> str:
    """The sky of the first science exposure at a time of its own, ingested."""
    path = folder / "new.fits"
    shutil.copy(world.simulated.science[0], path)
    with fits.open(path, mode="update") as hdus:
        hdus[0].header["DATE-OBS"] = f"2026-11-23T{list(FUNCTIONS).index(asset):02d}:45:00.000"
        hdus[0].header.remove("MJD-OBS", ignore_missing=True)
    return world.cli("ingest", str(path), "--json").json[0]["exposure"]


def state(world: Any, exposure: str) -> dict[str, Any]:
    (told,) = [told for told in world.cli("exposures", "--json").json if told["exposure"] == exposure]
    return told


def shown_failures(world: Any, exposure: str) -> list[dict[str, Any]]:
    """What Dagster's GraphQL, which its pages are made of, says of the newest failed run."""
    import dagster as dg
    from dagster._core.workspace.context import WorkspaceProcessContext
    from dagster._core.workspace.load_target import EmptyWorkspaceTarget
    from dagster_graphql.schema import create_schema

    failed = dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE], tags={"dagster/partition/exposure": exposure})
    (run,) = world.session.instance.get_runs(failed)
    with WorkspaceProcessContext(world.session.instance, EmptyWorkspaceTarget()) as workspace:
        request = workspace.create_request_context()
        answer = create_schema().execute(FAILURES, context=request, variables={"run": run.run_id})
    assert not answer.errors, answer.errors
    return [event for event in answer.data["logsForRun"]["events"] if event]


@pytest.mark.parametrize("asset", all_assets())
def test_a_ccd_that_fails_stops_alone(world, faulty, monkeypatch, tmp_path, asset):
    exposure = new_exposure(world, tmp_path, asset)
    with monkeypatch.context():
        faulty(asset)
        answer = world.cli("process", exposure, "--json")
        monkeypatch.undo()
    assert answer.code == 1
    bad, good = answer.json
    assert (bad["ccd"], bad["outcome"], bad["reason"]) == (BAD, "failed", f"{asset}: {REASON}")
    assert (good["ccd"], good["outcome"]) == (GOOD, "done")
    told = state(world, exposure)
    assert (told["state"], told["counts"]) == ("failed", {"failed": 1, "done": 1})
    assert [(ccd["step"], ccd["reason"]) for ccd in told["ccds"]] == [(asset, f"TooFewStars: {REASON}"), (None, None)]
    (shown,) = shown_failures(world, exposure)
    assert shown["stepKey"] == asset
    assert f"TooFewStars: {REASON}" in shown["error"]["message"]
    again = world.cli("process", exposure, "--ccd", BAD, "--json")
    assert (again.code, again.json[0]["outcome"]) == (0, "done"), again.err
    assert state(world, exposure)["state"] == "done"
    assert world.cli("verify").code == 0
