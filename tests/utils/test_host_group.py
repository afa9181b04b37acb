"""Exchanges on the host, and how processes part: pytest tests/utils/test_host_group.py"""

import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from slowfast.engine.interrupt import Watch
from slowfast.utils import distributed
from slowfast.utils.host_group import DelayedMax, host_min

THREADS = Path("/proc/self/task")


def gloo_threads() -> list[str]:
    """Threads of this process that hold the tensors of a process group."""
    names = [(thread / "comm").read_text().strip() for thread in THREADS.iterdir()]
    return [name for name in names if "gloo_runloop" in name]


def part(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    assert host_min(3 + rank) == 3
    exchange = DelayedMax()
    offered = [exchange(10 * number + rank) for number in range(3)]
    busy = gloo_threads()
    distributed.leave()  # with an exchange that nobody has asked for
    torch.save((offered, len(busy), gloo_threads()), f"{folder}/{rank}.pt")


def end_a_watch(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    late = Path(folder) / "late"
    watch = Watch()
    with watch:
        watch.agree()
        distributed.barrier()
        if rank == 1:
            time.sleep(0.5)
            late.touch()
        watch.agree()
    torch.save((watch._latest_wish._pending is None, late.exists()), f"{folder}/{rank}.pt")
    distributed.leave()
    distributed.leave()  # it may be said twice


def results(function, folder: Path) -> list:
    mp.spawn(function, (str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.skipif(not THREADS.exists(), reason="threads are counted in /proc")
def test_no_thread_works_for_a_group_after_leaving_it(tmp_path):
    for offered, busy, left in results(part, tmp_path):
        assert offered == [0, 1, 11]  # the largest of the call before
        assert busy > 0
        assert left == []


def test_a_watch_ends_when_its_last_exchange_has(tmp_path):
    assert results(end_a_watch, tmp_path) == [(True, True), (True, True)]


def test_a_group_is_made_once_per_world(tmp_path):
    made = []

    def make():
        made.append(dist.new_group())
        return made[-1]

    for turn in range(2):
        dist.init_process_group("gloo", init_method=f"file://{tmp_path}/{turn}", rank=0, world_size=1)
        try:
            assert distributed.get_group("test", make) is distributed.get_group("test", make)
        finally:
            distributed.leave()
    assert len(made) == 2
    assert made[0] is not made[1]
