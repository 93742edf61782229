"""`seechange status`: what stops a night is said, beside whatever else can be said."""

import json

import pytest
import sqlalchemy as sa

from resources.database import Database
from seechange_assets.cli.main import main
from sql.models import RejectedFileRow


@pytest.fixture
def home(settings, database_url, monkeypatch):
    """Settings of a home whose own database is new and empty."""
    monkeypatch.setattr("resources.settings.SURVEY_DATABASE", sa.make_url(database_url).database)
    return settings


@pytest.fixture
def database(home):
    database = Database(home.database_url)
    database.upgrade()
    yield database
    database.engine.dispose()


@pytest.fixture
def status(home, capsys):
    """(exit code, output, errors) of the command."""

    def status(*options):
        with pytest.raises(SystemExit) as stop:
            main(["status", *options])
        return stop.value.code, *capsys.readouterr()

    return status


def rows(out):
    return {row["name"]: row for row in json.loads(out)}


def test_a_database_without_tables(home, status):
    code, out, _ = status("--json")
    told = rows(out)["postgres"]
    assert (code, told["state"]) == (1, "degraded")
    assert told["detail"].startswith("database revision (none), code needs 0")
    assert told["detail"].endswith(": `seechange up`")
    assert "activity" not in rows(out)


@pytest.mark.parametrize(
    ("revision", "remedy"), [("0000", "`seechange up`"), ("9999", "install the code that wrote it")]
)
def test_a_database_of_another_version(database, status, revision, remedy):
    with database.session() as session:
        session.execute(sa.text("update alembic_version set version_num = :revision"), {"revision": revision})
    code, out, _ = status("--json")
    told = rows(out)["postgres"]
    assert (code, told["state"]) == (1, "degraded")
    assert told["detail"].startswith(f"database revision {revision}, code needs 0")
    assert told["detail"].endswith(remedy)


def test_no_database(home, status, monkeypatch):
    monkeypatch.setattr("resources.settings.SURVEY_DATABASE", "no_such_database")
    code, out, err = status("--json")
    told = rows(out)["postgres"]
    assert (code, told["state"], err) == (1, "degraded", "")
    assert "does not exist" in told["detail"]


@pytest.mark.parametrize(
    ("text", "told"),
    [("wsc: {}", "'wsc'"), ("wcs: [", "site.yaml"), ("wcs: {match_radius_arcsec: many}", "match_radius_arcsec")],
)
@pytest.mark.parametrize("options", [(), ("--json",)])
def test_a_mistake_in_the_configuration_hides_no_service(database, status, tmp_path, monkeypatch, text, told, options):
    (tmp_path / "site.yaml").write_text(text)
    monkeypatch.setenv("SEECHANGE_CONFIG", str(tmp_path / "site.yaml"))
    code, out, err = status(*options)
    assert code == 1
    assert all(name in out for name in ("postgres", "broker", "dagster"))
    assert err.startswith("seechange: ")
    assert told in err
    assert err.count("\n") == 1
    if options:
        assert rows(out)["postgres"]["state"] == "external"


def test_the_drop_folder(home, database, status):
    home.drop.mkdir()
    for name in ("a.fits", "b.fits"):
        (home.drop / name).touch()
    with database.session() as session:
        session.add(RejectedFileRow(sha256="x", name="c.fits", error="BadExposure", message="junk [/no] end"))
    told = rows(status("--json")[1])["activity"]["drop"]
    assert (told["waiting"], told["refused"], told["newest"]["name"]) == (2, 1, "c.fits")
    out = " ".join(status()[1].replace("│", " ").split())
    assert "2 files wait, 1 refused; c.fits" in out
