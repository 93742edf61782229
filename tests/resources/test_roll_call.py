"""When a run counts as lost: not for one answer, not while a worker is silent, but soon after a worker has died."""

import time
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
from dagster import DagsterRun
from dagster._core.launcher import WorkerStatus
from dagster_celery.tags import DAGSTER_CELERY_TASK_ID_TAG

from resources import run_launcher
from resources.roll_call import SILENT_ROUNDS, RollCall

ROUND_S = 7.0


def verdicts(*rounds, task="t", needed=2):
    """Whether the task is missed after each round."""
    roll = RollCall(rounds=needed)
    told = []
    for number, answers in enumerate(rounds):
        roll.hear(number * ROUND_S, answers)
        told.append(roll.missed_since(task) is not None)
    return told


def test_a_task_in_hand_is_not_missed():
    assert verdicts({"a": {"t"}}, {"a": {"t"}}, {"a": {"t"}}) == [False] * 3


def test_one_answer_is_not_enough_and_two_are():
    assert verdicts({"a": {"t"}}, {"a": set()}, {"a": set()}) == [False, False, True]


def test_a_task_seen_in_between_is_not_missed():
    assert verdicts({"a": set()}, {"a": {"t"}}, {"a": set()}) == [False] * 3


def test_rounds_that_nobody_answers_do_not_count():
    assert verdicts({"a": {"t"}}, {"a": set()}, None, {"a": set()}, None, {}) == [False] * 6


def test_a_silent_worker_makes_an_answer_incomplete():
    """Of two parents the one with the task is slow for some rounds."""
    both, slow = {"a": set(), "b": {"t"}}, {"a": set()}
    assert verdicts(both, *[slow] * (SILENT_ROUNDS - 1), both, slow) == [False] * (SILENT_ROUNDS + 2)


def test_a_newcomer_does_not_make_up_for_one_that_is_silent():
    assert verdicts({"a": set(), "b": {"t"}}, {"a": set(), "c": set()}, {"a": set(), "c": set()}) == [False] * 3


def test_a_dead_worker_is_given_up_within_40_s():
    told = verdicts({"a": set(), "b": {"t"}}, *[{"a": set()}] * (SILENT_ROUNDS + 1))
    assert told == [False] * (SILENT_ROUNDS + 1) + [True]
    assert told.index(True) * ROUND_S <= 40


def test_a_worker_that_is_started_again_is_not_waited_for():
    assert verdicts({"a": {"t"}}, None, {"a": set()}, {"a": set()}) == [False, False, False, True]


def test_it_says_since_when():
    roll = RollCall(rounds=2)
    for asked in (1.0, 2.0, 3.0):
        roll.hear(asked, {"a": set()})
    assert roll.missed_since("t") == 2.0
    assert roll.missed_since(None) == 2.0


@pytest.fixture
def launcher(tmp_path, monkeypatch):
    """A launcher whose workers answer what `launcher.answers` says, asked at each check."""
    monkeypatch.setenv("SEECHANGE_QUEUE_URL", "redis://127.0.0.1:1/0")
    launcher = run_launcher.WarmWorkerLauncher(str(tmp_path))
    launcher.answers = {"a": [{"id": "mine"}]}
    monkeypatch.setattr(run_launcher, "ask_workers", lambda *_: launcher.answers)
    monkeypatch.setattr(run_launcher, "_ANSWER_IS_FRESH_S", -1.0)
    launcher.record = SimpleNamespace(start_time=time.time() - 3600)
    launcher.instance = Mock(get_run_record_by_id=lambda _id: launcher.record)
    launcher.register_instance(launcher.instance)
    return launcher


def check(launcher, task="mine"):
    tags = {DAGSTER_CELERY_TASK_ID_TAG: task} if task else {}
    return launcher.check_run_worker_health(DagsterRun("job", tags=tags)).status


def test_a_run_without_a_task_is_left_alone(launcher):
    """`seechange process` executes it, beside warm workers that know nothing of it."""
    assert [check(launcher, task=None) for _ in range(4)] == [WorkerStatus.RUNNING] * 4


def test_a_run_whose_task_is_gone_has_failed_at_the_second_answer(launcher):
    assert check(launcher) is WorkerStatus.RUNNING
    launcher.answers = {"a": []}
    assert [check(launcher), check(launcher)] == [WorkerStatus.RUNNING, WorkerStatus.FAILED]


def test_no_answer_is_no_verdict(launcher):
    launcher.answers = None
    assert [check(launcher) for _ in range(4)] == [WorkerStatus.RUNNING] * 4


def test_a_run_that_has_begun_since_is_not_lost(launcher):
    launcher.answers = {"a": []}
    launcher.record.start_time = time.time()
    assert [check(launcher) for _ in range(3)] == [WorkerStatus.RUNNING] * 3


def test_two_checks_of_one_round_are_one_answer(launcher, monkeypatch):
    monkeypatch.setattr(run_launcher, "_ANSWER_IS_FRESH_S", 60.0)
    launcher.answers = {"a": []}
    assert [check(launcher) for _ in range(4)] == [WorkerStatus.RUNNING] * 4


def test_what_a_person_may_look_for_needs_no_result_backend(launcher):
    tags = {DAGSTER_CELERY_TASK_ID_TAG: "mine"}
    assert "mine" in launcher.get_run_worker_debug_info(DagsterRun("job", tags=tags))
