"""Dagster's web server, daemon and code server, as one supervised process tree (`dagster dev`)."""

import json
import os
import sys
import urllib.error
import urllib.request
import uuid
from pathlib import Path
from typing import Any

import psutil
import yaml

from resources.services.supervisor import Supervisor, children, free_port, is_alive, port_is_free
from resources.settings import DEFAULT_UI_PORT, Settings, project_root
from seechange_assets.errors import ServiceUnavailable

NAME = "dagster"
START_TIMEOUT_S = 180.0
#: The first look at a full window counts 100,000 partitions of each asset; 15 s, Dagster's own limit, is an error then.
STATEMENT_TIMEOUT_MS = 180_000
PARTS = ("dagster code-server", "dagster api grpc", "dagster_webserver", "dagster._daemon")
# Parallelism is runs; a thread pool in each of them would only make them wait for one another.
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
HEALTH = """{
  workspaceOrError { ... on Workspace { locationEntries { name locationOrLoadError {
    __typename ... on PythonError { message } } } } }
  instance { daemonHealth { allDaemonStatuses { daemonType required healthy } } }
}"""

#: The last tick that has ended, of each sensor and schedule.
TICKS = """{
  workspaceOrError { ... on Workspace { locationEntries { locationOrLoadError { ... on RepositoryLocation {
    repositories {
      sensors { name defaultStatus state: sensorState { ...last } }
      schedules { name defaultStatus state: scheduleState { ...last } }
  } } } } } }
}
fragment last on InstigationState {
  status
  ticks(limit: 1, statuses: [SKIPPED, SUCCESS, FAILURE]) { status error { message causes { message } } }
}"""
#: A run's longest wait in a queue the keeper cannot look into (RabbitMQ): of a lost one nothing else is known [s].
BLIND_START_TIMEOUT_S = 900


def find(supervisor: Supervisor) -> psutil.Process | None:
    """The parent of Dagster's processes, or None if it is not running."""
    return supervisor.find(NAME)


def is_whole(process: psutil.Process) -> bool:
    """Whether every part of `dagster dev` is there: it goes on without its code server, and nothing is requested."""
    commands = [" ".join(part.cmdline()) for part in children(process)]
    return all(any(part in command for command in commands) for part in PARTS)


def is_of(settings: Settings, supervisor: Supervisor) -> bool:
    """Whether a running Dagster was started with this version of the code and these settings."""
    return supervisor.version(NAME) == settings.deployment


def stop_unusable(settings: Settings, supervisor: Supervisor) -> None:
    """Stop a Dagster that lacks a part or is of another version: it keeps code, settings and the queue of its runs."""
    process = find(supervisor)
    if process is not None and not (is_of(settings, supervisor) and is_whole(process)):
        supervisor.stop(NAME)


def start(settings: Settings, supervisor: Supervisor) -> str:
    """Start Dagster unless it is running as it should; return the URL of its UI once it answers.

    Raises
    ------
    ServiceUnavailable
        If the port is taken or the web server does not come up.
    """
    stop_unusable(settings, supervisor)
    process = find(supervisor) or _launch(settings, supervisor)
    try:
        _wait(supervisor, process)
    except ServiceUnavailable:
        if is_alive(process):
            raise
        # It was found while it shut down, as it does when one of its processes dies.
        _wait(supervisor, _launch(settings, supervisor))
    return supervisor.address(NAME)


