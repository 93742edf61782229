"""What failed or waited under other recipes has no product that could be stale, and is found by its reports."""

import json

import pytest
import sqlalchemy as sa

from io_managers.staleness import Staleness
from io_managers.tags import Tags
from resources.database import Database
from resources.settings import Settings
from seechange_assets.cli.main import main
from seechange_assets.partitions import Partition
from sql.models import PRODUCT_ROWS, ReferenceRow, ReportRow
from tests.io_managers.test_staleness import fill
from tests.io_managers.test_tags import configured
from tests.sensors import rows

N_EXPOSURES = 3
#: The exposure whose PSF failed, and what was to be made from it.
FAILED = Partition("demo_000002", "01")
AFTER_PSF = ("psf", "zp", "diff", "detections", "cutouts", "measurements", "scores", "associations",
             "forced_photometry", "alerts")  # fmt: skip
AFTER_DIFF = AFTER_PSF[2:]


@pytest.fixture
def recipes(tmp_path):
    return configured(tmp_path)


@pytest.fixture
def database(postgres_url, database_url, recipes):
    """Three exposures of one CCD; the PSF of the second failed, so nothing that needs it is there."""
    database = Database(database_url)
    database.upgrade()
    fill(database, recipes, N_EXPOSURES, 1)
    drop(database, AFTER_PSF, FAILED)
    report(database, rows.report(recipes, FAILED.key, "psf", None, outcome="failed"))
    yield database
    database.engine.dispose()


def drop(database, assets, partition):
    with database.session() as session:
        for asset in assets:
            table = PRODUCT_ROWS[asset]
            session.execute(sa.delete(table).where(table.partition == partition.key, table.ccd == partition.ccd))


def report(database, *reports):
    with database.session() as session:
        session.add_all(reports)


def work(database, recipes, camera="demo", **arguments):
    with database.session() as session:
        return {item.partition: item.assets for item in Staleness(session, recipes, camera).work(**arguments)}


def groups(database, recipes, **arguments):
    with database.session() as session:
        return Staleness(session, recipes, "demo").groups(**arguments)


def test_a_step_that_failed_is_made_again_after_a_change_of_its_recipe(database, tmp_path):
    other = configured(tmp_path, "psf: {degree: 1}")
    made_again = work(database, other)
    assert made_again[FAILED] == AFTER_PSF
    assert len(made_again) == N_EXPOSURES
    assert work(database, other, assets=["zp"])[FAILED] == ("zp",)
    with database.session() as session:
        night = session.scalar(sa.text("select night from exposures where key = :key"), {"key": FAILED.key})
    assert FAILED in work(database, other, night=night)
    assert work(database, other, night="2020-01-01") == {}
    assert work(database, other, camera="ls4") == {}


def test_it_is_counted_once_for_each_asset_with_the_reason(database, tmp_path):
    found = groups(database, configured(tmp_path, "psf: {degree: 1}"))
    counts = {(group.asset, group.stopped): group.n_partitions for group in found}
    assert counts == {(asset, ""): N_EXPOSURES - 1 for asset in AFTER_PSF} | {(a, "psf failed"): 1 for a in AFTER_PSF}
    assert {group.reason for group in found if group.stopped} == {"psf.degree 3 -> 1"}


def test_of_several_steps_the_first_is_named_and_all_are_made_again(database, recipes, tmp_path):
    drop(database, ["wcs"], FAILED)
    report(database, rows.report(recipes, FAILED.key, "wcs", None, outcome="failed"))
    other = configured(tmp_path, "sources: {threshold: 4.5}")
    assert work(database, other)[FAILED] == ("sources", "psf", "wcs", *AFTER_PSF[1:])
    stopped = {group.asset: (group.stopped, group.n_partitions) for group in groups(database, other) if group.stopped}
    assert stopped == dict.fromkeys(AFTER_PSF, ("psf failed", 1)) | {"wcs": ("wcs failed", 1)}


def test_what_failed_under_these_recipes_is_made_again_only_on_demand(database, recipes, tmp_path):
    assert work(database, recipes) == {}
    assert groups(database, recipes) == []
    assert work(database, recipes, failed=True) == {FAILED: AFTER_PSF}
    after_zp = configured(tmp_path, "zp: {min_stars: 8}")  # the PSF keeps its recipe, so it would fail again
    assert FAILED not in work(database, after_zp)
    assert work(database, after_zp, failed=True)[FAILED] == AFTER_PSF


def test_what_exists_under_these_recipes_does_not_count(database, recipes, tmp_path):
    """The newest attempt failed under a recipe that has been taken back."""
    other = configured(tmp_path, "psf: {degree: 1}")
    Tags(database).create("other", other.values())
    with database.session() as session:
        session.execute(sa.delete(ReportRow))
    report(database, rows.report(other, "demo_000001", "psf", None, outcome="failed"))
    assert work(database, recipes) == {}


def test_what_waits_for_a_reference_is_asked_for_under_the_new_recipes(database, recipes, tmp_path):
    waiting, member = Partition("demo_000001", "01"), Partition("demo_000003", "01")
    for partition in (waiting, member):
        drop(database, AFTER_DIFF, partition)
        report(database, rows.report(recipes, partition.key, "diff", "reference/r/01"))
    with database.session() as session:
        session.add(rows.reference(recipes, members=(member.key,)))
    other = configured(tmp_path, "diff: {grow_fwhm: 1.5}")
    # A member of the only reference is finished: nothing is subtracted from itself.
    assert work(database, other) == {waiting: AFTER_DIFF}
    with database.session() as session:
        session.add(rows.reference(recipes, members=("another",)))
    assert work(database, other) == {waiting: AFTER_DIFF, member: AFTER_DIFF}
    with database.session() as session:
        session.execute(sa.delete(ReferenceRow))
    assert work(database, other) == {waiting: AFTER_DIFF, member: AFTER_DIFF}


def test_a_master_that_failed_brings_no_image_with_it(database, recipes, tmp_path):
    key = "2026-11-01"
    report(database, rows.report(recipes, key, "master_bias", None, outcome="failed"))
    other = configured(tmp_path, "master_bias: {clip_sigma: 4.5}")
    assert work(database, other)[Partition(key, "01")] == ("master_bias",)


def test_the_command_submits_them(postgres_url, tmp_path, monkeypatch, capsys):
    environment = {"SEECHANGE_HOME": str(tmp_path), "SEECHANGE_INSTRUMENT": "demo",
                   "SEECHANGE_POSTGRES_URL": postgres_url}  # fmt: skip
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    database = Database(Settings.from_environment(environment).database_url)
    database.upgrade()
    recipes = configured(tmp_path)
    key = "demo_900001"
    with database.session() as session:
        many_rows_exposure = rows.exposure(recipes, key)
        Tags(database).create("failures", recipes.values())
        session.add_all([many_rows_exposure, rows.report(recipes, key, "psf", None, outcome="failed")])
    try:
        assert planned(capsys, "backfill", "--dry-run", "--json")["retired"] == 0
        # Dagster was never told of the exposure, so its partition counts as retired.
        assert planned(capsys, "backfill", "--failed", "--dry-run", "--json")["retired"] == 1
    finally:
        with database.session() as session:
            session.execute(sa.delete(ReportRow).where(ReportRow.partition == key))
            session.execute(sa.text("delete from exposures where key = :key"), {"key": key})
        Tags(database).delete("failures")
        database.engine.dispose()


def planned(capsys, *command):
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(command)
    assert not stop.value.code
    return json.loads(capsys.readouterr().out)
