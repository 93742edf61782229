"""A second set of parameters beside production, over the same archive: flags, comparison, deletion, the notebook."""

from typing import Any

import dagster as dg
import numpy as np
import pytest
import sqlalchemy as sa

from seechange_assets.definitions import build_store
from seechange_assets.errors import ParameterError, ProductNotFound, ReferenceNotFound
from seechange_assets.experiment import experiment_definitions, experiment_settings
from seechange_assets.partitions import Partition
from seechange_assets.survey import Survey
from sql.alerts import OutboxRow
from sql.models import PRODUCT_ROWS, ReferenceRow
from sql.objects import MeasurementRow
from tests.pipeline.world import World

CCD = "01"
AFTER_WCS = ("wcs", "zp", "diff", "detections", "cutouts", "measurements", "scores", "associations",
             "forced_photometry", "alerts")  # fmt: skip


@pytest.fixture(scope="module")
def experiment(world: World, second_key: str) -> Any:
    """The store of another threshold and another solution; production has the same CCD."""
    site = world.home / "experiment.yaml"
    site.write_text("wcs: {max_stars: 1500}\ndetections: {threshold: 4.0}\n")
    assert world.process(second_key, CCD).success
    settings = experiment_settings(world.settings, "experiment", site)
    with world.as_environment():
        definitions = experiment_definitions(settings)
        result = definitions.resolve_job_def("process_ccd").execute_in_process(
            instance=world.session.instance, partition_key=dg.MultiPartitionKey({"exposure": second_key, "ccd": CCD})
        )
    assert result.success
    return build_store(settings)


@pytest.fixture(scope="module")
def second_key(world: World) -> str:
    return world.simulated.keys[world.simulated.science[1]]


def flagged(world: World, exposure: str, product: str) -> set[str]:
    """Provenances under which a product of the CCD is flagged."""
    rows = world.cli("flag", exposure, "--ccd", CCD, "--json").json
    return {row["provenance"] for row in rows if row["product"] == product}


def test_badness_round_trip_over_two_versions_and_a_reference(world, experiment, second_key):
    store, partition = world.session.store, Partition(second_key, CCD)
    before = store.row("diff", partition)
    reference = reference_of(world, before.reference_id)
    versions = {store.recipes["diff"].id, experiment.recipes["diff"].id}
    assert len(versions) == 2
    named = ("flag", reference.partition, "--ccd", CCD, "--product", "reference")
    answer = world.cli(*named, "--set", "bad reference", "--reason", "ghosts", "--json")
    assert answer.code == 0, answer.err
    try:
        assert flagged(world, second_key, "diff") == versions
        assert flagged(world, second_key, "zp") == set()
        info, wcs = store.load("image", partition).info, store.load("wcs", partition)
        shape = store.load("image", partition).data.shape
        assert chosen(store, info, wcs, shape) != str(reference.id)
        listed = world.cli("flag", "--json").json
        assert [(row["product"], row["own"], row["reason"]) for row in listed] == [
            ("reference", ["bad reference"], "ghosts")
        ]
    finally:
        assert world.cli(*named, "--clear", "bad reference").code == 0
    assert flagged(world, second_key, "diff") == set()
    assert chosen(store, info, wcs, shape) == str(reference.id)


def reference_of(world: World, row_id: object) -> ReferenceRow:
    with world.session.store.database.session() as session:
        return session.get_one(ReferenceRow, row_id)


def chosen(store, info, wcs, shape):
    try:
        return store.find_reference(info, wcs, shape, 0.85)[0]
    except ReferenceNotFound:
        return None


def test_the_experiment_tells_nobody(world, experiment, second_key):
    with world.session.store.database.session() as session:
        told = set(session.scalars(sa.select(OutboxRow.provenance_id).where(OutboxRow.exposure == second_key)))
    assert experiment.recipes["alerts"].id not in told


def test_compare_tells_what_changed(world, experiment, second_key):
    answer = world.cli("compare", "current", "experiment", "--json")
    assert answer.code == 0, answer.err
    (one,) = [one for one in answer.json["partitions"] if one["exposure"] == second_key]
    assert one["fwhm_px"][0] == one["fwhm_px"][1]  # the psf is upstream of what was changed
    assert one["detections"][1] > one["detections"][0]  # a lower threshold
    counts = {}
    for name in ("current", "experiment"):
        with world.as_environment():
            survey = Survey.open(name)
        counts[name] = int(np.sum(~survey.measurements(second_key, CCD).table["is_bad"]))
    assert one["matched"] + one["lost"] == counts["current"]
    assert one["matched"] + one["gained"] == counts["experiment"]
    same = world.cli("compare", "current", "current", "--json").json["summary"]
    assert (same["gained"], same["lost"], same["d_zp"], same["d_depth"]) == (0, 0, 0, 0)
    assert world.cli("compare", "current", "no_such").code == 1
    assert "second_key" not in world.cli("compare", "current", "experiment").out


