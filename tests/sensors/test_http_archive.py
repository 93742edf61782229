"""An archive polled over HTTP: a local server that answers as NOIRLab's does, well or badly."""

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import dagster as dg
import pytest
import sqlalchemy as sa

from sensors.http_archive import MAX_TRIES, MAX_WAITING, http_archive
from sql.models import RejectedFileRow


class Server(ThreadingHTTPServer):
    """Holds files by MD5; ``chunk`` cuts every answer short after so many bytes."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.records, self.contents, self.searches, self.ranges = [], {}, [], []
        self.answer, self.chunk, self.down, self.refusal = None, None, False, 404
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def add(self, name, content, updated):
        md5 = hashlib.md5(content).hexdigest()
        self.contents[md5] = content
        path = f"/net/archive/{name}"
        record = {"md5sum": md5, "archive_filename": path, "filesize": len(content), "updated": updated}
        self.records.append(record)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.0"

    def log_message(self, *arguments):
        pass

    def do_POST(self):
        search = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.searches.append((self.path, search))
        (since,) = [clause[1] for clause in search["search"] if clause[0] == "updated"]
        found = sorted((r for r in self.server.records if r["updated"] >= since), key=lambda r: r["updated"])
        limit = int(re.search(r"limit=(\d+)", self.path)[1])
        answer = self.server.answer or json.dumps([{"PARAMETERS": {"limit": limit}, "HEADER": {}}, *found[:limit]])
        self.send_response(200)
        self.end_headers()
        self.wfile.write(answer.encode())

    def do_GET(self):
        content = self.server.contents.get(self.path.strip("/").rsplit("/", 1)[-1])
        if content is None or self.server.down:
            self.send_error(503 if self.server.down else self.server.refusal)
            return
        asked = self.headers.get("Range")
        self.server.ranges.append(asked)
        first = int(re.search(r"bytes=(\d+)-", asked)[1]) if asked else 0
        self.send_response(206 if asked else 200)
        self.end_headers()
        self.wfile.write(content[first:][: self.server.chunk])


@pytest.fixture
def server():
    server = Server()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def drop(tmp_path):
    return tmp_path / "drop"


@pytest.fixture
def tick(server, drop, database):
    """Evaluate the sensor, carry its cursor on; what it says."""
    url = f"http://127.0.0.1:{server.server_address[1]}/"
    settings = SimpleNamespace(poll_url=url, drop=drop, instrument="decam")
    cursor = json.dumps({"since": "2026-11-22T00:00:00", "done": []})

    def evaluate():
        nonlocal cursor
        result = http_archive(
            dg.build_sensor_context(cursor=cursor, resources={"settings": settings, "database": database})
        )
        if isinstance(result, dg.SkipReason):
            return result.skip_message
        cursor = result.cursor
        return result.skip_reason.skip_message

    return evaluate


def names(drop):
    return sorted(path.name for path in drop.iterdir())


def at(second):
    return f"2026-11-22T01:00:{second:02d}"


def test_new_files_come_once_oldest_first(server, drop, tick):
    for number in (3, 1, 2):
        server.add(f"c4d_{number}.fits.fz", b"pixels %d" % number, at(number))
    server.add("old.fits.fz", b"before", "2026-11-21T23:00:00")
    assert tick() == "3 files fetched"
    assert names(drop) == ["c4d_1.fits.fz", "c4d_2.fits.fz", "c4d_3.fits.fz"]
    assert (drop / "c4d_2.fits.fz").read_bytes() == b"pixels 2"
    path, search = server.searches[0]
    assert path.startswith("/api/adv_search/find/?rectype=file")
    assert ["instrument", "decam"] in search["search"]
    for file in drop.iterdir():
        file.unlink()  # registered
    assert tick() == "0 files fetched"
    server.add("c4d_4.fits.fz", b"of the same second", at(3))
    assert tick() == "1 files fetched"
    assert names(drop) == ["c4d_4.fits.fz"]


def test_a_few_files_at_a_time(server, drop, tick):
    for number in range(8):
        server.add(f"c4d_{number}.fits", b"pixels %d" % number, at(number))
    assert tick() == "5 files fetched"
    assert tick() == "3 files fetched"
    assert len(names(drop)) == 8
    assert len(server.ranges) == 8


def test_a_broken_transfer_goes_on_where_it_was(server, drop, tick):
    content = bytes(range(256)) * 40
    server.add("c4d.fits", content, at(1))
    server.chunk = 6000
    assert "goes on at the next tick" in tick()
    assert [name for name in names(drop) if not name.startswith(".")] == []
    assert tick() == "1 files fetched"
    assert server.ranges == [None, "bytes=6000-"]
    assert (drop / "c4d.fits").read_bytes() == content
    assert names(drop) == ["c4d.fits"]


def test_other_bytes_than_announced_are_thrown_away(server, drop, tick):
    server.add("bad.fits", b"pixels", at(1))
    server.contents[server.records[0]["md5sum"]] = b"PIXELS"
    server.add("good.fits", b"more pixels", at(2))
    assert "its record says" in tick()
    assert names(drop) == ["good.fits"]
    server.contents[server.records[0]["md5sum"]] = b"pixels"
    assert tick() == "1 files fetched"
    assert names(drop) == ["bad.fits", "good.fits"]


@pytest.mark.parametrize("refusal", [403, 404])
def test_a_file_that_is_refused_is_given_up_and_others_go_on(server, drop, tick, database, refusal):
    """The cursor stays at it until then, so at last nothing else would be listed."""
    server.refusal = refusal
    server.add("refused.fits", b"not for you", at(1))
    del server.contents[server.records[0]["md5sum"]]
    server.add("good.fits", b"good", at(2))
    for _ in range(MAX_TRIES):
        assert "does not give refused.fits" in tick()
        assert server.searches[-1][1]["search"][-1][1] <= at(1)
    assert tick() == "0 files fetched"
    tick()
    assert server.searches[-1][1]["search"][-1][1] == at(2)
    assert names(drop) == ["good.fits"]
    with database.session() as session:
        (row,) = session.scalars(sa.select(RejectedFileRow))
    assert (row.name, row.error) == ("refused.fits", "FileUnavailable")
    assert str(refusal) in row.message


def test_an_archive_that_is_down_is_asked_for_ever(server, drop, tick, database):
    server.add("good.fits", b"good", at(1))
    server.down = True
    for _ in range(2 * MAX_TRIES):
        assert "503" in tick()
    server.down = False
    assert tick() == "1 files fetched"


def test_wrong_bytes_are_given_up_too(server, drop, tick, database):
    server.add("bad.fits", b"pixels", at(1))
    server.contents[server.records[0]["md5sum"]] = b"PIXELS"
    for _ in range(MAX_TRIES):
        assert "its record says" in tick()
    assert tick() == "0 files fetched"


@pytest.mark.parametrize("name", ["../../evil.fits", ".hidden.fits", "a b.fits", "x.fits;rm", "notes.txt"])
def test_a_name_cannot_leave_the_directory(server, drop, tick, name):
    server.add(name, b"pixels", at(1))
    server.add("good.fits", b"good", at(2))
    tick()
    assert set(names(drop)) <= {"good.fits", "evil.fits"}
    assert sorted(path.name for path in drop.parent.iterdir()) == ["drop"]


@pytest.mark.parametrize("wrong", [{"md5sum": "../x"}, {"md5sum": None}, {"filesize": None}])
def test_records_that_are_none_are_passed_by(server, drop, tick, wrong):
    server.add("strange.fits", b"pixels", at(1))
    server.add("good.fits", b"good", at(2))
    server.records[0] |= wrong
    tick()
    assert "good.fits" in names(drop)


@pytest.mark.parametrize("answer", ["<html>maintenance</html>", '{"errorMessage": "bad"}'])
def test_an_archive_that_is_ill_is_tried_again(server, drop, tick, answer):
    server.add("good.fits", b"good", at(2))
    server.answer = answer
    assert "127.0.0.1" in tick()
    server.answer = None
    assert tick() == "1 files fetched"


def test_nothing_is_fetched_into_a_full_directory(drop, tick):
    drop.mkdir()
    for number in range(MAX_WAITING):
        (drop / f"waiting_{number}.fits").touch()
    assert "full enough" in tick()


def test_it_is_off_and_needs_an_address(tmp_path):
    assert http_archive.default_status is dg.DefaultSensorStatus.STOPPED
    settings = SimpleNamespace(poll_url=None, drop=tmp_path, instrument="decam")
    assert (
        "SEECHANGE_POLL_URL"
        in http_archive(dg.build_sensor_context(resources={"settings": settings, "database": None})).skip_message
    )
    settings.poll_url = "file:///etc"
    assert (
        "http://"
        in http_archive(dg.build_sensor_context(resources={"settings": settings, "database": None})).skip_message
    )
