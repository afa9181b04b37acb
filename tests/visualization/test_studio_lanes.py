"""Whatever becomes of a job's process, the job says so and the next one is done."""

import threading
import time

import lane_work
import pytest

from slowfast.visualization.studio.lanes import Job, Lane, TooManyJobsError


@pytest.fixture
def lane():
    made = Lane("test", serve=lane_work.serve, stall_s=300.0, most_waiting=3)
    yield made
    made.close()


def ended(job, timeout=300.0):
    assert job.ended.wait(timeout), f"{job.function} is still {job.state}"
    return job


def running(job):
    end = time.monotonic() + 300
    while job.note == "" and time.monotonic() < end:
        time.sleep(0.02)
    assert job.state == "running"


def test_jobs_are_done_in_turn_by_one_process(lane):
    first = lane.submit(Job("count", {"to": 3}))
    second = lane.submit(Job("count", {"to": 5}, finish=lambda result: {"twice": 2 * result["counted"], **result}))
    assert ended(second).result["twice"] == 10
    assert first.result["counted"] == 3
    assert (second.done, second.total, second.note) == (5, 5, "counting")
    assert first.result["pid"] == second.result["pid"]
    assert first.shown()["result"] == first.result


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        ("crash", "the process that looked at it died (SIGSEGV)"),
        ("leave", "the process that looked at it died (exit status 7)"),
        ("refuse", "no frame can be decoded"),
        ("surprise", "ZeroDivisionError: by nothing"),
    ],
)
def test_a_job_that_fails_says_why_and_the_next_is_done(lane, function, reason):
    job = ended(lane.submit(Job(function, {})))
    assert (job.state, job.error) == ("failed", reason)
    assert "result" not in job.shown()
    assert ended(lane.submit(Job("count", {"to": 1}))).state == "done"


def test_a_running_job_is_cancelled_and_the_next_is_done(lane):
    job = lane.submit(Job("hang", {}))
    running(job)
    job.cancel()
    assert ended(job, 20).state == "cancelled"
    assert ended(lane.submit(Job("count", {"to": 1}))).state == "done"


def test_waiting_jobs_are_cancelled_and_counted(lane):
    first = lane.submit(Job("hang", {}))
    running(first)
    waiting = [lane.submit(Job("count", {"to": 1})) for _ in range(3)]
    with pytest.raises(TooManyJobsError, match="3 jobs are waiting"):
        lane.submit(Job("count", {"to": 1}))
    waiting[0].cancel()
    first.cancel()
    assert ended(waiting[2]).state == "done"
    assert [job.state for job in waiting] == ["cancelled", "done", "done"]


def test_a_job_that_hangs_is_ended():
    lane = Lane("test", serve=lane_work.serve, stall_s=0.5)
    try:
        ended(lane.submit(Job("count", {"to": 1})))  # the process is there
        job = ended(lane.submit(Job("hang", {})), 20)
        assert (job.state, job.error) == ("failed", "nothing happened for 0.5 s, so it was ended")
    finally:
        lane.close()


def test_closing_ends_what_runs_and_what_waits(lane):
    first, second = lane.submit(Job("hang", {})), lane.submit(Job("count", {"to": 1}))
    running(first)
    process = lane._process
    lane.close()
    assert (first.state, second.state) == ("cancelled", "cancelled")
    assert not process.is_alive()
    assert not any(thread.name == "studio test" for thread in threading.enumerate())
