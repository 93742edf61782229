"""Start, find again and stop detached processes, never a stranger's.

A pid alone does not name a process: after a crash or a reboot the number may belong to something else. The pid file
therefore keeps the start time too, and every process we start (and whatever it starts) carries `MARKER` in its
environment, so that children that outlive their parent are found and stopped as well.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from resources.services.logs import end_of, rotate
from seechange_assets.errors import ServiceUnavailable
from seechange_assets.names import checked_name

MARKER = "SEECHANGE_SERVICE_OF"
# A start time is read with a resolution of 10 ms and moves when the system clock is stepped.
START_TIME_TOLERANCE_S = 2.0


@dataclass(frozen=True, slots=True)
class Supervisor:
    """Named background processes of one home.

    Parameters
    ----------
    home : Path
        Absolute; pid files go to ``home/run``, output to ``home/logs``.
    """

    home: Path

    def start(
        self,
        name: str,
        command: Sequence[str],
        *,
        address: str = "",
        version: str = "",
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
    ) -> psutil.Process:
        """Start `command` in a session of its own; a process of that name that is still running is returned instead.

        `address` is what it will listen on and `version` what it was made of, kept for `address()` and `version()`.
        """
        running = self.find(name)
        if running is not None:
            return running
        self.log_file(name).parent.mkdir(parents=True, exist_ok=True)
        rotate(self.log_file(name))
        with self.log_file(name).open("ab") as log:
            child = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env={**os.environ, **(environment or {}), MARKER: str(self.home)},
                start_new_session=True,  # a Ctrl-C in the terminal must not reach it
                preexec_fn=_restore_signals,  # noqa: PLW1509 (it takes no lock)
            )
        process = psutil.Process(child.pid)
        self._write_pid_file(name, process, {"address": address, "version": version})
        return process

    def find(self, name: str) -> psutil.Process | None:
        """The running process of that name, or None."""
        try:
            recorded = json.loads(self.pid_file(name).read_text())
            process = psutil.Process(int(recorded["pid"]))
            same = abs(process.create_time() - float(recorded["started"])) < START_TIME_TOLERANCE_S
            return process if same and is_alive(process) else None
        except (FileNotFoundError, ValueError, KeyError, TypeError, psutil.NoSuchProcess):
            return None

    def address(self, name: str) -> str:
        """What the process of that name listens on, as given to `start`."""
        return str(json.loads(self.pid_file(name).read_text())["address"])

    def version(self, name: str) -> str:
        """What the process of that name was made of, as given to `start`; empty if it was started without."""
        return str(json.loads(self.pid_file(name).read_text()).get("version", ""))

    def stop(self, name: str, *, patience_s: float = 20.0, with_children: bool = True) -> bool:
        """Stop the process of that name and its children; True if it was running.

        The keeper is stopped without: what it had to start again are services of their own.
        """
        process = self.find(name)
        if process is not None:
            family = [process, *(children(process) if with_children else ())]
            # Only the leader is told: it stops its children in its own order.
            stop_all([process], patience_s=patience_s)
            stop_all(family, patience_s=patience_s)
        self.pid_file(name).unlink(missing_ok=True)
        return process is not None

    def leftovers(self) -> list[psutil.Process]:
        """Processes started under this home, directly or not, that are alive."""
        return [process for process in psutil.process_iter() if _carries(process, MARKER, str(self.home))]

    def wait_until_ready(
        self, name: str, process: psutil.Process, ready: Callable[[], bool], *, timeout_s: float
    ) -> None:
        """Poll `ready` until it is true.

        Raises
        ------
        ServiceUnavailable
            If the process ends or `timeout_s` passes first; names the log file and its last line.
        """
        give_up = time.monotonic() + timeout_s
        while not ready():
            if not is_alive(process):
                raise ServiceUnavailable(f"{name} ended while starting: {self._last_line(name)}")
            if time.monotonic() > give_up:
                raise ServiceUnavailable(f"{name} is not ready after {timeout_s:.0f} s: {self._last_line(name)}")
            time.sleep(0.1)

    def pid_file(self, name: str) -> Path:
        """Where the pid and start time are kept."""
        return self.home / "run" / f"{checked_name(name, 'service')}.json"

    def log_file(self, name: str) -> Path:
        """Where the output goes."""
        return self.home / "logs" / f"{checked_name(name, 'service')}.log"

    def _write_pid_file(self, name: str, process: psutil.Process, told: Mapping[str, str]) -> None:
        path = self.pid_file(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)  # a version is a hash of passwords too
        path.write_text(json.dumps({"pid": process.pid, "started": process.create_time(), **told}))

    def _last_line(self, name: str) -> str:
        lines = end_of(self.log_file(name)).split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "no output")
        return f"{last[:200]} (log: {self.log_file(name)})"


def is_alive(process: psutil.Process) -> bool:
    """Whether it runs; a zombie does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def stop_all(processes: Iterable[psutil.Process], *, patience_s: float) -> None:
    """Ask every process to end (SIGTERM), wait, and kill those that do not."""
    alive = [process for process in processes if is_alive(process)]
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    _, stubborn = psutil.wait_procs(alive, timeout=patience_s)
    for process in stubborn:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(stubborn, timeout=5.0)


def free_port(preferred: int = 0) -> int:
    """`preferred` if nothing listens there on loopback, else any free port."""
    for port in (preferred, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                return int(probe.getsockname()[1])
    raise ServiceUnavailable("no free port on 127.0.0.1")


def port_is_free(port: int) -> bool:
    """Whether nothing listens on loopback at `port`."""
    return free_port(port) == port


def _restore_signals() -> None:
    # A shell starts background jobs with SIGINT ignored; Dagster maps SIGTERM to SIGINT's handler and would then
    # ignore both. Whoever blocks signals for a while must not hand that down to a service either.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})


def children(process: psutil.Process) -> list[psutil.Process]:
    """Every living process below one; one that has ended and that nobody has asked about (a zombie) is not."""
    try:
        return [child for child in process.children(recursive=True) if is_alive(child)]
    except psutil.NoSuchProcess:
        return []


def _carries(process: psutil.Process, variable: str, value: str) -> bool:
    """Whether `variable` has `value` in the environment of the process; never true for ourselves."""
    try:
        return process.pid != os.getpid() and is_alive(process) and process.environ().get(variable) == value
    except (psutil.AccessDenied, psutil.NoSuchProcess, OSError):
        return False
