"""Jobs: threads that deliver to the main thread, stop, and call worker processes."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

pytest.importorskip("napari", reason="the plugin's tests need napari: pip install napari-seg[napari]")

from napari_seg.errors import Cancelled
from napari_seg.plugin.job import COMPARISON_WORKER, NETWORK_WORKER, Job, JobProgress, Jobs


def test_progress_in_words() -> None:
    assert str(JobProgress("Loading the model")) == "Loading the model …"
    assert str(JobProgress("Segmenting", 3, 24)) == "Segmenting: 3 of 24"
    assert str(JobProgress("Segmenting", 3, 24, 12.4)) == "Segmenting: 3 of 24, 12 s left"
    assert str(JobProgress("Segmenting", 3, 24, 75)) == "Segmenting: 3 of 24, 1 min 15 s left"


@pytest.fixture
def errors() -> list[Exception]:
    return []


@pytest.fixture
def jobs(errors: list[Exception]) -> Jobs:
    return Jobs(on_error=errors.append)


def test_callbacks_come_in_order_in_the_main_thread(jobs: Jobs, errors: list[Exception]) -> None:
    events: list[Any] = []

    def work(job: Job) -> str:
        job.post(note, "part")
        assert threading.current_thread() is not threading.main_thread()
        return "answer"

    def note(event: object) -> None:
        assert threading.current_thread() is threading.main_thread()
        events.append(event)

    jobs.start(work, on_result=note, on_end=lambda: note("end"))
    time.sleep(0.05)
    assert events == []  # nothing before it is delivered
    jobs.wait()
    assert events == ["part", "answer", "end"]
    assert errors == []


def test_an_error_is_delivered(jobs: Jobs, errors: list[Exception]) -> None:
    own: list[Exception] = []
    for handlers in ({}, {"on_error": own.append}):
        jobs.start(lambda _: 1 / 0, **handlers)
    jobs.wait()
    assert [type(error) for error in errors + own] == [ZeroDivisionError, ZeroDivisionError]


def endless(job: Job) -> None:
    while True:
        job.report("segmenting", 1, 1000)
        time.sleep(0.01)


def test_a_stopped_job_ends_and_an_abandoned_one_delivers_nothing(jobs: Jobs, errors: list[Exception]) -> None:
    ended: list[str] = []
    stopped = jobs.start(endless, on_end=lambda: ended.append("stopped"))
    abandoned = jobs.start(endless, on_end=lambda: ended.append("abandoned"))
    assert stopped.is_running
    stopped.stop()
    abandoned.abandon()
    jobs.wait(1)
    assert not stopped.is_running
    assert not abandoned.is_running
    assert (ended, errors) == (["stopped"], [])


def test_the_last_step_of_a_stage_is_reported_also_after_a_stop(jobs: Jobs) -> None:
    job = jobs.start(lambda job: time.sleep(0.1))
    job.stop()
    job.report("segmenting", 5, 5)
    assert job.progress == JobProgress("Segmenting", 5, 5)
    with pytest.raises(Cancelled):
        job.report("segmenting", 4, 5)
    jobs.wait()


def test_a_worker_process_is_ended_within_a_second(jobs: Jobs) -> None:
    job = jobs.start(lambda job: job.call(COMPARISON_WORKER, time.sleep, 60))
    while str(job.progress) != "Loading the model …":
        time.sleep(0.01)
    waiting = jobs.start(lambda job: job.call(COMPARISON_WORKER, time.sleep, 60))
    time.sleep(0.3)
    assert str(waiting.progress) == "Waiting for another run to end …"
    waiting.stop()
    began = time.monotonic()
    job.stop()
    jobs.wait(5)
    assert time.monotonic() - began < 1


@pytest.mark.usefixtures("in_process")
def test_work_that_writes_files_ends_between_steps(jobs: Jobs) -> None:
    steps: list[int] = []

    def write(progress: Any) -> None:
        for step in range(100):
            steps.append(step)
            time.sleep(0.02)
            progress("segmenting", step, 100)

    job = jobs.start(
        lambda job: job.call(NETWORK_WORKER, write, callbacks={"progress": job.report}, ends_between_steps=True)
    )
    while not steps:
        time.sleep(0.005)
    job.stop()
    jobs.wait(2)
    assert 0 < len(steps) < 100


def test_work_that_has_to_save_is_told_to_end(jobs: Jobs) -> None:
    asked: list[bool] = []
    job = jobs.start(
        lambda job: job.call(COMPARISON_WORKER, time.sleep, 1.0, poll=asked.append, stage="Saving"),
        on_result=asked.append,
    )
    while not any(asked):
        assert str(job.progress) in ("Starting …", "Waiting for another run to end …", "Saving …")
        if asked:
            job.stop()
        time.sleep(0.01)
    jobs.wait(5)
    assert asked[-1] is None  # the process was not ended


def test_closed_jobs_stop_and_deliver_nothing(jobs: Jobs, errors: list[Exception]) -> None:
    answers: list[Any] = []
    job = jobs.start(endless, on_end=lambda: answers.append(1))
    jobs.close()
    jobs.start(lambda _: 1, on_result=answers.append)
    jobs.wait(1)
    assert not job.is_running
    assert (answers, errors) == ([], [])
