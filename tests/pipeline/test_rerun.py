"""The same input under the same recipe: the same bytes, no further row, object or alert."""

import signal
import time
from pathlib import Path


def test_rerun_changes_nothing(world, exposure):
    files, counts = world.files(), world.counts()
    answer = world.cli("process", exposure, "--json")
    assert answer.code == 0, answer.err
    assert [row["outcome"] for row in answer.json] == ["done", "done"]
    assert world.counts() == counts
    after = world.files()
    assert after.keys() == files.keys()
    assert [name for name in files if files[name] != after[name]] == []


def test_another_process_writes_the_same_bytes(world, exposure):
    files = world.files()
    process = world.spawn("process", exposure, "--ccd", "01", "--through", "zp")
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert world.files() == files


def test_sigkill_while_writing_leaves_nothing_bad(world, second_exposure):
    """Killed at a moment when a file is being written; the rerun completes and cleans up."""
    archive = Path(world.settings.archive)
    process = world.spawn("process", second_exposure, "--ccd", "01")
    deadline = time.monotonic() + 240
    while not any(archive.rglob(".partial-*")):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    problems = world.cli("verify", "--json").json["problems"]
    assert {problem["kind"] for problem in problems} <= {"orphan"}  # a whole file whose row did not follow
    rerun = world.cli("process", second_exposure, "--ccd", "01", "--json")
    assert rerun.code == 0, rerun.err
    assert rerun.json[0]["outcome"] == "done"
    assert world.cli("verify").code == 0
    assert not list(archive.rglob(".partial-*"))
