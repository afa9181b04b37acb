"""Items that crash or hang their process cost nothing but themselves."""

import multiprocessing
import os
import signal
import time

import pytest

from slowfast.datasets.isolated import Lost, run_isolated


def act(item):
    if item == "crash":
        os.kill(os.getpid(), signal.SIGKILL)
    if item == "leave":
        os._exit(3)
    if item == "hang":
        time.sleep(60)
    if item == "raise":
        raise ValueError("no such thing")
    return item * 2


def children():
    return multiprocessing.active_children()


@pytest.mark.parametrize("workers", [1, 3])
def test_every_item_is_answered_once(workers):
    found = list(run_isolated(act, range(10), workers=workers))
    assert sorted(found) == [(number, number * 2) for number in range(10)]
    assert not children()


def test_no_items():
    assert list(run_isolated(act, [])) == []


def test_a_crash_or_a_hang_loses_one_item():
    items = ["a", "crash", "b", "leave", "c", "hang", "d"]
    found = dict(run_isolated(act, items, workers=2, timeout_s=3))
    assert found[1] == Lost("its process died (SIGKILL)")
    assert found[3] == Lost("its process died (exit status 3)")
    assert found[5] == Lost("not done after 3 s")
    assert [found[number] for number in (0, 2, 4, 6)] == ["aa", "bb", "cc", "dd"]
    assert not children()


def test_errors_end_the_work():
    with pytest.raises(ValueError, match="no such thing"):
        list(run_isolated(act, ["raise", *"abcdef"], workers=2))
    assert not children()
    with pytest.raises(ValueError, match="at least one"):
        list(run_isolated(act, "ab", workers=0))


def test_stopping_early_leaves_no_process():
    found = run_isolated(act, ["a", "hang", "hang"], workers=3)
    assert next(found) == (0, "aa")
    found.close()
    assert not children()
