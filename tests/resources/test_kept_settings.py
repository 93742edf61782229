"""A fresh shell without the variables of the last `up` has the same settings, and secrets are never written down."""

import json
from pathlib import Path

import pytest

from resources import kept_settings, services
from resources.kept_settings import is_secret
from resources.services import broker, postgres, queue
from resources.services.supervisor import Supervisor, free_port
from resources.settings import Settings, deployed_version, known_variables
from seechange_assets.cli.main import main
from seechange_assets.errors import ParameterError, ServiceUnavailable

PUBLIC = {
    "INSTRUMENT": "demo", "CONFIG": "/a.yaml:/b.yaml", "TAG": "deep", "ARCHIVE": "s3://bucket/survey", "DROP": "/drop",
    "CATALOG": "gaia", "ORBITS": "/MPCORB.DAT", "GALAXIES": "/galaxies.fits", "WORKSPACE": "/workspace.yaml",
    "POSTGRES_URL": "postgresql://survey@host/db", "KAFKA_SERVERS": "broker:9092", "QUEUE_URL": "redis://host/0",
    "HOP_URL": "kafka://kafka.scimma.org", "KAFKA_PORT": "9", "UI_PORT": "0", "MAX_RUNS": "7", "WORKERS": "8",
    "WORKER_MEMORY_MB": "900", "POLL_URL": "https://archive", "SETTLE_S": "7.5",
}  # fmt: skip
SECRET = {
    "POSTGRES_URL": "postgresql://survey:hunter2@host/db",
    "QUEUE_URL": "redis://:hunter2@host/0",
    "KAFKA_SERVERS": "broker:9093",
    "KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
    "KAFKA_USERNAME": "hunter2",
    "KAFKA_PASSWORD": "hunter2",
    "HOP_USERNAME": "hunter2",
    "HOP_PASSWORD": "hunter2",
}


def named(variables):
    return {f"SEECHANGE_{name}": value for name, value in variables.items()}


def settings(home: Path, **variables: str) -> Settings:
    return Settings.from_environment(named({"HOME": str(home), **variables}))


@pytest.fixture
def answering(monkeypatch):
    """External servers answer; an embedded one must not be started."""
    monkeypatch.setattr(postgres, "ensure_databases", lambda _url: None)
    monkeypatch.setattr(postgres, "answer", lambda _url: "PostgreSQL")
    monkeypatch.setattr(broker, "answers", lambda *_args, **_kwargs: True)
    monkeypatch.setattr(queue, "answers", lambda *_args, **_kwargs: True)
    for server in (postgres, broker, queue):
        monkeypatch.setattr(server, "start", lambda *_args: pytest.fail("an embedded server was started"))


def test_every_variable_that_is_no_secret_is_kept(tmp_path):
    given = settings(tmp_path, **PUBLIC)
    given.keep()
    fresh = settings(tmp_path)
    assert fresh.kept == named(PUBLIC)
    assert fresh.lacking == ()
    assert fresh.model_dump() == given.model_dump()
    assert (fresh.deployment, fresh.as_environment()) == (given.deployment, given.as_environment())
    never = {name for name in known_variables() - PUBLIC.keys() if is_secret(name, "")}
    assert known_variables() == PUBLIC.keys() | never | {"HOME"}


def test_what_was_not_given_is_not_kept(tmp_path):
    settings(tmp_path, WORKERS="0", TAG="current", CONFIG="").keep()
    assert settings(tmp_path).kept == {}


