import sys
import time

from resources.services.logs import GENERATIONS, end_of, rotate
from resources.services.supervisor import Supervisor

WRITER = "import time\nwhile True:\n    print('a line of a service', flush=True)\n    time.sleep(0.005)"


def test_a_service_goes_on_at_the_new_end_of_its_log(tmp_path):
    supervisor = Supervisor(tmp_path)
    supervisor.start("writer", [sys.executable, "-c", WRITER])
    log = supervisor.log_file("writer")
    try:
        wait_for_bytes(log, 2000)
        assert not rotate(log, largest_bytes=10_000_000)
        assert rotate(log, largest_bytes=1000)
        wait_for_bytes(log, 100)
    finally:
        supervisor.stop("writer")
    assert log.read_bytes().startswith(b"a line")  # not zeros up to the old place
    assert log.with_name("writer.log.1").stat().st_size >= 2000


def test_a_few_generations_are_kept(tmp_path):
    log = tmp_path / "some.log"
    for number in range(GENERATIONS + 2):
        log.write_text(f"{number} " * 100)
        assert rotate(log, largest_bytes=100)
        assert log.read_text() == ""
    kept = sorted(tmp_path.glob("some.log.*"))
    assert [path.read_text()[0] for path in kept] == [str(GENERATIONS + 1 - n) for n in range(GENERATIONS)]


def test_a_log_that_is_too_large_is_rotated_when_the_service_starts(tmp_path, monkeypatch):
    supervisor = Supervisor(tmp_path)
    log = supervisor.log_file("sleeper")
    log.parent.mkdir()
    with log.open("wb") as stream:
        stream.truncate(21 * 2**20)
    supervisor.start("sleeper", [sys.executable, "-c", "import time; time.sleep(600)"])
    supervisor.stop("sleeper")
    assert log.stat().st_size < 1000
    assert log.with_name("sleeper.log.1").stat().st_size == 21 * 2**20


def test_no_log_is_nothing_to_rotate(tmp_path):
    assert not rotate(tmp_path / "none.log")


def test_only_the_end_of_a_log_is_read(tmp_path):
    log = tmp_path / "long.log"
    log.write_text("x" * 1_000_000 + "\nlast words\n")
    assert len(end_of(log)) == 64 * 2**10
    assert end_of(log).endswith("x\nlast words\n")


def wait_for_bytes(path, n_bytes):
    give_up = time.monotonic() + 20
    while not path.exists() or path.stat().st_size < n_bytes:
        assert time.monotonic() < give_up
        time.sleep(0.02)
