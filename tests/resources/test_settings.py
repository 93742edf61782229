import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resources.settings import Settings, available_cores, deployed_version, psycopg2_url, redacted
from resources.sky_catalog import GaiaArchive, open_sky_catalog
from seechange_assets.errors import InvalidName, ParameterError, ServiceUnavailable


def settings(home: Path, **variables: str) -> Settings:
    names = {f"SEECHANGE_{name}": value for name, value in variables.items()}
    return Settings.from_environment({"SEECHANGE_HOME": str(home), **names})


def test_defaults_lie_below_home(tmp_path):
    found = settings(tmp_path)
    assert (found.instrument, found.tag, found.config) == ("ls4", "current", ())
    assert found.archive == str(tmp_path / "archive")
    assert found.drop == tmp_path / "drop"
    assert found.dagster_home == tmp_path / "dagster"
    assert found.runs_at_once == available_cores()
    assert found.catalog is None


def test_home_is_var_of_the_project_and_absolute():
    home = Settings.from_environment({}).home
    assert home.is_absolute()
    assert home.name == "var"


def test_a_relative_home_is_made_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert settings(Path("here")).dagster_home == tmp_path.resolve() / "here" / "dagster"


def test_the_catalog_of_the_home_is_found(tmp_path):
    (tmp_path / "catalog").mkdir()
    assert settings(tmp_path).catalog == str(tmp_path / "catalog")


def test_the_archive_of_gaia_is_no_file(tmp_path):
    catalog = settings(tmp_path, CATALOG="gaia").catalog
    assert catalog == "gaia"
    assert isinstance(open_sky_catalog(catalog, tmp_path), GaiaArchive)


def test_configuration_files_keep_their_order(tmp_path):
    assert settings(tmp_path, CONFIG="/b.yaml::/a.yaml").config == (Path("/b.yaml"), Path("/a.yaml"))


def test_an_archive_url_is_left_alone(tmp_path):
    assert settings(tmp_path, ARCHIVE="s3://bucket/survey").archive == "s3://bucket/survey"


def test_an_empty_variable_means_the_default(tmp_path):
    assert settings(tmp_path, INSTRUMENT="", UI_PORT="").instrument == "ls4"


@pytest.mark.parametrize(("name", "value"), [("MAX_RUNS", "many"), ("MAX_RUNS", "0"), ("UI_PORT", "70000")])
def test_an_impossible_value_names_its_variable(tmp_path, name, value):
    with pytest.raises(ParameterError, match=f"SEECHANGE_{name}"):
        settings(tmp_path, **{name: value})


@pytest.mark.parametrize("name", ["INSTRUMENT", "TAG"])
def test_names_pass_the_allow_list(tmp_path, name):
    with pytest.raises(InvalidName, match=f"SEECHANGE_{name}"):
        settings(tmp_path, **{name: "../etc"})


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg2"])
def test_every_spelling_of_postgres_gets_the_installed_driver(tmp_path, scheme):
    found = settings(tmp_path, POSTGRES_URL=f"{scheme}://user:pw@host:5433/other")
    assert found.postgres_url == "postgresql+psycopg2://user:pw@host:5433/other"
    assert found.database_url == "postgresql+psycopg2://user:pw@host:5433/seechange"
    assert found.dagster_url == "postgresql+psycopg2://user:pw@host:5433/seechange_dagster"


def test_the_password_is_shown_nowhere(tmp_path):
    found = settings(tmp_path, POSTGRES_URL="postgresql://user:hunter2@host/db")
    assert "hunter2" not in f"{found!r} {found} {found.model_dump_json()}"
    assert "hunter2" not in redacted(found.database_url)


@pytest.mark.parametrize("url", ["http://user:hunter2@host", "hunter2", "mysql://user:hunter2@host/db"])
def test_an_url_of_something_else_is_refused_without_repeating_it(tmp_path, url):
    with pytest.raises(ParameterError, match="SEECHANGE_POSTGRES_URL") as caught:
        _ = settings(tmp_path, POSTGRES_URL=url).postgres_url
    assert "hunter2" not in str(caught.value)


def test_without_services_the_error_says_what_to_do(tmp_path):
    with pytest.raises(ServiceUnavailable, match=r"seechange up.*SEECHANGE_POSTGRES_URL"):
        _ = settings(tmp_path).database_url
    with pytest.raises(ServiceUnavailable, match=r"seechange up.*SEECHANGE_KAFKA_SERVERS"):
        _ = settings(tmp_path).kafka_servers


def test_addresses_come_from_the_environment_then_from_the_state_file(tmp_path):
    state = {"postgres_url": "postgresql://file/db", "kafka_servers": "file:1", "ui_url": "http://ui"}
    (tmp_path / "services.json").write_text(json.dumps(state))
    found = settings(tmp_path)
    assert found.database_url == "postgresql+psycopg2://file/seechange"
    assert found.kafka_servers == "file:1"
    assert found.ui_url == "http://ui"
    named = settings(tmp_path, POSTGRES_URL="postgresql://named/db", KAFKA_SERVERS="named:1")
    assert named.database_url == "postgresql+psycopg2://named/seechange"
    assert named.kafka_servers == "named:1"


def test_another_process_gets_the_same_settings(tmp_path, monkeypatch):
    """Also where paths were relative: services run in another folder."""
    monkeypatch.chdir(tmp_path)
    secrets = {"SEECHANGE_POSTGRES_URL": "postgresql://u:pw@h/db", "SEECHANGE_QUEUE_URL": "redis://h/0"}
    given = {"CONFIG": "a.yaml:b.yaml", "ARCHIVE": "products", "UI_PORT": "0", "MAX_RUNS": "3", "SETTLE_S": "7.5"}
    found = settings(tmp_path, **given, **{name[10:]: value for name, value in secrets.items()})
    monkeypatch.chdir("/")
    again = Settings.from_environment(secrets | found.as_environment())
    assert again == found
    assert again.deployment == found.deployment
    assert "pw" not in " ".join(found.as_environment().values())


@pytest.mark.parametrize("variables", [{"CONFIG": "/a.yaml"}, {"WORKERS": "3"}, {"QUEUE_URL": "redis://:pw@h/0"}])
def test_other_settings_are_another_deployment(tmp_path, variables):
    assert settings(tmp_path).deployment != settings(tmp_path, **variables).deployment
    assert settings(tmp_path).deployment == settings(tmp_path).deployment


def test_a_changed_configuration_file_is_another_deployment(tmp_path):
    config = tmp_path / "site.yaml"
    found = settings(tmp_path, CONFIG=str(config))
    told = []
    for text in ("wcs: {}", "wcs: {}", "psf: {}"):
        config.write_text(text)
        deployed_version.cache_clear()
        told.append(found.deployment)
    assert told[0] == told[1] != told[2]


def test_a_catalog_that_appears_in_the_home_changes_no_deployment(tmp_path):
    before = settings(tmp_path).deployment
    (tmp_path / "catalog").mkdir()
    assert settings(tmp_path).deployment == before


@given(password=st.text(min_size=1, max_size=20).filter(lambda text: text.isprintable()))
def test_any_password_survives(password):
    import sqlalchemy

    url = sqlalchemy.URL.create("postgresql", "user", password, "host", 5432, "db").render_as_string(
        hide_password=False
    )
    assert sqlalchemy.make_url(psycopg2_url(url, "seechange")).password == password