def test_relative_paths_mean_those_of_the_last_up(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings(tmp_path, CONFIG="site.yaml").keep()
    monkeypatch.chdir("/")
    assert settings(tmp_path).config == (tmp_path / "site.yaml",)


def test_a_variable_that_is_given_wins_also_an_empty_one(tmp_path):
    settings(tmp_path, WORKERS="8", TAG="deep", CONFIG="/a.yaml", KAFKA_SERVERS="broker:9092").keep()
    found = settings(tmp_path, WORKERS="0", TAG="", CONFIG="/b.yaml", KAFKA_SERVERS="")
    assert (found.workers, found.tag, found.config) == (0, "current", (Path("/b.yaml"),))
    assert found.kafka_bootstrap is None
    assert found.kept == {}
    found.keep()
    assert settings(tmp_path).kept == {"SEECHANGE_CONFIG": "/b.yaml"}


def test_another_process_gets_these_settings_whatever_is_kept(tmp_path):
    given = settings(tmp_path, TAG="deep")
    settings(tmp_path, **PUBLIC | {"POSTGRES_URL": "", "KAFKA_SERVERS": "", "QUEUE_URL": "", "HOP_URL": ""}).keep()
    assert Settings.from_environment(given.as_environment()) == given


def test_the_queue_of_a_command_is_that_of_the_services(tmp_path):
    config = tmp_path / "site.yaml"
    config.write_text("wcs: {}")
    deployed_version.cache_clear()
    given = settings(tmp_path, CONFIG=str(config), INSTRUMENT="demo")
    assert settings(tmp_path).queue_name != given.queue_name
    given.keep()
    assert settings(tmp_path).queue_name == given.queue_name


def test_of_home_reads_what_its_home_keeps(tmp_path, monkeypatch):
    settings(tmp_path / "a", TAG="deep").home.mkdir()
    settings(tmp_path / "a", TAG="deep").keep()
    monkeypatch.setenv("SEECHANGE_HOME", str(tmp_path / "b"))
    assert (Settings.of_home(str(tmp_path / "a")).tag, Settings.of_home(None).tag) == ("deep", "current")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("POSTGRES_URL", "postgresql://user:hunter2@host/db"),
        ("POSTGRES_URL", "postgresql://host/db?user=u&password=hunter2"),
        ("POSTGRES_URL", "host=h password=hunter2"),
        ("QUEUE_URL", "redis://:hunter2@host/0"),
        ("QUEUE_URL", "redis://a;redis://:hunter2@b"),
        ("QUEUE_URL", "amqp://hunter2@host"),
        ("KAFKA_SERVERS", "hunter2@host:9092"),
        ("KAFKA_PASSWORD", "hunter2"),
        ("KAFKA_KEY_FILE", "/hunter2"),
        ("HOP_USERNAME", "hunter2"),
        ("HOP_URL", "kafka://hunter2@kafka.scimma.org"),
        ("POLL_URL", "https://archive/?token=hunter2"),
        ("ARCHIVE", "s3://key:hunter2@bucket"),
        ("CATALOG", "https://host/gaia.fits?signature=hunter2"),
    ],
)
def test_a_secret_is_not_written_and_its_name_is_told_when_it_is_absent(tmp_path, name, value):
    settings(tmp_path, **{name: value}).keep()
    assert "hunter2" not in (tmp_path / "settings.json").read_text()
    with pytest.raises(ServiceUnavailable, match=f"set SEECHANGE_{name}") as caught:
        services.start_all(settings(tmp_path), ui=False)
    assert "\n" not in str(caught.value)
    assert settings(tmp_path, **{name: ""}).lacking == ()


def test_only_the_owner_may_read_the_file(tmp_path):
    settings(tmp_path, TAG="deep").keep()
    assert (tmp_path / "settings.json").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"values": [], "secrets": []}'])
def test_a_spoilt_file_is_told(tmp_path, content):
    (tmp_path / "settings.json").write_text(content)
    with pytest.raises(ParameterError, match=r"settings\.json is spoilt"):
        settings(tmp_path)


class TestUp:
    def test_external_servers_without_a_secret_are_used_again(self, tmp_path, answering):
        given = {"POSTGRES_URL": "postgresql://host/db", "KAFKA_SERVERS": "broker:9092", "QUEUE_URL": "redis://host/0"}
        services.up(settings(tmp_path, **given), ui=False)
        services.down(settings(tmp_path))
        services.up(settings(tmp_path), ui=False)
        fresh = settings(tmp_path)
        assert (fresh.kafka_servers, fresh.queue_url) == ("broker:9092", "redis://host/0")
        assert fresh.database_url.startswith("postgresql+psycopg2://host/")
        services.ensure_workers(fresh, Supervisor(tmp_path))

    @pytest.mark.parametrize("missing", SECRET)
    def test_no_embedded_server_takes_the_place_of_one_with_a_secret(self, tmp_path, answering, missing):
        services.up(settings(tmp_path, **SECRET), ui=False)
        assert "hunter2" not in "".join(path.read_text() for path in tmp_path.glob("*.json"))
        services.down(settings(tmp_path))
        before = (tmp_path / "settings.json").read_text()
        again = settings(tmp_path, **{name: value for name, value in SECRET.items() if name != missing})
        with pytest.raises(ServiceUnavailable, match=rf"set SEECHANGE_{missing} \(empty: go without\)"):
            services.up(again, ui=False)
        assert (tmp_path / "settings.json").read_text() == before
        services.up(settings(tmp_path, **SECRET), ui=False)

    def test_commands_say_which_secret_they_lack(self, tmp_path):
        settings(tmp_path, **SECRET).keep()
        fresh = settings(tmp_path)
        assert fresh.uses_queue  # it must not write a Dagster without one
        with pytest.raises(ServiceUnavailable, match="SEECHANGE_POSTGRES_URL"):
            _ = fresh.database_url
        with pytest.raises(ServiceUnavailable, match=r"SEECHANGE_KAFKA_PASSWORD.*SEECHANGE_KAFKA_SERVERS"):
            _ = fresh.kafka_servers
        with pytest.raises(ServiceUnavailable, match="SEECHANGE_QUEUE_URL"):
            _ = fresh.queue_url
        told = {service.name: service for service in services.status(fresh)}
        assert not any(service.is_up for service in told.values())
        assert "SEECHANGE_KAFKA_PASSWORD" in told["broker"].detail

    def test_a_broker_that_is_given_up_needs_no_password(self, tmp_path):
        settings(tmp_path, **SECRET).keep()
        lacking = settings(tmp_path, KAFKA_SERVERS="").lacking
        assert not any(name.startswith("SEECHANGE_KAFKA") for name in lacking)

    def test_what_failed_is_not_kept(self, postgres_url, tmp_path):
        settings(tmp_path, TAG="deep").keep()
        wrong = settings(tmp_path, TAG="wrong", POSTGRES_URL=postgres_url, KAFKA_SERVERS=f"127.0.0.1:{free_port()}")
        with pytest.raises(ServiceUnavailable, match="SEECHANGE_KAFKA_SERVERS"):
            services.up(wrong, ui=False)
        assert settings(tmp_path).tag == "deep"