def test_the_survey_lists_and_reads(world, experiment, second_key):
    with world.as_environment():
        survey = Survey.open()
    listed = survey.list("diff", is_bad=False)
    assert second_key in set(listed["exposure"])
    row = listed[listed["exposure"] == second_key][0]
    image = survey.image(second_key, CCD)
    assert (row["filter"], row["mjd"]) == (image.info.filter, image.info.mjd)
    there = survey.list("image", contains=(row["ra_deg"], row["dec_deg"]), filter=image.info.filter)
    assert second_key in set(there["exposure"])
    assert not len(survey.list("image", contains=(row["ra_deg"], row["dec_deg"] + 5.0)))
    assert not len(survey.list("image", cone=(row["ra_deg"], row["dec_deg"] + 5.0, 0.1)))
    assert len(survey.list("image", cone=(row["ra_deg"], row["dec_deg"], 0.5)))
    depth, fwhm = row["limiting_magnitude"], survey.psf(second_key, CCD).fwhm_px
    assert second_key not in set(survey.list("diff", min_limiting_magnitude=depth + 0.01)["exposure"])
    assert second_key not in set(survey.list("image", max_fwhm_px=fwhm - 0.01)["exposure"])
    late = survey.list("image", mjd=(image.info.mjd, None))
    assert second_key in set(late["exposure"])
    assert second_key not in set(survey.list("image", mjd=(None, image.info.mjd - 1e-6))["exposure"])
    assert len(survey.list("reference")) >= 1
    assert set(survey.list("master_bias")["kind"]) == {"bias"}
    with pytest.raises(ParameterError, match="has no limiting_magnitude"):
        survey.list("master_bias", min_limiting_magnitude=20.0)


def test_products_are_lazy_and_read_only(world, experiment, second_key, monkeypatch):
    with world.as_environment():
        survey = Survey.open()
    store, opened = survey._store, []
    load = type(store).load_row
    monkeypatch.setattr(
        type(store), "load_row", lambda self, row, **options: opened.append(row.id) or load(self, row, **options)
    )
    diff = survey.find("diff", second_key, CCD)
    assert "diff of" in repr(diff)
    assert "<table>" in diff._repr_html_()
    assert second_key in {one.partition for one in survey.each("diff")}
    assert opened == []
    assert diff.data.shape == diff.load().score.shape
    assert len(opened) == 1
    with pytest.raises(ValueError, match="read-only"):
        diff.data[0, 0] = 1.0
    same = survey.by_id(diff.id)
    assert (same.product, same.id) == ("diff", diff.id)
    other = survey.at("experiment").find("diff", second_key, CCD)
    assert other.provenance_id != diff.provenance_id
    assert survey.by_id(other.id).provenance_id == other.provenance_id
    assert survey.zp(second_key, CCD).zp == store.load("zp", Partition(second_key, CCD)).zp
    assert "zp" in survey._repr_html_()
    with pytest.raises(ProductNotFound):
        survey.by_id("00000000-0000-0000-0000-000000000000")


def rows_of(world: World, exposure: str, provenances: set[str]) -> int:
    with world.session.store.database.session() as session:
        return sum(
            session.scalar(
                sa.select(sa.func.count())
                .select_from(table)
                .where(table.partition == exposure, table.ccd == CCD, table.provenance_id.in_(provenances))
            )
            for table in set(PRODUCT_ROWS.values())
        )


def test_the_experiment_is_deleted_and_production_stays(world, experiment, second_key):
    """Last in this file. Files, rows and Dagster's status of one version go; the other one's are untouched."""
    recipes = experiment.recipes
    ids = {recipes[name].id for name in AFTER_WCS}
    named = ("delete", second_key, "--ccd", CCD, "--product", "wcs", "--version", "experiment")
    files, counts = world.files(), world.counts()
    dry = world.cli(*named, "--json")
    assert dry.code == 0, dry.err
    assert {product["product"] for product in dry.json["products"]} == set(AFTER_WCS)
    assert (world.files(), world.counts()) == (files, counts)
    assert versions_in_dagster(world, ["experiment", "wcs"], second_key) == {recipes["wcs"].id}
    done = world.cli(*named, "--yes", "--json")
    assert done.code == 0, done.err
    assert rows_of(world, second_key, ids) == 0
    left = world.files()
    gone = {product["file"] for product in done.json["products"]} | set(done.json["alert_files"])
    assert files.keys() - left.keys() == gone
    assert left.items() <= files.items()
    with world.session.store.database.session() as session:
        assert not session.scalar(sa.select(sa.func.count()).where(MeasurementRow.provenance_id.in_(ids)))
    assert versions_in_dagster(world, ["wcs"], second_key) == {world.session.store.recipes["wcs"].id}
    assert versions_in_dagster(world, ["experiment", "wcs"], second_key) == set()
    assert versions_in_dagster(world, ["experiment", "psf"], second_key) == {recipes["psf"].id}
    assert world.cli("verify").code == 0
    assert world.cli("delete", second_key, "--ccd", CCD, "--product", "wcs", "--version", "experiment").code == 1


def versions_in_dagster(world: World, asset: list[str], exposure: str) -> set[str]:
    key = str(dg.MultiPartitionKey({"exposure": exposure, "ccd": CCD}))
    wanted = dg.AssetRecordsFilter(asset_key=dg.AssetKey(asset), asset_partitions=[key])
    with world.as_environment():
        records = world.session.instance.fetch_materializations(wanted, limit=50).records
    return {record.asset_materialization.tags["dagster/code_version"] for record in records}


def test_what_alerts_told_is_never_deleted(world, experiment, exposure):
    with world.session.store.database.session() as session:
        mine = (OutboxRow.exposure == exposure, OutboxRow.ccd == CCD)
        sequence = session.scalars(sa.select(OutboxRow.sequence).where(*mine)).all()
        assert sequence
        session.execute(sa.update(OutboxRow).where(*mine).values(sent_at=sa.func.now()))
    before = world.counts(), world.files()
    for arguments in (("--product", "image"), ("--product", "scores", "--yes"), ("--product", "alerts", "--yes")):
        answer = world.cli("delete", exposure, "--ccd", CCD, *arguments)
        assert answer.code == 1
        assert "have been sent" in answer.err
    kept = world.cli("delete", exposure, "--ccd", CCD, "--product", "image", "--keep-sent", "--json").json
    assert {product["product"] for product in kept["products"]} <= {"forced_photometry"}
    assert (world.counts(), world.files()) == before
