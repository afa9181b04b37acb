"""pytest tests/engine/test_interrupt.py"""

import os
import signal
import subprocess
import sys

import pytest

from slowfast.engine.interrupt import EXIT_CODE, GRACE, Interrupted, Watch, Wish, dead_workers_named, forwarded


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_asks_to_stop_and_handlers_are_given_back(number):
    before = signal.getsignal(number)
    with Watch() as watch:
        assert watch.agree() is Wish.NOTHING
        assert watch.agree(Wish.SAVE) is Wish.SAVE
        os.kill(os.getpid(), number)
        assert watch.agree(Wish.SAVE) is Wish.STOP
        with pytest.raises(Interrupted, match=f"stopped by {signal.Signals(number).name}") as stopped:
            watch.check()
    assert stopped.value.code == EXIT_CODE == 75
    assert signal.getsignal(number) == before
    assert signal.set_wakeup_fd(-1) == -1


def test_batches_stop_between_two():
    seen = []

    def note(batch):
        seen.append(batch)
        if batch == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with Watch() as watch, pytest.raises(Interrupted):
        list(map(note, watch.over(range(5), 5, "counting")))
    assert seen == [0, 1, 2]


def test_a_signal_at_the_end_of_a_job_is_for_the_next():
    with Watch():
        os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(Interrupted), Watch() as watch:
        watch.check()
    with Watch() as watch:
        watch.check()


def test_signals_are_handed_on():
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    with forwarded([child.pid]):
        os.kill(os.getpid(), signal.SIGTERM)
    assert child.wait(timeout=300) == -signal.SIGTERM


STUCK = """
import os, signal, time
from slowfast.engine import interrupt
interrupt.GRACE = 0.5
with interrupt.Watch() as watch:
    watch.beat("a step that never ends")
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(1000)
"""


@pytest.mark.slow
def test_a_step_that_never_ends_does_not_hold_up_the_end():
    done = subprocess.run([sys.executable, "-c", STUCK], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == EXIT_CODE
    assert "Thread" in done.stderr  # the stack, where it was stuck
    assert GRACE > 60


def test_a_dead_worker_is_explained_and_other_errors_pass():
    with pytest.raises(RuntimeError, match=r"pid 12\).*lower DATA_LOADER.NUM_WORKERS"), dead_workers_named():
        raise RuntimeError("DataLoader worker (pid 12) ended unexpectedly (SIGKILL).")
    with pytest.raises(RuntimeError, match=r"^other$"), dead_workers_named():
        raise RuntimeError("other")


def test_a_process_that_is_gone_at_the_end_spoils_a_success_but_not_a_stop(monkeypatch):
    def fail():
        raise RuntimeError("Connection closed by peer")

    def run(job):
        with Watch() as watch:
            monkeypatch.setattr(watch._latest_wish, "finish", fail)
            job(watch)

    with pytest.raises(RuntimeError, match="closed by peer"):
        run(lambda watch: watch.beat("working"))
    with pytest.raises(Interrupted):
        run(Watch.stop)