class TestCommand:
    """`seechange up` itself, with the services left out."""

    @pytest.fixture
    def up(self, tmp_path, monkeypatch, capsys):
        started = []

        def start(configuration, *, ui):
            configuration.keep()
            started.append(configuration)
            return []

        monkeypatch.setattr("seechange_assets.cli.services.start", start)

        def run(*options, **variables):
            with pytest.MonkeyPatch.context() as patch:
                for name, value in named({"HOME": str(tmp_path), **variables}).items():
                    patch.setenv(name, value)
                with pytest.raises(SystemExit) as stop:
                    main(["up", "--json", *options])
            out, err = capsys.readouterr()
            assert out == ("[]\n" if stop.value.code == 0 else "")
            return (started[-1] if started else None), err

        return run

    def test_a_plain_one_after_workers_keeps_them_and_says_so(self, up):
        assert up("--workers", "8", CONFIG="/site.yaml")[1] == ""
        found, told = up()
        assert (found.workers, found.config) == (8, (Path("/site.yaml"),))
        assert told == "kept from the last `up`: SEECHANGE_CONFIG=/site.yaml, SEECHANGE_WORKERS=8\n"

    def test_workers_are_turned_off_on_purpose_only(self, up):
        up("--workers", "8")
        found, told = up("--workers", "0")
        assert (found.workers, told) == (0, "")
        assert up()[0].workers == 0

    def test_a_misspelt_variable_is_one_line(self, up):
        found, told = up(KAFKA_SERVER="broker:9092")
        assert found is None
        assert told == "seechange: unknown variable SEECHANGE_KAFKA_SERVER; did you mean SEECHANGE_KAFKA_SERVERS?\n"


def test_a_mistake_in_a_parameter_is_told_before_anything_is_kept(tmp_path, monkeypatch):
    from seechange_assets.cli.services import start

    (tmp_path / "site.yaml").write_text("wcs: {no_such: 1}")
    with pytest.raises(ParameterError, match="no_such"):
        start(settings(tmp_path, CONFIG=str(tmp_path / "site.yaml"), INSTRUMENT="demo"), ui=False)
    assert [path.name for path in tmp_path.iterdir()] == ["site.yaml"]


@pytest.mark.parametrize(
    ("wrong", "right"),
    [("KAFKA_SERVER", "KAFKA_SERVERS"), ("CATALOGUE", "CATALOG"), ("WORKER", "WORKERS"), ("HOP_USER", "HOP_USERNAME")],
)
def test_an_unknown_variable_is_refused_with_the_nearest(tmp_path, wrong, right):
    with pytest.raises(ParameterError, match=rf"SEECHANGE_{wrong}; did you mean SEECHANGE_{right}\?"):
        settings(tmp_path, **{wrong: "x"})


def test_an_unknown_variable_is_refused_also_when_it_is_empty(tmp_path):
    with pytest.raises(ParameterError, match="SEECHANGE_CATALOGUE"):
        settings(tmp_path, CATALOGUE="")


def test_marks_of_services_and_tests_are_let_through(tmp_path):
    assert settings(tmp_path, SERVICE_OF="/home", TEST_DATA="/data").home == tmp_path


def test_the_file_says_what_it_holds(tmp_path):
    settings(tmp_path, TAG="deep", **SECRET).keep()
    content = json.loads((tmp_path / "settings.json").read_text())
    assert content == {"values": {"SEECHANGE_TAG": "deep"}, "secrets": sorted(named(SECRET))}
    assert kept_settings.read(tmp_path).secrets == tuple(content["secrets"])
