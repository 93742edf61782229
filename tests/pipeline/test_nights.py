"""What a person is told of a night: exposures, status and report of the survey that went through the chain."""

import re
import urllib.request

from resources.settings import Settings
from seechange_assets.cli import metrics
from sql.models import ReportRow


def exposures(world, *options):
    answer = world.cli("exposures", "--json", *options)
    assert answer.code == 0, answer.err
    return {told["exposure"]: told for told in answer.json}


def test_every_exposure_has_its_state(world, exposure, second_exposure):
    told = exposures(world)
    assert told[exposure]["state"] == "done"
    assert {ccd["state"] for ccd in told[exposure]["ccds"]} == {"done"}
    assert list(exposures(world, "--night", told[exposure]["night"], "--state", "done")) == [exposure]
    assert "done" in world.cli("exposures").out
    assert world.cli("exposures", "--state", "finished").code == 1
    reference = world.simulated.keys[world.simulated.references[0]]
    assert told[reference]["state"] == "running"  # stopped on purpose after its zero point


def test_an_exposure_with_a_failed_ccd_is_never_done(world, exposure):
    store = world.session.store
    failed = {"outcome": "failed", "error": "TooFewStars", "message": "psf: 3 usable stars found, 10 required."}
    with store.database.session() as session:
        row = session.get(ReportRow, (exposure, "02", "psf"))
        before = {name: getattr(row, name) for name in (*failed, "updated_at")}
        row.updated_at = row.updated_at.replace(year=2100)
        for name, value in failed.items():
            setattr(row, name, value)
    try:
        told = exposures(world)[exposure]
        assert told["state"] == "failed"
        assert told["counts"] == {"done": 1, "failed": 1}
        (ccd,) = [ccd for ccd in told["ccds"] if ccd["state"] == "failed"]
        assert (ccd["ccd"], ccd["step"]) == ("02", "psf")
        assert ccd["reason"] == "TooFewStars: psf: 3 usable stars found, 10 required."
        status = world.cli("status", "--json").json[-1]
        assert {"step": "psf", "error": "TooFewStars", "ccds": 1, "example": failed["message"]} in status["failures"]
        assert "TooFewStars" in world.cli("exposures").out
    finally:
        with store.database.session() as session:
            row = session.get(ReportRow, (exposure, "02", "psf"))
            for name, value in before.items():
                setattr(row, name, value)
    assert exposures(world)[exposure]["state"] == "done"


def test_hold_and_release(world, exposure, second_exposure):
    night = exposures(world)[second_exposure]["night"]
    assert world.cli("exposures", "hold", second_exposure, "--reason", "clouds").out == "1 exposures held\n"
    told = exposures(world)[second_exposure]
    assert told["held"] == "clouds"
    assert told["state"] in {"held", "done", "running", "waiting", "failed"}  # other tests may have processed it
    assert world.cli("exposures", "release", "--night", night, "--json").json == {"released": 1}
    assert exposures(world)[second_exposure]["held"] is None
    answer = world.cli("exposures", "hold", "nothing_of_ours")
    assert (answer.code, answer.out) == (1, "")
    assert "not a registered science exposure" in answer.err
    assert world.cli("exposures", "hold").code == 1


def test_status_tells_of_the_work(world):
    status = world.cli("status", "--json").json
    told = status[-1]
    assert told["name"] == "activity"
    assert told["exposures"]["done"] >= 1
    assert told["ccds_per_hour"] >= 2
    assert told["arrival_to_alert"]["n"] >= 2
    assert 0 < told["arrival_to_alert"]["p50_s"] <= told["arrival_to_alert"]["p98_s"] < 3600
    assert told["queue"] == {"queued": 0, "at_work": 0}
    text = world.cli("status").out
    assert "arrival to alert" in text
    assert "throughput" in text


def test_the_numbers_for_prometheus(world, exposure):
    """By a command and over HTTP, both as `seechange status` tells them."""
    from prometheus_client.parser import text_string_to_metric_families

    def values(text):
        samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
        return {(sample.name, *sample.labels.values()): sample.value for sample in samples}

    answer = world.cli("status", "--metrics")
    assert answer.code == 0, answer.err
    told, listed = values(answer.out), world.cli("status", "--json").json[-1]
    assert told["seechange_up",] == 1
    assert told["seechange_exposures", "done"] == listed["exposures"]["done"]
    assert told["seechange_runs", "queued"] == 0
    assert told["seechange_ccds_per_hour",] == listed["ccds_per_hour"]
    assert told["seechange_latency_seconds", "arrival_to_alert", "0.98"] == listed["arrival_to_alert"]["p98_s"]
    server, thread = metrics.serve(world.settings, port=0)
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/metrics") as page:
            assert values(page.read().decode())["seechange_up",] == 1
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_the_numbers_of_a_survey_that_is_down(tmp_path):
    settings = Settings.from_environment({"SEECHANGE_HOME": str(tmp_path), "SEECHANGE_INSTRUMENT": "demo"})
    assert metrics.text(settings).splitlines()[-1] == "seechange_up 0.0"


def test_the_report_of_a_night(world, exposure, tmp_path):
    night = exposures(world)[exposure]["night"]
    answer = world.cli("report", night, "-o", str(tmp_path / "night.html"), "--json")
    assert answer.code == 0, answer.err
    assert answer.json["CCDs done"] >= 2
    assert answer.json["alerts"] > 0
    assert 1.0 < answer.json["seeing [px]"] < 6.0
    page = (tmp_path / "night.html").read_text()
    assert page.count("<svg") == 15
    assert len(re.findall("<circle", page)) >= 7
    refused = world.cli("report", "1999-01-01")
    assert refused.code == 1
    assert "no science exposures" in refused.err


def test_the_report_is_an_asset(world, exposure):
    night = exposures(world)[exposure]["night"]
    instance = world.session.instance
    instance.add_dynamic_partitions("night", [night])
    with world.as_environment():
        result = world.session.definitions.resolve_job_def("report_night").execute_in_process(
            instance=instance, partition_key=night
        )
    assert result.success
    (event,) = result.get_asset_materialization_events()
    page = event.step_materialization_data.materialization.metadata["page"].value
    assert page == (world.home / "reports" / "demo" / f"{night}.html").as_uri()
    assert (world.home / "reports" / "demo" / f"{night}.html").read_text().startswith("<!doctype html>")


def test_retire_and_activate(world, exposure):
    night = exposures(world)[exposure]["night"]
    instance, before = world.session.instance, world.counts()
    held = set(instance.get_dynamic_partitions("exposure"))
    assert world.cli("retire", "--before", "2100-01-01", "--dry-run", "--json").json[night] >= 1
    done = world.cli("retire", "--before", "2100-01-01", "--json").json
    assert done["n_exposures"] == len(held)
    assert done["n_runs"] > 0
    assert done["bytes_after"] < done["bytes_before"]
    assert instance.get_dynamic_partitions("exposure") == []
    assert world.counts() == before
    assert world.cli("verify").code == 0
    assert world.cli("activate", *sorted({told["night"] for told in exposures(world).values()})).code == 0
    assert set(instance.get_dynamic_partitions("exposure")) == held
    assert world.cli("retire").code == 1
    assert world.cli("retire", "--before", "soon").code == 1
    assert world.cli("activate", "2099-12-31").code == 1
