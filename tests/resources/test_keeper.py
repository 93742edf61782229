"""The keeper's loop, its line in the status, and the reports it serves."""

import http.client
import sys
import urllib.request
from urllib.parse import urlsplit

import pytest
import sqlalchemy

from resources import services
from resources.services import dagster_ui, keeper, postgres, reports
from resources.services.keeper import keep, serving_reports
from resources.services.supervisor import Supervisor
from resources.settings import Settings

FOREVER = [sys.executable, "-c", "import time; time.sleep(600)"]


@pytest.fixture
def home(tmp_path):
    """Settings of a home in which whatever was started is killed."""
    settings = Settings.from_environment({"SEECHANGE_HOME": str(tmp_path)})
    yield settings
    for process in Supervisor(tmp_path).leftovers():
        process.kill()


@pytest.mark.parametrize(
    "error", [sqlalchemy.exc.OperationalError("select", {}, OSError()), RuntimeError("odd"), OSError("disk")]
)
def test_no_error_ends_the_keeper(home, monkeypatch, caplog, error):
    looks = []

    def look(*_args):
        looks.append(1)
        raise error

    monkeypatch.setattr(keeper, "revive", look)
    keep(home, period_s=0.001, rounds=4)
    assert len(looks) == 4
    assert type(error).__name__ in caplog.text


def test_each_look_keeps_the_logs_small(home, monkeypatch):
    monkeypatch.setattr(keeper, "revive", lambda _settings: [])
    logs = [home.logs / "broker.log", postgres.log_file(home.home)]
    for log in logs:
        log.parent.mkdir(parents=True)
        with log.open("wb") as stream:
            stream.truncate(21 * 2**20)
    keep(home, period_s=0.001, rounds=1)
    assert [log.stat().st_size for log in logs] == [0, 0]


def test_the_status_has_a_line_where_there_should_be_a_keeper(home, monkeypatch):
    monkeypatch.setattr(dagster_ui, "complaints", lambda _url: [])
    supervisor = Supervisor(home.home)

    def line():
        return [service.state for service in services.status(home) if service.name == "keeper"]

    assert line() == []  # nothing is up, or all but Dagster
    supervisor.start(dagster_ui.NAME, FOREVER)
    assert line() == ["stopped"]
    supervisor.start(keeper.NAME, FOREVER)
    assert line() == ["running"]
    supervisor.stop(dagster_ui.NAME)
    assert line() == ["running"]


def get(url, path):
    """Status and body of a GET of exactly this path: a client like a browser would shorten ``..`` itself."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=5)
    connection.request("GET", path)
    answer = connection.getresponse()
    return answer.status, answer.read()


def test_reports_are_served_and_nothing_else(home):
    page = home.home / "reports" / "ls4" / "2026-11-22.html"
    page.parent.mkdir(parents=True)
    page.write_text("<p>a night</p>")
    assert home.reports_url is None
    with serving_reports(home):
        url = home.reports_url
        assert urlsplit(url).hostname == "127.0.0.1"
        assert get(url, "/ls4/2026-11-22.html") == (200, b"<p>a night</p>")
        assert home.state_file.exists()
        for outside in ("/../services.json", "/ls4/../../services.json", "/%2e%2e/services.json", "/services.json"):
            assert get(url, outside)[0] == 404, outside
        request = urllib.request.Request(f"{url}/ls4/2026-11-22.html", data=b"x", method="PUT")
        with pytest.raises(urllib.error.HTTPError, match="501"):
            urllib.request.urlopen(request, timeout=5)
    with pytest.raises(OSError, match="refused"):
        get(url, "/ls4/2026-11-22.html")


def test_a_taken_port_is_no_trouble(tmp_path):
    with reports.serve(tmp_path, 0) as first, reports.serve(tmp_path, first.server_port) as second:
        assert second.server_port != first.server_port
        assert get(reports.url_of(second), "/none.html")[0] == 404
        first.shutdown()
        second.shutdown()
