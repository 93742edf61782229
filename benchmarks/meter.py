"""What the processes of an installation cost: CPU time and memory by part, read from /proc."""

import contextlib
import threading
import time
from collections import defaultdict
from pathlib import Path

import psutil

from resources.services import postgres
from resources.services.supervisor import Supervisor, children

#: Word of a command line -> the part of the system it belongs to; the first that fits counts.
PARTS = {
    "celery": "workers",
    "postgres": "postgres",
    "dagster._daemon": "daemon",
    "dagster_webserver": "web server",
    "grpc": "code server",
    "code-server": "code server",
    "valkey": "queue",
    "tansu": "broker",
    "resources.services": "keeper",
}
_PERIOD_S = 2.0


def part_of(command: str) -> str:
    """Which part of the system a command line belongs to."""
    return next((part for word, part in PARTS.items() if word in command), "other")


def processes(home: Path) -> dict[str, list[psutil.Process]]:
    """Every living process of a home by part. The embedded Postgres is found by its pid file: it carries no marker."""
    found: dict[str, list[psutil.Process]] = defaultdict(list)
    server = postgres.find(home)
    if server is not None:
        found["postgres"] += [server, *children(server)]
    for process in Supervisor(home).leftovers():
        with contextlib.suppress(psutil.Error):
            part = part_of(" ".join(process.cmdline()))
            if part != "postgres":
                found[part].append(process)
    return found


class Meter(threading.Thread):
    """CPU time of every process of a home, and samples of their memory.

    Attributes
    ----------
    samples : list of (seconds since the start, part -> resident MB)
        Shared pages count for each process; of ``postgres`` only what no other process shares counts.
    """

    def __init__(self, home: Path, period_s: float = _PERIOD_S) -> None:
        super().__init__(daemon=True)
        self._home, self._period_s = home, period_s
        self._spent: dict[str, float] = {}
        self._begun: dict[str, float] = {}
        self._end = threading.Event()
        self._start = time.monotonic()
        self.samples: list[tuple[float, dict[str, float]]] = []

    def run(self) -> None:
        """Sample until `stop`."""
        while not self._end.wait(self._period_s):
            self._look()

    def begin(self) -> None:
        """Count CPU time from here on."""
        self._look()
        self._begun = dict(self._spent)
        self._start = time.monotonic()
        self.samples.clear()

    def stop(self) -> dict[str, float]:
        """CPU seconds by part since `begin`, or since each process started."""
        self._end.set()
        if self.is_alive():
            self.join()
        with contextlib.suppress(psutil.Error):
            self._look()
        return {part: round(spent - self._begun.get(part, 0.0), 2) for part, spent in self._spent.items()}

    def peaks(self) -> dict[str, int]:
        """Largest resident memory by part [MB]."""
        parts = {part for _, sample in self.samples for part in sample}
        return {part: round(max(sample.get(part, 0.0) for _, sample in self.samples)) for part in sorted(parts)}

    def _look(self) -> None:
        spent: dict[str, float] = defaultdict(float)
        resident: dict[str, float] = defaultdict(float)
        for part, found in processes(self._home).items():
            for process in found:
                with contextlib.suppress(psutil.Error):
                    # Children that have ended are in their parent's times: connections of Postgres, old workers.
                    spent[part] += sum(process.cpu_times()[:4])
                    memory = process.memory_info()
                    resident[part] += (memory.rss - (memory.shared if part == "postgres" else 0)) / 2**20
        if spent:  # else everything has been stopped
            self._spent = {part: max(seconds, self._spent.get(part, 0.0)) for part, seconds in spent.items()}
            self.samples.append((time.monotonic() - self._start, dict(resident)))