def _launch(settings: Settings, supervisor: Supervisor) -> psutil.Process:
    port = _port(settings)
    prepare_home(settings)
    close_orphaned_runs(settings)
    command = [sys.executable, "-m", "dagster", "dev", "--workspace", str(settings.workspace)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--log-level", "warning"]
    command += ["--db-statement-timeout", str(STATEMENT_TIMEOUT_MS)]
    return supervisor.start(
        NAME,
        command,
        address=f"http://127.0.0.1:{port}",
        version=settings.deployment,
        environment=environment(settings),
        folder=project_root(),
    )


def _wait(supervisor: Supervisor, process: psutil.Process) -> None:
    address = supervisor.address(NAME)
    supervisor.wait_until_ready(NAME, process, lambda: answers(address), timeout_s=START_TIMEOUT_S)


def environment(settings: Settings) -> dict[str, str]:
    """What the Dagster processes, and the runs they launch, need beside our own environment."""
    own = {
        "DAGSTER_HOME": str(settings.dagster_home),
        # `dagster dev` advises to use another command, in every process.
        "PYTHONWARNINGS": "ignore::UserWarning:dagster",
    }
    threads = {name: os.environ.get(name, value) for name, value in ONE_THREAD.items()}
    return {**threads, **settings.as_environment(), **own}


def prepare_home(settings: Settings) -> Path:
    """Write ``dagster.yaml`` into ``DAGSTER_HOME`` from the project's template; return the folder."""
    template = _template("dagster.yaml")
    template["storage"]["custom"]["config"]["home"] = str(settings.home)
    template["concurrency"]["runs"]["max_concurrent_runs"] = settings.runs_at_once
    if settings.uses_queue:
        template |= _template("dagster.celery.yaml")
        template["run_launcher"]["config"]["home"] = str(settings.home)
        if settings.queue_server is not None and not settings.queue_url.startswith("redis"):
            template["run_monitoring"]["start_timeout_seconds"] = BLIND_START_TIMEOUT_S
    settings.dagster_home.mkdir(parents=True, exist_ok=True)
    target = settings.dagster_home / "dagster.yaml"
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")  # several commands may write at once
    temporary.write_text("# Written by `seechange up` from dagster_home/dagster.yaml.\n" + yaml.safe_dump(template))
    temporary.replace(target)
    return settings.dagster_home


def ensure_home(settings: Settings) -> Path:
    """``DAGSTER_HOME`` with the ``dagster.yaml`` of the last `seechange up`; a first one where there is none yet.

    Dagster, workers and commands share it: what a command was told about launcher and limits is not theirs.
    """
    is_there = (settings.dagster_home / "dagster.yaml").is_file()
    return settings.dagster_home if is_there else prepare_home(settings)


def _template(name: str) -> dict[str, Any]:
    return dict(yaml.safe_load((project_root() / "dagster_home" / name).read_text()))


def close_orphaned_runs(settings: Settings) -> list[str]:
    """Mark as failed the runs whose worker died together with Dagster; return their ids.

    Only to be called while Dagster is down: what its code server had launched cannot be alive then. Left as they are,
    such runs would fill the queue's slots for ever.
    """
    import dagster as dg
    from dagster._core.storage.tags import GRPC_INFO_TAG

    unfinished = [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]
    with dg.DagsterInstance.from_config(str(settings.dagster_home)) as instance:
        runs = instance.get_runs(dg.RunsFilter(statuses=unfinished))
        orphans = [run for run in runs if GRPC_INFO_TAG in run.tags]
        for run in orphans:
            instance.report_run_failed(run, "Dagster was stopped while this run was in progress.")
        return [run.run_id for run in orphans]


def answers(ui_url: str) -> bool:
    """Whether the web server responds."""
    try:
        return "dagster_version" in _get(f"{ui_url}/server_info")
    except (OSError, ValueError):
        return False


def complaints(ui_url: str) -> list[str]:
    """What is wrong with the code locations and daemons, one line each; empty if all is well."""
    try:
        data = _get(f"{ui_url}/graphql", {"query": HEALTH})["data"]
    except (OSError, ValueError, KeyError) as error:
        return [f"the web server does not answer: {error}"]
    found = []
    for entry in data["workspaceOrError"].get("locationEntries", []):
        result = entry["locationOrLoadError"] or {"__typename": "PythonError", "message": "still loading"}
        if result["__typename"] == "PythonError":
            found.append(f"location {entry['name']}: {_last_line(result['message'])}")
    daemons = data["instance"]["daemonHealth"]["allDaemonStatuses"]
    ill = [daemon["daemonType"].lower() for daemon in daemons if daemon["required"] and not daemon["healthy"]]
    return found + ([f"no heartbeat yet from {', '.join(ill)}"] if ill else [])


def idle(ui_url: str) -> list[str]:
    """Which sensors and schedules are switched off but on by default, and whose last tick failed; one line each.

    Empty also if the web server does not tell: `complaints` says that.
    """
    try:
        entries = _get(f"{ui_url}/graphql", {"query": TICKS})["data"]["workspaceOrError"]["locationEntries"]
        loaded = [entry["locationOrLoadError"] or {} for entry in entries]
        repositories = [one for location in loaded for one in location.get("repositories", [])]
        return _idle([one for repository in repositories for one in repository["sensors"] + repository["schedules"]])
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _idle(listed: list[dict[str, Any]]) -> list[str]:
    """`idle` of what the query lists; one reason may be that of many sensors."""
    off = [one["name"] for one in listed if one["defaultStatus"] == "RUNNING" and one["state"]["status"] == "STOPPED"]
    failed: dict[str, list[str]] = {}
    for one in listed:
        ticks = one["state"]["ticks"]
        if one["state"]["status"] == "RUNNING" and ticks and ticks[0]["status"] == "FAILURE":
            failed.setdefault(_reason(ticks[0]["error"]), []).append(one["name"])
    lines = [f"switched off: {', '.join(off)}"] if off else []
    return lines + [f"the last tick of {', '.join(names)} failed: {reason}" for reason, names in failed.items()]


def _reason(error: dict[str, Any] | None) -> str:
    """First line of the error behind a failed tick: Dagster's own only says in which function it was raised."""
    chain = [error, *error["causes"]] if error else []
    lines = chain[-1]["message"].strip().splitlines() if chain else []
    return lines[0][:200] if lines else "without a reason"


def _port(settings: Settings) -> int:
    if settings.ui_port is None:
        return free_port(DEFAULT_UI_PORT)
    if settings.ui_port and not port_is_free(settings.ui_port):
        raise ServiceUnavailable(
            f"port {settings.ui_port} for the UI is taken: set SEECHANGE_UI_PORT to another, or to 0 for a free one"
        )
    return settings.ui_port or free_port()


def _get(url: str, body: dict[str, str] | None = None) -> Any:
    # No proxy: the address is on loopback, whatever the environment says about the web.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    content = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(  # noqa: S310 (always http on loopback)
        url, data=content, headers={"Content-Type": "application/json"}
    )
    with opener.open(request, timeout=10) as response:
        return json.load(response)


def _last_line(message: str) -> str:
    return message.strip().split("\n")[-1][:200]
